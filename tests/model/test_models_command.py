"""`clipkit models`, as it is called."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from clipkit.cli import app
from clipkit.cli.options import identity
from clipkit.evaluation.suite import load_suite
from clipkit.model.architectures import Architecture, TextSizes, ViTSizes, architecture
from clipkit.model.checkpoint import Loaded, load_model, save_model
from clipkit.model.clip import build, facts
from clipkit.model.formats.convert import convert
from clipkit.model.preprocess import Preprocess

MINI = Architecture("mini", 32, 16, ViTSizes(16, 1, 64, 1), TextSizes(64, 1, 1, context=12))


def run(*words: object) -> Any:
    return CliRunner().invoke(app, ["models", *map(str, words)], env={"COLUMNS": "160"})


def read(*words: object) -> Any:
    answer = run(*words, "--json")
    assert answer.exit_code == 0, answer.stderr
    return json.loads(answer.stdout)


def test_a_name_shows_every_fact_of_the_architecture() -> None:
    assert read("show", "ViT-B-32") == json.loads(json.dumps(facts(architecture("ViT-B-32"))))
    assert "151,277,313" in run("show", "ViT-B-32").stdout


def test_a_file_shows_what_it_is_and_where_it_came_from(tmp_path: Path) -> None:
    save_model(tmp_path / "model.safetensors", build(MINI, seed=0), facts={"step": 7, "\x1b[31mred": "x" * 1000})
    told = read("show", tmp_path)
    assert told["architecture"]["parameters"] == facts(MINI)["parameters"]
    assert told["format"] == "clipkit"
    assert told["file"] == str(tmp_path / "model.safetensors")
    assert told["tokenizer"] == "clip-bpe-49408"
    assert told["preprocess"]["size"] == 32
    assert told["stored_types"] == {"float32": len(build(MINI, seed=0).state_dict())}
    assert told["facts"]["step"] == 7
    assert told["logit_scale"] == pytest.approx(1 / 0.07)
    shown = run("show", tmp_path).stdout
    assert told["weights_sha256"] in shown
    assert "\x1b" not in shown
    assert "x" * 201 not in shown.replace("\n", "")
    assert len(told["weights_sha256"]) == 64


def test_a_bare_state_dict_is_shown_with_its_activation_named(tmp_path: Path) -> None:
    torch.save({name: tensor.half() for name, tensor in build(MINI, seed=0).state_dict().items()}, tmp_path / "x.pt")
    told = read("show", f"openai:{tmp_path / 'x.pt'}")
    assert told["format"] == "state dict, sizes from its weights, heads by the published rule"
    assert told["stored_types"].keys() == {"float16"}
    refused = run("show", tmp_path / "x.pt")
    assert refused.exit_code == 2
    assert "does not say its architecture" in refused.stderr


@pytest.mark.parametrize("to", ["clipkit", "hugging-face", "open-clip", "openai"])
def test_a_run_knows_its_model_by_the_hash_of_its_weights(to: str, tmp_path: Path) -> None:
    """As evaluations resume: the same path with other weights is another run."""
    out = tmp_path / ("folder" if to in ("hugging-face", "open-clip") else "file.safetensors")
    spec = f"openai:{out}" if to == "openai" else str(out)
    hashes = []
    for seed in (0, 1):
        convert(Loaded(build(MINI, seed=seed), Preprocess(32), {}), out, to=to)
        hashes.append(identity(spec, load_suite("demo"), tmp_path)["weights"])
        shutil.rmtree(out) if out.is_dir() else out.unlink()
    assert len(set(hashes)) == 2


def test_a_model_is_converted_and_resized(tmp_path: Path) -> None:
    save_model(tmp_path / "run" / "model.safetensors", build(MINI, seed=0))
    written = read("convert", tmp_path / "run", tmp_path / "out", "--to", "hugging-face", "--image-size", 64, "--context", 20)
    assert written["files"] == ["config.json", "model.safetensors", "preprocessor_config.json"]
    assert "no tokenizer files" in written["note"]
    loaded = load_model(tmp_path / "out")
    assert (loaded.preprocess.size, loaded.model.architecture.image_size, loaded.model.architecture.text.context) == (64, 64, 20)
    answer = run("convert", tmp_path / "run", tmp_path / "x.safetensors", "--to", "openai")
    assert answer.exit_code == 0
    assert f"clipkit reads it as openai:{tmp_path / 'x.safetensors'}" in " ".join(answer.stdout.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["show", "ViT-B-23"], "did you mean `ViT-B-32`"),
        (["show", "no/such.pt"], "no checkpoint `no/such.pt`: give a training run's directory or a weights file"),
        (["show", "openai:"], "`openai:` names no weights file"),
        (["show", "open_clip:"], "`open_clip:` names no weights file"),
        (["show", "hf:a/b"], "is loaded by another package"),
        (["convert", "timm:x", "out.safetensors"], "is loaded by another package"),
        (["convert", "no/such", "out.safetensors"], "no checkpoint `no/such`"),
        (["convert", "a", "b", "--image-size", "0"], "`--image-size`"),
    ],
)
def test_a_mistake_is_one_sentence(words: list[str], message: str) -> None:
    answer = run(*words)
    assert answer.exit_code == 2
    assert message in answer.stderr
    assert "Traceback" not in answer.output


def test_a_description_of_an_encoder_is_no_model_to_show(tmp_path: Path) -> None:
    (tmp_path / "encoder.toml").write_text('image = "x.onnx"')
    answer = run("show", tmp_path / "encoder.toml")
    assert answer.exit_code == 2
    assert "describes an encoder in other files" in answer.stderr
    assert "crop" in CliRunner().invoke(app, ["recipes", "knobs", "encoder"]).stdout


@pytest.mark.parametrize("to", ["clipkit", "hugging-face"])
def test_a_place_that_cannot_be_written_to_is_one_sentence(to: str, tmp_path: Path) -> None:
    save_model(tmp_path / "model.safetensors", build(MINI, seed=0))
    answer = run("convert", tmp_path / "model.safetensors", tmp_path / "model.safetensors" / "x.safetensors", "--to", to)
    assert answer.exit_code == 2
    assert "cannot be written" in answer.stderr


def test_what_is_asked_wrongly_is_told_before_the_weights_are_read(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"no model")
    (tmp_path / "there.safetensors").write_bytes(b"something")
    wrong = {("there.safetensors",): "something at", ("x.safetensors", "--to", "onnx"): "no format", ("x.pt",): "does not end"}
    for words, message in wrong.items():
        answer = run("convert", tmp_path / "model.safetensors", tmp_path / words[0], *words[1:])
        assert answer.exit_code == 2
        assert message in answer.stderr


def test_others_may_read_what_is_written(tmp_path: Path) -> None:
    save_model(tmp_path / "model.safetensors", build(MINI, seed=0))
    (tmp_path / "plain").touch()
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_runs_identity_follows_every_file_of_a_folder_and_weights_behind_a_word(tmp_path: Path) -> None:
    suite, folder, weights = load_suite("demo"), tmp_path / "hf", tmp_path / "w@1.pt"
    save_model(tmp_path / "model.safetensors", build(MINI, seed=0))
    convert(load_model(tmp_path / "model.safetensors"), folder, to="hugging-face")
    torch.save(build(MINI, seed=0).state_dict(), weights)
    specs = [str(folder), f"hf:{folder}", f"openai:{weights}", f"open_clip:gelu@{weights}", str(weights)]
    before = [identity(spec, suite, tmp_path).get("weights") for spec in specs]
    assert None not in before
    (folder / "config.json").write_text((folder / "config.json").read_text().replace("quick_gelu", "gelu"))
    torch.save(build(MINI, seed=1).state_dict(), weights)
    assert all(old != identity(spec, suite, tmp_path).get("weights") for old, spec in zip(before, specs, strict=True))


def test_what_torch_says_of_a_pickle_is_not_passed_on(tmp_path: Path) -> None:
    class Runs:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    torch.save({"weights": Runs()}, tmp_path / "evil.pt")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    torch.save(build(MINI, seed=0).state_dict(), tmp_path / "whole.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:5_000])
    (tmp_path / "text.pt").write_text("hello")
    for name, message in (
        ("evil", "system`, which is run, not read"),
        ("module", "linear.Linear`"),
        ("cut", "cut short"),
        ("text", "cut short"),
    ):
        answer = run("show", tmp_path / f"{name}.pt")
        assert answer.exit_code == 2
        assert message in answer.stderr
        assert "weights_only" not in answer.stderr
    assert not (tmp_path / "ran").exists()
