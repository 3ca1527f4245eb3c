"""Every command of evaluation once through the command line, on coloured squares, with a value known by hand and a mistake each."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from clipkit.cli import app
from clipkit.dataset.shards import Pair, pair_key, write_shards
from clipkit.model.checkpoint import save_model
from clipkit.model.clip import architecture, build

Command = Callable[..., Result]
Draw = Callable[..., bytes]
COLORS = ("red", "green", "blue", "yellow", "white", "black")

CAPTIONS_TOML = """\
name = "captions"
title = "Captions of squares"
folder = "captions"
kind = "retrieval"
layout = "clip-benchmark-wds"
templates = ["{}"]
metric = "mean-recall-at-1"
splits = { test = "test" }
published = "drawn by the tests"
"""
PEOPLE_TOML = """\
name = "people"
title = "Squares of two groups"
folder = "people"
layout = "csv"
columns = { image = "file", label = "colour", gender = "gender" }
groups = ["gender"]
classes = ["red", "blue"]
templates = ["a {} square."]
metric = "worst-group"
splits = { test = "people.csv" }
published = "drawn by the tests"
"""
LABELS_TOML = """\
name = "colours"
title = "A colour that nobody should be called"
templates = ["a {} square."]
ordinary = ["red"]
harmful = { cold = ["blue"] }
"""


@pytest.fixture
def command(color_encoder: Any, own_color_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """`command("eval", "diff", ...)` in the folder of the coloured squares, with their encoder as every model but `no/such`."""
    from clipkit.model import encoder as encoders

    load = encoders.load_encoder
    monkeypatch.setattr(encoders, "load_encoder", lambda spec, **more: load(spec, **more) if spec == "no/such" else color_encoder)
    monkeypatch.setenv("CLIPKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(own_color_files)

    def run(*words: str) -> Result:
        return CliRunner().invoke(app, list(words))

    return run


def report(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def assert_mistake(result: Result, sentence: str) -> None:
    assert result.exit_code == 2, result.output
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


SUITE = ("--suite", "colors-suite.toml", "--data", "data")
QUIET = ("--json", "--quiet")


def one_task(name: str, toml: str) -> str:
    Path(f"{name}.toml").write_text(toml)
    Path(f"{name}-suite.toml").write_text(f'name = "{name}"\ntitle = "{name}"\ntasks = ["{name}.toml"]\n')
    return f"{name}-suite.toml"


def test_encode_counts_each_picture_once_and_again_none(command: Command) -> None:
    words = ("eval", "encode", "--model", "m", *SUITE, "--split", "train", "--split", "test", *QUIET)
    assert {row["split"]: row["encoded"] for row in report(command(*words))["splits"]} == {"colors/train": 48, "colors/test": 35}
    assert [row["encoded"] for row in report(command(*words))["splits"]] == [0, 0]
    assert_mistake(command("eval", "encode", "--model", "m", *SUITE, "--split", "tset"), "`--split tset` is no split")


def test_few_shot_is_right_on_32_of_35_and_says_what_matches_zero_shot(command: Command) -> None:
    words = (
        "eval",
        "few-shot",
        "--model",
        "m",
        *SUITE,
        "--out",
        "out",
        "--quiet",
        "--set",
        "few_shot.shots=[4]",
        "--set",
        "few_shot.draws=2",
    )
    result = command(*words)
    assert result.exit_code == 0, result.output
    assert f"{32 / 35:.2%}" in result.stdout
    assert "matched by" in " ".join(result.stdout.split())
    assert "matched by" in Path("out/few-shot.md").read_text()
    assert_mistake(command(*words[:-5], "--per-class"), "no such option `--per-class`")


def test_retrieval_finds_each_colour_by_its_name(command: Command, make_picture: Draw) -> None:
    folder = Path("data/captions/test")
    folder.mkdir(parents=True)
    with tarfile.open(folder / "0.tar", "w") as tar:
        for i, color in enumerate(("red", "green", "blue", "white", "black", "red")):  # two of six share their caption
            for suffix, data in (("png", make_picture(color, i)), ("txt", f"a {color} square".encode())):
                entry = tarfile.TarInfo(f"{i:03d}.{suffix}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    (folder / "nshards.txt").write_text("1")
    suite = one_task("captions", CAPTIONS_TOML)
    found = report(command("eval", "retrieval", "--model", "m", "--suite", suite, "--data", "data", "--out", "out", *QUIET))
    values = {score["metric"]: score["value"] for score in found["scores"]}
    assert values["text_retrieval_recall@5"] == values["image_retrieval_recall@5"] == 1
    assert 4 / 6 <= values["text_retrieval_recall@1"] <= 5 / 6  # the two red pictures have one text rank first, which is right for one
    assert_mistake(
        command("eval", "retrieval", "--model", "m", *SUITE, "--out", "wrong", "--quiet"),
        "task `colors` is of the kind `classification`, which retrieval cannot answer",
    )


@pytest.fixture
def runs(command: Command) -> tuple[str, str]:
    """Two zero-shot runs: the first is right on 32 of 35, the second has other templates, which mix every colour with white."""
    words = ("eval", "zero-shot", "--quiet", "--model", "m", *SUITE)
    assert command(*words, "--out", "a").exit_code == 0
    task = Path("colors.toml").read_text()
    Path("colors.toml").write_text(task.replace('"a photo of a {} square.", "a {} picture."', '"a {} white picture."'))
    assert command(*words, "--out", "b").exit_code == 0
    return "a", "b"


def right(run: str) -> int:
    (score,) = [s for s in json.loads(Path(run, "report.json").read_bytes())["scores"] if s["metric"] == "acc1"]
    return round(score["value"] * 35)


def test_diff_of_runs_that_share_a_part_of_their_tasks_notes_the_others_and_is_no_failure(command: Command, runs: tuple[str, str]) -> None:
    other = Path(runs[0], "results", "colors.json")
    other.with_name("mnist.json").write_text(other.read_text())
    found = command("eval", "diff", *runs)
    assert found.exit_code == 0, found.output
    assert f"note: mnist: only `{runs[0]}` has it" in found.stderr
    assert "error" not in found.output
    told = report(command("eval", "diff", *runs, "--json"))
    assert (told["failed"], list(told["not_shared"])) == ({}, ["mnist"])
    other.unlink()
    assert_mistake(command("eval", "diff", *runs), "have no task in common")


def test_diff_is_the_difference_of_the_two_scores(command: Command, runs: tuple[str, str]) -> None:
    (task,) = report(command("eval", "diff", *runs, "--json"))["tasks"]
    assert right("a") == 32
    assert task["difference"] == pytest.approx((right("b") - 32) / 35)
    assert task["low"] <= task["difference"] <= task["high"]
    assert_mistake(command("eval", "diff", "a", "no-such-run"), "no-such-run")


def test_compare_takes_of_each_task_the_first_metric_that_it_has(command: Command) -> None:
    rows = ["pooled,acc1,0.2", "pooled,acc1_pooled_max,0.6", "plain,acc1,0.4", "plain,acc5,0.9"]
    lines = [
        f"{model},{task},zero-shot,{metric},{value}" for model in ("a", "b") for task, metric, value in (row.split(",") for row in rows)
    ]
    Path("m.csv").write_text("\n".join(["model,task,kind,metric,value", *lines]))
    Path("both.txt").write_text("pooled\nplain\n")
    asked = ("eval", "compare", "m.csv", "--analysis", "averages", "--over", "both.txt", "--json")
    for metrics, mean in ((("acc1_pooled_max", "acc1"), 0.5), (("acc1", "acc1_pooled_max"), 0.3)):
        report = json.loads(command(*asked, *(word for metric in metrics for word in ("--metric", metric))).stdout)
        assert [row["average"] for row in report["analyses"]["averages"]["rows"]] == pytest.approx([mean, mean])
    assert_mistake(command("eval", "compare", "m.csv", "--metric", "acc1", "--metric", "acc9"), "`--metric acc9` is in none of the results")


def test_compare_averages_runs_and_csv_files(command: Command, runs: tuple[str, str]) -> None:
    Path("c.csv").write_text("model,task,kind,value\nother,colors,zero-shot,0.25\n")
    result = command("eval", "compare", "a", "c.csv", "--out", "cmp")
    assert result.exit_code == 0, result.output
    assert "91.4%" in result.stdout  # 32 of 35
    assert "25.0%" in result.stdout
    assert Path("cmp/averages.svg").is_file()
    Path("short.csv").write_text("model,task,kind\nother,colors,zero-shot\n")
    assert_mistake(command("eval", "compare", "short.csv"), "`short.csv` has no column `value`")
    Path("points.csv").write_text("model,task,kind,value\nother,colors,zero-shot,91\n")
    assert_mistake(command("eval", "compare", "points.csv"), "say so by `--percent`")
    assert_mistake(command("eval", "compare", "c.csv", "--percent"), "leave out `--percent`")


def test_compare_finds_multiply_adds_where_a_model_still_lies(command: Command) -> None:
    made = {"small.safetensors": "ViT-tiny-32", "run": "RN-tiny-32"}
    Path("run").mkdir()
    for name, architecture_name in made.items():
        place = Path(name, "model.safetensors") if name == "run" else Path(name)
        save_model(place, build(architecture(architecture_name), seed=0))
    Path("broken.safetensors").write_bytes(b"\xff" * 100)
    models = [*made, "broken.safetensors", "nowhere", "RN50", "é" * 200]
    Path("m.csv").write_text("model,task,kind,value\n" + "".join(f"{model},t,zero-shot,0.5\n" for model in models))
    rows = json.loads(command("eval", "compare", "m.csv", "--analysis", "averages", "--json").stdout)["analyses"]["averages"]["rows"]
    found = {row["model"]: row["gmacs"] for row in rows}
    # A ViT of 32 x 32 pixels by hand: its patches, and of each layer 12 products of T x W x W and two of T x T x W; the projection.
    sizes = architecture("ViT-tiny-32")
    P, W, T = sizes.image.patch_size, sizes.image.width, (32 // sizes.image.patch_size) ** 2 + 1
    by_hand = (T - 1) * 3 * P * P * W + sizes.image.layers * (12 * T * W * W + 2 * T * T * W) + W * sizes.embed_width
    assert found["small.safetensors"] * 1e9 == pytest.approx(by_hand)
    assert found["run"] == pytest.approx(0.014557696)
    assert found["RN50"] == pytest.approx(6.111469568)
    assert [found[model] for model in ("broken.safetensors", "nowhere", "é" * 200)] == [None] * 3


def test_doctor_counts_the_splits_and_layouts_are_told(command: Command) -> None:
    found = report(command("suites", "doctor", "colors-suite.toml", "--data", "data", "--json"))
    assert [(row["split"], row["pictures"], row["state"]) for row in found["splits"]] == [
        ("test", 35, "complete"),
        ("train", 48, "complete"),
    ]
    next(Path("data/colors/test/red").iterdir()).unlink()
    broken = command("suites", "doctor", "colors-suite.toml", "--data", "data", "--json")
    assert broken.exit_code == 1
    assert json.loads(broken.stdout)["wrong"] == 1
    assert "imagefolder" in command("suites", "layouts").stdout
    assert_mistake(command("suites", "doctor", "smal", "--data", "data"), "did you mean `small`?")


def test_classify_calls_a_red_square_red(command: Command) -> None:
    words = ("classify", "data/colors/test/red/000.png", "--model", "m", "--quiet")
    (found,) = report(command(*words, "--labels", "red, blue", "--json"))["pictures"]
    assert found["guesses"][0]["label"] == "red"
    assert found["guesses"][0]["probability"] > 0.999999  # cosines of 1 and 0, times 100
    Path("broken.png").write_bytes(b"no picture")
    assert_mistake(command("classify", "broken.png", "--model", "m", "--labels", "red, blue", "--quiet"), "broken.png")
    assert_mistake(command(*words), "give the labels as one of")


@pytest.fixture
def shards(command: Command, make_picture: Draw) -> str:
    pairs = []
    for i in range(24):
        color = COLORS[i % 6]
        pairs.append(Pair(pair_key(f"http://x/{i}", color), make_picture(color, i), color, {"image_url": f"http://x/{i}"}))
    write_shards(pairs, Path("shards"), pairs_per_shard=12, recipe={}, funnel=[])
    return "shards"


def test_search_finds_the_four_red_pictures_first(command: Command, shards: str) -> None:
    found = report(command("search", "red", "--model", "m", "--shards", shards, "--top", "5", *QUIET))["found"]
    assert [one["text"] == "red" for one in found] == [True] * 4 + [False]
    assert_mistake(command("search", "red", "--model", "m", "--shards", shards, "--out", "page.pdf"), "give one that ends in .html")


def test_modality_gap_of_one_space_is_almost_none_and_a_failed_one_writes_nothing(command: Command, shards: str) -> None:
    words = ("eval", "modality-gap", "--shards", shards, "--quiet", "--set", "modality_gap.resamples=20")
    (model,) = report(command(*words, "--model", "m", "--out", "gap", "--json"))["models"]
    values = {score["metric"]: score["value"] for score in model["scores"]}
    assert values["gap"] < 0.02
    assert values["alignment"] == pytest.approx(1, abs=0.001)
    assert_mistake(command(*words, "--model", "no/such", "--out", "none"), "no checkpoint `no/such`")
    assert not Path("none/points.parquet").exists()


def test_bias_counts_harmful_labels_of_each_group(command: Command, make_picture: Draw) -> None:
    folder = Path("data/people")
    folder.mkdir()
    rows = ["file,colour,gender"]
    for i, (color, gender) in enumerate([("red", "f")] * 3 + [("blue", "f")] + [("red", "m")] + [("blue", "m")] * 3):
        (folder / f"{i}.png").write_bytes(make_picture(color, i))
        rows.append(f"{i}.png,{color},{gender}")
    (folder / "people.csv").write_text("\n".join(rows) + "\n")
    Path("labels.toml").write_text(LABELS_TOML)
    suite = one_task("people", PEOPLE_TOML)
    words = ("eval", "bias", "--model", "m", "--data", "data", *QUIET)
    found = report(command(*words, "--suite", suite, "--out", "out", "--set", 'bias.label_sets=["labels.toml"]'))
    assert {row["group"]: row["rate"] for row in found["rates"]} == {"f": 0.25, "m": 0.75}
    assert found["gaps"][0]["gap"] == 0.5
    wrong = command(*words[:-2], "--quiet", "--suite", "colors-suite.toml", "--out", "wrong")
    assert_mistake(wrong, "`colors/test` has no groups")


def test_a_broken_task_is_told_and_the_other_goes_on(command: Command) -> None:
    """Exit code 1: one task has its score, the other its reason."""
    task = Path("colors.toml").read_text()
    Path("empty.toml").write_text(task.replace('name = "colors"', 'name = "empty"').replace('folder = "colors"', 'folder = "none"'))
    Path("two.toml").write_text('name = "two"\ntitle = "Two"\ntasks = ["colors.toml", "empty.toml"]\n')
    result = command("eval", "zero-shot", "--model", "m", "--suite", "two.toml", "--data", "data", "--out", "out", "--quiet")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: empty: no data for task `empty`")
    assert result.stderr.count("\n") == 1
    assert f"{32 / 35:.2%}" in result.stdout


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("eval", "zero-shot", *SUITE, "--out", "out"), "encodes images only"),
        (("eval", "bias", *SUITE, "--out", "out"), "encodes images only"),
        (("classify", "data/colors/test/red/000.png", "--labels", "red, blue"), "encodes no texts"),
    ],
)
def test_a_model_without_texts_is_refused_where_texts_are_needed(
    words: tuple[str, ...], sentence: str, command: Command, image_only_encoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipkit.model.encoder.load_encoder", lambda spec, **_: image_only_encoder)
    assert_mistake(command(*words, "--model", "m", "--quiet"), sentence)
    assert not list(Path().glob("out/*.parquet"))
    assert not list(Path().glob("out/results/*"))


@pytest.mark.parametrize("engine", ["zero-shot", "linear-probe", "few-shot", "retrieval"])
def test_a_mistake_leaves_no_new_directory(command: Command, engine: str) -> None:
    for wrong in (["--suite", "colrs"], ["--suite", "demo"], ["--set", "batch_siz=3"]):
        given = dict(zip(SUITE[::2], SUITE[1::2], strict=True)) | dict([wrong])
        result = command("eval", engine, "--model", "m", *(word for pair in given.items() for word in pair), "--out", "new/out", "--quiet")
        assert result.exit_code == 2, result.output
        assert not Path("new").exists()


@pytest.mark.parametrize(("labels", "said"), [("", "no label was given"), ("red", "one label was given")])
def test_too_few_labels_are_told_in_a_sentence(labels: str, said: str, command: Command) -> None:
    told = command("classify", "data/colors/test/red/000.png", "--labels", labels, "--model", "m", "--quiet")
    assert_mistake(told, f"{said}: two or more are compared")


def test_an_image_only_model_is_named_once_by_the_gap(
    command: Command, shards: str, image_only_encoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipkit.model.encoder.load_encoder", lambda spec, **_: image_only_encoder)
    told = command("eval", "modality-gap", "--model", "its/name", "--shards", shards, "--out", "gap", "--quiet")
    assert told.stderr == "error: its/name: it encodes images only: the gap lies between pictures and texts\n"
