import itertools
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clipkit.dataset.queries import ngrams
from clipkit.dataset.queries.ngrams import PieceCounts, association, keep_bigrams, ngrams_of, segments
from clipkit.dataset.queries.wikitext import BREAK
from clipkit.dataset.texts.matching import normalise


def counted(texts: list[str], folder: Path) -> tuple[dict[str, int], dict[tuple[str, str], int]]:
    piece = PieceCounts()
    for text in texts:
        piece.add(text)
    total = piece.write(folder / "words.parquet", folder / "bigrams.parquet")
    table = pq.read_table(folder / "words.parquet")
    words = table["word"].to_pylist()
    bigrams = pq.read_table(folder / "bigrams.parquet").to_pylist()
    assert total == sum(table["count"].to_pylist())
    assert words == sorted(words)
    assert [(row["first"], row["second"]) for row in bigrams] == sorted((row["first"], row["second"]) for row in bigrams)
    counts = dict(zip(words, table["count"].to_pylist(), strict=True))
    return counts, {(words[row["first"]], words[row["second"]]): row["count"] for row in bigrams}


def by_hand(texts: list[str]) -> tuple[Counter[str], Counter[tuple[str, str]]]:
    """The definition, segment by segment and token by token."""
    words: Counter[str] = Counter()
    bigrams: Counter[tuple[str, str]] = Counter()
    for text in texts:
        for segment in segments(text).to_pylist():
            tokens = normalise(segment).split()
            words.update(token for token in tokens if token[0] not in "'+#")
            bigrams.update((a, b) for a, b in itertools.pairwise(tokens) if a[0] not in "'+#" and b[0] not in "'+#")
    return words, bigrams


def test_words_and_their_neighbours_are_counted(tmp_path: Path) -> None:
    texts = ["St. Louis is a city. St. Louis, Missouri!", "A dog's bone; U.S. Army (the dog) well-known"]
    words, bigrams = counted(texts, tmp_path)
    assert (words["st"], words["louis"], words["dog"], words["a"]) == (2, 2, 2, 2)
    assert "'s" not in words
    assert bigrams[("st", "louis")] == 2
    assert {("u", "s"), ("s", "army"), ("well", "known"), ("a", "dog"), ("the", "dog"), ("a", "city")} <= set(bigrams)
    assert not {("city", "st"), ("louis", "missouri"), ("dog", "bone"), ("army", "the"), ("missouri", "a")} & set(bigrams)


@pytest.mark.parametrize(
    "mark", [". ", ", ", "; ", ": ", "! ", "? ", " (", ") ", " – ", " — ", "…", "“", "»", "\n", BREAK, " / ", "=", "。", "\u2028"]
)
def test_punctuation_parts_words(tmp_path: Path, mark: str) -> None:
    words, bigrams = counted([f"alpha{mark}beta"], tmp_path)
    assert (words, bigrams) == ({"alpha": 1, "beta": 1}, {})


@pytest.mark.parametrize("mark", [" ", "-", "_", "'", "’", "\u00a0", "\t", "‐", " + "])
def test_what_stands_inside_of_names_does_not(tmp_path: Path, mark: str) -> None:
    assert counted([f"alpha{mark}beta"], tmp_path)[1] == {("alpha", "beta"): 1}


TEXT = st.text(
    st.sampled_from("ab cdé猫ßst'’.,-_+#\n!ΣİU\u0301\u00ad") | st.characters(max_codepoint=0x3FF, exclude_categories=["Cs"]), max_size=60
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(TEXT, max_size=5), st.integers(1, 80))
def test_counts_are_those_of_the_normaliser_however_the_text_is_cut_into_batches(tmp_path: Path, texts: list[str], batch: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ngrams, "BATCH_CHARACTERS", batch)
        assert counted(texts, tmp_path) == by_hand(texts)


def test_a_word_longer_than_any_query_parts_its_neighbours(tmp_path: Path) -> None:
    words, bigrams = counted([f"a {'x' * 201} b"], tmp_path)
    assert (words, bigrams) == ({"a": 1, "b": 1}, {})


def test_bigrams_of_two_kept_words_are_numbered_by_them(tmp_path: Path) -> None:
    counted(["b c a b c d"], tmp_path)
    keep_bigrams(tmp_path / "words.parquet", tmp_path / "bigrams.parquet", pa.array(["b", "c", "z"]), tmp_path / "kept.parquet")
    assert pq.read_table(tmp_path / "kept.parquet").to_pydict() == {"bigram": [0 * 3 + 1], "count": [2]}


def test_ngrams_of_a_list_are_normalised_and_others_are_null() -> None:
    found = ngrams_of(pa.array(["The", "New-York", "new york city", "", "dog's", "ÉTÉ", "..."]), 1)
    assert found.to_pylist() == ["the", None, None, None, None, "été", None]
    assert ngrams_of(pa.array(["New-York", "a", "dog's", "b C"]), 2).to_pylist() == ["new york", None, None, "b c"]


@given(
    st.lists(st.tuples(st.integers(1, 10**6), st.integers(1, 10**9), st.integers(1, 10**9)), min_size=1, max_size=20),
    st.integers(1, 10**12),
)
def test_the_strength_is_the_pointwise_mutual_information(counts: list[tuple[int, int, int]], total: int) -> None:
    pairs, firsts, seconds = (np.array(column, np.int64) for column in zip(*counts, strict=True))
    found = np.log2(association(pairs, firsts, seconds) * total)
    for value, (xy, x, y) in zip(found, counts, strict=True):
        by_definition = math.log2((xy / total) / ((x / total) * (y / total)))
        as_nltk = math.log2(xy * total) - math.log2(x * y)  # nltk.metrics.association.NgramAssocMeasures.pmi
        assert value == pytest.approx(by_definition, abs=1e-9)
        assert value == pytest.approx(as_nltk, abs=1e-9)


def test_segments_take_linear_time_on_one_long_line() -> None:
    assert len(segments("a." * 200_000)) == 1
    assert len(segments("abc." * 100_000)) == 100_000
