"""A few pictures against a few labels: zero-shot classification without a test set (CLIP sections 3.1.2 to 3.1.4)."""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import softmax
from torch import Tensor

from clipkit import UserError
from clipkit.evaluation.metrics import top_k
from clipkit.evaluation.splits.split import MAX_PICTURE_BYTES, MAX_PICTURES
from clipkit.evaluation.suite import MAX_TEXTS
from clipkit.evaluation.zero_shot import directions, sum_texts
from clipkit.model.encoder import Encoder
from clipkit.model.preprocess import UndecodableImage
from clipkit.run import Run

PICTURES_AT_ONCE = 64
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
"""What counts as a picture in a folder; a file that is named itself may be called anything."""


class Guess(NamedTuple):
    """One label, and the share of the probability that it has."""

    label: str
    probability: float


def probabilities(image_ND: Tensor, label_CD: Tensor, logit_scale: float) -> NDArray[np.float64]:
    """Softmax over labels of logit scale x cosine, (N, C), in float64. Rows of both sides have unit length."""
    logits_NC = logit_scale * (image_ND.double() @ label_CD.double().T)
    return np.asarray(softmax(logits_NC.numpy(), axis=1))


def label_directions(encoder: Encoder, labels: Sequence[str], templates: Sequence[str]) -> Tensor:
    """A unit vector (C, D) for each label: the mean over templates in embedding space (CLIP 3.1.4).

    Raises UserError for no label, an empty one, one that is there twice, a template without `{}`, and an encoder without texts.
    """
    _check(labels, templates)
    texts = [(i, template.replace("{}", label)) for i, label in enumerate(labels) for template in templates]
    return directions(encoder, sum_texts(encoder, texts, len(labels)), lambda label: f"label {labels[label]!r}")


def find_pictures(paths: Sequence[Path]) -> list[Path]:
    """The files that are named, and those of the folders that are named, sorted, hidden ones and other kinds left out.

    Raises UserError for a path that is not there and for a folder without a picture. Links to folders are not followed.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(_inside(path))
            if not inside:
                raise UserError(f"`{path}` holds no picture: files that end in {', '.join(sorted(SUFFIXES))} were looked for")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise UserError(f"`{path}` is no file or folder: name a picture, or a folder of pictures")
    return list(dict.fromkeys(found))


def read_picture(path: Path) -> bytes:
    """The bytes of a picture. Raises UserError where it cannot be read, is no file, or is too large."""
    try:
        if not path.is_file():
            raise UserError(f"`{path}` is no file")
        with path.open("rb") as file:
            data = file.read(MAX_PICTURE_BYTES + 1)
    except OSError as error:
        raise UserError(f"`{path}` cannot be read ({error.strerror})") from None
    if len(data) > MAX_PICTURE_BYTES:
        raise UserError(f"`{path}` is over {MAX_PICTURE_BYTES:,} bytes: a picture is smaller")
    return data


def classify_pictures(
    encoder: Encoder, paths: Sequence[Path], labels: Sequence[str], templates: Sequence[str], *, top: int, run: Run
) -> dict[str, Any]:
    """The report of `clipkit classify`: the `top` labels of each picture; what cannot be decoded is named in `failed`."""
    label_CD = label_directions(encoder, labels, templates)
    pictures: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    with run.progress("classifying", total=len(paths), unit="pictures") as advance:
        for batch in _batches(paths, PICTURES_AT_ONCE):
            names, pixels = _decoded(encoder, batch, failed)
            if names:
                with torch.inference_mode():
                    image_BD = encoder.encode_images(torch.stack(pixels)).projected_BD
                _add(names, image_BD, encoder, labels, label_CD, top=top, pictures=pictures, failed=failed)
            advance(len(batch))
    return {
        "command": "classify",
        "model": encoder.name,
        "precision": encoder.precision,
        "logit_scale": encoder.logit_scale,
        "labels": list(labels),
        "templates": list(templates),
        "pictures": pictures,
        "failed": failed,
    }


def guesses(probability_C: NDArray[np.float64], labels: Sequence[str], top: int) -> list[Guess]:
    """The most probable labels, best first; of equal ones that which was named first."""
    return [Guess(labels[c], float(probability_C[c])) for c in top_k(probability_C[None], top)[0]]


def _add(
    names: Sequence[str],
    image_BD: Tensor,
    encoder: Encoder,
    labels: Sequence[str],
    label_CD: Tensor,
    *,
    top: int,
    pictures: list[dict[str, Any]],
    failed: dict[str, str],
) -> None:
    for name, row_C in zip(names, probabilities(image_BD, label_CD, encoder.logit_scale), strict=True):
        if np.isfinite(row_C).all():
            pictures.append({"picture": name, "guesses": [guess._asdict() for guess in guesses(row_C, labels, top)]})
        else:
            failed[name] = f"model `{encoder.name}` gives NaN or infinity: its weights are damaged, or they need `--precision fp32`"


def _decoded(encoder: Encoder, paths: Sequence[Path], failed: dict[str, str]) -> tuple[list[str], list[Tensor]]:
    names, pixels = [], []
    for path in paths:
        try:
            pixels.append(encoder.preprocess(read_picture(path)))
            names.append(str(path))
        except UndecodableImage as error:
            failed[str(path)] = f"cannot be decoded ({error}): it is damaged, or no picture"
        except UserError as error:
            failed[str(path)] = str(error)
    return names, pixels


def _inside(folder: Path) -> Iterator[Path]:
    for number, path in enumerate(folder.rglob("*")):
        if number >= MAX_PICTURES:
            raise UserError(f"`{folder}` holds over {MAX_PICTURES:,} files: name a smaller folder")
        is_hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if not is_hidden and path.suffix.lower() in SUFFIXES and path.is_file():
            yield path


def _batches(paths: Iterable[Path], size: int) -> Iterator[list[Path]]:
    left = iter(paths)
    while batch := list(itertools.islice(left, size)):
        yield batch


def _check(labels: Sequence[str], templates: Sequence[str]) -> None:
    if len(labels) < 2:
        raise UserError(f"{'one label' if labels else 'no label'} was given: two or more are compared, such as dog, cat and car")
    if not all(label.strip() for label in labels):
        raise UserError("a label is empty: say what it is")
    if repeated := next((label for label, times in Counter(labels).items() if times > 1), None):
        raise UserError(f"label {repeated!r} is there twice: name each label once")
    if wrong := next((template for template in templates if template.count("{}") != 1), None):
        raise UserError(f"template {wrong!r} should hold `{{}}` once, where the label goes, as in `a photo of a {{}}.`")
    if not templates or len(labels) * len(templates) > MAX_TEXTS:
        raise UserError(f"{len(labels) * len(templates):,} texts of labels x templates: from 1 to {MAX_TEXTS:,} are encoded")
