import hashlib
import json
import multiprocessing
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipkit import UserError
from clipkit.dataset.texts import matching
from clipkit.dataset.texts.matching import QueryIndex, normalise


def naive(queries: list[str], texts: list[str | None]) -> list[list[int]]:
    """A query matches where its tokens stand in a row."""
    padded = [f" {normalise(query)} " for query in queries]
    return [[i for i, query in enumerate(padded) if query != "  " and query in f" {normalise(text or '')} "] for text in texts]


def naive_metaclip(queries: list[str], texts: list[str | None]) -> list[list[int]]:
    """MetaCLIP's rule, one substring at a time."""

    def spaced(text: str) -> str:
        for mark in ",.;:?!`":
            text = text.replace(mark, f" {mark} ")
        return " " + "".join(" " if character in "\t\n\r" else character for character in text) + " "

    return [[] if text is None else [i for i, query in enumerate(queries) if f" {query} " in spaced(text)] for text in texts]


def match(queries: list[str], texts: list[str | None]) -> list[list[int]]:
    found = QueryIndex(queries).match(pa.array(texts, pa.string()))
    assert found.type == pa.list_(pa.int32())
    return found.to_pylist()  # type: ignore[no-any-return]


def is_in(query: str, text: str) -> bool:
    return match([query], [text]) == [[0]]


FOUND = {
    "dog": [
        "(dog)",
        "a DOG's life",
        "“dog”",
        "dog, cat",
        "#dog",
        "@dog",
        "toy_dog.jpg",
        "dog/cat",
        "🐶dog🐶",
        "dog™",
        "dog®",
        "dog…",
        "dog´s",
    ],
    "toy": ["toy-box", "toy–box", "toy\u2011box", "TOY", "toy\u00a0box", "toy\u200bbox"],
    "toy box": ["toy-box", "Toy  Box", "toy\nbox", "toy/box", "toy_box"],
    "toy-box": ["Toy Box", "toy – box"],
    "u.s.": ["made in the U.S. of A.", "the U. S. army"],
    "Mr. Smith": ["with mr smith", "MR SMITH", "Mr.Smith"],
    "golden retriever": ["a Golden Retriever’s tail", "Golden Retriever's", "golden re\u00adtriever", "GOLDEN-RETRIEVER"],
    "R&B": ["R&B music", "R & B", "r&b"],
    "AT&T": ["an AT&T phone", "AT & T"],
    "C++": ["learn C++ now", "c++", "C++.", "(C++)", "C++'s", "C＋＋"],
    "c#": ["C# in depth", "C#/.NET"],
    ".NET": ["the .NET runtime", "asp.net"],
    "Disney+": ["on Disney+", "DISNEY+."],
    "disney": ["on Disney+", "Disney's"],
    "O'Neill": ["Eugene O’Neill", "O'NEILL'S PUB", "o neill"],
    "rock 'n' roll": ["Rock ’n’ Roll", "rock'n'roll", "rock n roll"],
    "don't": ["Don’t stop", "DON'T"],
    "3.5": ["a 3.5 mm jack", "f/3.5"],
    "1,000": ["1,000 dogs", "over 1,000!"],
    "1st": ["the 1st prize", "1ST"],
    "24 hours": ["24 Hours", "24-hours"],
    "café": ["CAFÉ", "cafe\u0301", "a café."],
    "straße": ["STRASSE", "Straße", "strasse"],
    "istanbul": ["Istanbul", "İstanbul", "ISTANBUL"],
    "fish": ["ﬁsh", "ＦＩＳＨ", "𝐟𝐢𝐬𝐡", "ⓕⓘⓢⓗ"],
    "co2": ["CO₂", "co2"],
    "猫": ["黒猫です", "猫", "猫(ねこ)"],
    "東京 タワー": ["東京タワー", "東京タワーの夜景"],
    "ネコ": ["ﾈｺ", "ネコ科"],
    "แมว": ["รูปแมวน่ารัก"],
    "한국": ["한국 여행"],
    "كتاب": ["كِتَابٌ", "كـتاب جديد"],
    "שלום": ["שָׁלוֹם", "\u200fשלום\u200e"],
    "москва": ["МОСКВА, Россия"],
    "हिन्दी": ["हिन्दी में"],
    "family": ["👨\u200d👩\u200d👧family"],
    "new york": ["New\tYork", "NEW YORK CITY", "New York’s"],
    "i": ["I'm", "I love"],
}
NOT_FOUND = {
    "dog": ["hotdog", "dogs", "#HotDog", "dog1", "do g", "GoodDog"],
    "s": ["dog's", "dog’s"],
    "t": ["don't"],
    "toy-box": ["toybox"],
    "us": ["U.S."],
    "u.s.": ["about US"],
    "C++": ["vitamin C", "C+", "c"],
    "c#": ["c", "C+", "c#d"],
    "Disney+": ["Disney", "disney world"],
    "1000": ["1,000"],
    "35": ["3.5"],
    "3.5": ["v3.5", "3.50"],
    "café": ["cafe"],
    "cafe": ["café"],
    "schön": ["schon"],
    "한국": ["한국어"],
    "dog cat": ["dog and cat", "cat dog"],
    "": ["", "anything"],
    "...": ["..."],
    "🐶": ["🐶"],
}


def test_queries_are_found_where_a_reader_expects_them() -> None:
    assert [(query, text) for query, texts in FOUND.items() for text in texts if not is_in(query, text)] == []


def test_queries_are_not_found_where_a_reader_does_not_expect_them() -> None:
    assert [(query, text) for query, texts in NOT_FOUND.items() for text in texts if is_in(query, text)] == []


def test_overlapping_and_nested_queries_are_all_found() -> None:
    queries = ["new", "new york", "york city", "new york city", "york", "city of", "new new", "New York"]
    assert match(queries, ["New York City, New York", "new new new", None, ""]) == [[0, 1, 2, 3, 4, 7], [0, 6], [], []]


def test_a_query_does_not_reach_into_the_next_text() -> None:
    assert match(["a b", "b c d", "a's"], ["a", "b c", "d a b", "a", "'s"]) == [[], [], [0], [], []]


def test_tokens_of_any_length_are_told_apart() -> None:
    words = [letter * length for length in range(1, 35) for letter in "ab"] + ["a" * 8 + "b", "a" * 16 + "b", "a" * 7 + "b"]
    assert match(words, list(words)) == [[i] for i in range(len(words))]
    assert match(words, [word + "c" for word in words] + ["c" + word for word in words]) == [[]] * 2 * len(words)


PLAIN = ["a", "b", "ab", "a b", "A", "1", "z", "a's", "aaaaaaaa", "aaaaaaaaa", "aaaaaaaab"]
SIGNS = ["-", "'s", "’t", "++", "#", ".", "\n", "\0", "é", "漢", "b漢", "ß", "\u0301", "\u00ad"]
WORDS = st.sampled_from(PLAIN + SIGNS)
PHRASES = st.lists(WORDS, max_size=6).map(" ".join) | st.lists(WORDS, max_size=6).map("".join) | st.text("ab ", max_size=6)


@given(st.lists(PHRASES, max_size=12), st.lists(st.none() | PHRASES, max_size=12))
@settings(deadline=None, max_examples=300)
def test_matches_equal_the_naive_oracle_on_adversarial_texts(queries: list[str], texts: list[str | None]) -> None:
    assert match(queries, texts) == naive(queries, texts)


@given(st.lists(st.text(max_size=8), max_size=8), st.lists(st.text(max_size=20), max_size=8))
@settings(deadline=None, max_examples=200)
def test_matches_equal_the_naive_oracle_on_any_unicode(queries: list[str], texts: list[str]) -> None:
    assert match(queries, list(texts)) == naive(queries, list(texts))


SPACED = st.text(alphabet=" ,.;:?!`\t\n\rabB'\"(-\0é猫\u00a0\u3000", max_size=10)


@given(st.lists(SPACED, max_size=12), st.lists(st.none() | SPACED | st.text(max_size=20), max_size=8))
@settings(deadline=None, max_examples=500)
def test_metaclip_mode_equals_the_substring_loop(queries: list[str], texts: list[str | None]) -> None:
    found = QueryIndex(queries, mode="metaclip").match(pa.array(texts, pa.string()))
    assert found.to_pylist() == naive_metaclip(queries, texts)


@pytest.mark.parametrize(
    ("query", "text", "expected"),
    [
        ("dog", "a dog, a cat", True),
        ("dog", "(dog)", False),
        ("dog", '"dog"', False),
        ("dog", "Dog", False),
        ("toy", "toy-box", False),
        ("Mr. Smith", "Mr. Smith", False),
        ("U.S.", "U.S.", False),
        ("Mr .  Smith", "Mr. Smith", True),
        (".", "end.", True),
        ("a b", "a  b", False),
        ("a  b", "a\t\nb", True),
        (" a", "a", False),
        (" a", ".a", False),
        (" a", ". a", True),
        ("", "", True),
        ("", "a", False),
        ("", "a.", True),
    ],
)
def test_metaclip_mode_keeps_what_its_rule_misses(query: str, text: str, *, expected: bool) -> None:
    assert (QueryIndex([query], mode="metaclip").match(pa.array([text])).to_pylist() == [[0]]) is expected
    assert (naive_metaclip([query], [text]) == [[0]]) is expected


@given(st.lists(PHRASES, max_size=8), st.lists(st.none() | PHRASES, max_size=12), st.integers(1, 5), st.integers(1, 30), st.integers(0, 9))
@settings(deadline=None, max_examples=150)
def test_batches_slices_and_offsets_make_no_difference(
    queries: list[str], texts: list[str | None], size: int, num_bytes: int, start: int
) -> None:
    for mode in ("tokens", "metaclip"):
        index = QueryIndex(queries, mode=mode)
        whole = index.match(pa.array(texts, pa.string()))
        with patch.object(matching, "_BATCH", size), patch.object(matching, "_BATCH_BYTES", num_bytes):
            assert index.match(pa.array(texts, pa.string())).equals(whole)
            assert index.match(pa.array(texts, pa.string()).slice(start, 3)).to_pylist() == whole.slice(start, 3).to_pylist()
            assert index.match(pa.array(texts, pa.large_string())).equals(whole)


def test_many_texts_equal_the_naive_oracle_across_batches() -> None:
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(50)]
    texts = pa.array([" ".join(rng.choice(words, 8)) + ("é" if i % 5 == 0 else "") for i in range(9_000)])
    queries = words[:30] + [" ".join(rng.choice(words, rng.integers(2, 5))) for _ in range(400)]
    whole = QueryIndex(queries).match(texts)
    for start in (0, 4_046, 8_142):
        assert whole.slice(start, 100).to_pylist() == naive(queries, texts.slice(start, 100).to_pylist())
    assert whole.slice(1_500, 300).to_pylist() == QueryIndex(queries).match(texts.slice(1_500, 300)).to_pylist()


def test_very_long_texts_and_queries_are_matched() -> None:
    queries = ["a", "a b", " ".join("ab" * 20), "x" * 1_000, "b b"]
    assert match(queries, ["a b " * 100_000, "x" * 3_000_000, "y " + "x" * 1_000 + " y"]) == [[0, 1, 2], [], [3]]


def test_an_index_of_no_queries_matches_nothing() -> None:
    assert match([], ["a", None]) == [[], []]
    assert match(["a"], []) == []


def test_a_query_that_is_no_unicode_text_is_refused() -> None:
    with pytest.raises(UserError, match=r"'dog\\ud83d' has half a surrogate pair"):
        QueryIndex(["cat", "dog\ud83d"])


def written(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@given(st.lists(PHRASES, max_size=8), st.lists(st.none() | PHRASES, max_size=8))
@settings(deadline=None, max_examples=25)
def test_a_loaded_index_matches_as_the_saved_one(queries: list[str], texts: list[str | None]) -> None:
    with tempfile.TemporaryDirectory() as name:
        for mode in ("tokens", "metaclip"):
            index, folder = QueryIndex(queries, mode=mode), Path(name) / mode
            index.save(folder)
            first = written(folder)
            loaded = QueryIndex.load(folder, content_hash=index.content_hash)
            assert loaded.match(pa.array(texts, pa.string())).equals(index.match(pa.array(texts, pa.string())))
            assert (loaded.count, loaded.mode, loaded.content_hash) == (len(queries), mode, index.content_hash)
            loaded.save(folder)
            assert written(folder) == first
            assert loaded.match(pa.array(texts, pa.string())).equals(index.match(pa.array(texts, pa.string())))


def mapped_and_found(folder: Path) -> tuple[set[str], list[list[int]]]:
    index = QueryIndex.load(folder)
    found = index.match(pa.array(["a dog's life", "hotdog"])).to_pylist()
    return {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if ".npy" in line and " r--s " in line}, found


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_worker_processes_map_the_files_of_one_index(tmp_path: Path) -> None:
    QueryIndex(["dog", "life", "a dog"]).save(tmp_path / "index")
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        answers = pool.map(mapped_and_found, [tmp_path / "index"] * 2)
    for files, found in answers:
        assert {str(tmp_path / "index" / f"{name}.npy") for name in ("words", "paths", "ends", "queries")} <= files
        assert found == [[0, 1, 2], []]


def test_a_loaded_index_cannot_be_written_to(tmp_path: Path) -> None:
    QueryIndex(["dog"]).save(tmp_path)
    with pytest.raises(ValueError, match="read-only"):
        QueryIndex.load(tmp_path)._index.ends[0] = 1


def cut_short(folder: Path) -> None:
    (folder / "words.npy").write_bytes((folder / "words.npy").read_bytes()[:-16])


def flip_a_bit(folder: Path) -> None:
    data = bytearray((folder / "queries.npy").read_bytes())
    data[-1] ^= 1
    (folder / "queries.npy").write_bytes(data)


def change(**told: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "index.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **told}))

    return edit


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (cut_short, "words.npy` is missing or has changed"),
        (flip_a_bit, "queries.npy` is missing or has changed"),
        (lambda folder: (folder / "ends.npy").unlink(), "ends.npy` is missing or has changed"),
        (lambda folder: (folder / "index.json").unlink(), "not finished or damaged"),
        (lambda folder: (folder / "index.json").write_text("{"), "not finished or damaged"),
        (lambda folder: (folder / "index.json").write_text("[]"), "of another version"),
        (change(version=2), "of another version"),
        (change(unicode="3.2.0"), "of another version"),
        (change(mode="other"), "of another version"),
        (change(arrays={"../words": "0"}), "of another version"),
        (change(content_hash="0" * 64), "the index of other queries"),
    ],
)
def test_a_damaged_index_is_refused(tmp_path: Path, damage: Callable[[Path], None], told: str) -> None:
    index = QueryIndex(["dog", "cat"])
    index.save(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=told):
        QueryIndex.load(tmp_path, content_hash=index.content_hash)


def test_an_index_of_other_queries_or_another_mode_has_another_hash(tmp_path: Path) -> None:
    indices = [QueryIndex(["dog", "cat"]), QueryIndex(["cat", "dog"]), QueryIndex(["dog", "cat"], mode="metaclip"), QueryIndex(["dogcat"])]
    assert len({index.content_hash for index in indices}) == 4
    indices[0].save(tmp_path)
    with pytest.raises(UserError, match="the index of other queries"):
        QueryIndex.load(tmp_path, content_hash=indices[1].content_hash)


@pytest.mark.parametrize("died_at", ["paths", "queries"])
def test_a_save_that_was_interrupted_leaves_no_index(tmp_path: Path, died_at: str) -> None:
    QueryIndex(["dog"]).save(tmp_path)

    def save(file: object, array: object, **options: object) -> None:
        if died_at in str(getattr(file, "name", "")):
            raise KeyboardInterrupt
        np.lib.format.write_array(file, array, allow_pickle=False)  # type: ignore[arg-type]

    with patch.object(matching.np, "save", save), pytest.raises(KeyboardInterrupt):
        QueryIndex(["cat", "a cat"]).save(tmp_path)
    with pytest.raises(UserError, match="not finished"):
        QueryIndex.load(tmp_path)
    QueryIndex(["cat", "a cat"]).save(tmp_path)
    assert QueryIndex.load(tmp_path).match(pa.array(["a cat"])).to_pylist() == [[0, 1]]
    assert not list(tmp_path.glob(".*"))
