"""Shards to batches: uint8 pictures and their captions, the same at a given step whoever prepares them.

A batch is a function of the seed and the step alone. The number of worker processes, the number of ranks and where a run was resumed
change who decodes a picture, never which picture stands where or how it is cropped.
"""

import itertools
import math
import mmap
import multiprocessing
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from clipkit import UserError
from clipkit.dataset.shards import Shards
from clipkit.model.preprocess import UndecodableImage, decode_image, middle, resize_shorter_side, resized_sides
from clipkit.model.resizing import resize_quickly
from clipkit.recipe import DataKnobs
from clipkit.training.augmentation import augmentation
from clipkit.training.labels import Labels
from clipkit.training.mixture import Mixture
from clipkit.training.order import HeldOut, Order, keyed_uniform
from clipkit.training.pairs import EncodedPair, PairReader
from clipkit.training.sources import Sources, facts

PART = 256
"""Pairs that one worker prepares at a time: few enough for many workers to share a large batch."""

MAX_REPLACEMENTS = 100
"""Draws for one row of a batch after which every picture is taken to be broken."""


class Batch(NamedTuple):
    """Pairs of one step. `broken`: keys whose picture could not be decoded and whose place another pair has taken.

    Where they are asked for: `views_VBCHW`, further views of the same pictures, uint8; `label_B`, int64, equal for pairs of one class.
    """

    keys: list[str]
    pixels_BCHW: Tensor
    texts: list[str]
    broken: list[str]
    views_VBCHW: Tensor | None = None
    label_B: Tensor | None = None


class Batches:
    """This rank's rows of every step's batch.

    `for batch in batches.from_step(start, stop)`: the batches of steps start .. stop - 1, `batch_size / ranks` pairs each.
    """

    def __init__(
        self,
        shards: Shards | Sequence[Shards],
        knobs: DataKnobs,
        *,
        image_size: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
        views: int = 0,
        labels: bool = False,
    ) -> None:
        """`shards`: one source or several. `image_size` in pixels; `views`: further ones of each picture; `labels`: whether there are any.

        Raises UserError when there are fewer pairs than a batch or its quota of a source, ranks cannot share it evenly, views would be
        equal, or the knob `label` names no column.
        """
        if batch_size % ranks:
            raise UserError(f"knob `batch_size` is {batch_size}, {ranks} ranks cannot share it evenly: set a multiple of {ranks}")
        self.sources = Sources.of(shards, knobs.weights)
        kept_out = self._keep_out(knobs.hold_out, batch_size=batch_size, seed=seed)
        self.workers = knobs.workers
        self.count = self.sources.count - len(kept_out.with_twins)
        self.held_out_N = kept_out.positions_N
        self.order = self.sources.order(batch_size=batch_size, window=knobs.shuffle_buffer, seed=seed, without=kept_out.with_twins)
        rows = batch_size // ranks
        self.parts_per_batch = math.ceil(rows / PART)
        self._parts = _Parts(
            self.sources, self.order, knobs, image_size=image_size, rows=(rank * rows, (rank + 1) * rows), views=views, labels=labels
        )

    @property
    def reader(self) -> PairReader:
        """The pairs behind the batches, by position."""
        return self._parts.reader

    @property
    def is_cache_refused(self) -> bool:
        """Whether the system had no memory for `data.cache_bytes`, so that every picture is decoded each time it comes."""
        return self._parts.is_cache_refused

    def source_facts(self, steps: int) -> list[dict[str, Any]]:
        """What a report says of each source, and how many of its pairs `steps` batches had, repeats counted."""
        return facts(self.sources, self.order, steps=steps)

    def _keep_out(self, hold_out: int, *, batch_size: int, seed: int) -> HeldOut:
        kept_out = self.sources.keep_out(min(hold_out, self.sources.count), seed=seed)
        left = self.sources.count - len(kept_out.with_twins)
        if left < batch_size:
            without = f" after `data.hold_out` = {hold_out:,}" if hold_out else ""
            raise UserError(
                f"the shards in {self.sources.where} hold {left:,} pairs{without}, fewer than `batch_size` = {batch_size:,}: "
                "set a smaller batch, or build more pairs"
            )
        return kept_out

    def from_step(self, start: int, stop: int) -> Iterator[Batch]:
        """The batches of steps `start` to `stop` - 1. Worker processes end with the iteration."""
        numbers = range(start * self.parts_per_batch, stop * self.parts_per_batch)
        with warnings.catch_warnings():
            # From Python 3.12 on forking warns of threads. The workers touch nothing that the other threads of this process hold.
            warnings.filterwarnings("ignore", message=".*fork.*", category=DeprecationWarning)
            parts = iter(
                DataLoader(
                    self._parts,
                    batch_size=None,
                    sampler=numbers,
                    num_workers=self.workers,
                    multiprocessing_context="fork" if self.workers else None,
                    pin_memory=torch.cuda.is_available(),
                )
            )
        for _ in range(start, stop):
            yield _join([_next(parts) for _ in range(self.parts_per_batch)])


class _Parts(Dataset[Batch | UserError]):
    """Parts of batches by number: what a worker process runs.

    A user's mistake is answered, not raised: torch would wrap it in a traceback.
    """

    def __init__(
        self,
        sources: Sources,
        order: Order | Mixture,
        knobs: DataKnobs,
        *,
        image_size: int,
        rows: tuple[int, int],
        views: int,
        labels: bool,
    ) -> None:
        self.order = order
        self.augmentation = augmentation(knobs, image_size)
        if views and not self.augmentation.draws:
            raise UserError(
                f"knob `data.augmentation` is `{knobs.augmentation}`, which shows every view of a picture alike, and the objective "
                "compares views: set `views`, or another that draws at random"
            )
        self.views = views
        self.image_size = image_size
        self.first_row, self.last_row = rows
        self.parts_per_batch = math.ceil((self.last_row - self.first_row) / PART)
        open_tars = sources.open_tars(knobs.shuffle_buffer)
        self.reader = PairReader(sources.folders, open_shards=open_tars)
        self.labels = Labels(sources, knobs.label, open_shards=open_tars) if labels else None
        self.resized, self.is_exact = self.augmentation.resized, knobs.augmentation == "resize"
        fits = self.resized is not None and len(self.reader) * 3 * self.resized**2 <= knobs.cache_bytes
        self.cache, self.is_cache_refused = None, False
        try:
            self.cache = PictureCache(len(self.reader), knobs.cache_bytes) if fits else None
        except OSError:  # The system does not promise that much memory.
            self.is_cache_refused = True

    def __len__(self) -> int:
        return 2**62  # Epochs follow each other without end.

    def __getitem__(self, number: int) -> Batch | UserError:
        try:
            return self._part(*divmod(number, self.parts_per_batch))
        except UserError as error:
            return error

    def _part(self, step: int, part: int) -> Batch:
        first = self.first_row + part * PART
        last = min(first + PART, self.last_row)
        positions_B = self.order.positions(step)[first:last]
        draws_VBn = [self._draws(step, view, first, last) for view in range(1 + self.views)]
        shown_VBCHW = np.empty((1 + self.views, last - first, 3, self.image_size, self.image_size), np.uint8)
        keys, texts, broken, labels = [], [], [], []
        for i, position in enumerate(positions_B.tolist()):
            read, pair, pixels, failed = self._readable(step, first + i, position)
            for view, draws_Bn in enumerate(draws_VBn):
                shown_VBCHW[view, i] = self.augmentation.view(view, pixels, draws_Bn[i])
            keys.append(pair.key)
            texts.append(pair.text)
            broken += failed
            if self.labels is not None:
                labels.append(self.labels.of(read, pair.text))
        shown = torch.from_numpy(shown_VBCHW)
        further, label_B = shown[1:] if self.views else None, torch.tensor(labels, dtype=torch.int64) if self.labels is not None else None
        return Batch(keys, shown[0], texts, broken, further, label_B)

    def _draws(self, step: int, view: int, first: int, last: int) -> NDArray[np.float64]:
        """The random numbers of a view of rows `first` to `last` - 1 of the whole batch, whichever rank has them."""
        count = self.augmentation.draws
        drawn = keyed_uniform(self.order.seed, "augmentation", (step, view), count * (last - first), after=count * first)
        return drawn.reshape(last - first, count)

    def _readable(self, step: int, row: int, position: int) -> tuple[int, EncodedPair, NDArray[np.uint8], list[str]]:
        """Position, pair and resized picture of the pair at a position, or of one drawn in its place, and the keys that were broken."""
        broken: list[str] = []
        for attempt in range(MAX_REPLACEMENTS):
            pair = self.reader.read(position)
            try:
                return position, pair, self._picture(position, pair.image), broken
            except UndecodableImage:
                broken.append(pair.key)
                position = self.order.replacement(step, row, attempt)
        raise UserError(
            f"{MAX_REPLACEMENTS} pictures in a row cannot be decoded, the last of pair `{broken[-1]}`: run `clipkit shards verify`"
        )

    def _picture(self, position: int, image: bytes) -> NDArray[np.uint8]:
        """The decoded picture (3, H, W), resized where the augmentation wants it so; from the cache where it is there."""
        if self.cache is not None and (kept := self.cache.get(position)) is not None:
            return kept
        pixels: NDArray[np.uint8] = self._resize(decode_image(image)).numpy()
        if self.cache is not None:
            self.cache.put(position, pixels)
        return pixels

    def _resize(self, pixels: Tensor) -> Tensor:
        """The shorter side as long as the crop needs it; as evaluation has it where nothing is augmented."""
        if self.resized is None:
            return pixels
        if self.is_exact:
            return resize_shorter_side(pixels, self.resized)
        pixels = middle(pixels)
        return resize_quickly(pixels, resized_sides(pixels, self.resized))


class PictureCache:
    """Decoded pictures that this process and the workers forked from it share: each is decoded once, by whoever needs it first.

    The memory is anonymous and shared; the system hands it out as it is filled. When it is full, nothing more is kept.
    """

    def __init__(self, count: int, capacity: int) -> None:
        """Room for `capacity` bytes of pictures, numbered from 0 to `count` - 1."""
        self._pixels = np.frombuffer(mmap.mmap(-1, max(1, capacity)), np.uint8)
        # Per picture: where it begins, its height, its width. A height of 0: not kept.
        self._places_N3 = np.frombuffer(mmap.mmap(-1, max(1, count) * 3 * 8), np.int64).reshape(-1, 3)
        self._used = np.frombuffer(mmap.mmap(-1, 8), np.int64)
        self._lock = multiprocessing.get_context("fork").Lock()

    def get(self, number: int) -> NDArray[np.uint8] | None:
        """A picture (3, H, W), or None."""
        with self._lock:
            start, height, width = self._places_N3[number].tolist()
        return self._pixels[start : start + 3 * height * width].reshape(3, height, width) if height else None

    def put(self, number: int, pixels: NDArray[np.uint8]) -> None:
        """Keep a picture, if there is room."""
        with self._lock:
            start = int(self._used[0])
            if self._places_N3[number, 1] or start + pixels.size > len(self._pixels):
                return
            self._used[0] += pixels.size
        self._pixels[start : start + pixels.size] = pixels.reshape(-1)
        with self._lock:
            self._places_N3[number] = start, *pixels.shape[1:]


def _next(parts: Iterator[Batch | UserError]) -> Batch:
    try:
        part = next(parts)
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            "a process that decodes pictures was killed, as happens when memory or shared memory (/dev/shm) runs out: "
            "set fewer `data.workers`, or 0, and run again to resume"
        ) from error
    if isinstance(part, UserError):
        raise part
    return part


def _join(parts: Sequence[Batch]) -> Batch:
    if len(parts) == 1:
        return parts[0]
    keys, pixels, texts, broken, views, labels = zip(*parts, strict=True)
    chain = itertools.chain.from_iterable
    return Batch(
        list(chain(keys)),
        torch.cat(pixels),
        list(chain(texts)),
        list(chain(broken)),
        torch.cat(views, dim=1) if views[0] is not None else None,
        torch.cat(labels) if labels[0] is not None else None,
    )
