"""A detector that keeps more candidates than it asks for: to find every duplicate, and to look for pictures among themselves."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from clipkit.evaluation.embeddings import WHOLE, Pictures
from clipkit.evaluation.shard_pictures import ShardPictures
from clipkit.model.detector import Detector, ScoreNorm, Threshold, Verify
from clipkit.model.encoder import Encoded, Encoder
from clipkit.overlap.search.neighbours import Neighbours
from clipkit.overlap.search.passes import Search, search_described
from clipkit.overlap.search.scale import normalised

__all__ = ["Deeper", "Look", "chosen", "look"]


@dataclass(frozen=True)
class Deeper:
    """`detector` with another number of candidates; a Detector itself."""

    detector: Detector
    candidates: int

    @property
    def encoder(self) -> Encoder:
        """The detector's."""
        return self.detector.encoder

    @property
    def verify(self) -> Verify | None:
        """The detector's."""
        return self.detector.verify

    @property
    def threshold(self) -> Threshold:
        """The detector's."""
        return self.detector.threshold

    @property
    def score_norm(self) -> ScoreNorm | None:
        """The detector's."""
        return self.detector.score_norm

    def views(self, described: Encoded) -> Tensor:
        """The detector's."""
        return self.detector.views(described)


class Look(Protocol):
    """Who searches: the `k` best of the pictures `among` for each of the described ones, with the similarity that decides."""

    def __call__(self, described: Encoded, among: Sequence[Pictures], k: int) -> Neighbours:
        """Places as `place_of` makes them, of `among`."""


def chosen(described: Encoded, rows: Sequence[int]) -> Encoded:
    """What is known of some of the described pictures."""
    return Encoded(described.features_BF[rows], described.projected_BD[rows])


def look(search: Search, described: Encoded, among: Sequence[ShardPictures], k: int) -> Neighbours:
    """What `Look` asks for, by the search's detector."""
    deeper = replace(search, detector=Deeper(search.detector, k), training=among, share=WHOLE)
    return normalised(search_described(deeper, described), search.detector, described)
