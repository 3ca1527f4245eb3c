import re
import sys
import unicodedata

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipkit.dataset import matching
from clipkit.dataset.matching import QueryIndex, normalise


def naive(queries: list[str], texts: list[str | None]) -> list[list[int]]:
    """A query matches where its tokens stand in a row."""
    padded = [f" {normalise(query)} " for query in queries]
    return [[i for i, query in enumerate(padded) if query != "  " and query in f" {normalise(text or '')} "] for text in texts]


def match(queries: list[str], texts: list[str | None]) -> list[list[int]]:
    found = QueryIndex(queries).match(pa.array(texts, pa.string()))
    assert found.type == pa.list_(pa.int32())
    return found.to_pylist()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("(dog)", "dog"),
        ("Dog's", "dog 's"),
        ("the dogs’ DON’T", "the dogs don 't"),
        ("toy-box", "toy box"),
        ("toy_box.jpg", "toy box jpg"),
        ("Mr. Smith", "mr smith"),
        ("U.S.", "u s"),
        ("US", "us"),
        ("Golden Retriever's", "golden retriever 's"),
        ("l'homme O'Neill rock'n'roll", "l homme o neill rock n roll"),
        ("d'été 's 'tis", "d été s tis"),
        ("Straße STRASSE", "strasse strasse"),
        ("ﬁsh ＦＩＳＨ", "fish fish"),
        ("cafe\u0301 CAFÉ", "café café"),
        ("f/2.8 1/250s", "f 2 8 1 250s"),
        ("漢字abc のネコ", "漢 字 abc の ネ コ"),
        ("가나 다", "가나 다"),
        ("กำ", unicodedata.normalize("NFKC", "กำ")[:2] + " " + "า"),
        ("हिन्दी", "हिन्दी"),
        ("so\u00adft ❤\ufe0f", "soft"),
        ("٣٤ x²", "٣٤ x2"),
        ("C++ & C#", "c c"),
        (" \t\n…!?", ""),
    ],
)
def test_normalise_gives_the_tokens_that_a_reader_expects(text: str, tokens: str) -> None:
    assert normalise(text) == tokens


@pytest.mark.parametrize(
    ("query", "text", "expected"),
    [
        ("dog", "(dog)", [0]),
        ("dog", "a DOG's life", [0]),
        ("dog", "hotdog dogs", []),
        ("s", "dog's", []),
        ("toy", "toy-box", [0]),
        ("toy box", "toy-box", [0]),
        ("toy-box", "Toy Box", [0]),
        ("toy-box", "toybox", []),
        ("u.s.", "made in the U.S. of A.", [0]),
        ("u.s.", "about US", []),
        ("us", "U.S.", []),
        ("Mr. Smith", "with mr smith", [0]),
        ("golden retriever", "a Golden Retriever’s tail", [0]),
        ("猫", "黒猫です", [0]),
        ("", "anything", []),
        ("...", "...", []),
    ],
)
def test_a_query_matches_what_a_reader_expects(query: str, text: str, expected: list[int]) -> None:
    assert match([query], [text]) == [expected]


def test_overlapping_and_nested_queries_are_all_found() -> None:
    queries = ["new", "new york", "york city", "new york city", "york", "city of", "new new", "New York"]
    assert match(queries, ["New York City, New York", "new new new", None, ""]) == [[0, 1, 2, 3, 4, 7], [0, 6], [], []]


def test_a_query_does_not_reach_into_the_next_text() -> None:
    assert match(["a b", "b c d"], ["a", "b c", "d a b"]) == [[], [], [0]]


WORDS = st.sampled_from(
    ["a", "b", "ab", "a b", "A", "-", "'s", "a's", "é", "漢", "b漢", "ß", "1", "\u0301", "\u00ad", ".", "\n", "\0", "’t", "z"]
)
PHRASES = st.lists(WORDS, max_size=6).map(" ".join) | st.lists(WORDS, max_size=6).map("".join) | st.text("ab ", max_size=6)


@given(st.lists(PHRASES, max_size=12), st.lists(st.none() | PHRASES, max_size=12))
@settings(deadline=None, max_examples=300)
def test_matches_equal_the_naive_oracle_on_adversarial_texts(queries: list[str], texts: list[str | None]) -> None:
    assert match(queries, texts) == naive(queries, texts)


@given(st.lists(st.text(max_size=8), max_size=8), st.lists(st.text(max_size=20), max_size=8))
@settings(deadline=None, max_examples=200)
def test_matches_equal_the_naive_oracle_on_any_unicode(queries: list[str], texts: list[str]) -> None:
    assert match(queries, list(texts)) == naive(queries, list(texts))


@given(st.text(alphabet=[chr(code) for code in range(128)], max_size=30))
@settings(deadline=None, max_examples=300)
def test_plain_ascii_is_split_into_runs_of_letters_and_digits(text: str) -> None:
    plain = text.replace("'", " ")
    assert normalise(plain) == " ".join(re.findall("[a-z0-9]+", plain.lower()))
    words = sorted(set(re.findall("[a-z0-9]+", plain.lower())))
    assert match(words, [plain]) == [list(range(len(words)))]


@given(st.text(max_size=20), st.text(max_size=20))
@settings(deadline=None, max_examples=200)
def test_case_and_compatibility_forms_make_no_difference(first: str, second: str) -> None:
    text = f"{first} {second}"
    assert normalise(text.upper().casefold()) == normalise(text.casefold())
    assert normalise(unicodedata.normalize("NFD", text)) == normalise(unicodedata.normalize("NFC", text))


def test_every_letter_and_digit_of_unicode_is_in_some_token() -> None:
    letters = [
        chr(code) for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)) in ("Ll", "Lo", "Nd") and chr(code) != "ʼ"
    ]
    assert [letter for letter in letters[::7] if not normalise(f"x{letter}").replace("x", "", 1).strip()] == []


def test_batches_and_slices_give_what_the_whole_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matching, "_BATCH", 1_000)
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(50)]
    texts = pa.array([" ".join(rng.choice(words, 8)) + ("é" if i % 5 == 0 else "") for i in range(2_500)])
    queries = words[:30] + [" ".join(rng.choice(words, rng.integers(2, 5))) for _ in range(400)]
    whole = QueryIndex(queries).match(texts)
    assert whole.slice(1_500, 300).to_pylist() == QueryIndex(queries).match(texts.slice(1_500, 300)).to_pylist()
    assert whole.slice(950, 100).to_pylist() == naive(queries, texts.slice(950, 100).to_pylist())


def test_an_index_of_no_queries_matches_nothing() -> None:
    assert match([], ["a", None]) == [[], []]
    assert match(["a"], []) == []
