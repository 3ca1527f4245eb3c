"""QueryIndex: which queries each text contains (CLIP section 2.2: pairs "whose text includes one of a set of 500,000 queries").

Texts and queries are split by one rule (`clipkit.dataset.texts.tokens`), and a query matches where its tokens stand in a row in the text.
Two tries answer that for all positions of a batch at once: one leads from the bytes of a token, eight at a time, to its number, the
other from the tokens of a query to the queries that end there. Both compare whole keys, so nothing rests on a hash without collisions.
They are plain arrays: saved as they are and mapped into memory, one index serves all processes of a machine.
"""

import hashlib
import itertools
import json
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from clipkit import UserError
from clipkit.dataset.texts.tokens import TOKENISE, Mode, Tokens, normalise
from clipkit.run import replacing

__all__ = ["QueryIndex", "normalise"]

Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]
UInt64s = npt.NDArray[np.uint64]
Slots = npt.NDArray[np.void]

_VERSION = 1
_MANIFEST = "index.json"
_BATCH = 4_096
_BATCH_BYTES = 4_000_000
_NONE = -1
_SLOT = np.dtype([("symbol", "<u8"), ("node", "<i4"), ("reached", "<i4")])


class QueryIndex:
    """Finds all queries in texts: every occurrence, overlapping ones and queries inside queries too. Exact."""

    def __init__(self, queries: Sequence[str], *, mode: Mode = "tokens") -> None:
        """Index the queries; a match gives positions in `queries`. Equal queries all match.

        "tokens": as `normalise` has it; a query without tokens never matches. "metaclip": MetaCLIP's spacing rule, to the letter: case
        counts, brackets, quotes and hyphens are no boundaries, and an entry with `, . ; : ? ! `` in it hardly ever matches. Raises
        UserError where a query is no Unicode text.
        """
        self.count, self.mode = len(queries), mode
        self.content_hash = _content_hash(queries, mode)
        self._index = _build(TOKENISE[mode][0](_as_strings(queries)), len(queries))

    def match(self, texts: pa.StringArray) -> pa.ListArray:
        """For each text the positions of the queries in it: list<int32>, ascending, each once. A null text contains none."""
        found = [self._match_batch(batch) for batch in _batches(texts)]
        return pa.concat_arrays(found) if found else pa.array([], pa.list_(pa.int32()))

    def _match_batch(self, texts: pa.StringArray) -> pa.ListArray:
        tokens = TOKENISE[self.mode][1](pc.fill_null(texts, ""))
        if texts.null_count:
            tokens = tokens.of(texts.is_valid().to_numpy(zero_copy_only=False))
        matched = np.sort(self._index.find(tokens, self.count))
        matched = matched[np.diff(matched, prepend=-1) > 0]
        row_ends = np.searchsorted(matched, np.arange(len(texts) + 1) * self.count)
        queries = (matched % max(self.count, 1)).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(row_ends, pa.int32()), pa.array(queries))

    def save(self, folder: Path) -> None:
        """Write the index for `load`, its manifest last: what was killed half-way is no index. The same queries give the same bytes."""
        manifest = folder / _MANIFEST
        manifest.unlink(missing_ok=True)
        digests = {}
        for name, array in self._index._asdict().items():
            with replacing(folder / f"{name}.npy") as temporary, temporary.open("wb") as file:
                np.save(file, array, allow_pickle=False)
            digests[name] = _digest(folder / f"{name}.npy")
        told = {**_identity(self.mode), "count": self.count, "content_hash": self.content_hash, "arrays": digests}
        with replacing(manifest) as temporary:
            temporary.write_text(json.dumps(told, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path, *, content_hash: str | None = None) -> Self:
        """The index that `save` wrote, mapped read-only: processes of a machine share its pages.

        Raises UserError where the folder holds no whole index, one of another version of clipkit or of Python's Unicode tables, or, if
        `content_hash` is given, one of other queries or of another mode.
        """
        manifest = _read_manifest(folder, content_hash)
        index = cls.__new__(cls)
        index.count, index.mode, index.content_hash = manifest["count"], manifest["mode"], manifest["content_hash"]
        index._index = _Index(**{name: _mapped(folder / f"{name}.npy", digest) for name, digest in manifest["arrays"].items()})
        return index


class _Index(NamedTuple):
    """Two tries. `words`: token's length -> its bytes, eight at a time -> the token's node. `paths`: first token's node -> further tokens.

    Queries that end at a node are `queries[ends[node] : ends[node + 1]]`; `inner` says which nodes have further tokens; `sizes` are
    the bytes of the longest token and the tokens of the longest query.
    """

    words: Slots
    paths: Slots
    inner: npt.NDArray[np.bool_]
    ends: Int32s
    queries: Int32s
    sizes: Int64s

    def find(self, tokens: Tokens, num_queries: int) -> Int64s:
        """row * num_queries + query for every occurrence of a query in a row, in no order."""
        positions, nodes = self._walk(self._known(tokens), tokens.rows_T)
        counts = (self.ends[nodes + 1] - self.ends[nodes]).astype(np.int64)
        offsets = np.repeat(self.ends[nodes] - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())
        found: Int64s = np.repeat(tokens.rows_T[positions], counts) * num_queries + self.queries[offsets]
        return found

    def _known(self, tokens: Tokens) -> Int64s:
        """The node of each token, -1 for one that is in no query."""
        nodes = np.where(tokens.lengths_T <= self.sizes[0], ~tokens.lengths_T, _NONE)
        chosen = np.flatnonzero(tokens.lengths_T <= self.sizes[0])
        number = 0
        while len(chosen):
            nodes[chosen] = _follow(self.words, nodes[chosen], tokens.words(chosen, number))
            number += 1
            chosen = chosen[(tokens.lengths_T[chosen] > 8 * number) & (nodes[chosen] != _NONE)]
        return nodes

    def _walk(self, known: Int64s, rows: Int64s) -> tuple[Int64s, Int64s]:
        """(start positions, nodes) of every path from every position that stays in its row."""
        starts = np.flatnonzero(known != _NONE)
        nodes = known[starts]
        found = [(starts, nodes)]
        for length in range(1, int(self.sizes[1])):
            going = np.flatnonzero(self.inner[nodes] & (starts + length < len(known)))
            nexts = starts[going] + length
            going = going[(rows[nexts] == rows[starts[going]]) & (known[nexts] != _NONE)]
            starts, nodes = starts[going], nodes[going]
            nodes = _follow(self.paths, nodes, known[starts + length].astype(np.uint64))
            starts, nodes = starts[nodes != _NONE], nodes[nodes != _NONE]
            found.append((starts, nodes))
        return np.concatenate([pair[0] for pair in found]), np.concatenate([pair[1] for pair in found])


def _batches(texts: pa.StringArray) -> Iterator[pa.StringArray]:
    """Runs of texts: few enough for the processor's caches, and few enough bytes that long texts need no more memory than short ones."""
    ends = np.cumsum(pc.fill_null(pc.binary_length(texts), 0).to_numpy(), dtype=np.int64)
    is_cut = np.diff(ends // _BATCH_BYTES, prepend=0) > 0
    is_cut[::_BATCH] = True
    cuts = [*np.flatnonzero(is_cut).tolist(), len(texts)]
    for start, end in itertools.pairwise(cuts):
        yield texts.slice(start, end - start).cast(pa.string())


def _build(tokens: Tokens, num_queries: int) -> _Index:
    word_counts = np.maximum(-(-tokens.lengths_T // 8), 1)
    token_nodes, words, num_words = _grow(~tokens.lengths_T, word_counts, tokens.words, first_node=0)
    counts = np.bincount(tokens.rows_T, minlength=num_queries)
    firsts, ending = np.cumsum(counts) - counts, np.flatnonzero(counts)
    starts = firsts[ending]

    def further(chosen: Int64s, number: int) -> UInt64s:
        symbols: UInt64s = token_nodes[starts[chosen] + number + 1].astype(np.uint64)
        return symbols

    nodes, paths, num_nodes = _grow(token_nodes[starts], counts[ending] - 1, further, first_node=num_words)
    inner = np.zeros(num_nodes, np.bool_)
    inner[paths["node"][paths["reached"] != _NONE]] = True
    order = np.argsort(nodes, kind="stable")
    ends = np.searchsorted(nodes[order], np.arange(num_nodes + 1)).astype(np.int32)
    sizes = np.array([tokens.lengths_T.max(initial=0), counts.max(initial=0)])
    return _Index(words, paths, inner, ends, ending[order].astype(np.int32), sizes)


def _grow(nodes: Int64s, counts: Int64s, symbols: Callable[[Int64s, int], UInt64s], *, first_node: int) -> tuple[Int64s, Slots, int]:
    """A trie of sequences: each starts at one of `nodes` and takes `counts` edges; `symbols(chosen, number)` tells their next symbols.

    Returns the node at which each ends, the edges, and the first number that is free again; new nodes are numbered from `first_node`.
    """
    nodes, found = nodes.copy(), [np.empty(0, _SLOT)]
    for number in range(counts.max(initial=0)):
        chosen = np.flatnonzero(counts > number)
        edges, branch = _distinct(nodes[chosen], symbols(chosen, number))
        edges["reached"] = first_node + np.arange(len(edges))
        nodes[chosen] = first_node + branch
        first_node += len(edges)
        found.append(edges)
    if first_node >= 2**31:
        raise UserError(f"the queries have {first_node:,} different beginnings, over 2^31: give fewer or shorter ones")
    return nodes, _hashed(np.concatenate(found)), first_node


def _distinct(nodes: Int64s, symbols: UInt64s) -> tuple[Slots, Int64s]:
    """The different (node, symbol), nothing reached yet, and which of them each pair is."""
    values, rank = np.unique(symbols, return_inverse=True)
    lowest = nodes.min(initial=0)
    _, first, branch = np.unique((nodes - lowest) * len(values) + rank, return_index=True, return_inverse=True)
    edges = np.empty(len(first), _SLOT)
    edges["symbol"], edges["node"] = symbols[first], nodes[first]
    return edges, branch


def _hashed(edges: Slots) -> Slots:
    """The edges as an open-addressing table, at most half full; empty slots reach -1."""
    slots = np.zeros(1 << max(4, (2 * len(edges)).bit_length()), _SLOT)
    slots["reached"] = _NONE
    places = _place(edges["node"], edges["symbol"], len(slots))
    while len(edges):
        # Of the edges that want one empty slot the first takes it; the rest move on.
        taken, first = np.unique(places, return_index=True)
        won = first[slots["reached"][taken] == _NONE]
        slots[places[won]] = edges[won]
        rest = np.ones(len(edges), np.bool_)
        rest[won] = False
        edges, places = edges[rest], (places[rest] + 1) & (len(slots) - 1)
    return slots


def _follow(slots: Slots, nodes: Int64s, symbols: UInt64s) -> Int64s:
    """The node that each symbol leads to from each node, or -1."""
    places = _place(nodes, symbols, len(slots))
    reached, open_ = _look(slots[places], nodes, symbols)
    while len(open_):
        places[open_] = (places[open_] + 1) & (len(slots) - 1)
        reached[open_], still = _look(slots[places[open_]], nodes[open_], symbols[open_])
        open_ = open_[still]
    return reached


def _look(here: Slots, nodes: Int64s, symbols: UInt64s) -> tuple[Int64s, Int64s]:
    """The nodes reached from one slot each, -1 where it is another edge's; and which of those the next slot may still hold."""
    is_edge = (here["symbol"] == symbols) & (here["node"] == nodes)
    reached = np.where(is_edge, here["reached"], _NONE).astype(np.int64)
    return reached, np.flatnonzero(~is_edge & (here["reached"] != _NONE))


def _place(nodes: Int64s, symbols: UInt64s, num_slots: int) -> Int64s:
    # Fibonacci hashing: the top bits of a product with 2^64 / golden ratio; the node is spread before it meets the symbol.
    mixed = symbols ^ (nodes.astype(np.uint64) * np.uint64(0xD6E8FEB86659FD93))
    places: Int64s = ((mixed * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(65 - num_slots.bit_length())).astype(np.int64)
    return places


def _as_strings(queries: Sequence[str]) -> pa.StringArray:
    try:
        return pa.array(queries, pa.string())
    except UnicodeEncodeError as error:
        raise UserError(f"the query {error.object!r} has half a surrogate pair, which is no Unicode text: remove it") from None


def _content_hash(queries: Sequence[str], mode: Mode) -> str:
    told = hashlib.sha256(f"{mode}\n".encode())
    for query in queries:
        data = query.encode("utf-8", "surrogatepass")
        told.update(b"%d:%s" % (len(data), data))
    return told.hexdigest()


def _identity(mode: Mode) -> dict[str, Any]:
    return {"format": "clipkit query index", "version": _VERSION, "unicode": unicodedata.unidata_version, "mode": mode}


def _read_manifest(folder: Path, content_hash: str | None) -> dict[str, Any]:
    path = folder / _MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"`{path}` cannot be read ({error}): the index is not finished or damaged, build it again") from None
    whole = isinstance(manifest, dict) and manifest.get("mode") in TOKENISE and {"count", "content_hash", "arrays"} <= set(manifest)
    expected = _identity(manifest["mode"]) if whole else {}
    if not whole or expected != {name: manifest.get(name) for name in expected} or set(manifest["arrays"]) != set(_Index._fields):
        raise UserError(f"`{path}` is of another version of clipkit or of Python: build the index again")
    if content_hash not in (None, manifest["content_hash"]):
        raise UserError(
            f"`{folder}` is the index of other queries ({manifest['content_hash'][:12]}, not {content_hash:.12}): build it again"
        )
    return manifest


def _mapped(path: Path, digest: str) -> npt.NDArray[Any]:
    if not path.is_file() or _digest(path) != digest:
        raise UserError(f"`{path}` is missing or has changed since it was written: build the index again")
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
