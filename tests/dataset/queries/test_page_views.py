import bz2
import gzip
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipkit import UserError
from clipkit.dataset.queries import page_views
from clipkit.dataset.queries.page_views import Views, count_views, without_disambiguation
from clipkit.dataset.queries.sorted_counts import sum_counts
from clipkit.run import Run

HOURLY = """\
de Hund 9 0
en - 500 0
en "Heroes"_(album) 4 0
en 2001:_A_Space_Odyssey 3 0
en Caf%C3%A9 2 0
en Café 5 0
en Dog 7 0
en File:Dog.jpg 99 0
en Main_Page 900 0
en Special:Search 99 0
en Talk:Dog 99 0
en user_talk:Dog 99 0
en dog 1 0
en.m Dog 30 0
en.b Dog 1000 0
"""
MONTHLY = """\
de.wikipedia Hund 1 desktop 9 A9
en.wikipedia Dog 4269567 desktop 100 A50B50
en.wikipedia Dog 4269567 mobile-web 200 A200
en.wikipedia Star_Wars:_Andor 1 desktop 6 A6
en.wiktionary dog 1 desktop 1000 A1000
"""
PROJECTS = ("en", "en.m", "en.wikipedia")


def counted(tmp_path: Path, contents: dict[str, bytes], *, processes: int = 1) -> Views:
    files = []
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        files.append(tmp_path / name)
    (out := tmp_path / "out").mkdir(exist_ok=True)
    return count_views(files, out, projects=PROJECTS, processes=processes, run=Run.scratch(tmp_path / "run"))


def views(tmp_path: Path, contents: dict[str, bytes], *, processes: int = 1) -> dict[str, int]:
    tables = counted(tmp_path, contents, processes=processes).tables
    found = pa.concat_tables(sum_counts(tables, "title", least=1)).to_pydict() if tables else {"title": [], "count": []}
    return dict(zip(found["title"], found["count"], strict=True))


def test_views_of_articles_are_summed_over_sites_and_spellings(tmp_path: Path) -> None:
    found = views(tmp_path, {"a.gz": gzip.compress(HOURLY.encode())})
    assert found == {'"Heroes" (album)': 4, "2001: A Space Odyssey": 3, "Café": 7, "Dog": 38}


def test_hourly_and_monthly_files_are_summed_in_any_number_of_processes(tmp_path: Path) -> None:
    contents = {"a.gz": gzip.compress(HOURLY.encode()), "b.bz2": bz2.compress(MONTHLY.encode()), "c": HOURLY.encode()}
    found = views(tmp_path, contents, processes=2)
    assert (found["Dog"], found["Café"], found["Star Wars: Andor"]) == (376, 14, 6)
    (other := tmp_path / "other").mkdir()
    assert views(other, contents) == found


def test_the_number_of_the_page_may_be_missing(tmp_path: Path) -> None:
    assert views(tmp_path, {"b": b"en.wikipedia Dog desktop 12 A12\nen.wikipedia Cat mobile-web 3 A3\n"}) == {"Dog": 12, "Cat": 3}


def test_lines_that_are_none_are_left_out(tmp_path: Path) -> None:
    lines = (
        b"en Dog 7 0\nen Dog Cat 7 0\nen Dog\nen Cat many 0\nen \xff\xfe 5 0\nen %FF 5 0\nen Fox 99999999999999999999 0\nen "
        + b"x" * 300
        + b" 1 0\n"
    )
    assert views(tmp_path, {"a": lines}) == {"Dog": 7}


def test_blocks_and_pieces_of_any_size_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "".join(f"en T{number % 97} {number} 0\n" for number in range(1_000))
    monkeypatch.setattr(page_views, "BLOCK_BYTES", 100)
    monkeypatch.setattr(page_views, "ROWS_PER_PIECE", 30)
    wanted: Counter[str] = Counter()
    for number in range(1_000):
        wanted[f"T{number % 97}"] += number
    assert views(tmp_path, {"a.gz": gzip.compress(lines.encode())}) == wanted


def test_a_finished_file_is_not_read_again(tmp_path: Path) -> None:
    first = views(tmp_path, {"a.gz": (content := gzip.compress(HOURLY.encode()))})
    assert views(tmp_path, {"a.gz": b"x" * len(content)}) == first


@pytest.mark.parametrize(
    "later", [{"a": b"en Dog 1 0\n", "b": b"en Dog 2 0\n", "c": b"en Dog 4 0\n"}, {"b": b"en Dog 2 0\n", "c": b"en Dog 16 0\n"}]
)
def test_files_that_come_or_change_between_two_starts_are_refused(tmp_path: Path, later: dict[str, bytes]) -> None:
    assert views(tmp_path, {"b": b"en Dog 2 0\n", "c": b"en Dog 4 0\n"}) == {"Dog": 6}
    with pytest.raises(UserError, match="the files have changed since"):
        views(tmp_path, later)


def test_each_line_is_read_by_its_own_number_of_fields_and_what_is_none_is_counted(tmp_path: Path) -> None:
    with_number, without = b"en.wikipedia Dog 42 desktop 100 A100\n", b"en.wikipedia Dog desktop 20 A20\n"
    odd = b"en.wikipedia Dog\n\nen.wikipedia a b c d e f\nen The dog 3 0\n"
    for number, lines in enumerate((with_number + without + odd, odd + without + with_number, without + odd + with_number)):
        (folder := tmp_path / str(number)).mkdir()
        found = counted(folder, {"a": lines})
        assert pq.read_table(found.tables[0]).to_pylist() == [{"title": "Dog", "count": 120}]
        assert (found.lines, found.skipped_lines) == (5, 3)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.gz", gzip.compress(HOURLY.encode() * 50)[:-30], "cannot be read to its end"),
        ("a.gz", b"not gzip", "cannot be read to its end"),
        ("a.bz2", bz2.compress(MONTHLY.encode())[:-9], "cannot be read to its end"),
        ("a", b"only three fields\n", "a line has 3 fields"),
        ("a", b"x" * 200_000, "a line of over 100,000 bytes"),
    ],
)
def test_a_file_of_another_kind_is_told(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        views(tmp_path, {name: content})


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("Titanic (1997 film)", "Titanic"),
        ("Dog", "Dog"),
        ("(I Can't Get No) Satisfaction", "(I Can't Get No) Satisfaction"),
        ("Paris, Texas (film)", "Paris, Texas"),
        ("(song)", "(song)"),
        ("A (b) (c)", "A (b)"),
    ],
)
def test_what_tells_titles_apart_is_no_part_of_the_name(title: str, name: str) -> None:
    assert without_disambiguation(title) == name
