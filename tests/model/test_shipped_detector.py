"""The trained near-duplicate detector that clipkit ships: small, unchanged since it was measured, and good for its purpose."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from clipkit.demo import drawing
from clipkit.model.detector import CosineDetector, load_detector, shipped_folder

GOLDEN = json.loads((Path(__file__).parent / "shipped_detector.json").read_text())
"""Vectors of two drawn pictures, from the file as it was measured."""

SHAPES = ("star", "heart")


@pytest.fixture(scope="module")
def detector() -> CosineDetector:
    loaded = load_detector("duplicates")
    assert isinstance(loaded, CosineDetector)
    return loaded


def picture(number: int) -> Image.Image:
    """One of a hundred drawings, no two alike."""
    rng = np.random.default_rng(number)
    colours = rng.permutation(list(drawing.COLOURS))[:2].tolist()
    shape = SHAPES[number] if number < 2 else str(rng.choice(drawing.SHAPES))
    if number % 4 == 3:
        return drawing.draw_texture(rng, str(rng.choice(drawing.TEXTURES)), colours).image
    return drawing.draw_shape(rng, colours[0], shape).image


def vectors(detector: CosineDetector, pictures: list[bytes]) -> torch.Tensor:
    return detector.encoder.encode_images(torch.stack([detector.encoder.preprocess(each) for each in pictures])).projected_BD


def test_the_shipped_folder_has_at_most_eight_megabytes_of_half_precision_weights() -> None:
    files = [path for path in shipped_folder().iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 8_000_000
    assert {tensor.dtype for tensor in load_file(shipped_folder() / "model.safetensors").values()} == {torch.float16}


def test_two_drawn_pictures_have_the_vectors_that_were_measured(detector: CosineDetector) -> None:
    pictures = [drawing.encode(picture(number), "png") for number in range(2)]
    assert [hashlib.sha256(np.asarray(picture(number)).tobytes()).hexdigest() for number in range(2)] == GOLDEN["pictures"]
    assert np.abs(vectors(detector, pictures).numpy() - np.array(GOLDEN["vectors"])).max() < 1e-2


def test_jpeg_copies_of_drawn_pictures_are_found_among_others_above_the_threshold_and_strangers_are_not(detector: CosineDetector) -> None:
    gallery_ND = vectors(detector, [drawing.encode(picture(number), "png") for number in range(100)])
    copies = [drawing.encode(picture(number), "jpg", 20) for number in range(40)]
    strangers = [drawing.encode(picture(number), "jpg", 20) for number in range(1_000, 1_040)]
    assert detector.score_norm is not None
    queries_QD = vectors(detector, copies + strangers)
    similarity_QN = queries_QD @ gallery_ND.T - detector.score_norm.taken_off(queries_QD)[:, None]
    best_Q, place_Q = similarity_QN.max(dim=1)
    above_Q = best_Q >= detector.threshold.value
    right = above_Q[:40] & (place_Q[:40] == torch.arange(40))
    assert right.sum() >= 38
    assert above_Q[40:].sum() <= 2


def test_the_card_says_data_licences_and_figures() -> None:
    card = (shipped_folder() / "MODEL_CARD.md").read_text()
    for heading in ("## Training", "## Data", "## Figures", "## Limits"):
        assert heading in card
    assert "CC-BY-SA" in card
    assert "Tux Paint" in card


@pytest.mark.parametrize("name", ["duplicates", "duplicates+pixels"])
def test_the_arithmetic_is_that_of_the_threshold_whatever_a_report_asks_for(name: str) -> None:
    assert load_detector(name, precision="bf16").encoder.fingerprint == load_detector(name).encoder.fingerprint
