"""The trained detector and the descriptor of pixels together: the mean of both, searched and verified."""

import numpy as np
import pytest
import torch
from PIL import Image

from clipkit import UserError
from clipkit.demo import drawing
from clipkit.model import joint_detector
from clipkit.model.detector import JointDetector, PixelDetector, load_detector
from clipkit.model.encoder import Encoded
from clipkit.model.pixel_descriptor import SIDE


@pytest.fixture(scope="module")
def detector() -> JointDetector:
    loaded = load_detector("duplicates+pixels")
    assert isinstance(loaded, JointDetector)
    return loaded


def pictures(count: int) -> list[bytes]:
    drawn = [drawing.draw_shape(np.random.default_rng(number), "red", "star").image for number in range(count)]
    return [drawing.encode(image, "png") for image in drawn]


def described(detector: JointDetector | PixelDetector, given: list[bytes]) -> Encoded:
    return detector.encoder.encode_images(torch.stack([detector.encoder.preprocess(each) for each in given]))


@pytest.mark.parametrize("share", [0.5, 0.2])
def test_the_search_vectors_cosine_is_the_mean_of_both_cosines(
    detector: JointDetector, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joint_detector, "SHARE", share)
    given = pictures(12)
    both, pixels = described(detector, given), described(PixelDetector(), given)
    network = load_detector("duplicates").encoder
    vectors_BD = network.encode_images(torch.stack([network.preprocess(each) for each in given])).projected_BD
    expected = share * vectors_BD @ vectors_BD.T + (1 - share) * pixels.projected_BD @ pixels.projected_BD.T
    assert (both.projected_BD @ both.projected_BD.T - expected).abs().max() < 1e-5


@pytest.mark.parametrize("share", [0.5, 0.2])
def test_the_verified_similarity_is_the_mean_of_the_verified_one_and_the_networks(
    detector: JointDetector, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joint_detector, "SHARE", share)
    first, second = pictures(8), pictures(9)[1:]
    both, pixels, view_P = PixelDetector(), (described(detector, first), described(detector, second)), torch.arange(8) % 3
    alone = both.verify(described(both, first).features_BF, described(both, second).features_BF, view_P)
    network = load_detector("duplicates").encoder
    cosine_P = torch.stack(
        [
            a @ b
            for a, b in zip(
                *(network.encode_images(torch.stack([network.preprocess(each) for each in part])).projected_BD for part in (first, second)),
                strict=True,
            )
        ]
    )
    found = detector.verify(pixels[0].features_BF, pixels[1].features_BF, view_P)
    assert (found - (share * cosine_P + (1 - share) * alone)).abs().max() < 1e-5


def test_every_view_is_a_unit_vector_whose_networks_part_is_the_same(detector: JointDetector) -> None:
    seen = described(detector, pictures(3))
    views_VND = detector.views(seen)
    assert torch.allclose(views_VND[0], seen.projected_BD, atol=1e-5)
    assert (views_VND.norm(dim=2) - 1).abs().max() < 1e-4
    width = detector.encoder.pixels.width
    assert torch.equal(views_VND[5, :, width:], views_VND[0, :, width:])


def test_both_parts_see_the_upright_picture_over_white(detector: JointDetector) -> None:
    clear = Image.new("RGBA", (40, 30), (0, 0, 0, 0))
    clear.paste((255, 0, 0, 255), (0, 0, 10, 30))
    seen = detector.encoder.preprocess(drawing.encode(clear, "png"))
    assert seen.shape == (3, 32, 32 + SIDE)
    assert seen[:, 15, 30].tolist() == [255, 255, 255]
    assert seen[:, 12, 32 + 20].tolist() == [255, 255, 255]
    assert seen[:, 15, 2].tolist() == [255, 0, 0]


def test_mirrored_copies_are_nearer_than_to_pixels_alone(detector: JointDetector) -> None:
    images = [drawing.draw_group(np.random.default_rng(n), ("red", "blue"), ("star", "ring"), (2, 3), "above").image for n in range(10)]
    plain = [drawing.encode(image, "png") for image in images]
    mirrored = [drawing.encode(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), "png") for image in images]
    alone = PixelDetector()
    views = torch.zeros(10, dtype=torch.int64)
    both_P, alone_P = (
        each.verify(described(each, mirrored).features_BF, described(each, plain).features_BF, views) for each in (detector, alone)
    )
    assert (both_P > alone_P).all()


def test_no_text_is_encoded(detector: JointDetector) -> None:
    with pytest.raises(UserError, match=r"`duplicates\+pixels` encodes no texts"):
        detector.encoder.encode_texts(["a star"])
