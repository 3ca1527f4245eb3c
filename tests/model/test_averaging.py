"""Several models' weights as one."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from clipkit import UserError
from clipkit.cli import app
from clipkit.model.averaging import average_models
from clipkit.model.checkpoint import load_model, save_model
from clipkit.model.clip import architecture, build
from clipkit.model.formats.description import describe
from clipkit.model.preprocess import Preprocess


def saved(folder: Path, name: str, seed: int, *, preprocess: Preprocess | None = None) -> str:
    """A model whose batch norms have counted `seed` batches and whose every running variance is `seed`."""
    model = build(architecture(name), seed=seed)
    with torch.no_grad():
        model.logit_scale.fill_(1.0 + seed)
        for buffer_name, buffer in model.named_buffers():
            buffer.fill_(seed) if buffer_name.endswith(("num_batches_tracked", "running_var")) else buffer.normal_()
    path = folder / f"{name}-{seed}.safetensors"
    save_model(path, model, preprocess=preprocess, facts={"step": seed})
    return str(path)


def state(path: str) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in load_model(Path(path)).model.state_dict().items()}


def run(*words: object) -> Any:
    return CliRunner().invoke(app, ["models", "average", *map(str, words)], env={"COLUMNS": "200"})


@pytest.mark.parametrize("name", ["ViT-tiny-32", "RN-tiny-32", "ViT-tiny-32-shared"])
def test_every_number_is_the_weighted_sum_computed_in_double_precision(tmp_path: Path, name: str) -> None:
    specs, weights = [saved(tmp_path, name, seed) for seed in (1, 2, 3)], [0.2, 0.5, 0.3]
    answer = run(*specs, "--weights", "0.2,0.5,0.3", "--out", tmp_path / "out.safetensors")
    assert answer.exit_code == 0, answer.stderr
    found, inputs = state(str(tmp_path / "out.safetensors")), [state(spec) for spec in specs]
    assert found.keys() == inputs[0].keys()
    for key, value in found.items():
        if value.dtype.kind == "i":
            assert np.array_equal(value, inputs[0][key])
        else:
            expected = sum(weight * one[key].astype(np.float64) for weight, one in zip(weights, inputs, strict=True))
            assert np.array_equal(value, expected.astype(np.float32)), key
    if name == "RN-tiny-32":
        assert {float(value.flat[0]) for key, value in found.items() if key.endswith("running_var")} == {np.float32(2.1)}
        assert "running statistics" in answer.stdout.replace("\n", " ")
    else:
        assert "running statistics" not in answer.stdout


def test_the_whole_weight_on_one_model_is_that_model_and_no_weights_are_equal_weights(tmp_path: Path) -> None:
    first, second = (saved(tmp_path, "RN-tiny-32", seed) for seed in (1, 2))
    for weights, same in (([1, 0], first), ([0, 1], second)):
        made = average_models([first, second], weights).model.state_dict()
        assert all(np.array_equal(made[key].numpy(), value) for key, value in state(same).items() if value.dtype.kind == "f")
    halves, unsaid = average_models([first, second], [0.5, 0.5]), average_models([first, second])
    assert all(torch.equal(a, b) for a, b in zip(halves.model.state_dict().values(), unsaid.model.state_dict().values(), strict=True))


def test_the_file_says_what_was_averaged_and_is_a_model(tmp_path: Path) -> None:
    specs = [saved(tmp_path, "ViT-tiny-32", seed, preprocess=Preprocess(32, mean=(0.1, 0.2, 0.3))) for seed in (1, 2)]
    answer = run(*specs, "--weights", "0.25,0.75", "--out", tmp_path / "out.safetensors", "--json")
    told = json.loads(answer.stdout)
    hashes = [describe(load_model(Path(spec)))["weights_sha256"] for spec in specs]
    expected = [{"model": spec, "weight": w, "weights_sha256": h} for spec, w, h in zip(specs, (0.25, 0.75), hashes, strict=True)]
    assert told["averaged"] == expected
    loaded = load_model(tmp_path / "out.safetensors")
    assert loaded.facts == {"averaged": expected}
    assert loaded.preprocess.mean == (0.1, 0.2, 0.3)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["A", "--out", "o.safetensors"], "1 model is given, an average needs two or more"),
        (["A", "B", "--weights", "1", "--out", "o.safetensors"], "`--weights` has 1 numbers for 2 models"),
        (["A", "B", "--weights", "0.5,0.6", "--out", "o.safetensors"], "`--weights` sums to 1.1"),
        (["A", "B", "--weights", "-0.5,1.5", "--out", "o.safetensors"], "`--weights` contains -0.5"),
        (["A", "B", "--weights", "nan,1", "--out", "o.safetensors"], "`--weights` contains nan"),
        (["A", "B", "--weights", "half", "--out", "o.safetensors"], "`--weights half` is no list of numbers"),
        (["A", "B", "--out", "A"], "there is something at `A` already"),
        (["A", "B", "--out", "folder"], "does not end in .safetensors"),
        (["A", "C", "--out", "o.safetensors"], "is a `RN-tiny-32` and `C` a `RN-tiny-64`, which differ in"),
        (["A", "D", "--out", "o.safetensors"], "prepare pictures differently"),
        (["A", "hf:some/model", "--out", "o.safetensors"], "`hf:some/model` is loaded by another package"),
        (["A", "missing.safetensors", "--out", "o.safetensors"], "missing.safetensors"),
    ],
)
def test_mistakes_are_told_in_a_sentence_and_write_nothing(tmp_path: Path, words: list[str], sentence: str) -> None:
    other = Preprocess(32, mean=(0.1, 0.2, 0.3))
    made = {
        "A": saved(tmp_path, "RN-tiny-32", 1),
        "B": saved(tmp_path, "RN-tiny-32", 2),
        "C": saved(tmp_path, "RN-tiny-64", 1),
        "D": saved(tmp_path, "RN-tiny-32", 3, preprocess=other),
    }
    before = set(tmp_path.iterdir())
    given = [made.get(word, str(tmp_path / word) if word == "o.safetensors" else word) for word in words]
    answer = run(*given)
    assert answer.exit_code == 2
    told = answer.stderr.replace("\n", "")
    for letter, path in made.items():
        told = told.replace(path, letter)
    assert sentence in told
    assert set(tmp_path.iterdir()) == before


def test_what_an_architecture_is_called_does_not_matter(tmp_path: Path) -> None:
    one = saved(tmp_path, "ViT-tiny-32", 1)
    renamed = build(replace(architecture("ViT-tiny-32"), name="mine"), seed=2)
    save_model(tmp_path / "renamed.safetensors", renamed)
    made = average_models([one, str(tmp_path / "renamed.safetensors")])
    assert made.model.architecture.name == "ViT-tiny-32"
    other = "gelu" if renamed.architecture.activation != "gelu" else "quick_gelu"
    save_model(tmp_path / "other.safetensors", build(replace(architecture("ViT-tiny-32"), activation=other), seed=2))
    with pytest.raises(UserError, match="differ in activation"):
        average_models([one, str(tmp_path / "other.safetensors")])


def test_texts_stay_refused_where_one_of_the_models_was_trained_on_pictures_alone(tmp_path: Path) -> None:
    of_both = saved(tmp_path, "ViT-tiny-32", 1)
    alone = tmp_path / "alone.safetensors"
    save_model(alone, build(architecture("ViT-tiny-32"), seed=2), facts={"objective": "nt-xent", "towers": ["image"]})
    for specs in ([of_both, str(alone)], [str(alone), of_both]):
        assert {key: value for key, value in average_models(specs).facts.items() if key != "averaged"} == {
            "objective": "nt-xent",
            "towers": ["image"],
        }
    assert set(average_models([of_both, saved(tmp_path, "ViT-tiny-32", 3)]).facts) == {"averaged"}
