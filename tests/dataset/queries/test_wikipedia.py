import bz2
import itertools
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clipkit import UserError
from clipkit.dataset.queries import wikipedia
from clipkit.dataset.queries.wikipedia import Section, read_articles, sections_of

PAGE = """  <page>
    <title>{}</title>
    <ns>{}</ns>
    <id>1</id>
{}    <revision>
      <text>{}</text>
    </revision>
  </page>
"""
PAGES = "".join(
    (
        PAGE.format("Dog", 0, "", "The &lt;b&gt;dog&lt;/b&gt; barks &amp;amp; runs."),
        PAGE.format("Hound", 0, '    <redirect title="Dog" />\n', "#REDIRECT [[Dog]]"),
        PAGE.format("Whelp", 0, "", " #redirect [[Dog]]"),
        PAGE.format("Talk:Dog", 1, "", "Is it a dog?"),
        PAGE.format("Broken", 0, "", "<b>"),
        PAGE.format("Café &amp; Bar", 0, "", "é" * 300),
    )
)
DUMP = f'<mediawiki xml:lang="en">\n  <siteinfo></siteinfo>\n{PAGES}</mediawiki>\n'.encode()


def streams(parts: Iterable[bytes]) -> bytes:
    return b"".join(bz2.compress(part) for part in parts)


def read(sections: Iterable[Section], counts: Counter[str] | None = None) -> list[tuple[str, str]]:
    counts = Counter() if counts is None else counts
    return [(article.title, article.text) for section in sections for article in read_articles(section, counts, lambda _: None)]


def test_articles_of_the_main_namespace_are_read_and_the_rest_is_counted(tmp_path: Path) -> None:
    (path := tmp_path / "dump.xml.bz2").write_bytes(bz2.compress(DUMP))
    counts: Counter[str] = Counter()
    assert read(sections_of(path, 10**6), counts) == [("Dog", "The dog barks & runs."), ("Café & Bar", "é" * 300)]
    assert counts == {"pages": 6, "articles": 2, "redirects": 2, "other_namespaces": 1, "broken_pages": 1}
    (plain := tmp_path / "dump.xml").write_bytes(DUMP)
    assert read(sections_of(plain, 10**6)) == read(sections_of(path, 10**6))


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, len(DUMP) - 1), max_size=12), st.integers(1, 600), st.integers(1, 100))
def test_sections_of_any_streams_give_each_article_once(tmp_path: Path, cuts: list[int], section_bytes: int, block_bytes: int) -> None:
    bounds = [0, *sorted(set(cuts)), len(DUMP)]
    (path := tmp_path / "dump.xml.bz2").write_bytes(streams(DUMP[a:b] for a, b in itertools.pairwise(bounds)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wikipedia, "BLOCK_BYTES", max(40, 4 * block_bytes))
        sections = sections_of(path, section_bytes)
        advances: list[int] = []
        titles = [article.title for section in sections for article in read_articles(section, Counter(), advances.append)]
    assert titles == ["Dog", "Café & Bar"]
    assert (sections[0].start, sections[-1].end) == (0, path.stat().st_size)
    assert all(a.end == b.start for a, b in itertools.pairwise(sections))
    assert sum(advances) <= path.stat().st_size


def test_pages_that_are_passed_over_are_not_read_again(tmp_path: Path) -> None:
    (path := tmp_path / "dump.xml.bz2").write_bytes(bz2.compress(DUMP))
    counts: Counter[str] = Counter()
    found = [article.title for article in read_articles(sections_of(path, 10**6)[0], counts, lambda _: None, skip=1)]
    assert found == ["Café & Bar"]
    assert counts["pages"] == 5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (bz2.compress(DUMP)[:-20], "is cut short"),
        (streams([DUMP[:400], DUMP[400:700]]), "is cut short: it ends before </mediawiki>"),
        (bz2.compress(DUMP)[:60] + b"xxxx" + bz2.compress(DUMP)[64:], "is corrupt after byte 0"),
        (bz2.compress(DUMP) + b"something else", "is corrupt after byte"),
        (bz2.compress(b"600:10:AccessibleComputing\n" * 10), "does not begin as a MediaWiki dump does"),
    ],
)
def test_a_dump_that_is_not_whole_is_told(tmp_path: Path, content: bytes, message: str) -> None:
    (path := tmp_path / "dump.xml.bz2").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read(sections_of(path, 10**6))


def test_a_page_without_end_does_not_fill_the_memory(tmp_path: Path) -> None:
    (path := tmp_path / "dump.xml.bz2").write_bytes(bz2.compress(b"<mediawiki><page>" + b"x" * 18_000_000))
    with pytest.raises(UserError, match="one revision of each page"):
        read(sections_of(path, 10**6))


def test_entities_are_not_expanded_without_end(tmp_path: Path) -> None:
    bomb = b'<mediawiki><!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>' + PAGE.format("B", 0, "", "&b;").encode() + b"</mediawiki>"
    (path := tmp_path / "dump.xml.bz2").write_bytes(bz2.compress(bomb))
    counts: Counter[str] = Counter()
    assert read(sections_of(path, 10**6), counts) == []
    assert counts["broken_pages"] == 1


def test_a_page_of_endless_tags_is_not_built_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wikipedia.ElementTree, "fromstring", lambda _: pytest.fail("it was parsed"))
    hostile = b"<mediawiki>" + PAGE.format("Deep", 0, "", "<a>" * 5_000 + "</a>" * 5_000).encode() + b"</mediawiki>"
    (path := tmp_path / "dump.xml.bz2").write_bytes(bz2.compress(hostile))
    counts: Counter[str] = Counter()
    assert read(sections_of(path, 10**6), counts) == []
    assert counts == {"pages": 1, "broken_pages": 1}


def test_a_block_may_end_where_a_page_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path := tmp_path / "dump.xml").write_bytes(DUMP)
    for size in range(40, 700):
        monkeypatch.setattr(wikipedia, "BLOCK_BYTES", size)
        assert [title for title, _ in read(sections_of(path, 10**6))] == ["Dog", "Café & Bar"]
