"""What is looked for in the training texts: a task's captions or prompts, whole and as runs of tokens."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clipkit.dataset.texts.matching import normalise
from clipkit.evaluation.splits import Split
from clipkit.evaluation.suite import Task

__all__ = ["MAX_PHRASES", "Phrases", "TaskTexts", "ngrams", "phrases_of", "texts_of"]

MAX_PHRASES = 3_000_000
"""Different phrases that are looked for at once: about a gigabyte."""

_ENDING_APART = re.compile(" (?=['+#])")
_ENDING_SIGNS = ("'", "+", "#")
_NONE = -1


@dataclass(frozen=True)
class TaskTexts:
    """The texts of one task. `owner_T` is the picture that a caption is of, or the class that a prompt is of."""

    task: str
    kind: Literal["caption", "prompt"]
    texts: Sequence[str]
    owner_T: NDArray[np.int64]


@dataclass(frozen=True)
class Phrases:
    """Different phrases by number, and which of them each of T texts is made of.

    `whole_T` is the phrase that is the whole text (-1 without tokens), `tokens_T` its length; the runs of n tokens of text t are
    `runs_R[ends_T[t - 1] : ends_T[t]]`: none of a text shorter than `least` tokens.
    """

    phrases: list[str]
    length_P: NDArray[np.int64]
    whole_T: NDArray[np.int64]
    tokens_T: NDArray[np.int64]
    runs_R: NDArray[np.int64]
    ends_T: NDArray[np.int64]

    def any_run(self, is_found_P: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Of which texts (T,) one run at least is found."""
        found = np.concatenate([[0], np.cumsum(is_found_P[self.runs_R])])
        return np.asarray(np.diff(found[np.concatenate([[0], self.ends_T])]) > 0)

    def first_run(self, place_P: NDArray[np.int64]) -> NDArray[np.int64]:
        """The least place (T,) of the runs of each text that were found; the greatest number where none was."""
        nowhere = np.iinfo(np.int64).max
        texts_R = np.repeat(np.arange(len(self.ends_T)), np.diff(self.ends_T, prepend=0))
        places_R = np.where(place_P[self.runs_R] < 0, nowhere, place_P[self.runs_R])
        least_T = np.full(len(self.ends_T), nowhere)
        np.minimum.at(least_T, texts_R, places_R)
        return least_T


class _Numbers(NamedTuple):
    """Phrases in the order of their numbers, with how many tokens they have."""

    of: dict[str, int]
    lengths: list[int]

    def number(self, tokens: Sequence[str]) -> int:
        """The number of a run of tokens, written so that it is split into the same tokens again: endings stand at their words."""
        number = self.of.setdefault(_ENDING_APART.sub("", " ".join(tokens)), len(self.of))
        if number == len(self.lengths):
            self.lengths.append(len(tokens))
        return number


def texts_of(task: Task, split: Split) -> TaskTexts:
    """Captions of a retrieval task, in the order of its pictures; of another every class name in every template."""
    if split.texts is not None:
        texts = [text for captions in split.texts for text in captions]
        return TaskTexts(task.name, "caption", texts, np.repeat(np.arange(len(split.texts)), [len(captions) for captions in split.texts]))
    prompts = [task.texts(label) for label in range(len(task.classes))]
    return TaskTexts(
        task.name, "prompt", [text for one in prompts for text in one], np.repeat(np.arange(len(prompts)), [len(one) for one in prompts])
    )


def phrases_of(texts: Sequence[str], *, n: int, least: int) -> Phrases:
    """The phrases of texts: each whole, and of those of `least` tokens or more the runs that `ngrams` makes."""
    numbers = _Numbers({}, [])
    whole, tokens, runs, ends = [], [], list[int](), []
    for text in texts:
        words = normalise(text).split()
        whole.append(numbers.number(words) if words else _NONE)
        tokens.append(len(words))
        if len(words) >= least:
            runs += (numbers.number(run) for run in ngrams(words, n))
        ends.append(len(runs))
    arrays = (np.array(column, np.int64) for column in (numbers.lengths, whole, tokens, runs, ends))
    return Phrases(list(numbers.of), *arrays)


def ngrams(tokens: Sequence[str], n: int) -> Iterator[Sequence[str]]:
    """The runs of min(n, length) tokens; one that would begin with an ending ('s, ++) is left out, for no text begins so."""
    size = min(n, len(tokens))
    for start in range(len(tokens) - size + 1):
        if not tokens[start].startswith(_ENDING_SIGNS):
            yield tokens[start : start + size]
