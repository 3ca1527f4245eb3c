"""Detectors: what finds near-duplicate pictures, behind one door.

* `pixels`: a descriptor that needs no training (`clipkit.model.pixel_descriptor`);
* `duplicates`: the trained detector that clipkit ships (CLIP's appendix C, small);
* `duplicates+pixels`: both of these together (`clipkit.model.joint_detector`);
* `phash`, `dhash`: perceptual hashes (`clipkit.model.hashes`);
* `sscd:FILE`: an SSCD descriptor (`clipkit.model.sscd`);
* whatever `load_encoder` reads: pictures are as similar as their vectors.
"""

import difflib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

from torch import Tensor

from clipkit import UserError
from clipkit.model.checkpoint import load_spec
from clipkit.model.encoder import ClipEncoder, Encoded, Encoder, load_encoder
from clipkit.model.formats.tensor_files import read_json
from clipkit.model.hashes import PerceptualHash
from clipkit.model.joint_detector import JointSearch
from clipkit.model.pixel_descriptor import VIEWS, PixelDescriptor
from clipkit.model.score_norm import NEAREST, WEIGHT, ScoreNorm, read_background
from clipkit.model.sscd import PREFIX, load_sscd

__all__ = [
    "VIEWS",
    "CosineDetector",
    "Detector",
    "PixelDescriptor",
    "ScoreNorm",
    "Threshold",
    "Verify",
    "beside_weights",
    "check_name",
    "load_detector",
    "shipped_folder",
]

Verify = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(test_PF, train_PF, view_P) -> (P,): the similarities of P pairs of pictures by their features, and the view that found each."""

SHIPPED = "duplicates"
TOGETHER = "duplicates+pixels"
DESCRIPTION = "detector.json"
"""Beside a model's weights: what `_description` reads."""

BACKGROUND = "background.safetensors"


ENTRIES: Mapping[str, tuple[tuple[type, ...], Callable[[Any], bool], str]] = {
    "threshold": ((int, float), lambda value: 0 < value <= 1, "a number above 0, up to 1"),
    "measured_on": ((str,), lambda value: len(value) <= 1_000, "a text of at most 1,000 characters"),
    "weight": ((int, float), lambda value: 0 <= value <= 10, "a number from 0 to 10"),
    "nearest": ((int,), lambda value: 1 <= value <= 1_000, "a whole number from 1 to 1,000"),
}


class Threshold(NamedTuple):
    """The similarity from which a picture counts as a duplicate where nobody says another, and what it was measured on."""

    value: float
    measured_on: str


UNMEASURED = Threshold(0.9, "nothing: for this detector nobody has measured one; look at the pairs and set the knob `threshold`")


class Detector(Protocol):
    """What finds the near-duplicates of test pictures: an encoder of pictures, and what is done with its vectors."""

    @property
    def encoder(self) -> Encoder:
        """What describes both test and training pictures: its `projected_BD` is searched, its `features_BF` verified."""

    @property
    def candidates(self) -> int:
        """How many training pictures per test picture the search keeps: one, where nothing is verified."""

    @property
    def verify(self) -> Verify | None:
        """The similarity that decides; None where the search's own does."""

    @property
    def threshold(self) -> Threshold:
        """Where duplicates begin, on the scale of the similarities that decide."""

    @property
    def score_norm(self) -> ScoreNorm | None:
        """What is taken off a test picture's similarities; None where they stay."""

    def views(self, described: Encoded) -> Tensor:
        """Vectors (V, N, D) under which N described test pictures are searched for; the best of V counts."""


class CosineDetector:
    """Any encoder as a detector: pictures are as similar as their vectors, less what `score_norm` takes off."""

    candidates: ClassVar[int] = 1
    verify: ClassVar[None] = None

    def __init__(self, encoder: Encoder, *, threshold: Threshold = UNMEASURED, score_norm: ScoreNorm | None = None) -> None:
        """`encoder` may be image-only."""
        self.encoder = encoder
        self.threshold = threshold
        self.score_norm = score_norm

    def views(self, described: Encoded) -> Tensor:
        """The pictures as they are: (1, N, D)."""
        return described.projected_BD[None]

    def with_background(self, background_KD: Tensor, *, source: str) -> "CosineDetector":
        """The same detector with these unit vectors for score normalisation, weighted as its own were. Raises UserError for too few.

        Whoever names a background wants it to count: one whose own has a weight of 0, as the shipped detector's, takes the usual weight.
        """
        weight, nearest = (norm.weight or WEIGHT, norm.nearest) if (norm := self.score_norm) else (WEIGHT, NEAREST)
        threshold = self.threshold._replace(measured_on=f"{self.threshold.measured_on} (not with the background `{source}`)")
        norm = ScoreNorm(background_KD, weight=weight, nearest=nearest, source=source)
        return CosineDetector(self.encoder, threshold=threshold, score_norm=norm)


HASHED_THRESHOLDS = {
    "phash": Threshold(
        1 - 2 * 4 / 64,
        "4 bits of 64: at most 1 in 700 pictures of Fashion-MNIST, MNIST and Tux Paint is that near one of CIFAR-10's 50,000 (at the "
        "usual 10 bits 1 in 18 to 1 in 9), of stamps stored again as JPEG of quality 30 or at half size 96% are found, with two sides "
        "cropped by 5% 5%",
    ),
    "dhash": Threshold(
        1 - 2 * 2 / 64,
        "2 bits of 64: at most 1 in 3,000 pictures of Fashion-MNIST, MNIST and Tux Paint is that near one of CIFAR-10's 50,000 (at 10 bits "
        "1 in 33 to 1 in 3), of stamps stored again as JPEG of quality 30 83% are found, at half size 63%, with two sides cropped by 5% 2%",
    ),
}
SSCD = Threshold(0.75, "DISC, by its authors: pairs above it are copies with 90% precision; without score normalisation")
PIXELS = Threshold(0.85, "CIFAR-10 against itself, Fashion-MNIST and MNIST; drawings of one outline reach 0.888: for those take 0.89")


JOINT = Threshold(0.735, "2,188 changed copies of free pictures that training did not see, half of them strangers: 99.8% right")


class JointDetector(JointSearch):
    """The shipped detector and the descriptor of pixels together: it verifies what its search finds."""

    threshold: ClassVar[Threshold] = JOINT
    score_norm: ClassVar[None] = None


class PixelDetector(PixelDescriptor):
    """The descriptor of pixels, as a detector: it verifies what its search finds."""

    threshold: ClassVar[Threshold] = PIXELS
    score_norm: ClassVar[None] = None


def load_detector(spec: str, *, precision: str = "fp32") -> Detector:
    """The detector that the knob `detector` names (see the module). Raises UserError.

    A model's folder may hold `background.safetensors` (`background_KD`: vectors for score normalisation) and `detector.json` (a JSON
    object with `threshold`, `measured_on`, `weight`, `nearest`).
    """
    check_name(spec)
    if spec == PixelDescriptor.name:
        return PixelDetector()
    if spec == TOGETHER and not Path(spec).exists():
        return JointDetector(_shipped_encoder(), name=TOGETHER)
    if (bits := HASHED_THRESHOLDS.get(spec)) is not None:
        return CosineDetector(PerceptualHash(spec), threshold=bits)
    if spec.startswith(PREFIX):
        return CosineDetector(load_sscd(Path(spec.removeprefix(PREFIX)), name=spec, precision=precision), threshold=SSCD)
    if spec == SHIPPED and not Path(spec).exists():
        return _shipped()
    return _of_folder(load_encoder(spec, precision=precision), Path(spec), called=f"{spec}/{BACKGROUND}")


def shipped_folder() -> Path:
    """Where the shipped detector's weights lie, in a checkout and in an installed wheel."""
    return Path(__file__).resolve().parent / "weights" / "duplicates-small"


def check_name(spec: str) -> None:
    """Raises UserError for a name that is neither a detector's nor a model's, and for an SSCD file that is not there."""
    if spec.startswith(PREFIX) and not Path(spec.removeprefix(PREFIX)).is_file():
        raise UserError(
            f"detector `{spec}`: there is no file `{spec.removeprefix(PREFIX)}`; give SSCD's TorchScript archive behind `{PREFIX}`"
        )
    names = (PixelDescriptor.name, SHIPPED, TOGETHER, *HASHED_THRESHOLDS)
    if spec in names or ":" in spec or os.path.exists(spec):  # which answers no for a name that no path can have
        return
    near = difflib.get_close_matches(spec, names, n=1)
    hint = f"did you mean `{near[0]}`?" if near else f"it is one of {', '.join(names)}, {PREFIX}FILE, or a model as --model takes it"
    raise UserError(f"no detector `{spec}`: {hint}")


def beside_weights(spec: str) -> list[Path]:
    """The files on which a detector depends beside the weights that `spec` names as a model's: they may change under the same name."""
    if spec.startswith(PREFIX):
        return [file for file in [Path(spec.removeprefix(PREFIX))] if file.is_file()]
    folder, names = Path(spec), [BACKGROUND, DESCRIPTION]
    if spec in (SHIPPED, TOGETHER) and not _is_folder(folder):
        folder, names = shipped_folder(), ["model.safetensors", *names]
    return [folder / name for name in names if _is_folder(folder) and (folder / name).is_file()]


def _shipped() -> CosineDetector:
    return _of_folder(_shipped_encoder(), shipped_folder(), called=f"shipped with `{SHIPPED}`")


def _shipped_encoder() -> ClipEncoder:
    """In fp32 whatever is asked for: its thresholds were measured so, and bf16 moves similarities by up to 0.007."""
    folder = shipped_folder()
    if not (folder / "model.safetensors").is_file():
        raise UserError(f"this installation lacks the detector `{SHIPPED}` (`{folder}`): install clipkit's wheel again, or take `pixels`")
    return ClipEncoder(load_spec(str(folder)), name=SHIPPED, precision="fp32")


def _of_folder(encoder: Encoder, folder: Path, *, called: str) -> CosineDetector:
    """The encoder with what lies beside its weights; `called`: what a report calls the background."""
    if not _is_folder(folder):
        return CosineDetector(encoder)
    said = _description(folder / DESCRIPTION)
    threshold = UNMEASURED
    if "threshold" in said:
        threshold = Threshold(said["threshold"], said.get("measured_on", f"what `{DESCRIPTION}` beside the model does not say"))
    if not (folder / BACKGROUND).is_file():
        return CosineDetector(encoder, threshold=threshold)
    background_KD = read_background(folder / BACKGROUND, width=encoder.width)
    norm = ScoreNorm(background_KD, weight=said.get("weight", WEIGHT), nearest=said.get("nearest", NEAREST), source=called)
    return CosineDetector(encoder, threshold=threshold, score_norm=norm)


def _description(path: Path) -> dict[str, Any]:
    """The known entries of a `detector.json`, of the right kinds; nothing where there is no file. Raises UserError."""
    if not path.is_file():
        return {}
    said = {name: value for name, value in read_json(path).items() if name in ENTRIES}
    for name, value in said.items():
        kinds, fits, expected = ENTRIES[name]
        if isinstance(value, bool) or not isinstance(value, kinds) or not fits(value):
            raise UserError(f"`{path}`: `{name}` is {json.dumps(value)[:100]}, expected {expected}")
    return said


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # a name too long for the system
        return False
