"""Whatever bytes a model file holds, the answer is a model or one sentence."""

import contextlib
import json
import random
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from clipkit import UserError
from clipkit.model.architectures import Architecture, ResNetSizes, TextSizes, ViTSizes
from clipkit.model.checkpoint import Loaded, load_model, load_spec, save_model
from clipkit.model.clip import build
from clipkit.model.formats import tensor_files
from clipkit.model.formats.convert import convert
from clipkit.model.preprocess import Preprocess

TEXT = TextSizes(2, 1, 1, context=3)
MINI = Architecture("mini", 4, 2, ViTSizes(2, 1, 2, 1), TEXT)
RESNET = Architecture("mini resnet", 8, 2, ResNetSizes((1, 1), 2, 1, (2, 2)), TEXT)
FUZZ = settings(deadline=None, max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, archive: Callable[[nn.Module, Path], Path]) -> Path:
    """One small model in every format."""
    place = tmp_path_factory.mktemp("whole")
    loaded = Loaded(build(MINI, seed=0), Preprocess(4), {"step": 1})
    convert(loaded, place / "own.safetensors", to="clipkit")
    convert(loaded, place / "hf", to="hugging-face")
    convert(loaded, place / "oc", to="open-clip")
    state = safetensors.torch.load_file(place / "hf" / "model.safetensors")
    (place / "hf" / "model.safetensors").unlink()
    safetensors.torch.save_file(state, place / "hf" / "a.safetensors")
    (place / "hf" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(state, "a.safetensors")}))
    torch.save({"state_dict": build(RESNET, seed=0).state_dict()}, place / "bare.pt")
    archive(build(MINI, seed=0), place / "archive.pt")
    assert load_model(place / "archive.pt").model.architecture.embed_width == 2
    return place


def answers(path: Path, spec: str | None = None) -> None:
    """A model, or a UserError: anything else fails the test."""
    with contextlib.suppress(UserError):
        load_spec(spec or str(path))


def mutated(data: bytes, seed: int, head: int) -> bytes:
    """A few bytes changed, cut out or repeated near the beginning, or the end cut off."""
    chance = random.Random(seed)
    out = bytearray(data)
    for _ in range(chance.randint(1, 6)):
        at = chance.randrange(max(1, min(head, len(out))))
        kind = chance.randrange(4)
        if kind == 0:
            out[at : at + 1] = bytes([chance.randrange(256)])
        elif kind == 1:
            del out[at : at + chance.randint(1, 40)]
        elif kind == 2:
            out[at:at] = out[at : at + chance.randint(1, 40)]
        else:
            out[at : at + 1] = bytes([out[at] ^ (1 << chance.randrange(8))]) if at < len(out) else b""
    return bytes(out[: chance.randrange(len(out) + 1)] if chance.random() < 0.2 else out)


@FUZZ
@given(
    data=st.binary(max_size=400),
    ending=st.sampled_from(("safetensors", "pt", "bin")),
    kind=st.sampled_from(("", "openai:", "open_clip:gelu@")),
)
def test_random_bytes_are_one_sentence(data: bytes, ending: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"noise.{ending}"
    path.write_bytes(data)
    with pytest.raises(UserError):
        load_spec(f"{kind}{path}")


@FUZZ
@given(seed=st.integers(0, 2**32), source=st.sampled_from(("own.safetensors", "bare.pt", "archive.pt")))
def test_a_changed_file_is_a_model_or_one_sentence(seed: int, source: str, folder: Path, tmp_path: Path) -> None:
    data = (folder / source).read_bytes()
    path = tmp_path / source
    # Of a zip the directory at the end matters too.
    turned = data[-2000:] if source.endswith(".pt") and seed % 2 else None
    path.write_bytes(mutated(data, seed, 12_000) if turned is None else data[:-2000] + mutated(turned, seed, 2000))
    answers(path, f"openai:{path}" if source.endswith(".pt") and seed % 3 else None)


@FUZZ
@given(
    seed=st.integers(0, 2**32),
    source=st.sampled_from(
        ("hf/config.json", "hf/preprocessor_config.json", "hf/model.safetensors.index.json", "oc/open_clip_config.json")
    ),
)
def test_a_folder_with_changed_json_is_a_model_or_one_sentence(seed: int, source: str, folder: Path) -> None:
    path = folder / source
    whole = path.read_bytes()
    try:
        path.write_bytes(mutated(whole, seed, len(whole)))
        answers(path.parent)
    finally:
        path.write_bytes(whole)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(0, 70_000)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


@FUZZ
@given(
    data=st.data(),
    source=st.sampled_from(
        ("hf/config.json", "hf/preprocessor_config.json", "hf/model.safetensors.index.json", "oc/open_clip_config.json")
    ),
)
def test_a_folder_whose_json_says_anything_is_a_model_or_one_sentence(data: st.DataObject, source: str, folder: Path) -> None:
    path = folder / source
    whole = path.read_text()
    tree = json.loads(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        node = tree
        while isinstance(inner := node[data.draw(st.sampled_from(sorted(node)))], dict) and inner and data.draw(st.booleans()):
            node = inner
        node[data.draw(st.sampled_from(sorted(node)))] = data.draw(VALUES)
    try:
        path.write_text(json.dumps(tree))
        answers(path.parent)
    finally:
        path.write_text(whole)


@FUZZ
@given(head=VALUES, tensors=st.dictionaries(st.sampled_from(("visual.proj", "logit_scale", "x")), st.integers(0, 3), max_size=2))
def test_a_head_that_says_anything_is_one_sentence(head: object, tensors: dict[str, int], tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    text = json.dumps({"format": 1, "architecture": head, "preprocess": head, "facts": head})
    safetensors.torch.save_file({name: torch.zeros(size) for name, size in tensors.items()}, path, metadata={"clipkit": text})
    with pytest.raises(UserError):
        load_model(path)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 40 + "1" + "}" * 40, '{"a": NaN}', '{"a": 1e999}', "[]", "", "\ud800", '{"a": ' + "9" * 5000 + "}"]
)
def test_json_that_is_none_or_deep_or_endless_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(UserError, match=r"`.*x\.json`"):
        tensor_files.read_json(tmp_path / "x.json")


def test_facts_that_are_no_numbers_are_refused_before_anybody_prints_them(tmp_path: Path) -> None:
    save_model(tmp_path / "model.safetensors", build(MINI, seed=0), facts={"loss": 123456})
    data = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(data.replace(b"123456", b"   NaN"))
    with pytest.raises(UserError, match="NaN is no number"):
        load_model(tmp_path)


def test_absurd_sizes_take_no_memory(tmp_path: Path) -> None:
    """A `config.json` of a model with 10**15 weights beside a file of one number."""
    words = {"hidden_size": 65_536, "intermediate_size": 262_144, "num_hidden_layers": 256, "num_attention_heads": 1}
    sizes = {"model_type": "clip", "text_config": words | {"max_position_embeddings": 65_536}, "vision_config": words | {"patch_size": 1}}
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    safetensors.torch.save_file({"logit_scale": torch.zeros(())}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"`text_model.embeddings.position_embedding.weight` is missing"):
        load_model(tmp_path)


@pytest.mark.parametrize("spec", ["PATH", "openai:PATH", "openai:ViT-B-32@PATH", "open_clip:ViT-B-32@PATH"])
def test_tensors_that_claim_more_than_the_file_holds_are_refused(spec: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"visual.proj": torch.zeros(1).expand(10**6, 10**6)}, path)
    with pytest.raises(UserError, match=r"its tensors claim 4,000,000,000,000"):
        load_spec(spec.replace("PATH", str(path)))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.sparse_coo_tensor(torch.tensor([[0]]), torch.tensor([1.0]), (10**6,), check_invariants=False),
        torch.empty(10**6, device="meta"),
    ],
    ids=["sparse", "meta"],
)
def test_tensors_that_are_no_plain_arrays_are_refused(tensor: torch.Tensor, tmp_path: Path) -> None:
    torch.save({"visual.proj": tensor}, tmp_path / "weights.pt")
    with pytest.raises(UserError, match=r"`visual\.proj` is no plain array of numbers"):
        load_spec(f"openai:{tmp_path / 'weights.pt'}")


def test_sizes_are_capped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(tensor_files, "MAX_JSON_BYTES", 10)
    with pytest.raises(UserError, match=r"config\.json` has [\d,]+ bytes, more than any CLIP model \(10\)"):
        tensor_files.read_json(folder / "hf" / "config.json")
    monkeypatch.undo()
    with (tmp_path / "large.safetensors").open("wb") as file:
        file.truncate(tensor_files.MAX_FILE_BYTES + 1)  # takes no room on disk
    with pytest.raises(UserError, match="more than any CLIP model"):
        load_model(tmp_path / "large.safetensors")


def test_a_head_of_safetensors_that_lies_about_its_length_is_refused(tmp_path: Path) -> None:
    for length in (0, 1, 2**40, 2**63 + 1):
        (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", length) + b"{}")
        with pytest.raises(UserError, match="no readable safetensors file"):
            load_model(tmp_path / "x.safetensors")


@pytest.mark.parametrize("path", ["x" * 5000, "a\0b", "openai:a\0b@c", "open_clip:ViT-B-32@" + "x" * 5000, "openai:" + "x" * 5000])
def test_paths_that_no_system_takes_are_one_sentence(path: str) -> None:
    with pytest.raises(UserError):
        load_spec(path)
