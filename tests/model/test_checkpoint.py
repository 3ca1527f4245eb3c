import json
import pickle
import re
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from clipkit import UserError
from clipkit.model.architectures import Architecture, TextSizes, ViTSizes, architecture
from clipkit.model.checkpoint import Loaded, is_package_spec, load_model, load_published, load_spec, open_clip_architecture, save_model
from clipkit.model.clip import ImageTextModel, build
from clipkit.model.formats import filling, torchscript
from clipkit.model.formats.convert import convert
from clipkit.model.inference import arrange_for_encoding
from clipkit.model.preprocess import Preprocess

Archive = Callable[..., Path]
MINI = Architecture("mini", 32, 16, ViTSizes(16, 1, 16, 2), TextSizes(16, 1, 2, context=12))


@pytest.fixture
def model() -> ImageTextModel:
    return build(MINI, seed=0)


def same(a: nn.Module, b: nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("name", ["ViT-tiny-32", "RN-tiny-32", "ViT-tiny-32-shared"])
def test_a_saved_model_is_loaded_with_its_weights_preprocessing_and_facts(name: str, tmp_path: Path) -> None:
    model = build(architecture(name), seed=1).to(memory_format=torch.channels_last)
    preprocess = Preprocess(32, (0.5, 0.5, 0.5), (0.2, 0.3, 0.4))
    save_model(tmp_path / "model.safetensors", model, preprocess=preprocess, facts={"step": 7})
    for path in (tmp_path, tmp_path / "model.safetensors"):
        loaded = load_model(path)
        assert same(loaded.model, model)
        assert loaded.model.architecture == architecture(name)
        assert not loaded.model.training
        assert (loaded.preprocess, loaded.facts) == (preprocess, {"step": 7})


def test_a_loaded_model_can_be_trained_on(model: ImageTextModel, tmp_path: Path) -> None:
    save_model(tmp_path / "model.safetensors", model)
    loaded = load_model(tmp_path).model
    assert all(parameter.requires_grad and isinstance(parameter, nn.Parameter) for parameter in loaded.parameters())
    loaded.encode_image(torch.zeros(1, 3, 32, 32)).projected_BD.sum().backward()


def test_equal_models_give_equal_files_and_no_temporary_file_stays(model: ImageTextModel, tmp_path: Path) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        save_model(tmp_path / name, model, facts={"b": 1, "a": 2})
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]


@pytest.mark.parametrize("wrapping", ["plain", "module.", "_orig_mod.", "checkpoint", "text.", "safetensors"])
def test_open_clip_state_dicts_are_read_however_they_were_saved(wrapping: str, model: ImageTextModel, tmp_path: Path) -> None:
    state = dict(model.state_dict())
    path = tmp_path / "weights.pt"
    if wrapping == "safetensors":
        path = tmp_path / "weights.safetensors"
        safetensors.torch.save_file(state, path)
    elif wrapping == "checkpoint":
        torch.save({"epoch": 3, "name": "x", "state_dict": {f"module.{k}": v for k, v in state.items()}, "optimizer": {}}, path)
    elif wrapping == "text.":
        tower = ("visual.", "logit_scale")
        torch.save({k if k.startswith(tower) else f"text.{k}": v for k, v in state.items()}, path)
    else:
        torch.save({(k if wrapping == "plain" else wrapping + k): v for k, v in state.items()}, path)
    assert same(load_published(MINI, path).model, model)


def test_a_torchscript_archive_is_read_for_its_tensors(model: ImageTextModel, archive: Archive, tmp_path: Path) -> None:
    path = archive(model, tmp_path / "mini.pt")
    with pytest.warns(UserWarning, match="TorchScript"), pytest.raises(RuntimeError, match="weights_only"):
        torch.load(path, weights_only=True)
    loaded = load_published(MINI, path).model
    assert same(loaded, build(MINI, seed=0).half().float())


def test_an_archive_of_openais_is_refused_under_an_architecture_with_gelu(model: ImageTextModel, archive: Archive, tmp_path: Path) -> None:
    path = archive(model, tmp_path / "mini.pt")
    with pytest.raises(UserError, match="quick_gelu, not gelu"):
        load_published(open_clip_architecture("ViT-B-32"), path)


def test_open_clips_names_say_the_activation() -> None:
    assert open_clip_architecture("ViT-B-32").activation == "gelu"
    assert open_clip_architecture("ViT-B-32-quickgelu") == architecture("ViT-B-32")


def test_an_archive_of_openais_describes_itself(archive: Archive, tmp_path: Path) -> None:
    made = Architecture("unknown", 32, 16, ViTSizes(16, 1, 64, 1), TextSizes(64, 1, 1, context=12))
    source = build(made, seed=0)
    path = archive(source, tmp_path / "mini.pt")
    loaded = load_model(path)
    assert same(loaded.model, source.half().float())
    assert replace(loaded.model.architecture, name="unknown") == made
    assert loaded.preprocess == Preprocess(32)
    assert loaded.source is not None
    assert loaded.source.format == "OpenAI's archive, sizes from its weights, heads by the published rule"
    assert set(loaded.source.stored_types) == {"float16"}
    assert same(load_spec(f"openai:{path}").model, loaded.model)


def test_an_archive_that_is_not_openais_must_be_named(archive: Archive, model: ImageTextModel, tmp_path: Path) -> None:
    path = archive(model, tmp_path / "mini.pt", is_openais=False)
    with pytest.raises(UserError, match=rf"not one of OpenAI's: name its activation, `open_clip:gelu@{path}` or `openai:{path}`"):
        load_model(path)
    assert load_spec(f"open_clip:gelu@{path}").model.architecture.activation == "gelu"


def test_weights_of_a_known_architecture_are_told_what_to_write(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    state = build(architecture("ViT-tiny-64"), seed=0).state_dict()
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, path)
    message = (
        f"`{path}` does not say its architecture and activation: these are weights of `ViT-tiny-64`, write `openai:{path}` or "
        f"`open_clip:ViT-tiny-64-quickgelu@{path}` for quick_gelu, as OpenAI's have, or `open_clip:ViT-tiny-64@{path}` for gelu"
    )
    for spec in (str(path), f"open_clip:{path}"):
        with pytest.raises(UserError, match=re.escape(message)):
            load_spec(spec)
    # What the sentence says works.
    quick = {
        load_spec(f"{kind}{path}").model.architecture for kind in ("openai:", "open_clip:ViT-tiny-64-quickgelu@", "open_clip:quick_gelu@")
    }
    assert quick == {architecture("ViT-tiny-64")}
    assert load_spec(f"open_clip:ViT-tiny-64@{path}").model.architecture == open_clip_architecture("ViT-tiny-64")
    assert load_spec(f"open_clip:gelu@{path}").model.architecture == open_clip_architecture("ViT-tiny-64")


def test_weights_of_unknown_sizes_need_only_their_activation(model: ImageTextModel, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(dict(model.state_dict()), path)
    with pytest.raises(UserError, match=rf"its sizes are no published one's: write `openai:{path}`.* or `open_clip:gelu@{path}` for gelu"):
        load_model(path)
    for spec, activation in ((f"openai:{path}", "quick_gelu"), (f"open_clip:gelu@{path}", "gelu")):
        loaded = load_spec(spec)
        assert same(loaded.model, model)
        assert loaded.model.architecture.activation == activation


def test_our_own_file_needs_no_word_beside_it(model: ImageTextModel, tmp_path: Path) -> None:
    save_model(tmp_path / "model.safetensors", model)
    with pytest.raises(UserError, match="and says everything itself"):
        load_spec(f"openai:{tmp_path / 'model.safetensors'}")


def test_weights_beside_their_description_are_read_through_it(model: ImageTextModel, tmp_path: Path) -> None:
    safetensors.torch.save_file({"text_model.x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"has Hugging Face's names: give the folder that also holds its `config\.json`"):
        load_model(tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=f"the description beside it does: give the folder `{tmp_path}`"):
        load_model(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="holds no weights beside its description"):
        load_model(tmp_path)


def test_a_training_run_that_is_also_a_folder_of_descriptions_is_a_training_run(model: ImageTextModel, tmp_path: Path) -> None:
    save_model(tmp_path / "model.safetensors", model)
    (tmp_path / "config.json").write_text("{}")
    assert same(load_model(tmp_path).model, model)


def test_one_tensor_under_two_names_is_refused(model: ImageTextModel, tmp_path: Path) -> None:
    state = dict(model.state_dict())
    torch.save(state | {"module.ln_final.bias": state["ln_final.bias"]}, tmp_path / "weights.pt")
    with pytest.raises(UserError, match=r"holds tensor `ln_final\.bias` twice, once as `module\.ln_final\.bias`"):
        load_published(MINI, tmp_path / "weights.pt")


@pytest.mark.parametrize(
    ("spec", "answer"),
    [("hf:a/b", True), ("timm:x", True), ("open_clip:A/b", True), ("open_clip:A@b", False), ("openai:x", False), ("a/b", False)],
)
def test_another_packages_models_are_known_by_their_prefix(spec: str, answer: object) -> None:
    assert is_package_spec(spec) is answer


def test_the_activation_of_our_own_file_must_fit(model: ImageTextModel, tmp_path: Path) -> None:
    save_model(tmp_path / "model.safetensors", model)
    with pytest.raises(UserError, match="trained with quick_gelu"):
        load_published(Architecture.from_dict({**MINI.as_dict(), "activation": "gelu"}), tmp_path / "model.safetensors")


def rewritten(source: Path, target: Path, change: dict[str, bytes | None]) -> Path:
    """A copy of a zip with entries replaced, or dropped where None; names are ends of entries."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for info in old.infolist():
            matching = [data for end, data in change.items() if info.filename.endswith(end)]
            if matching != [None]:
                new.writestr(info.filename, matching[0] if matching else old.read(info))
    return target


class Attack:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.target,))


def test_code_in_an_archive_or_a_pickle_is_not_run(model: ImageTextModel, archive: Archive, tmp_path: Path) -> None:
    harmless = archive(model, tmp_path / "mini.pt")
    mark = tmp_path / "mark"
    evil = rewritten(harmless, tmp_path / "evil.pt", {"/data.pkl": pickle.dumps(Attack(mark))})
    torch.save({"state_dict": Attack(mark)}, tmp_path / "evil-pickle.pt")
    for path, reason in ((evil, "which is no tensor"), (tmp_path / "evil-pickle.pt", "weights only")):
        with pytest.raises(UserError, match=reason):
            load_published(MINI, path)
    assert not mark.exists()


def test_archives_that_lie_about_their_tensors_are_refused(model: ImageTextModel, archive: Archive, tmp_path: Path) -> None:
    harmless = archive(model, tmp_path / "mini.pt")
    for number, change in enumerate(({"/data/0": None}, {"/data/0": b"\0" * 10_000_000}, {"/data/0": b""}, {"/data.pkl": b"\x80\x02."})):
        with pytest.raises(UserError, match="cannot be read as an archive"):
            load_published(MINI, rewritten(harmless, tmp_path / f"{number}.pt", change))


def test_a_shape_that_repeats_its_storage_is_refused() -> None:
    with pytest.raises(torchscript.UnreadableArchive, match="has only 4 numbers"):
        torchscript._rebuild_tensor(torch.zeros(4), 0, (10**6, 10**6), (0, 0))


def test_a_storage_is_read_once_however_often_a_tree_refers_to_it(model: ImageTextModel, archive: Archive, tmp_path: Path) -> None:
    """A tree of megabytes may refer to one storage of gigabytes any number of times."""
    with zipfile.ZipFile(archive(model, tmp_path / "mini.pt")) as file:
        reader = torchscript._Unpickler(file)
        half = reader.find_class("torch", "HalfStorage")
        count = next(info.file_size for info in file.infolist() if info.filename.endswith("/data/0")) // 2
        first, again = (reader.persistent_load(("storage", half, "0", "cpu", count)).content for _ in range(2))
    assert first.data_ptr() == again.data_ptr()


def test_a_zip_that_grows_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data/0", bytes(1_000_000))
    with pytest.raises(torchscript.UnreadableArchive, match="claim 1,000,000 bytes"):
        torchscript.refuse_inflated(tmp_path / "bomb.pt", 999_999)


def changed(model: ImageTextModel, kind: str) -> dict[str, Tensor]:
    state = dict(model.state_dict())
    if kind == "missing":
        del state["ln_final.bias"]
    elif kind == "shape":
        state["text_projection"] = torch.zeros(16, 17)
    elif kind == "unknown":
        state["visual.extra"] = torch.zeros(1)
    elif kind == "nan":
        state["visual.proj"] = torch.full((16, 16), float("nan"))
    elif kind == "whole numbers":
        state["visual.proj"] = torch.zeros(16, 16, dtype=torch.int8)
    else:
        state = {"conv.weight": torch.zeros(3)}
    return state


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "`ln_final.bias` is missing"),
        ("shape", r"`text_projection` has shape \(16, 17\), expected \(16, 16\)"),
        ("unknown", "`visual.extra` that the architecture has not"),
        ("nan", "`visual.proj` holds values that are no numbers"),
        ("whole numbers", "`visual.proj` holds int8, expected floating-point numbers"),
        ("foreign", "give a CLIP checkpoint"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_the_tensors_name(kind: str, message: str, model: ImageTextModel, tmp_path: Path) -> None:
    torch.save(changed(model, kind), tmp_path / "weights.pt")
    with pytest.raises(UserError, match=message):
        load_published(MINI, tmp_path / "weights.pt")


@pytest.mark.parametrize("kind", ["clipkit", "hugging-face", "open-clip"])
def test_what_describes_itself_is_not_told_to_name_its_architecture(kind: str, model: ImageTextModel, tmp_path: Path) -> None:
    place = tmp_path / ("model.safetensors" if kind == "clipkit" else "folder")
    convert(Loaded(model, Preprocess(32), {}), place, to=kind)
    file = next(path for path in (place, *place.glob("*.safetensors")) if path.is_file())
    with safetensors.safe_open(file, "pt") as whole:
        state, metadata = {name: whole.get_tensor(name) for name in whole.keys()}, whole.metadata()  # noqa: SIM118
    missing = next(name for name in state if name.endswith(("positional_embedding", "position_embedding.weight")))
    del state[missing]
    safetensors.torch.save_file(state, file, metadata=metadata)
    with pytest.raises(UserError, match=f"`{re.escape(missing)}` is missing: the weights and their description") as refused:
        load_model(place)
    assert "name the architecture" not in str(refused.value)
    torch.save(changed(model, "missing"), tmp_path / "weights.pt")
    with pytest.raises(UserError, match=r"`ln_final\.bias` is missing: name the architecture"):
        load_published(MINI, tmp_path / "weights.pt")


def tied(model: ImageTextModel) -> dict[str, Tensor]:
    """Weights of two blocks in the same memory, wholly or by half, and one that repeats a number."""
    state, width = dict(model.state_dict()), 16
    shared = torch.randn(6 * width, width)
    first, second = "transformer.resblocks.0.mlp.", "visual.transformer.resblocks.0.mlp."
    state |= {f"{first}c_fc.weight": shared[: 4 * width], f"{second}c_fc.weight": shared[2 * width :]}
    state[f"{first}c_proj.weight"] = state[f"{second}c_proj.weight"]
    state[f"{first}c_fc.bias"] = torch.full((1,), 0.5).expand(4 * width)
    return state


def test_weights_that_share_memory_in_a_file_are_apart_in_the_model(model: ImageTextModel, tmp_path: Path) -> None:
    state = tied(model)
    torch.save(state, tmp_path / "weights.pt")
    loaded = load_published(MINI, tmp_path / "weights.pt").model
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())
    pictures = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = loaded.encode_image(pictures).projected_BD
        after = arrange_for_encoding(loaded, precision="fp32").encode_image(pictures).projected_BD
    torch.testing.assert_close(after, before)


def test_weights_that_share_no_memory_are_not_copied(model: ImageTextModel) -> None:
    state = dict(model.state_dict())
    filled = filling.fill(Path("weights.pt"), MINI, dict(state)).state_dict()
    assert all(filled[name].data_ptr() == tensor.data_ptr() for name, tensor in state.items())


def test_the_right_name_is_suggested_for_weights_of_another_architecture(tmp_path: Path) -> None:
    torch.save(build(architecture("RN-tiny-32"), seed=0).state_dict(), tmp_path / "weights.pt")
    with pytest.raises(UserError, match="these are weights of `RN-tiny-32`"):
        load_published(architecture("ViT-tiny-32"), tmp_path / "weights.pt")


def test_files_that_are_no_model_are_user_errors(model: ImageTextModel, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "noise.safetensors").write_bytes(b"\xff" * 100)
    (tmp_path / "noise.pt").write_bytes(b"\xff" * 100)
    safetensors.torch.save_file(dict(model.state_dict()), tmp_path / "foreign.safetensors")
    torch.save([1], tmp_path / "foreign.bin")
    safetensors.torch.save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    for path, message in (
        ("nowhere", "no checkpoint"),
        ("empty", "holds no `model.safetensors`"),
        ("noise.safetensors", "no readable safetensors"),
        ("foreign.safetensors", "does not say its architecture"),
        ("foreign.bin", "holds a list, not a state dict"),
        ("other.safetensors", "no CLIP model whose sizes can be told"),
    ):
        with pytest.raises(UserError, match=message):
            load_model(tmp_path / path)
    with pytest.raises(UserError, match="cannot be read as weights only"):
        load_published(MINI, tmp_path / "noise.pt")


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"architecture": {}},
        {"architecture": {**MINI.as_dict(), "image_size": 31}},
        {"preprocess": {"size": 64, "mean": [0, 0, 0], "std": [1, 1, 1]}},
        {"preprocess": 3},
        {"facts": None},
    ],
    ids=str,
)
def test_a_damaged_description_is_a_user_error(change: dict, model: ImageTextModel, tmp_path: Path) -> None:
    head = {"format": 1, "architecture": MINI.as_dict(), "preprocess": Preprocess(32).facts(), "facts": {}, **change}
    safetensors.torch.save_file(dict(model.state_dict()), tmp_path / "model.safetensors", metadata={"clipkit": json.dumps(head)})
    with pytest.raises(UserError, match=r"model\.safetensors"):
        load_model(tmp_path)


def test_another_tokenizer_is_refused_and_none_means_clips(model: ImageTextModel, tmp_path: Path) -> None:
    save_model(tmp_path / "model.safetensors", model)
    data = (tmp_path / "model.safetensors").read_bytes()
    name = b"clip-bpe-49408"
    assert data.count(name) == 1
    (tmp_path / "other.safetensors").write_bytes(data.replace(name, b"somebody-elses"))
    with pytest.raises(UserError, match="tokenizer 'somebody-elses', this clipkit has clip-bpe-49408"):
        load_model(tmp_path / "other.safetensors")
    assert data.count(b'\\"tokenizer\\"') == 1
    (tmp_path / "older.safetensors").write_bytes(data.replace(b'\\"tokenizer\\"', b'\\"something\\"'))
    assert same(load_model(tmp_path / "older.safetensors").model, model)
