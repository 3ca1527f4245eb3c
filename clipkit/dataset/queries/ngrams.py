"""Words and bigrams of running text, counted piece by piece, and the strength of a bigram.

A piece leaves its words with their counts, sorted, and its bigrams as pairs of positions in that list, sorted too.
"""

import re
import unicodedata
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clipkit.dataset.queries.sorted_counts import write_sorted
from clipkit.dataset.queries.wikitext import BREAK
from clipkit.dataset.texts.tokens import TOKENISE

__all__ = ["PieceCounts", "association", "keep_bigrams", "ngrams_of", "segments"]

Int64s = npt.NDArray[np.int64]

BATCH_CHARACTERS = 4_000_000
MAX_WORD_BYTES = 200
_ENDING_SIGNS = np.isin(np.arange(256), [ord(sign) for sign in "'+#"])


class PieceCounts:
    """Counts the words and bigrams of one piece of text.

    A word is a token of `clipkit.dataset.texts.matching.normalise`, so that a query made of words is found where it was counted;
    endings ('s, 't, ++) are none. A bigram is two words in a row between which stands no end of line, no BREAK and no punctuation but
    hyphens, apostrophes, underscores and the full stop of an abbreviation of one or two letters ("St. Louis", "U. S.").
    """

    def __init__(self) -> None:
        """Nothing counted yet."""
        self._texts: list[str] = []
        self._characters = 0
        self._tokens: list[pa.DictionaryArray] = []
        self._firsts: list[npt.NDArray[np.bool_]] = []

    def add(self, text: str) -> None:
        """Count one more text; nothing is counted across texts."""
        self._texts.append(text)
        self._characters += len(text)
        if self._characters >= BATCH_CHARACTERS:
            self._count()

    def write(self, words: Path, bigrams: Path) -> int:
        """[word, count] sorted by word, and [first, second, count] sorted, where first and second are rows of the words.

        Returns the number of running words.
        """
        self._count()
        tokens = pa.chunked_array(self._tokens, pa.dictionary(pa.int32(), pa.string())).unify_dictionaries().combine_chunks()
        tokens = pa.concat_arrays(tokens.chunks) if isinstance(tokens, pa.ChunkedArray) else tokens
        order = pc.sort_indices(tokens.dictionary)
        vocabulary = tokens.dictionary.take(order)
        ranks = np.full(len(order) + 1, -1, np.int32)
        ranks[order.to_numpy()] = np.arange(len(order))
        ids_T = ranks[tokens.indices.fill_null(len(order)).to_numpy()]
        counts = np.bincount(ids_T[ids_T >= 0], minlength=len(order))
        firsts_T = np.concatenate([np.empty(0, np.bool_), *self._firsts])
        write_sorted(bigrams, _bigrams(ids_T, firsts_T, len(order)))
        write_sorted(words, pa.table({"word": vocabulary, "count": pa.array(counts, pa.int64())}))
        return int(counts.sum())

    def _count(self) -> None:
        if not self._texts:
            return
        tokens, rows_T = _tokens(segments("\n".join(self._texts)))
        self._tokens.append(pc.dictionary_encode(tokens))
        self._firsts.append(np.diff(rows_T, prepend=-1) != 0)
        self._texts, self._characters = [], 0


def segments(text: str) -> pa.StringArray:
    """The runs of words of a text: what stands between line ends, BREAKs and punctuation."""
    text = _ABBREVIATION.sub(" ", f"\n{text}\n")
    data = np.frombuffer(_PUNCTUATION.sub("\n", text).encode(errors="replace").translate(_ENDS), np.uint8)
    ends = np.flatnonzero(data == ord("\n"))
    offsets = np.concatenate(([0], ends + 1)).astype(np.int32)
    offsets = offsets[np.append(True, np.diff(offsets) > 1)]  # an empty line goes with the next
    return pa.StringArray.from_buffers(len(offsets) - 1, pa.py_buffer(offsets), pa.py_buffer(data))


def _tokens(texts: pa.StringArray) -> tuple[pa.StringArray, Int64s]:
    """All tokens in a row, null where one is no word (an ending, or too long for a query), and the text that each is of."""
    tokens = TOKENISE["tokens"][1](texts)
    steps = np.zeros(len(tokens.data) + 1, np.int8)
    steps[tokens.starts_T] += 1
    steps[tokens.starts_T + tokens.lengths_T] -= 1
    data = tokens.data[np.cumsum(steps, dtype=np.int8)[:-1] > 0]
    offsets = np.concatenate(([0], np.cumsum(tokens.lengths_T))).astype(np.int32)
    is_word = ~_ENDING_SIGNS[tokens.data[tokens.starts_T]] & (tokens.lengths_T <= MAX_WORD_BYTES)
    words = pa.StringArray.from_buffers(len(offsets) - 1, pa.py_buffer(offsets), pa.py_buffer(data))
    return pc.if_else(pa.array(is_word), words, pa.scalar(None, pa.string())), tokens.rows_T


def _bigrams(ids_T: npt.NDArray[np.int32], firsts_T: npt.NDArray[np.bool_], size: int) -> pa.Table:
    """[first, second, count] of neighbours in one segment; ids below 0 are no words."""
    is_bigram = ~firsts_T[1:] & (ids_T[:-1] >= 0) & (ids_T[1:] >= 0)
    keys = ids_T[:-1][is_bigram].astype(np.int64) * size + ids_T[1:][is_bigram]
    keys.sort()  # np.unique would hold three copies
    starts = np.flatnonzero(np.diff(keys, prepend=-1))
    counts, keys = np.diff(starts, append=len(keys)), keys[starts]
    columns = {"first": keys // max(size, 1), "second": keys % max(size, 1), "count": counts}
    return pa.table({name: pa.array(column.astype(np.int32)) for name, column in columns.items()})


def keep_bigrams(words: Path, bigrams: Path, kept: pa.StringArray, out: Path) -> None:
    """[bigram, count] of a piece's bigrams of two kept words. `kept` is sorted; a bigram is row of first * len(kept) + row of second."""
    rows = pc.fill_null(pc.index_in(pq.read_table(words, columns=["word"])["word"], value_set=kept), -1).to_numpy().astype(np.int64)
    table = pq.read_table(bigrams)
    firsts, seconds = (rows[table[name].to_numpy()] for name in ("first", "second"))
    is_kept = (firsts >= 0) & (seconds >= 0)
    # Both lists of words are sorted, so the bigrams stay sorted.
    keys = firsts[is_kept] * len(kept) + seconds[is_kept]
    write_sorted(out, pa.table({"bigram": keys, "count": table["count"].to_numpy()[is_kept].astype(np.int64)}))


def ngrams_of(texts: pa.StringArray, length: int) -> pa.StringArray:
    """Texts of exactly `length` words as those words, joined by spaces; null for the others."""
    tokens, rows_T = _tokens(texts)
    counts = np.bincount(rows_T, minlength=len(texts))
    firsts = (np.cumsum(counts) - counts)[counts == length]
    parts = [tokens.take(pa.array(firsts + ahead)) for ahead in range(length)]
    found = pc.binary_join_element_wise(*parts, " ")
    places = np.full(len(texts), -1)
    places[counts == length] = np.arange(len(firsts))
    return found.take(pa.array(places, mask=places < 0))


def association(counts_xy: Int64s, counts_x: Int64s, counts_y: Int64s) -> npt.NDArray[np.float64]:
    """p(xy) / (p(x) p(y)) / N of bigrams xy of N running words: N times it, as a power of two, is the pointwise mutual information.

    Only multiplied and divided, so that equal counts rank equally on every machine; logarithms differ in their last digit.
    """
    return counts_xy / (counts_x.astype(np.float64) * counts_y.astype(np.float64))


def _is_break(character: str) -> bool:
    """Punctuation and symbols part words, but for what stands inside of one: hyphens, apostrophes, the underscore and signs of endings."""
    if character in "-‐‑'’‘ʼʻ´_+#":
        return False
    return unicodedata.category(character)[0] in "PS" or character in "\u2028\u2029\u0085"


_PUNCTUATION = re.compile("[" + "".join(re.escape(chr(code)) for code in range(0x80, 0x10000) if _is_break(chr(code))) + "]")
_ENDS = bytes(ord("\n") if chr(b) in BREAK + "\r\v\f" or (b < 0x80 and _is_break(chr(b))) else b for b in range(256))
_ABBREVIATION = re.compile(r"\.(?:(?<=[^A-Za-z][A-Za-z]\.)|(?<=[^A-Za-z][A-Za-z]{2}\.))")
