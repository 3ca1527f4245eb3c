"""Texts as one array of code points: what is counted in characters and words is counted for all texts at once."""

import functools
import unicodedata
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from clipkit.dataset.texts.tokens import normalise

__all__ = ["LETTER", "SPACE", "Characters", "characters", "count", "firsts", "kinds", "may_repeat"]

Flags = npt.NDArray[np.bool_]

SPACE, LETTER = 1, 2
"""What `kinds` calls white space of ASCII, and letters and marks of any script; 0 is everything else."""

_TABLE = 0x3000
"""Characters from here on (scripts without spaces among them) are not looked up by `may_repeat`: such texts it leaves to a closer look."""
_SEPARATOR, _COMPLEX = 0, 1


class Characters(NamedTuple):
    """The code points of all texts in a row (uint32), and for each text where it starts and how many it has (int64)."""

    codes: npt.NDArray[np.uint32]
    starts: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]


def characters(texts: pa.StringArray) -> Characters:
    """The code points of an array of strings without nulls."""
    offsets = np.frombuffer(texts.buffers()[1], np.int32, len(texts) + 1, texts.offset * 4) if len(texts) else np.zeros(1, np.int32)
    data = memoryview(texts.buffers()[2] or b"")[offsets[0] : offsets[-1]]
    lengths = pc.utf8_length(texts).to_numpy(zero_copy_only=False).astype(np.int64)
    return Characters(np.frombuffer(str(data, "utf-8").encode("utf-32-le"), np.uint32), np.cumsum(lengths) - lengths, lengths)


def count(flags: Flags, texts: Characters) -> npt.NDArray[np.int64]:
    """How many of the flags, one for each code point, are set in each text."""
    counts = np.zeros(len(texts.lengths), np.int64)
    filled = texts.lengths > 0
    if filled.any():
        counts[filled] = np.add.reduceat(flags, texts.starts[filled], dtype=np.int32)
    return counts


def firsts(flags: Flags, texts: Characters) -> Flags:
    """The first flag of every run of set flags inside a text."""
    first = flags.copy()
    first[1:] &= ~flags[:-1]
    starts = texts.starts[texts.lengths > 0]
    first[starts] = flags[starts]
    return first


def kinds(codes: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint8]:
    """SPACE, LETTER or 0 for each code point."""
    return _kinds()[codes]


def may_repeat(texts: Characters) -> Flags:
    """False for texts that certainly have no word three times in a row, no six words or more of which fewer than half are distinct, and no
    character eight times in a row.

    Words are those of `normalise`, compared by a hash that does not depend on the order of letters, so a few texts are True
    without need; so are all that hold marks or scripts without spaces.
    """
    hashes = _hashes()[np.minimum(texts.codes, _TABLE)]
    first = firsts(hashes != _SEPARATOR, texts)
    words = count(first, texts)
    found = count(hashes == _COMPLEX, texts) > 0
    positions = np.flatnonzero(first)
    if len(positions):
        hash_of_word = np.add.reduceat(hashes, positions, dtype=np.uint32)
        text_of_word = np.repeat(np.arange(len(words)), words)
        same = (hash_of_word[:-1] == hash_of_word[1:]) & (text_of_word[:-1] == text_of_word[1:])
        found[text_of_word[:-2][same[:-1] & same[1:]]] = True
        found |= (words >= 6) & (2 * _distinct(hash_of_word, text_of_word, words) < words)
    return found | _has_run(texts)


def _distinct(hash_of_word: npt.NDArray[np.uint32], text_of_word: npt.NDArray[np.int64], words: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    is_long = (words >= 6)[text_of_word]
    keys = np.sort(text_of_word[is_long] << 32 | hash_of_word[is_long].astype(np.int64))
    return np.bincount(keys[np.append(True, keys[1:] != keys[:-1])[: len(keys)]] >> 32, minlength=len(words))


def _has_run(texts: Characters) -> Flags:
    """Which texts have one character eight times in a row, or are next to one that ends in the same character."""
    found = np.zeros(len(texts.lengths), np.bool_)
    same = texts.codes[1:] == texts.codes[:-1]
    for step in (1, 2, 3):  # 1 + 1, 2 + 2, 4 + 3 = 7 equal neighbours
        same = same[:-step] & same[step:] if len(same) > step else same[:0]
    found[np.searchsorted(texts.starts, np.flatnonzero(same), side="right") - 1] = True
    return found


@functools.cache
def _kinds() -> npt.NDArray[np.uint8]:
    table = np.array([LETTER * (unicodedata.category(chr(code))[0] in "LM") for code in range(0x110000)], np.uint8)
    table[[ord(space) for space in "\t\n\f\r "]] = SPACE
    return table


@functools.cache
def _hashes() -> npt.NDArray[np.uint32]:
    """Code point -> a number that stands for what `normalise` makes of it, _SEPARATOR or _COMPLEX."""
    numbers = np.random.default_rng(0).integers(2, 2**32, 0x110000, np.uint32)
    table = np.full(_TABLE + 1, _COMPLEX, np.uint32)
    for code in range(_TABLE):
        character = chr(code)
        folded = normalise(f"a{character}a")
        if folded == "a a" and normalise(f"a{character}") == "a":  # "C++" and "C#" are more than C
            table[code] = _SEPARATOR
        elif len(folded) >= 3 and " " not in folded and unicodedata.category(character)[0] in "LN":
            table[code] = sum(int(numbers[ord(letter)]) for letter in folded[1:-1]) % 2**32
    return table
