"""SSCD's files beside torch, which runs the archive that ours only reads."""

import io
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from clipkit import UserError
from clipkit.model.detector import CosineDetector, load_detector
from clipkit.model.preprocess import UndecodableImage
from clipkit.model.sscd import SIDE, SscdEncoder, load_sscd, torchvision_names


class Block(nn.Module):
    """torchvision's bottleneck, written for this test."""

    def __init__(self, width_in: int, inner: int, outer: int, stride: int, groups: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, inner, kernel_size=1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, kernel_size=3, stride=stride, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, outer, kernel_size=1, bias=False)
        self.bn3 = nn.BatchNorm2d(outer)
        self.relu = nn.ReLU(inplace=True)
        changes = stride != 1 or width_in != outer
        shortcut = [nn.Conv2d(width_in, outer, kernel_size=1, stride=stride, bias=False), nn.BatchNorm2d(outer)]
        self.downsample = nn.Sequential(*shortcut) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        return self.relu(out + identity)


class Pool(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], x.shape[1], -1).clamp(min=1e-6).pow(3.0).mean(dim=2).pow(1.0 / 3.0)


class Trunk(nn.Module):
    def __init__(self, blocks: tuple[int, ...], groups: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        stages, width = [], 8
        for stage, count in enumerate(blocks):
            inner, outer = 4 * 2**stage, 16 * 2**stage
            layers = [Block(width if i == 0 else outer, inner, outer, 2 if stage and i == 0 else 1, groups) for i in range(count)]
            stages.append(nn.Sequential(*layers))
            width = outer
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = Pool()
        self.fc = nn.Linear(width, 24)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.fc(self.avgpool(self.layer4(self.layer3(self.layer2(self.layer1(x))))))


class Sscd(nn.Module):
    def __init__(self, blocks: tuple[int, ...] = (2, 1, 2, 1), groups: int = 1) -> None:
        super().__init__()
        self.backbone = Trunk(blocks, groups)
        self.eval()
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for name, tensor in self.state_dict().items():
                if tensor.is_floating_point():
                    drawn = torch.randn(tensor.shape, generator=generator)
                    spread = 0.5 + 0.2 * drawn.abs() if name.endswith("running_var") or tensor.ndim == 1 else 0.3 * drawn
                    tensor.copy_(spread)

    def forward(self, x: Tensor) -> Tensor:
        return functional.normalize(self.backbone(x))


def archive(path: Path, model: nn.Module, *, how: str = "scripted") -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        made = torch.jit.script(model) if how != "traced" else torch.jit.trace(model, torch.zeros(1, 3, 64, 64))
        torch.jit.save(torch.jit.freeze(made) if how == "frozen" else made, str(path))
    return path


def picture(seed: int, size: tuple[int, int] = (90, 70)) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)


def seen_by_torchvision(image: Image.Image) -> Tensor:
    """`Resize([320, 320])`, `ToTensor`, `Normalize` by hand."""
    pixels = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR)).astype(np.float32) / 255
    mean, std = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
    return torch.from_numpy((pixels - mean) / std).permute(2, 0, 1)


@pytest.mark.parametrize(("how", "blocks", "groups"), [("scripted", (2, 1, 2, 1), 1), ("traced", (1, 2, 1, 3), 4)])
def test_answers_are_those_of_the_program_that_torch_runs(how: str, blocks: tuple[int, ...], groups: int, tmp_path: Path) -> None:
    path = archive(tmp_path / "sscd.pt", Sscd(blocks, groups), how=how)
    detector = load_detector(f"sscd:{path}", precision="fp32")
    assert isinstance(detector, CosineDetector)
    encoder = detector.encoder
    pixels = torch.stack([encoder.preprocess(picture(seed)) for seed in range(3)])
    assert (pixels.shape, pixels.dtype) == ((3, 3, SIDE, SIDE), torch.uint8)
    exact = (pixels.float() / 255 - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", DeprecationWarning)
        expected = torch.jit.load(str(path))(exact)
        theirs = torch.jit.load(str(path))(torch.stack([seen_by_torchvision(picture(seed)) for seed in range(3)]))
    found = encoder.encode_images(pixels)
    torch.testing.assert_close(found.projected_BD, expected, atol=1e-5, rtol=0)
    assert found.features_BF.shape == (3, encoder.feature_width)
    assert float((expected[0] @ expected[1]).abs()) < 0.9999  # weights that tell pictures apart
    assert float((found.projected_BD * theirs).sum(1).min()) > 0.9999  # the pixels are torchvision's but for rounding


def test_no_program_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = archive(tmp_path / "sscd.pt", Sscd())

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the archive was run")

    monkeypatch.setattr(torch.jit, "load", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    assert load_sscd(path, name="sscd").width == 24


def classy(name: str) -> str:
    """Classy Vision's names, as its ResNeXt and SSCD's model have them."""
    parts = name.split(".")
    inner = {"conv1": "convolutional_block.0", "bn1": "convolutional_block.1", "conv2": "convolutional_block.3"}
    inner |= {"bn2": "convolutional_block.4", "conv3": "convolutional_block.6", "bn3": "bn"}
    if parts[1] == "fc":
        return f"embeddings.1.{parts[2]}"
    if parts[1] in ("conv1", "bn1"):
        return f"backbone.initial_block._module.{int(parts[1] == 'bn1')}.{parts[2]}"
    stage, block, rest = int(parts[1].removeprefix("layer")) - 1, parts[2], parts[3:]
    return ".".join([f"backbone.blocks.{stage}.{block}._module", inner.get(rest[0], rest[0]), *rest[1:]])


def test_state_dicts_with_both_libraries_names_are_one_network(tmp_path: Path) -> None:
    state = Sscd().state_dict()
    renamed = {classy(name): tensor for name, tensor in state.items()}
    assert "backbone.blocks.2.1._module.convolutional_block.6.weight" in renamed
    torch.save(state, tmp_path / "torchvision.pt")
    torch.save(renamed, tmp_path / "classy.pt")
    torch.save({name.replace("blocks.2.1.", "blocks.2.block2-1."): tensor for name, tensor in renamed.items()}, tmp_path / "older.pt")
    prints = {load_sscd(tmp_path / f"{name}.pt", name="x", precision="fp32").fingerprint for name in ("torchvision", "classy", "older")}
    prints.add(load_sscd(archive(tmp_path / "script.pt", Sscd()), name="x", precision="fp32").fingerprint)
    assert len(prints) == 1
    assert torchvision_names(renamed).keys() == {name.removeprefix("backbone.") for name in state}


def test_the_fingerprint_changes_with_a_weight(tmp_path: Path) -> None:
    state = Sscd().state_dict()
    torch.save(state, tmp_path / "a.pt")
    state["backbone.fc.bias"][3] += 0.01
    torch.save(state, tmp_path / "b.pt")
    first, second = (load_sscd(tmp_path / f"{name}.pt", name="x").fingerprint for name in "ab")
    assert first != second


def without(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in state.items() if key != name}


DAMAGE: dict[str, tuple[Any, str]] = {
    "another model": (lambda s: {"visual.proj": torch.zeros(3, 3)}, "no SSCD network whose tensors have names"),
    "a missing batch norm": (lambda s: without(s, "backbone.layer3.1.bn2.bias"), r"tensor `layer3\.1\.bn2\.bias` is missing"),
    "no linear layer": (lambda s: without(s, "backbone.fc.weight"), r"no SSCD network \('fc\.weight'\)"),
    "a stage less": (lambda s: {k: t for k, t in s.items() if "layer4" not in k}, r"no SSCD network \('layer4\.0\.conv1\.weight'\)"),
    "another shape": (
        lambda s: s | {"backbone.bn1.weight": torch.ones(9)},
        r"`bn1\.weight` is float32 of shape \(9,\), expected .* \(8,\)",
    ),
    "no numbers": (lambda s: s | {"backbone.fc.bias": torch.full((24,), torch.nan)}, r"`fc\.bias` is .*, expected finite numbers"),
    "whole numbers": (lambda s: s | {"backbone.bn1.bias": torch.ones(8, dtype=torch.int32)}, r"`bn1\.bias` is int32"),
    "groups of none": (lambda s: s | {"backbone.layer1.0.conv2.weight": torch.zeros(4, 0, 3, 3)}, r"layer1\.0\.conv2\.weight` has shape"),
    "groups that do not divide": (lambda s: s | {"backbone.layer1.0.conv2.weight": torch.zeros(4, 3, 3, 3)}, "in groups of 3"),
    "five thousand channels": (lambda s: s | {"backbone.conv1.weight": torch.zeros(5000, 3, 1, 1)}, r"`conv1\.weight` has shape \(5000"),
    "flat filters": (lambda s: s | {"backbone.layer2.0.conv3.weight": torch.zeros(32, 8)}, r"conv3\.weight` has shape \(32, 8\)"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_weights_of_no_such_network_are_refused(case: str, tmp_path: Path) -> None:
    change, expected = DAMAGE[case]
    torch.save(change(Sscd().state_dict()), tmp_path / "sscd.pt")
    with pytest.raises(UserError, match=expected):
        load_detector(f"sscd:{tmp_path / 'sscd.pt'}")


def test_a_frozen_archive_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a frozen archive has none\): give sscd_disc_mixup\.torchvision\.pt"):
        load_detector(f"sscd:{archive(tmp_path / 'sscd.pt', Sscd(), how='frozen')}")


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path("run").write_text, ("this was run",)


def test_hostile_files_are_refused_and_nothing_of_them_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile(tmp_path / "archive.pt", "w") as made:
        made.writestr("x/data.pkl", pickle.dumps({"backbone.conv1.weight": Harmful()}, 2))
        made.writestr("x/constants.pkl", b"\x80\x02).")
    torch.save({"backbone.conv1.weight": Harmful()}, tmp_path / "saved.pt")
    (tmp_path / "noise.pt").write_bytes(bytes(range(256)) * 4)
    whole = archive(tmp_path / "whole.pt", Sscd()).read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.pt").write_bytes(b"")
    for name in ("archive", "saved", "noise", "cut", "empty", "none"):
        with pytest.raises(UserError, match=f"{name}.pt"):
            load_detector(f"sscd:{tmp_path / name}.pt")
    assert not (tmp_path / "run").exists()


def test_it_sees_pictures_of_any_shape_and_refuses_texts_and_hostile_bytes(tmp_path: Path) -> None:
    encoder = SscdEncoder(load_sscd(archive(tmp_path / "sscd.pt", Sscd()), name="x")._network, name="x", precision="bf16")
    out = io.BytesIO()
    for size in ((1, 1), (3000, 1), (2, 500)):
        picture(0, size).save(out := io.BytesIO(), "png")
        described = encoder.encode_images(encoder.preprocess(out.getvalue())[None])
        assert float(described.projected_BD.norm()) == pytest.approx(1, abs=1e-5)
    assert encoder.encode_images(torch.zeros(0, 3, SIDE, SIDE, dtype=torch.uint8)).projected_BD.shape == (0, 24)
    with pytest.raises(UserError, match="encodes no texts"):
        encoder.encode_texts(["a"])
    with pytest.raises(UndecodableImage):
        encoder.preprocess(b"\xff\xd8\xff\xe0nothing")
