"""A detector that keeps more candidates than it asks for: to find every duplicate, and to look for pictures among themselves."""

from dataclasses import dataclass

from torch import Tensor

from clipkit.model.detector import Detector, ScoreNorm, Threshold, Verify
from clipkit.model.encoder import Encoded, Encoder

__all__ = ["Deeper"]


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
