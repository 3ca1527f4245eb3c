"""Texts come back as they were written, and clean ones are not touched."""

import pyarrow as pa
import pytest
from ftfy.badness import is_bad
from hypothesis import example, given
from hypothesis import strategies as st

from clipkit.dataset.pages.html import tidy
from clipkit.dataset.texts.mojibake import MAX_ROUNDS, UNLIKELY, repair, repair_mojibake

CLEAN = [
    "a dog",
    "Café Müller",
    "“Dogs” — ½ price… £5",
    "São João, Ñandú",
    "Смоленск",
    "Ελλάδα",
    "狗と猫",
    "हिंदी",
    "Å æ ø",
    "AT&T",
    "Q&A; R&B",
    "",
]


@pytest.mark.parametrize(
    "written", ["Café Müller", "“Dogs” — it’s a dog…", "La niña de María", "Собака на снегу", "Größe 5 €", "日本の犬", "Άλφα"]
)
@pytest.mark.parametrize("wrong", ["latin-1", "sloppy-windows-1252"])
@pytest.mark.parametrize("times", [1, 2])
def test_what_was_read_in_a_wrong_character_set_comes_back(written: str, wrong: str, times: int) -> None:
    broken = written
    for _ in range(times):
        broken = broken.encode().decode(wrong)
    assert broken != written
    assert repair(broken) == written


@pytest.mark.parametrize(
    ("broken", "mended"),
    [
        ("Tom &amp; Jerry", "Tom & Jerry"),
        ("caf&amp;amp;eacute;", "café"),
        ("5 &gt; 4 &#38; 2", "5 > 4 & 2"),
        ("dog&nbsp;&nbsp;house &#13;&#10;", "dog house"),
        ("Caf&Atilde;&copy;", "Café"),
        ("it&#146;s", "it’s"),
        ("&unknown; &T;", "&unknown; &T;"),
    ],
)
def test_left_over_entities_are_resolved_however_often_they_were_escaped(broken: str, mended: str) -> None:
    assert repair(broken) == mended


@pytest.mark.parametrize("written", ["La niña de María", "Ángel Íñigo", "“Dogs” and cats", "日本の犬", "voilà l’été"])
def test_pages_keep_what_repair_needs(written: str) -> None:
    undefined = {
        byte: chr(byte) for byte in (0x81, 0x8D, 0x8F, 0x90, 0x9D)
    }  # where windows-1252 has nothing, browsers see control characters
    broken = "".join(undefined.get(byte) or bytes([byte]).decode("windows-1252") for byte in written.encode())
    assert repair(tidy(broken)) == written


def test_soft_hyphens_go_unless_they_are_a_part_of_a_letter() -> None:
    result, changed = repair_mojibake(pa.array(["com\u00adpu\u00adter", "MarÃ\u00ada", "&shy;dog", "&am\u00adp;"]))
    assert result.to_pylist() == ["computer", "María", "dog", "&"]
    assert changed.to_pylist() == [True] * 4


def test_clean_texts_and_nulls_are_left_as_they_are() -> None:
    texts = pa.array([*CLEAN, None], pa.string())
    result, changed = repair_mojibake(texts)
    assert result == texts
    assert changed.to_pylist() == [False] * len(texts)


def test_the_changed_texts_are_told() -> None:
    result, changed = repair_mojibake(pa.array(["a dog", "cafÃ©", None, "&unknown;", "R&amp;B"]))
    assert result.to_pylist() == ["a dog", "café", None, "&unknown;", "R&B"]
    assert changed.to_pylist() == [False, True, False, False, True]


def test_a_text_escaped_without_end_is_left_alone() -> None:
    assert repair("&" + "amp;" * (MAX_ROUNDS - 1)) == "&"
    endless = "&" + "amp;" * 3_000
    assert repair(endless) == endless


LETTERS = st.sampled_from("aÃÂâä©®é€™“”\x80\x85\x9d\xa0\xad��ÐÑ°±²вЂ√≈ĂŁß")
ENTITIES = st.sampled_from(
    ["&", "amp;", "&amp;", "&#39;", "&lt;", "#38;", "&eacute;", "&nGt;", "&#128;", "&#xD800;", "&#0;", "&nbsp;", "&SZLIG;"]
)
TEXTS = st.one_of(st.text(LETTERS, max_size=12), st.lists(st.one_of(ENTITIES, LETTERS), max_size=8).map("".join), st.text(max_size=20))


@given(st.lists(TEXTS))
@example(["Ã Ã", "à²", "\x1c\x85 Âꙮ", "x Ã\x85", "×²"])
def test_a_second_repair_changes_nothing_and_none_makes_a_text_longer(texts: list[str]) -> None:
    array = pa.array(texts, pa.string())
    once, changed = repair_mojibake(array)
    twice, changed_again = repair_mojibake(once)
    assert twice == once
    assert not any(changed_again.to_pylist())
    assert [a != b for a, b in zip(texts, once.to_pylist(), strict=True)] == changed.to_pylist()
    assert all(len(mended) <= len(text) for mended, text in zip(once.to_pylist(), texts, strict=True))


@given(st.lists(TEXTS))
@example([f"{space}É£" for space in " \t\x0b\x1c\x1f\x85\u00a0\u2003\u2028\u3000\u200b"])
@example([f"é”{letter}" for letter in "a_1é狗\u0301²٣-"])
def test_the_quick_look_misses_no_text_that_a_closer_one_would_repair(texts: list[str]) -> None:
    array = pa.array(texts, pa.string())
    assert repair_mojibake(array)[0].to_pylist() == [repair(text) for text in texts]
    assert pa.compute.match_substring_regex(array, UNLIKELY).to_pylist() == [is_bad(text) for text in texts]
