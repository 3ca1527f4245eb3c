"""One model in every format: what is written, what is read, and that a way there and back changes no bit."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from clipkit import UserError
from clipkit.model.architectures import Architecture, ResNetSizes, TextSizes, ViTSizes, architecture
from clipkit.model.checkpoint import Loaded, load_model, load_spec
from clipkit.model.clip import build
from clipkit.model.formats import hugging_face
from clipkit.model.formats.convert import FORMATS, convert
from clipkit.model.formats.description import describe
from clipkit.model.preprocess import Preprocess

TEXT = TextSizes(64, 2, 1, context=12)
VIT = Architecture("vit", 32, 24, ViTSizes(16, 3, 128, 2), TEXT)
RESNET = Architecture("resnet", 64, 24, ResNetSizes((1, 2, 1, 1), 8, 4), TEXT)


def random_model(made: Architecture) -> Loaded:
    model = build(made, seed=2).eval()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.rand(tensor.shape, generator=torch.Generator().manual_seed(tensor.numel())) / 10)
    return Loaded(model, Preprocess(made.image_size, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)), {"step": 3})


def same(a: nn.Module, b: nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def written(loaded: Loaded, folder: Path, to: str) -> Path:
    out = folder / (to if FORMATS[to].is_folder else f"{to}.safetensors")
    convert(loaded, out, to=to)
    return out


def spec_of(out: Path, to: str) -> str:
    return f"openai:{out}" if to == "openai" else str(out)


@pytest.mark.parametrize(
    ("made", "to"),
    [(made, to) for made in (VIT, RESNET) for to in FORMATS if made is VIT or to != "hugging-face"]
    + [(replace(VIT, activation="gelu"), to) for to in ("clipkit", "hugging-face", "open-clip")]
    + [(architecture("ViT-tiny-32-shared"), "clipkit")],
    ids=lambda part: part if isinstance(part, str) else f"{part.name}-{part.activation}",
)
def test_a_way_there_and_back_changes_no_bit(made: Architecture, to: str, tmp_path: Path) -> None:
    loaded = random_model(made)
    if to == "openai":  # whose files say nothing of pictures
        loaded = loaded._replace(preprocess=Preprocess(made.image_size))
    again = load_spec(spec_of(written(loaded, tmp_path, to), to))
    assert same(again.model, loaded.model)
    assert replace(again.model.architecture, name="") == replace(made, name="")
    assert again.preprocess == loaded.preprocess
    assert again.facts == ({"step": 3} if to == "clipkit" else {})
    assert describe(again)["weights_sha256"] == describe(loaded)["weights_sha256"]
    convert(again, tmp_path / "back.safetensors", to="clipkit")
    assert same(load_model(tmp_path / "back.safetensors").model, loaded.model)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_their_names_hold_the_same_numbers_apart_and_transposed() -> None:
    model = random_model(VIT).model
    theirs = hugging_face.their_tensors(model.state_dict())
    third = model.visual.transformer.resblocks[1].attn.in_proj_weight[128:256]
    assert torch.equal(theirs["vision_model.encoder.layers.1.self_attn.k_proj.weight"], third)
    assert torch.equal(theirs["text_projection.weight"], model.text_projection.T)
    assert torch.equal(theirs["text_model.encoder.layers.0.mlp.fc2.bias"], model.transformer.resblocks[0].mlp.c_proj.bias)
    assert torch.equal(theirs["vision_model.pre_layrnorm.weight"], model.visual.ln_pre.weight)
    assert sum(tensor.numel() for tensor in theirs.values()) == sum(tensor.numel() for tensor in model.state_dict().values())


def changed_json(path: Path, change: Callable[[dict], object]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


HUGGING_FACE_CHANGES: dict[str, tuple[Callable[[dict], object], str]] = {
    "another kind of model": (lambda d: d.update(model_type="siglip"), "`model_type` is 'siglip'"),
    "an unknown activation": (
        lambda d: d["text_config"].update(hidden_act="relu"),
        "`hidden_act` is 'relu', clipkit's models have quick_gelu",
    ),
    "two activations": (lambda d: d["text_config"].update(hidden_act="gelu"), "gelu for texts and quick_gelu for pictures"),
    "another end of text": (lambda d: d["text_config"].update(eos_token_id=7), "`eos_token_id` is '?7'?, expected 49407, or 2"),
    "another vocabulary": (lambda d: d["text_config"].update(vocab_size=50_000), "`vocab_size` is 50000"),
    "another inner width": (lambda d: d["vision_config"].update(intermediate_size=300), "`intermediate_size` is 300, expected four times"),
    "another epsilon": (lambda d: d["vision_config"].update(layer_norm_eps=1e-6), "`layer_norm_eps` is 1e-06"),
    "grey pictures": (lambda d: d["vision_config"].update(num_channels=1), "`num_channels` is not 3"),
    "a width in words": (lambda d: d["text_config"].update(hidden_size="wide"), "`hidden_size` is 'wide', expected a whole number"),
    "a section that is none": (lambda d: d.update(text_config=[]), "`text_config` is no object"),
    "more layers than there are": (lambda d: d["vision_config"].update(num_hidden_layers=4), r"layers\.3\..*` is missing"),
    "fewer layers than there are": (
        lambda d: d["vision_config"].update(num_hidden_layers=2),
        r"layers\.2\..*` that the architecture has not",
    ),
    "absurdly many layers": (lambda d: d["vision_config"].update(num_hidden_layers=60_000), "at most 256 layers"),
    "absurdly wide": (lambda d: d["text_config"].update(hidden_size=2**40, intermediate_size=2**42), "whole numbers from 1 to 65,536"),
    "heads that do not divide": (lambda d: d["text_config"].update(num_attention_heads=5), "must divide evenly"),
    "another projection": (lambda d: d.update(projection_dim=25), r"`(text|visual)_projection.weight` has shape \(24, "),
}


@pytest.mark.parametrize("name", HUGGING_FACE_CHANGES)
def test_a_folder_of_theirs_that_is_no_model_of_ours_is_one_sentence(name: str, tmp_path: Path) -> None:
    change, message = HUGGING_FACE_CHANGES[name]
    folder = written(random_model(VIT), tmp_path, "hugging-face")
    changed_json(folder / "config.json", change)
    with pytest.raises(UserError, match=message):
        load_model(folder)


def test_sizes_that_a_folder_of_theirs_leaves_out_are_those_of_vit_b_32() -> None:
    published = hugging_face.parse_sizes({"model_type": "clip"})
    assert published == architecture("ViT-B-32")
    older = {"text_config": {"hidden_size": 1}, "text_config_dict": {"hidden_size": 512, "eos_token_id": 2}}
    assert hugging_face.parse_sizes({"model_type": "clip", **older}) == published


PREPROCESS_CHANGES: dict[str, tuple[dict, str]] = {
    "no crop": ({"do_center_crop": False}, "`do_center_crop` is False"),
    "bilinear": ({"resample": 2}, "`resample` is 2"),
    "squashed": ({"size": {"height": 32, "width": 32}}, "`size` is {'height'"),
    "another size": ({"crop_size": {"height": 64, "width": 64}}, "`crop_size` is 64, the model's pictures have 32"),
    "not square": ({"crop_size": {"height": 32, "width": 64}}, "`crop_size` is {"),
    "two colours": ({"image_mean": [0.5, 0.5]}, "describes no model"),
    "no deviation": ({"image_std": [0, 0, 0]}, "describes no model"),
    "an endless number": ({"image_mean": [10**400, 0, 0]}, "describes no model"),
    "another scale": ({"rescale_factor": 1}, "`rescale_factor` is 1"),
}


@pytest.mark.parametrize("name", PREPROCESS_CHANGES)
def test_pictures_that_ours_cannot_be_are_refused(name: str, tmp_path: Path) -> None:
    folder = written(random_model(VIT), tmp_path, "hugging-face")
    change, message = PREPROCESS_CHANGES[name]
    changed_json(folder / "preprocessor_config.json", lambda data: data.update(change))
    with pytest.raises(UserError, match=message):
        load_model(folder)


def test_the_older_way_to_write_sizes_and_none_at_all_are_read(tmp_path: Path) -> None:
    folder = written(random_model(VIT), tmp_path, "hugging-face")
    changed_json(folder / "preprocessor_config.json", lambda data: data.update(size=32, crop_size=32))
    assert load_model(folder).preprocess.mean == (0.5, 0.4, 0.3)
    (folder / "preprocessor_config.json").unlink()
    assert load_model(folder).preprocess == Preprocess(32)


def sharded(folder: Path, *, names: tuple[str, str] = ("a.safetensors", "b.safetensors")) -> Path:
    """The folder's weights in two files behind an index."""
    state = safetensors.torch.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places: dict[str, str] = {name: names[i % 2] for i, name in enumerate(state)}
    for name in names:
        if "/" not in name:
            safetensors.torch.save_file({key: state[key] for key, place in places.items() if place == name}, folder / name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


def test_weights_in_parts_are_read_through_their_index(tmp_path: Path) -> None:
    loaded = random_model(VIT)
    assert same(load_model(sharded(written(loaded, tmp_path, "hugging-face"))).model, loaded.model)


@pytest.mark.parametrize("name", ["../b.safetensors", "/etc/b.safetensors", "x/../b.safetensors", "..", "b.bin", ""])
def test_an_index_that_leads_out_of_its_folder_is_refused(name: str, tmp_path: Path) -> None:
    folder = written(random_model(VIT), tmp_path, "hugging-face")
    safetensors.torch.save_file({"x": torch.zeros(1)}, tmp_path / "b.safetensors")
    sharded(folder)
    changed_json(folder / "model.safetensors.index.json", lambda data: data["weight_map"].update(logit_scale=name))
    with pytest.raises(UserError, match=r"only \.safetensors files beside it are read"):
        load_model(folder)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({}, "no `weight_map`"),
        ({"weight_map": {"x": 3}}, "no `weight_map`"),
        ({"weight_map": {f"{i}": f"{i}.safetensors" for i in range(1001)}}, "names 1,001 files"),
        ({"weight_map": {"x": "gone.safetensors"}}, "no checkpoint"),
        ([], "holds a list"),
    ],
)
def test_an_index_that_is_none_is_one_sentence(index: object, message: str, tmp_path: Path) -> None:
    folder = sharded(written(random_model(VIT), tmp_path, "hugging-face"))
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=message):
        load_model(folder)


OPEN_CLIP_CHANGES: dict[str, tuple[Callable[[dict], object], str]] = {
    "no model": (lambda d: d.pop("model_cfg"), "there is no `model_cfg`"),
    "no width of the joint space": (lambda d: d["model_cfg"].pop("embed_dim"), "`embed_dim` is 'None', expected a whole number"),
    "a tower of timm's": (lambda d: d["model_cfg"]["vision_cfg"].update(timm_model_name="x"), "`vision_cfg.timm_model_name` is 'x'"),
    "a text tower of another": (lambda d: d["model_cfg"]["text_cfg"].update(hf_model_name="x"), "`text_cfg.hf_model_name` is 'x'"),
    "another pool": (lambda d: d["model_cfg"]["text_cfg"].update(pool_type="last"), "`text_cfg.pool_type` is 'last'"),
    "a captioner": (lambda d: d["model_cfg"].update(multimodal_cfg={"width": 1}), "`model_cfg.multimodal_cfg`"),
    "no causal mask": (lambda d: d["model_cfg"]["text_cfg"].update(no_causal_mask=True), "`text_cfg.no_causal_mask` is 'True'"),
    "another activation's word": (lambda d: d["model_cfg"].update(quick_gelu="yes"), "`quick_gelu` is 'yes'"),
    "oblong pictures": (lambda d: d["model_cfg"]["vision_cfg"].update(image_size=[32, 64]), "`image_size` is '?\\[32, 64\\]"),
    "squashed pictures": (lambda d: d["preprocess_cfg"].update(resize_mode="squash"), "`preprocess_cfg.resize_mode` is 'squash'"),
    "pictures of another size": (lambda d: d["preprocess_cfg"].update(size=64), "`preprocess_cfg.size` is 64"),
    "absurdly large": (lambda d: d["model_cfg"]["vision_cfg"].update(width=10**9), "whole numbers from 1 to 65,536"),
    "heads of no width": (lambda d: d["model_cfg"]["vision_cfg"].update(head_width=0), "`head_width` is 0"),
    "a ResNet of three stages": (lambda d: d["model_cfg"]["vision_cfg"].update(layers=[1, 1, 1]), "four numbers of blocks"),
    "another vocabulary": (lambda d: d["model_cfg"]["text_cfg"].update(vocab_size=32_000), "`vocab_size` is 32000"),
}


@pytest.mark.parametrize("name", OPEN_CLIP_CHANGES)
def test_a_folder_of_open_clips_that_is_no_model_of_ours_is_one_sentence(name: str, tmp_path: Path) -> None:
    change, message = OPEN_CLIP_CHANGES[name]
    folder = written(random_model(VIT), tmp_path, "open-clip")
    changed_json(folder / "open_clip_config.json", change)
    with pytest.raises(UserError, match=message):
        load_model(folder)


def test_what_changes_nothing_in_open_clips_description_is_passed_over(tmp_path: Path) -> None:
    loaded = random_model(replace(VIT, activation="gelu"))
    folder = written(loaded, tmp_path, "open-clip")

    def change(data: dict) -> None:
        data["model_cfg"] |= {"custom_text": True, "quick_gelu": False}
        data["model_cfg"]["vision_cfg"] |= {"patch_dropout": 0.5, "ls_init_value": None, "mlp_ratio": 4.0, "image_size": [32, 32]}
        data["preprocess_cfg"] |= {"mode": "RGB", "fill_color": 0, "size": [32, 32]}

    changed_json(folder / "open_clip_config.json", change)
    state = safetensors.torch.load_file(folder / "open_clip_model.safetensors")
    (folder / "open_clip_model.safetensors").unlink()
    tower = ("visual.", "logit_scale")
    torch.save(
        {name if name.startswith(tower) else f"text.{name}": tensor for name, tensor in state.items()},
        folder / "open_clip_pytorch_model.bin",
    )
    again = load_model(folder)
    assert same(again.model, loaded.model)
    assert again.model.architecture.activation == "gelu"


def test_half_precision_is_read_as_float32_and_told(tmp_path: Path) -> None:
    loaded = random_model(VIT)
    folder = written(loaded, tmp_path, "hugging-face")
    state = safetensors.torch.load_file(folder / "model.safetensors")
    half: dict[str, Tensor] = {name: tensor.bfloat16() if i % 2 else tensor.half() for i, (name, tensor) in enumerate(state.items())}
    safetensors.torch.save_file(half, folder / "model.safetensors")
    again = load_model(folder)
    assert {tensor.dtype for tensor in again.model.state_dict().values()} == {torch.float32}
    assert torch.equal(again.model.logit_scale, half["logit_scale"].float())
    assert describe(again)["stored_types"] == {"bfloat16": len(state) // 2, "float16": len(state) - len(state) // 2}


@pytest.mark.parametrize(
    ("made", "to", "message"),
    [
        (RESNET, "hugging-face", "this is a ResNet"),
        (architecture("ViT-tiny-32-shared"), "hugging-face", "this is one shared tower"),
        (architecture("ViT-tiny-32-shared"), "open-clip", "open_clip has no such towers"),
        (architecture("RN-tiny-32"), "open-clip", "open_clip has no such towers"),
        (architecture("ViT-tiny-32-shared"), "openai", "two towers, this one shares one"),
        (replace(VIT, activation="gelu"), "openai", "this one has gelu, and the file could not say so"),
        (architecture("RN-tiny-32"), "openai", "its heads or strides are not those that its weights would be read with"),
        (VIT, "openai", "its mean and deviation are not OpenAI's"),
        (VIT, "onnx", "no format `onnx`: give one of clipkit, hugging-face, open-clip, openai"),
    ],
)
def test_what_a_format_cannot_say_is_refused_before_anything_is_written(made: Architecture, to: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        convert(random_model(made), tmp_path / ("out.safetensors" if to == "openai" else "out"), to=to)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten_but_an_empty_folder_or_file(tmp_path: Path) -> None:
    loaded = random_model(VIT)
    for to, name in (("hugging-face", "folder"), ("clipkit", "file.safetensors")):
        out = tmp_path / name
        out.mkdir() if to == "hugging-face" else out.touch()
        convert(loaded, out, to=to)
        before = sorted((path.name, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
        with pytest.raises(UserError, match="already: give another name"):
            convert(loaded, out, to=to)
        assert sorted((path.name, path.stat().st_mtime_ns) for path in tmp_path.rglob("*")) == before
    with pytest.raises(UserError, match=r"does not end in \.safetensors"):
        convert(loaded, tmp_path / "model.bin", to="openai")


def test_a_folder_that_could_not_be_finished_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(preprocess: Preprocess) -> dict:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hugging_face, "describe_preprocess", fail)
    with pytest.raises(OSError, match="No space"):
        convert(random_model(VIT), tmp_path / "out", to="hugging-face")
    assert list(tmp_path.iterdir()) == []


def test_hugging_faces_library_is_told_which_token_ends_a_text(tmp_path: Path) -> None:
    folder = written(random_model(VIT), tmp_path, "hugging-face")
    text = json.loads((folder / "config.json").read_text())["text_config"]
    assert (text["bos_token_id"], text["eos_token_id"], text["vocab_size"]) == (49406, 49407, 49408)
