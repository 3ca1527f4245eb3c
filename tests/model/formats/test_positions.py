"""Positions for other sizes, beside open_clip's stored answers and a formula worked out by hand."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from clipkit import UserError
from clipkit.model.architectures import Architecture, ResNetSizes, TextSizes, ViTSizes, architecture
from clipkit.model.checkpoint import load_model, save_model
from clipkit.model.clip import build
from clipkit.model.formats.positions import resize_grid, resize_line, resize_model, resized_architecture
from clipkit.model.preprocess import Preprocess

REFERENCE = json.loads((Path(__file__).parent / "positions_reference.json").read_text())
TEXT = TextSizes(16, 1, 2, context=12)
VIT = Architecture("vit", 32, 16, ViTSizes(8, 1, 16, 2), TEXT)
RESNET = Architecture("resnet", 64, 16, ResNetSizes((1, 1, 1), 8, 4), TEXT)
SHARED = Architecture("shared", 32, 16, ViTSizes(8, 1, 16, 2), TEXT, activation="gelu", shared=True)


def wave(length: int, width: int) -> Tensor:
    """The formula of benchmarks/parity/compare_checkpoints.py."""
    n = torch.arange(length * width, dtype=torch.float64)
    return torch.sin(0.37 * n + 1.7 * torch.sin(0.011 * n)).view(length, width).float()


@pytest.mark.parametrize("answer", REFERENCE["grids"], ids=lambda answer: f"{answer['from']} to {answer['to']}")
def test_a_grid_is_resized_as_open_clip_does(answer: dict) -> None:
    resized = resize_grid(wave(answer["from"] ** 2 + 1, 2), answer["to"])
    torch.testing.assert_close(resized, torch.tensor(answer["positions"]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("answer", REFERENCE["lines"], ids=lambda answer: f"{answer['from']} to {answer['to']}")
def test_a_line_is_resized_as_open_clip_does(answer: dict) -> None:
    torch.testing.assert_close(resize_line(wave(answer["from"], 2), answer["to"]), torch.tensor(answer["positions"]), atol=1e-6, rtol=0)


def cubic(distance: float) -> float:
    """Keys' kernel with a = -1/2, which antialiased bicubic interpolation uses."""
    d = abs(distance)
    if d < 1:
        return 1.5 * d**3 - 2.5 * d**2 + 1
    return -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2 if d < 2 else 0.0


def cubic_weights(old: int, new: int) -> np.ndarray:
    """(new, old): each new place as a weighted mean of old places, the kernel widened where the grid shrinks."""
    stretch = max(1.0, old / new)
    rows = []
    for place in range(new):
        centre = (place + 0.5) * old / new
        row = np.array([cubic((source + 0.5 - centre) / stretch) for source in range(old)])
        rows.append(row / row.sum())
    return np.array(rows)


@pytest.mark.parametrize(("old", "new"), [(4, 7), (7, 4), (3, 9), (8, 3)])
def test_a_grid_is_interpolated_by_the_cubic_kernel_along_both_sides(old: int, new: int) -> None:
    positions = wave(old * old + 1, 3)
    grid = positions[1:].double().numpy().reshape(old, old, 3)
    weights = cubic_weights(old, new)
    expected = np.einsum("yr,xc,rcw->yxw", weights, weights, grid).reshape(new * new, 3)
    resized = resize_grid(positions, new)
    assert torch.equal(resized[0], positions[0])
    np.testing.assert_allclose(resized[1:].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize(("old", "new"), [(12, 20), (20, 12), (5, 6)])
def test_a_line_is_interpolated_linearly_between_the_middles_of_places(old: int, new: int) -> None:
    positions = wave(old, 3)
    places = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    expected = np.stack([np.interp(places, np.arange(old), positions[:, w].numpy()) for w in range(3)], axis=1)
    np.testing.assert_allclose(resize_line(positions, new).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("made", [VIT, RESNET, SHARED], ids=lambda made: made.name)
def test_a_model_of_other_sizes_keeps_all_weights_but_its_positions(made: Architecture) -> None:
    model = build(made, seed=0).eval()
    resized = resize_model(model, image_size=96, context=20)
    assert (resized.architecture.image_size, resized.architecture.text.context) == (96, 20)
    assert replace(resized.architecture, name=made.name, image_size=made.image_size, text=made.text) == made
    changed = {name for name, tensor in resized.state_dict().items() if not torch.equal(tensor, model.state_dict()[name])}
    positions = "visual.attnpool.positional_embedding" if made is RESNET else "visual.positional_embedding"
    assert changed == {positions, "positional_embedding"}
    assert not resized.training
    assert resized.encode_image(torch.zeros(1, 3, 96, 96)).projected_BD.shape == (1, 16)
    assert resized.encode_text(torch.ones(1, 20, dtype=torch.int64)).shape == (1, 16)
    assert all(parameter.requires_grad for parameter in resized.parameters())


def test_a_published_architecture_at_anothers_size_gets_its_name() -> None:
    assert resized_architecture(architecture("ViT-L-14"), image_size=336, context=None) == architecture("ViT-L-14-336")
    assert resized_architecture(VIT, image_size=32, context=12) == VIT


@pytest.mark.parametrize(("made", "size", "near"), [(VIT, 33, 32), (VIT, 7, 8), (RESNET, 72, 64), (RESNET, 1, 16)])
def test_a_size_that_patches_do_not_divide_is_refused_with_one_that_they_do(made: Architecture, size: int, near: int) -> None:
    with pytest.raises(UserError, match=rf"{size} were asked for: give {near}"):
        resize_model(build(made, seed=0), image_size=size, context=None)


@pytest.mark.parametrize("sizes", [{"image_size": 8 * 10_000, "context": None}, {"image_size": None, "context": 10**6}])
def test_absurd_sizes_are_refused(sizes: dict) -> None:
    with pytest.raises(UserError, match="cannot have pictures"):
        resize_model(build(VIT, seed=0), **sizes)


def test_a_file_is_loaded_at_other_sizes_and_says_what_was_trained(tmp_path: Path) -> None:
    model = build(VIT, seed=0)
    save_model(tmp_path / "model.safetensors", model, preprocess=Preprocess(32, (0.1, 0.2, 0.3)), facts={"step": 3})
    loaded = load_model(tmp_path, image_size=64, context=30)
    assert loaded.preprocess == Preprocess(64, (0.1, 0.2, 0.3))
    assert loaded.facts == {"step": 3, "resized_from": {"image_size": 32, "context": 12}}
    assert torch.equal(loaded.model.positional_embedding, resize_line(model.positional_embedding.detach(), 30))
    assert load_model(tmp_path, image_size=32, context=12).facts == {"step": 3}
