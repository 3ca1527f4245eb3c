"""Test texts in the training texts: captions of retrieval tasks, and the prompts of the others ("a photo of a dog.").

A picture that was never trained on may still be known by its caption. Texts are compared as `normalise` has them, like queries:

* exact: the whole training text is the test text.
* contained: the test text stands in a longer one, token by token. Only test texts of `least` tokens or more: "a dog" is everywhere.
* n-gram: a run of n tokens is in a training text, as GPT-3's overlap has it (13 tokens); a test text shorter than n has one run, itself.

Each includes the one before. The set of phrases is of the test side, so that memory does not grow with the training texts; those are
read shard by shard from the tables beside the tars.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipkit.dataset.shards import Shards
from clipkit.dataset.texts.matching import QueryIndex
from clipkit.dataset.texts.tokens import TOKENISE
from clipkit.overlap.places import ROWS_PER_SHARD, row_of, shard_of
from clipkit.overlap.texts.phrases import MAX_PHRASES, Phrases, TaskTexts, phrases_of
from clipkit.run import Run

__all__ = ["TEXT_SCHEMA", "TextOverlap", "find_texts", "text_counts", "text_table"]

_NOWHERE = -1

TEXT_SCHEMA = pa.schema(
    [
        ("task", pa.string()),
        ("kind", pa.string()),  # caption or prompt
        ("text_index", pa.int64()),  # among the task's texts
        ("test_index", pa.int64()),  # the picture that a caption is of; null of a prompt
        ("class_index", pa.int64()),  # the class that a prompt is of; null of a caption
        ("text", pa.string()),
        ("tokens", pa.int32()),
        ("exact", pa.bool_()),
        ("contained", pa.bool_()),
        ("ngram", pa.bool_()),
        ("training_texts", pa.int64()),  # that contain the whole of it
        ("key", pa.string()),  # of the first such training pair: equal, else containing, else sharing a run
        ("shard", pa.string()),
        ("training_text", pa.string()),
    ]
)
"""The columns of `overlap-texts.parquet`: one row per test text that is found in any of the three ways."""


@dataclass(frozen=True)
class TextOverlap:
    """How the texts of one task are found (T,), how often, and the place of an example; -1 where there is none."""

    texts: TaskTexts
    tokens_T: NDArray[np.int64]
    exact_T: NDArray[np.bool_]
    contained_T: NDArray[np.bool_]
    ngram_T: NDArray[np.bool_]
    training_texts_T: NDArray[np.int64]
    place_T: NDArray[np.int64]
    least: int

    def rows(self) -> NDArray[np.int64]:
        """The texts that are found in any way."""
        return np.flatnonzero(self.ngram_T)


@dataclass
class _Seen:
    """What the training texts so far say of P phrases: how many contain each, and the first place that does, and that equals it."""

    count_P: NDArray[np.int64]
    place_P: NDArray[np.int64]
    equal_P: NDArray[np.int64]

    def add(self, texts: pa.StringArray, index: QueryIndex, length_P: NDArray[np.int64], *, first_place: int) -> None:
        """Look through more training texts, whose places begin at `first_place`."""
        lists = index.match(texts)
        rows_M = np.repeat(np.arange(len(texts)), np.diff(lists.offsets.to_numpy()))
        phrases_M = lists.flatten().to_numpy().astype(np.int64)
        self.count_P += np.bincount(phrases_M, minlength=len(length_P))
        _put_first(self.place_P, phrases_M, first_place + rows_M)
        matched, which_M = np.unique(rows_M, return_inverse=True)
        is_equal_M = _token_counts(texts.take(pa.array(matched)))[which_M] == length_P[phrases_M]
        _put_first(self.equal_P, phrases_M[is_equal_M], first_place + rows_M[is_equal_M])


def _put_first(place_P: NDArray[np.int64], phrases_M: NDArray[np.int64], places_M: NDArray[np.int64]) -> None:
    """Note the first place of each phrase that has none yet; `places_M` ascend."""
    phrases, first = np.unique(phrases_M, return_index=True)
    is_new = place_P[phrases] == _NOWHERE
    place_P[phrases[is_new]] = places_M[first[is_new]]


def _token_counts(texts: pa.StringArray) -> NDArray[np.int64]:
    return np.bincount(TOKENISE["tokens"][1](texts).rows_T, minlength=len(texts)) if len(texts) else np.zeros(0, np.int64)


def find_texts(tasks: Sequence[TaskTexts], shards: Shards, *, n: int, least: int, run: Run) -> list[TextOverlap]:
    """Look for the texts of all tasks in one pass over the training texts.

    `n` is the length of a run and `least` that of the shortest text that is looked for within others (tokens). In memory are the
    phrases of the test texts and one shard's texts. Of tasks with more than MAX_PHRASES phrases together only the first are compared:
    the others are missing in the answer. Raises UserError for a table that is not what the manifest says.
    """
    chosen, made = [], list[Phrases]()
    for task in tasks:
        phrases = phrases_of(task.texts, n=n, least=least)
        if sum(len(one.phrases) for one in [*made, phrases]) <= MAX_PHRASES:
            chosen.append(task)
            made.append(phrases)
    together = list(dict.fromkeys(phrase for phrases in made for phrase in phrases.phrases))
    seen = _look(together, made, shards, run=run)
    numbers = {phrase: number for number, phrase in enumerate(together)}
    return [_found(task, phrases, seen, numbers, least=least) for task, phrases in zip(chosen, made, strict=True)]


def _look(together: Sequence[str], made: Sequence[Phrases], shards: Shards, *, run: Run) -> _Seen:
    lengths = {phrase: length for one in made for phrase, length in zip(one.phrases, one.length_P.tolist(), strict=True)}
    length_P = np.array([lengths[phrase] for phrase in together], np.int64)
    nowhere = np.full(len(together), _NOWHERE, np.int64)
    seen, index = _Seen(np.zeros(len(together), np.int64), nowhere.copy(), nowhere.copy()), QueryIndex(together)
    with run.progress("looking for test texts", total=shards.count, unit="texts") as advance:
        for number, shard in enumerate(shards.shards):
            texts = shards.table_of(shard, ["text"], checked=True)["text"].cast(pa.string()).combine_chunks()
            seen.add(texts.fill_null(""), index, length_P, first_place=number * ROWS_PER_SHARD)
            advance(shard.count)
    return seen


def _found(task: TaskTexts, phrases: Phrases, seen: _Seen, numbers: Mapping[str, int], *, least: int) -> TextOverlap:
    own_P = np.array([numbers[phrase] for phrase in phrases.phrases], np.int64)
    count_P, place_P, equal_P = (np.append(column[own_P], missing) for column, missing in _columns(seen))  # the last is for -1
    equal_T, whole_T = equal_P[phrases.whole_T], place_P[phrases.whole_T]
    exact_T = equal_T != _NOWHERE
    contained_T = exact_T | ((whole_T != _NOWHERE) & (phrases.tokens_T >= least))
    ngram_T = contained_T | phrases.any_run(place_P != _NOWHERE)
    place_T = np.where(exact_T, equal_T, np.where(contained_T, whole_T, phrases.first_run(place_P)))
    place_T[~ngram_T] = _NOWHERE
    return TextOverlap(task, phrases.tokens_T, exact_T, contained_T, ngram_T, count_P[phrases.whole_T], place_T, least)


def _columns(seen: _Seen) -> Iterator[tuple[NDArray[np.int64], int]]:
    yield from ((seen.count_P, 0), (seen.place_P, _NOWHERE), (seen.equal_P, _NOWHERE))


def text_counts(found: TextOverlap) -> dict[str, Any]:
    """A task's counts; `share` is of its texts that could be found in any way but word for word: those of `least` tokens or more."""
    long_T = found.tokens_T >= found.least
    return {
        "task": found.texts.task,
        "kind": found.texts.kind,
        "texts": len(found.texts.texts),
        "too_short": int((~long_T).sum()),
        "exact": int(found.exact_T.sum()),
        "contained": int(found.contained_T.sum()),
        "ngram": int(found.ngram_T.sum()),
        "share": float(found.ngram_T[long_T].mean()) if long_T.any() else None,
    }


@dataclass
class ExampleTexts:
    """Reads the training pairs that examples name, each shard's table once."""

    shards: Shards
    pairs: dict[int, tuple[str, str, str]] = field(default_factory=dict)

    def read(self, places: NDArray[np.int64]) -> None:
        """Keep (key, shard, text) of the pairs at these places."""
        for number in np.unique(shard_of(places)).tolist():
            shard = self.shards.shards[number]
            here = np.unique(places[shard_of(places) == number])
            table = self.shards.table_of(shard, ["key", "text"], checked=True).take(pa.array(row_of(here)))
            for place, key, text in zip(here.tolist(), table["key"].to_pylist(), table["text"].to_pylist(), strict=True):
                self.pairs[place] = (key, shard.name, text or "")


def text_table(found: Sequence[TextOverlap], shards: Shards) -> pa.Table:
    """The table of TEXT_SCHEMA: a row per test text that is found."""
    examples = ExampleTexts(shards)
    examples.read(np.concatenate([np.zeros(0, np.int64), *(one.place_T[one.rows()] for one in found)]))
    return pa.concat_tables([TEXT_SCHEMA.empty_table(), *(_table(one, examples) for one in found)])


def _table(found: TextOverlap, examples: ExampleTexts) -> pa.Table:
    rows, is_caption = found.rows(), found.texts.kind == "caption"
    owner = pa.array(found.texts.owner_T[rows], pa.int64())
    nobody = pa.nulls(len(rows), pa.int64())
    pairs = [examples.pairs[place] for place in found.place_T[rows].tolist()]
    columns = [
        pa.array([found.texts.task] * len(rows), pa.string()),
        pa.array([found.texts.kind] * len(rows), pa.string()),
        pa.array(rows, pa.int64()),
        owner if is_caption else nobody,
        nobody if is_caption else owner,
        pa.array([found.texts.texts[row] for row in rows], pa.string()),
        pa.array(found.tokens_T[rows], pa.int32()),
        *(pa.array(column[rows]) for column in (found.exact_T, found.contained_T, found.ngram_T)),
        pa.array(found.training_texts_T[rows], pa.int64()),
        *(pa.array([pair[part] for pair in pairs], pa.string()) for part in range(3)),
    ]
    return pa.Table.from_arrays(columns, schema=TEXT_SCHEMA)
