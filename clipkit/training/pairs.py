"""Any pair of the shards by its position, as fast as the next one.

Reading shards in a shuffled order needs no copy of them in memory: the tars are memory-mapped, a shard's pairs are found by walking
its headers once, and a pair is then read where it lies. Neither the order nor the number of worker processes has to follow the tars.
"""

import mmap
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from clipkit import UserError
from clipkit.dataset.shards import Shard, Shards

_BLOCK = 512
_IMAGE_SUFFIXES = ("jpg", "png", "webp")


class EncodedPair(NamedTuple):
    """A pair as it lies in a shard: key, encoded image, text."""

    key: str
    image: bytes
    text: str


class PairReader:
    """The pairs of shards by position, counted through all tars laid end to end. Keeps the last `open_shards` tars mapped."""

    def __init__(self, folders: Shards | Sequence[Shards], *, open_shards: int) -> None:
        """`folders`: one or several. `open_shards`: about as many as are read from in turns."""
        folders = [folders] if isinstance(folders, Shards) else folders
        self._tars = [(folder, shard) for folder in folders for shard in folder.shards]
        self.starts = np.concatenate([[0], np.cumsum([shard.count for _, shard in self._tars], dtype=np.int64)])
        self.open_shards = open_shards
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()

    def __len__(self) -> int:
        return int(self.starts[-1])

    def read(self, position: int) -> EncodedPair:
        """One pair. Raises UserError naming the shard where it is damaged or missing."""
        number = int(np.searchsorted(self.starts, position, side="right")) - 1
        return self._shard(number).read(position - int(self.starts[number]))

    def _shard(self, number: int) -> "_OpenShard":
        if number not in self._open:
            self._open[number] = _OpenShard(*self._tars[number])
            if len(self._open) > self.open_shards:
                self._open.popitem(last=False)
        self._open.move_to_end(number)
        return self._open[number]


class _OpenShard:
    """A mapped tar and where each of its pairs begins."""

    def __init__(self, shards: Shards, shard: Shard) -> None:
        self.path = shards.root / shard.name
        try:
            with open(self.path, "rb") as file:
                self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise UserError(f"`{self.path}` cannot be read ({error}): restore it, or build them again into a new `--out`") from None
        self._starts = self._walk()
        if len(self._starts) != shard.count:
            raise UserError(
                f"`{self.path}` holds {len(self._starts):,} pairs where the manifest says {shard.count:,}: build them into a new `--out`"
            )

    def read(self, index: int) -> EncodedPair:
        """The pair at an index of this shard."""
        at = int(self._starts[index])
        key = self._name(at)[0]
        image, text = None, None
        while at + _BLOCK <= len(self._bytes) and (name := self._name(at))[0] == key:
            start, end = at + _BLOCK, at + _BLOCK + self._size(at)
            if name[1] in _IMAGE_SUFFIXES:
                image = self._bytes[start:end]
            elif name[1] == "txt":
                text = self._bytes[start:end]
            if image is not None and text is not None:
                return EncodedPair(key, image, self._decode(key, text))
            at = end + -end % _BLOCK
        raise self._damage(f"pair `{key}` lacks its picture or its text")

    def _walk(self) -> NDArray[np.int64]:
        """Offsets of the headers at which a new key begins."""
        starts, previous, at = [], None, 0
        while at + _BLOCK <= len(self._bytes) and self._bytes[at] != 0:
            key, _ = self._name(at)
            if key != previous:
                starts.append(at)
                previous = key
            end = at + _BLOCK + self._size(at)
            at = end + -end % _BLOCK
        return np.array(starts, dtype=np.int64)

    def _name(self, at: int) -> tuple[str, str]:
        """Key and suffix of the file whose header is there."""
        key, _, suffix = self._bytes[at : at + 100].rstrip(b"\0").decode("ascii", "replace").partition(".")
        return key, suffix

    def _size(self, at: int) -> int:
        """Bytes of the file whose header is there."""
        digits = self._bytes[at + 124 : at + 136].strip(b"\0 ")
        if self._bytes[at + 257 : at + 262] != b"ustar" or not digits.isdigit() or set(digits) & set(b"89"):
            raise self._damage(f"no header of a plain file at byte {at:,}")
        size = int(digits, 8)
        if at + _BLOCK + size > len(self._bytes):
            raise self._damage(f"the file at byte {at:,} is cut off")
        return size

    def _decode(self, key: str, text: bytes) -> str:
        try:
            return text.decode()
        except UnicodeDecodeError:
            raise self._damage(f"the text of pair `{key}` is not UTF-8") from None

    def _damage(self, problem: str) -> UserError:
        return UserError(f"`{self.path}` is damaged: {problem}; `clipkit shards verify {self.path.parent}` lists all damage")
