"""QueryIndex: which queries each text contains (CLIP section 2.2: pairs "whose text includes one of a set of 500,000 queries").

Texts and queries go through one `normalise`, and a query matches where its tokens stand in a row in the text. The index is a trie
over interned tokens that is walked for all positions of a batch at once; its keys are (node, token) pairs in 64 bits, so nothing
rests on a hash being free of collisions.
"""

import functools
import re
import sys
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["QueryIndex", "normalise"]

Int64s = npt.NDArray[np.int64]

_BATCH = 32_768
_EMPTY = -1
_APOSTROPHES = {ord("’"): "'", ord("ʼ"): "'", ord("‘"): "'"}
_IGNORED = "\u00ad\u034f\u200c\u200d\u2060\ufeff\ufe00-\ufe0f"
_SPACELESS = "THAI |LAO |KHMER |MYANMAR |TIBETAN |CJK |HIRAGANA |KATAKANA |KATAKANA-HIRAGANA |IDEOGRAPHIC |BOPOMOFO |TAI |NEW TAI "


def normalise(text: str) -> str:
    """The tokens of a text, joined by single spaces; what queries and texts are compared in.

    Compatibility forms and case are folded (NFKC, full case folding: "Straße" = "STRASSE", "ﬁsh" = "Fish"). A token is a run of
    Unicode letters, marks and digits; everything else separates, the underscore, hyphen and full stop too:

    * "(dog)", "dog,", "Dog's", "#dog" and "toy_dog" contain "dog"; "dogs" and "hotdog" do not.
    * "toy-box" contains "toy", "box", "toy box" and "toy-box"; "toybox" is another word.
    * "Mr. Smith" is "mr smith". "U.S." is "u s": it matches "U.S.", "U. S." and "u s", not "US", which as a query would find "us".
    * The English endings 's, 't, 'd, 'm, 'll, 're, 've stay a token of their own with the apostrophe, so that "Golden Retriever's"
      contains "golden retriever", and neither "s" nor "t" is found in "dog's" and "don't". Other apostrophes separate: "l'homme"
      contains "homme". Typographic apostrophes count as '.
    * Scripts written without spaces (Han, kana, Bopomofo, Thai, Lao, Khmer, Burmese, Tibetan, Tai): each letter with its marks is a
      token, so a query is found anywhere in a text, as a substring of letters. Hangul is split at spaces.
    * Soft hyphens, joiners and variation selectors are ignored.

    Which characters are letters is asked of this Python's Unicode tables. The result is "" where a text has no letter and no digit.
    """
    return " ".join(_tokens(text))


class QueryIndex:
    """Finds all queries in texts: every occurrence, overlapping ones and queries inside queries too. Exact."""

    def __init__(self, queries: Sequence[str]) -> None:
        """Index the queries; a match gives positions in `queries`. A query without tokens never matches; equal ones all do."""
        self.count = len(queries)
        tokens, counts = _tokenise(pa.array(queries, pa.string()))
        self._vocabulary = pc.unique(tokens)
        token_ids = pc.index_in(tokens, value_set=self._vocabulary).to_numpy().astype(np.int64)
        self._trie = _build_trie(token_ids, counts, len(self._vocabulary))

    def match(self, texts: pa.StringArray) -> pa.ListArray:
        """For each text the positions of the queries in it: list<int32>, ascending, each once. A null text contains none."""
        batches = [self._match_batch(texts.slice(start, _BATCH)) for start in range(0, len(texts), _BATCH)]
        return pa.concat_arrays(batches) if batches else pa.array([], pa.list_(pa.int32()))

    def _match_batch(self, texts: pa.StringArray) -> pa.ListArray:
        tokens, counts = _tokenise(texts)
        found = pc.index_in(tokens, value_set=self._vocabulary)
        token_ids = pc.fill_null(found, _EMPTY).to_numpy().astype(np.int64)
        rows = np.repeat(np.arange(len(texts)), counts)
        positions, nodes = self._trie.walk(token_ids, rows)
        matched = np.sort(self._trie.expand(rows[positions], nodes, self.count))
        matched = matched[np.diff(matched, prepend=-1) > 0]
        row_ends = np.searchsorted(matched, np.arange(len(texts) + 1) * self.count)
        queries = (matched % max(self.count, 1)).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(row_ends, pa.int32()), pa.array(queries))


class _Edges(NamedTuple):
    """Edges of a trie as an open-addressing table: slot of (node, token) key -> key, node reached. Empty slots hold -1."""

    keys: Int64s
    nodes: Int64s
    shift: int

    def follow(self, wanted: Int64s) -> Int64s:
        """The node that each key leads to, or -1."""
        reached = np.full(len(wanted), _EMPTY)
        slots = _slot(wanted, self.shift)
        open_ = np.arange(len(wanted))
        while len(open_):
            here = self.keys[slots]
            hit = here == wanted[open_]
            reached[open_[hit]] = self.nodes[slots[hit]]
            going = ~hit & (here != _EMPTY)
            open_, slots = open_[going], (slots[going] + 1) & (len(self.keys) - 1)
        return reached


class _Trie(NamedTuple):
    """A trie over token ids. Node 0..V-1 is the token itself; deeper nodes follow. Queries that end at a node are in CSR form."""

    edges: _Edges
    vocabulary_size: int
    depth: int
    ends: Int64s
    queries: Int64s
    inner: npt.NDArray[np.bool_]

    def walk(self, token_ids: Int64s, rows: Int64s) -> tuple[Int64s, Int64s]:
        """(start positions, nodes) of every path from every position that stays in its row; token id -1 is in no query."""
        starts = np.flatnonzero(token_ids != _EMPTY)
        nodes = token_ids[starts]
        found = [(starts, nodes)]
        for length in range(1, self.depth):
            nexts = starts + length
            alive = self.inner[nodes] & (nexts < len(token_ids))
            alive[alive] = (rows[nexts[alive]] == rows[starts[alive]]) & (token_ids[nexts[alive]] != _EMPTY)
            starts, nodes = starts[alive], nodes[alive]
            nodes = self.edges.follow(nodes * self.vocabulary_size + token_ids[starts + length])
            starts, nodes = starts[nodes != _EMPTY], nodes[nodes != _EMPTY]
            found.append((starts, nodes))
        return np.concatenate([pair[0] for pair in found]), np.concatenate([pair[1] for pair in found])

    def expand(self, rows: Int64s, nodes: Int64s, num_queries: int) -> Int64s:
        """row * num_queries + query for every query that ends at the node of a row."""
        counts = self.ends[nodes + 1] - self.ends[nodes]
        offsets = np.repeat(self.ends[nodes] - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())
        matched: Int64s = np.repeat(rows, counts) * num_queries + self.queries[offsets]
        return matched


def _build_trie(token_ids: Int64s, counts: Int64s, vocabulary_size: int) -> _Trie:
    starts = np.cumsum(counts) - counts
    nodes = np.full(len(counts), _EMPTY)
    nodes[counts > 0] = token_ids[starts[counts > 0]]
    edge_keys, next_node, depth = [np.empty(0, np.int64)], vocabulary_size, int(counts.max(initial=0))
    for length in range(1, depth):
        longer = np.flatnonzero(counts > length)
        keys = nodes[longer] * vocabulary_size + token_ids[starts[longer] + length]
        distinct, branch = np.unique(keys, return_inverse=True)
        nodes[longer] = next_node + branch
        edge_keys.append(distinct)
        next_node += len(distinct)
    assert next_node * max(vocabulary_size, 1) < 2**63
    keys = np.concatenate(edge_keys)
    inner = np.zeros(next_node, np.bool_)
    inner[keys // max(vocabulary_size, 1)] = True
    ending = np.flatnonzero(counts > 0)
    order = np.argsort(nodes[ending], kind="stable")
    ends = np.searchsorted(nodes[ending][order], np.arange(next_node + 1))
    return _Trie(_edges(keys, vocabulary_size + np.arange(len(keys))), vocabulary_size, depth, ends, ending[order], inner)


def _edges(keys: Int64s, nodes: Int64s) -> _Edges:
    bits = max(4, (2 * len(keys)).bit_length())
    table = _Edges(np.full(1 << bits, _EMPTY), np.full(1 << bits, _EMPTY), 64 - bits)
    slots = _slot(keys, table.shift)
    while len(keys):
        # Of the keys that want one empty slot the first takes it; the rest move on.
        taken, first = np.unique(slots, return_index=True)
        won = first[table.keys[taken] == _EMPTY]
        table.keys[slots[won]], table.nodes[slots[won]] = keys[won], nodes[won]
        rest = np.ones(len(keys), np.bool_)
        rest[won] = False
        keys, nodes, slots = keys[rest], nodes[rest], (slots[rest] + 1) & ((1 << bits) - 1)
    return table


def _slot(keys: Int64s, shift: int) -> Int64s:
    # Fibonacci hashing: the top bits of key x 2^64 / golden ratio.
    return ((keys.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(shift)).astype(np.int64)


def _tokenise(texts: pa.StringArray) -> tuple[pa.StringArray, Int64s]:
    """All tokens of all texts in a row, and the number of tokens of each text. Plain ASCII is split as bytes, the rest by `_tokens`."""
    texts = pc.fill_null(texts, "")
    plain = pc.and_not(pc.string_is_ascii(texts), pc.match_substring(texts, "'"))
    other = [normalise(text) for text in texts.filter(pc.invert(plain)).to_pylist()]
    texts = pc.replace_with_mask(texts, pc.invert(plain), pa.array(other, pa.string()))
    offsets = np.frombuffer(texts.buffers()[1], np.int32, len(texts) + 1, texts.offset * 4)
    data = np.frombuffer(texts.buffers()[2] or b"", np.uint8)[offsets[0] : offsets[-1]]
    offsets = offsets - offsets[0]
    folded = _FOLDED[data]
    is_token = folded != 0
    starts = is_token.copy()
    starts[1:] &= ~is_token[:-1]
    firsts = offsets[:-1][offsets[:-1] < offsets[1:]]
    starts[firsts] = is_token[firsts]
    letters_before = np.concatenate(([0], np.cumsum(is_token, dtype=np.int32)))
    token_offsets = np.append(letters_before[np.flatnonzero(starts)], letters_before[-1]).astype(np.int32)
    tokens_before = np.concatenate(([0], np.cumsum(starts, dtype=np.int64)))
    buffers = [None, pa.py_buffer(token_offsets), pa.py_buffer(folded[is_token])]
    tokens = pa.StringArray.from_buffers(len(token_offsets) - 1, buffers[1], buffers[2])
    return tokens, np.diff(tokens_before[offsets])


def _folded_bytes() -> npt.NDArray[np.uint8]:
    """Byte -> byte of a token, 0 for a separator: ASCII letters and digits in lower case, and what `normalise` has left."""
    return np.array([b if b >= 0x80 or b == 0x27 else ord(chr(b).lower()) if chr(b).isalnum() else 0 for b in range(256)], np.uint8)


_FOLDED = _folded_bytes()


def _tokens(text: str) -> list[str]:
    ignored, token = _patterns()
    text = unicodedata.normalize("NFKC", ignored.sub("", text)).casefold()
    return token.findall(unicodedata.normalize("NFKC", text).translate(_APOSTROPHES))


@functools.cache
def _patterns() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """(what is ignored, one token). Python's `\\w` knows no marks, so the classes are spelt out from the Unicode tables."""
    kinds = [_kind(chr(code)) for code in range(sys.maxunicode + 1)]
    word, mark, alone = (_ranges(kinds, kind) for kind in "wma")
    ending = f"(?<=[{word}{mark}])'(?:s|t|d|m|ll|re|ve)(?![{word}{mark}{alone}])"
    return re.compile(f"[{_IGNORED}]"), re.compile(f"{ending}|[{alone}][{mark}]*|[{word}{mark}]+")


def _kind(character: str) -> str:
    """w: letter or digit, m: mark, a: a letter that is a token alone, -: separator."""
    category = unicodedata.category(character)[0]
    if category == "M":
        return "m"
    if category not in "LN" or character in "ʼ":
        return "-"
    return "a" if category == "L" and unicodedata.name(character, "").startswith(tuple(_SPACELESS.split("|"))) else "w"


def _ranges(kinds: Sequence[str], wanted: str) -> str:
    """The code points of one kind as the inside of a regular expression's class."""
    is_wanted = np.array([kind == wanted for kind in kinds], np.int8)
    edges = np.diff(is_wanted, prepend=0, append=0)
    firsts, lasts = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1) - 1
    return "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in zip(firsts, lasts, strict=True))
