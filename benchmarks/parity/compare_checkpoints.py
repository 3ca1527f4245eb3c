"""Compares how clipkit reads and writes checkpoints with open_clip and transformers; prints one JSON object, exit code 1 on a difference.

In the peers' environment (`make .venv-peer/.installed`):

    PEER/bin/python benchmarks/parity/compare_checkpoints.py

For a ViT with quick_gelu, one with gelu and a ResNet of random weights: what clipkit writes is loaded by the peer, and what the peer
writes by clipkit; unit embeddings may differ by 1e-5, tensors by nothing. Positions are resized by open_clip and by clipkit.
`--write FILE` keeps open_clip's resized positions of formulas: `tests/model/formats/positions_reference.json` is such a file.
"""

import argparse
import json
import math
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from clipkit.model.architectures import Architecture, ResNetSizes, TextSizes, ViTSizes
from clipkit.model.checkpoint import Loaded, load_model
from clipkit.model.clip import build
from clipkit.model.formats.convert import convert
from clipkit.model.formats.positions import resize_grid, resize_line
from clipkit.model.preprocess import Preprocess
from clipkit.model.tokenizer import Tokenizer

TEXT = TextSizes(width=64, layers=2, heads=2, context=24)
MODELS = (
    Architecture("ViT", 32, 48, ViTSizes(8, 3, 96, 3), TEXT),
    Architecture("ViT-gelu", 32, 48, ViTSizes(8, 3, 96, 3), TEXT, activation="gelu"),
    Architecture("RN", 64, 48, ResNetSizes((1, 2, 1, 1), 16, heads=8), TEXT),
)
CAPTIONS = ("a photo of a cat", "two dogs on a beach at night", "")
GRIDS = ((4, 7), (7, 4), (7, 8), (16, 24), (24, 16))
LINES = ((24, 77), (77, 24), (77, 128), (32, 33))


def wave(length: int, width: int) -> Tensor:
    """Positions from a formula: every number tells where it stood."""
    n = torch.arange(length * width, dtype=torch.float64)
    return torch.sin(0.37 * n + 1.7 * torch.sin(0.011 * n)).view(length, width).float()


def random_model(made: Architecture) -> Loaded:
    """Weights that leave nothing at its first value."""
    model = build(made, seed=3).eval()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point() and tensor.ndim:
                tensor.add_(0.1 * torch.rand(tensor.shape, generator=generator) / math.sqrt(tensor[0].numel() or 1))
        model.logit_scale.fill_(3.25)
    return Loaded(model, Preprocess(made.image_size, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)), {})


def inputs(made: Architecture) -> tuple[Tensor, Tensor]:
    """Random pixels, and tokens padded with zeros."""
    pixels = torch.randn(2, 3, made.image_size, made.image_size, generator=torch.Generator().manual_seed(5))
    return pixels, Tokenizer(made.text.context)(CAPTIONS, padded=True)


def greatest(one: Tensor, other: Tensor) -> float:
    """Of the differences of unit vectors."""
    unit = nn.functional.normalize
    return float((unit(one, dim=-1) - unit(other, dim=-1)).abs().max())


def difference(loaded: Loaded, images: Tensor, texts: Tensor) -> float:
    """Between a peer's answers and ours."""
    pixels, tokens = inputs(loaded.model.architecture)
    return max(greatest(loaded.model.encode_image(pixels).projected_BD, images), greatest(loaded.model.encode_text(tokens), texts))


def same_tensors(one: nn.Module, other: nn.Module) -> bool:
    """Bit for bit, under the same names."""
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def compare_transformers(loaded: Loaded, folder: Path) -> dict[str, Any]:
    """Our folder in their CLIPModel, their folder in our model."""
    import transformers

    convert(loaded, folder / "ours", to="hugging-face")
    theirs, info = transformers.CLIPModel.from_pretrained(folder / "ours", output_loading_info=True)
    theirs.eval()
    pixels, tokens = inputs(loaded.model.architecture)
    image = theirs.visual_projection(theirs.vision_model(pixel_values=pixels).pooler_output)
    text = theirs.text_projection(theirs.text_model(input_ids=tokens).pooler_output)
    theirs.save_pretrained(folder / "theirs")
    processor = transformers.CLIPImageProcessor.from_pretrained(folder / "ours")
    processor.save_pretrained(folder / "theirs")
    again = load_model(folder / "theirs")
    return {
        "difference": difference(loaded, image, text),
        "loading": {name: sorted(map(str, left)) for name, left in info.items() if left},
        "temperature": abs(theirs.logit_scale.item() - loaded.model.logit_scale.item()),
        "there and back is exact": same_tensors(again.model, loaded.model) and again.preprocess == loaded.preprocess,
        "same sizes": replace(again.model.architecture, name="") == replace(loaded.model.architecture, name=""),
    }


def compare_open_clip(loaded: Loaded, folder: Path) -> dict[str, Any]:
    """Our folder in their `local-dir:`, their state dict as a folder of ours."""
    import open_clip

    convert(loaded, folder / "ours", to="open-clip")
    theirs, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder / 'ours'}")
    theirs.eval()
    pixels, tokens = inputs(loaded.model.architecture)
    normalise = next(step for step in transform.transforms if hasattr(step, "mean"))
    torch.save(theirs.state_dict(), folder / "ours" / "open_clip_pytorch_model.bin")
    (folder / "ours" / "open_clip_model.safetensors").unlink()
    again = load_model(folder / "ours")
    return {
        "difference": difference(loaded, theirs.encode_image(pixels), theirs.encode_text(tokens)),
        "mean and deviation": tuple(normalise.mean) == loaded.preprocess.mean and tuple(normalise.std) == loaded.preprocess.std,
        "there and back is exact": same_tensors(again.model, loaded.model) and again.preprocess == loaded.preprocess,
        "same sizes": replace(again.model.architecture, name="") == replace(loaded.model.architecture, name=""),
    }


def their_grid(old: Tensor, side: int) -> Tensor:
    """Positions of a picture, resized by open_clip."""
    from open_clip.model import resize_pos_embed

    state = {"visual.positional_embedding": old.clone()}
    resize_pos_embed(state, SimpleNamespace(visual=SimpleNamespace(grid_size=(side, side))))
    return state["visual.positional_embedding"]


def their_line(old: Tensor, length: int) -> Tensor:
    """Positions of a text, resized by open_clip."""
    from open_clip.model import resize_text_pos_embed

    state = {"positional_embedding": old.clone()}
    resize_text_pos_embed(state, SimpleNamespace(positional_embedding=torch.empty(length, old.shape[1])))
    return state["positional_embedding"]


def compare_positions() -> dict[str, float]:
    """Greatest difference of resized positions, for every pair of sizes."""
    grids = {f"{a} to {b}": (resize_grid(wave(a * a + 1, 8), b) - their_grid(wave(a * a + 1, 8), b)).abs().max() for a, b in GRIDS}
    lines = {f"text {a} to {b}": (resize_line(wave(a, 8), b) - their_line(wave(a, 8), b)).abs().max() for a, b in LINES}
    return {name: float(value) for name, value in (grids | lines).items()}


def write_reference(path: Path) -> None:
    """open_clip's answers for the small sizes."""
    import open_clip

    grids = [{"from": a, "to": b, "positions": their_grid(wave(a * a + 1, 2), b).tolist()} for a, b in GRIDS[:3]]
    lines = [{"from": a, "to": b, "positions": their_line(wave(a, 2), b).tolist()} for a, b in ((12, 20), (20, 12), (24, 25))]
    path.write_text(json.dumps({"open_clip": open_clip.__version__, "grids": grids, "lines": lines}) + "\n")


@torch.no_grad()
def main() -> int:
    """Print what was compared."""
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--write", type=Path, help="a JSON file for open_clip's resized positions")
    given = options.parse_args()
    from torchvision_alone import allow_torchvision_without_its_library

    kept = allow_torchvision_without_its_library()
    if given.write:
        write_reference(given.write)
    found: dict[str, Any] = {"positions": compare_positions(), "open_clip": {}, "transformers": {}}
    for made in MODELS:
        with tempfile.TemporaryDirectory() as folder:
            found["open_clip"][made.name] = compare_open_clip(random_model(made), Path(folder) / "open_clip")
            if isinstance(made.image, ViTSizes):
                found["transformers"][made.name] = compare_transformers(random_model(made), Path(folder) / "transformers")
    print(json.dumps(found, indent=2))
    del kept
    reports = [*found["open_clip"].values(), *found["transformers"].values()]
    exact = all(value is not False for report in reports for value in report.values())
    near = max(found["positions"].values()) < 1e-6 and all(report["difference"] < 1e-5 for report in reports)
    whole = not any(report.get("loading") or report.get("temperature", 0) > 1e-6 for report in reports)
    return 0 if exact and near and whole else 1


if __name__ == "__main__":
    sys.exit(main())
