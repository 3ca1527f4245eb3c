"""Zero-shot with an encoder whose answers are known by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from clipkit import UserError
from clipkit.evaluation.class_texts import with_templates
from clipkit.evaluation.intervals import clopper_pearson
from clipkit.evaluation.suite import Suite, Task
from clipkit.evaluation.zero_shot import class_embeddings, ensemble_probabilities, predict, run_zero_shot
from clipkit.recipe import EvalRecipe
from clipkit.run import Run

RECIPE = EvalRecipe(batch_size=8, workers=0)


def scores_of(report: dict[str, Any]) -> dict[str, float]:
    return {score["metric"]: score["value"] for score in report["scores"]}


def test_class_embeddings_are_the_normalised_mean_of_the_texts_unit_vectors(color_encoder: Any, color_task: Task, scratch_run: Run) -> None:
    task = color_task.model_copy(update={"classes": (("red", "blue"), ("green",)), "class_folders": None})
    weights_CD = class_embeddings(color_encoder, task, run=scratch_run)
    # red is (1,-1,-1,1)/2, blue (-1,-1,1,1)/2: their mean lies along (0,-1,0,1).
    torch.testing.assert_close(weights_CD, torch.tensor([[0, -(0.5**0.5), 0, 0.5**0.5], [-0.5, 0.5, -0.5, 0.5]]))


def test_each_text_counts_by_its_direction_and_not_by_its_length(color_encoder: Any, color_task: Task, scratch_run: Run) -> None:
    task = color_task.model_copy(update={"classes": (("red", "blue"), ("green",)), "class_folders": None})
    wanted = class_embeddings(color_encoder, task, run=scratch_run)
    encode = color_encoder.encode_texts
    color_encoder.encode_texts = lambda texts: encode(texts) * torch.tensor([[5.0 if "red" in text else 1.0] for text in texts])
    torch.testing.assert_close(class_embeddings(color_encoder, task, run=scratch_run), wanted)


def test_the_mean_is_taken_over_embeddings_and_not_over_probabilities(
    color_encoder: Any, color_task: Task, color_data: Path, scratch_run: Run
) -> None:
    task = color_task.model_copy(update={"templates": ("a {} picture.", "a blue {} picture.")})
    split = task.split(color_data, "test")
    predictions = predict(color_encoder, task, split, run=scratch_run, cache=scratch_run.path, batch_size=8, workers=0)
    image_D = color_encoder.encode_images(torch.stack([color_encoder.preprocess(split.read(0, 1)[0])])).projected_BD[0]
    texts_PD = color_encoder.encode_texts(["a red picture.", "a blue red picture."])
    mean_D = torch.nn.functional.normalize(texts_PD.mean(dim=0), dim=0)
    assert predictions.logits_NC[0, 0] == pytest.approx(100 * float(image_D @ mean_D), rel=1e-5)
    assert predictions.logits_NC.shape == (35, 6)


def test_scores_are_those_worked_by_hand(color_encoder: Any, color_suite: Suite, color_data: Path, scratch_run: Run) -> None:
    report = run_zero_shot(RECIPE, color_encoder, color_suite, color_data, run=scratch_run, cache=scratch_run.path / "cache")
    assert report["failed"] == {}
    assert scores_of(report) == pytest.approx({"acc1": 32 / 35, "acc5": 1.0, "mean_per_class_recall": 0.9})
    acc1, acc5, recall = report["scores"]
    assert (acc1["low"], acc1["high"]) == clopper_pearson(32, 35, 0.95)
    assert (acc5["low"], acc5["high"]) == clopper_pearson(35, 35, 0.95)
    assert recall["low"] < 0.9 < recall["high"]
    assert [score["is_main"] for score in report["scores"]] == [True, False, False]
    assert {(score["task"], score["protocol"], score["count"]) for score in report["scores"]} == {("colors", "own", 35)}
    assert (report["command"], report["model"], report["suite"]) == ("eval zero-shot", "color", "colors")


def test_the_main_metric_is_the_tasks(color_encoder: Any, color_suite: Suite, color_data: Path, scratch_run: Run) -> None:
    suite = color_suite.model_copy(update={"tasks": (color_suite.tasks[0].model_copy(update={"metric": "mean-per-class"}),)})
    report = run_zero_shot(RECIPE, color_encoder, suite, color_data, run=scratch_run, cache=scratch_run.path / "cache")
    assert [score["metric"] for score in report["scores"] if score["is_main"]] == ["mean_per_class_recall"]


def test_predictions_name_each_picture_that_was_wrong(color_encoder: Any, color_suite: Suite, color_data: Path, scratch_run: Run) -> None:
    run_zero_shot(RECIPE, color_encoder, color_suite, color_data, run=scratch_run, cache=scratch_run.path / "cache")
    rows = pq.read_table(scratch_run.path / "predictions" / "colors.parquet").to_pylist()
    wrong = [(row["index"], row["label"], row["prediction"]) for row in rows if row["label"] != row["prediction"]]
    # The last red picture is blue, the last two green ones are yellow; labels follow the task's class order.
    assert wrong == [(4, 0, 2), (8, 1, 3), (9, 1, 3)]
    assert all(row["top5"][0] == row["prediction"] and len(set(row["top5"])) == 5 for row in rows)
    assert [row["is_right"] for row in rows] == [row["label"] == row["prediction"] for row in rows]


def test_top_five_is_left_out_below_six_classes(color_encoder: Any, color_suite: Suite, color_data: Path, scratch_run: Run) -> None:
    folders, classes = color_suite.tasks[0].folders[:5], color_suite.tasks[0].classes[:5]
    few = color_data.parent / "five"
    for folder in folders:
        (few / "colors/test").mkdir(parents=True, exist_ok=True)
        (few / "colors/test" / folder).mkdir(exist_ok=True)
        for path in (color_data / "colors/test" / folder).iterdir():
            (few / "colors/test" / folder / path.name).write_bytes(path.read_bytes())
    task = color_suite.tasks[0].model_copy(update={"classes": classes, "sizes": {}})
    report = run_zero_shot(
        RECIPE, color_encoder, color_suite.model_copy(update={"tasks": (task,)}), few, run=scratch_run, cache=scratch_run.path
    )
    assert "acc5" not in scores_of(report)
    assert json.loads((scratch_run.path / "results/colors.json").read_text())["metrics"]["acc5"] is None


def test_an_image_only_encoder_is_refused_at_once(image_only_encoder: Any, color_suite: Suite, color_data: Path, scratch_run: Run) -> None:
    with pytest.raises(UserError, match=r"`color` encodes images only.*linear-probe"):
        run_zero_shot(RECIPE, image_only_encoder, color_suite, color_data, run=scratch_run, cache=scratch_run.path)
    assert image_only_encoder.pictures_seen == 0


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_texts_without_a_direction_are_told(color_encoder: Any, color_task: Task, scratch_run: Run, value: float) -> None:
    color_encoder.encode_texts = lambda texts: torch.full((len(texts), 4), value)
    with pytest.raises(UserError, match="gives no direction for class 'red' of task `colors`"):
        class_embeddings(color_encoder, color_task, run=scratch_run)


def test_the_same_pictures_packed_as_clip_benchmark_packs_them_score_the_same_and_share_the_cache(
    color_encoder: Any, color_suite: Suite, color_data: Path, scratch_run: Run, tmp_path: Path
) -> None:
    webdataset = pytest.importorskip("webdataset")
    task, cache = color_suite.tasks[0], scratch_run.path / "cache"
    folders = run_zero_shot(RECIPE, color_encoder, color_suite, color_data, run=scratch_run, cache=cache)
    seen = color_encoder.pictures_seen
    split = task.split(color_data, "test")
    (tmp_path / "data/colors/test").mkdir(parents=True)
    with webdataset.TarWriter(str(tmp_path / "data/colors/test/0.tar")) as writer:
        for i, (picture, label) in enumerate(zip(split.read(0, len(split)), split.labels_N, strict=True)):
            writer.write({"__key__": f"s{i:07d}", "png": picture, "cls": int(label)})
    (tmp_path / "data/colors/test/nshards.txt").write_text("1")
    packed = color_suite.model_copy(update={"tasks": (task.model_copy(update={"layout": "clip-benchmark-wds"}),)})
    tars = run_zero_shot(RECIPE, color_encoder, packed, tmp_path / "data", run=Run.scratch(tmp_path / "run"), cache=cache)
    assert scores_of(tars) == scores_of(folders)
    assert color_encoder.pictures_seen == seen


def run_with(encoder: Any, suite: Suite, data: Path, run: Run, **zero_shot: Any) -> dict[str, Any]:
    recipe = EvalRecipe(batch_size=8, workers=0, zero_shot=zero_shot)
    run_zero_shot(recipe, encoder, suite, data, run=run, cache=run.path / "cache")
    return dict(json.loads((run.path / "results" / f"{suite.tasks[0].name}.json").read_text()))


def test_probabilities_are_those_of_a_double_loop_in_float64(color_encoder: Any, color_task: Task, scratch_run: Run) -> None:
    task = color_task.model_copy(
        update={
            "classes": (("red", "magenta"), ("green",), ("white",)),
            "templates": ("a {}.", "blue {}.", "red {}."),
            "class_folders": None,
        }
    )
    images_ND = torch.nn.functional.normalize(torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    color_encoder.logit_scale = 3.0
    found_NC = np.exp(ensemble_probabilities(color_encoder, task, images_ND, run=scratch_run))
    for n in range(5):
        wanted_C = np.zeros(3)
        for template in task.templates:
            cosines = []
            for names in task.classes:
                mean_D = color_encoder.encode_texts([template.replace("{}", name) for name in names]).double().numpy().mean(axis=0)
                cosines.append(mean_D @ images_ND[n].double().numpy() / np.linalg.norm(mean_D))
            raised_C = np.exp(3.0 * np.array(cosines))
            wanted_C += raised_C / raised_C.sum() / 3
        assert found_NC[n] == pytest.approx(wanted_C, rel=1e-5)


def test_a_second_run_encodes_no_text(color_encoder: Any, color_suite: Suite, color_data: Path, tmp_path: Path) -> None:
    for i, seen in enumerate((12, 12, 18)):
        suite = color_suite
        if i == 2:  # one of its templates is new
            task = color_suite.tasks[0]
            suite = color_suite.model_copy(update={"tasks": (task.model_copy(update={"templates": (*task.templates, "{}")}),)})
        run = Run.scratch(tmp_path / str(i))
        assert run_zero_shot(RECIPE, color_encoder, suite, color_data, run=run, cache=tmp_path / "cache")["failed"] == {}
        assert color_encoder.texts_seen == seen
        run.close()


def test_class_texts_are_never_those_of_another_encoder(color_encoder: Any, color_task: Task, scratch_run: Run, tmp_path: Path) -> None:
    first_CD = class_embeddings(color_encoder, color_task, run=scratch_run, cache=tmp_path)
    encode, color_encoder.fingerprint = color_encoder.encode_texts, "other"
    color_encoder.encode_texts = lambda texts: encode(texts).flip(1)
    other_CD = class_embeddings(color_encoder, color_task, run=scratch_run, cache=tmp_path)
    assert torch.equal(other_CD, class_embeddings(color_encoder, color_task, run=scratch_run))
    assert not torch.equal(other_CD, first_CD)


def test_the_gains_from_templates_are_paired(color_encoder: Any, color_suite: Suite, color_data: Path, scratch_run: Run) -> None:
    encode = color_encoder.encode_texts
    # By its name alone green is taken for magenta, so its three pictures are lost.
    color_encoder.encode_texts = lambda texts: encode(["magenta" if text == "green" else text for text in texts])
    gains = run_with(color_encoder, color_suite, color_data, scratch_run, compare_templates=True)["templates"]
    assert gains["acc1"] == pytest.approx({"names": 29 / 35, "one": 32 / 35, "ensemble": 32 / 35})
    assert gains["gain_from_template"]["gain"] == pytest.approx(3 / 35)
    assert gains["gain_from_template"]["p"] == pytest.approx(2 * 0.5**3)
    assert 0 <= gains["gain_from_template"]["low"] < 3 / 35 < gains["gain_from_template"]["high"]
    other = clopper_pearson(0, 35, 0.95).high  # no picture changed: no more than this share of others would
    assert gains["gain_from_ensembling"] == {"gain": 0, "low": pytest.approx(-other), "high": pytest.approx(other), "p": 1}


def test_each_class_is_told_with_what_it_is_taken_for(color_encoder: Any, color_suite: Suite, color_data: Path, scratch_run: Run) -> None:
    run_with(color_encoder, color_suite, color_data, scratch_run)
    rows = pq.read_table(scratch_run.path / "classes/colors.parquet").to_pylist()
    assert [(row["name"], row["pictures"], row["right"], row["taken_for"], row["times"]) for row in rows[:3]] == [
        ("red", 5, 4, "blue", 1),
        ("green", 5, 3, "yellow", 2),
        ("blue", 5, 5, None, 0),
    ]
    assert (rows[1]["low"], rows[1]["high"]) == clopper_pearson(3, 5, 0.95)
    cells = pq.read_table(scratch_run.path / "confusion/colors.parquet").to_pylist()
    assert sum(cell["count"] for cell in cells) == 35
    assert {"label": 1, "prediction": 3, "count": 2} in cells


def test_sets_of_templates_are_compared_under_their_names(color_suite: Suite, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("a {c}.\n\nthe {}.\n")
    suite = with_templates(color_suite, ["task", "names", str(tmp_path / "mine.txt")])
    assert [(task.name, task.templates) for task in suite.tasks] == [
        ("colors.task", color_suite.tasks[0].templates),
        ("colors.names", ("{}",)),
        ("colors.mine", ("a {}.", "the {}.")),
    ]


@pytest.mark.parametrize(("data", "told"), [(None, "be read"), (b"\xff", "be read"), (b"a photo", "once"), (b"\n", "no template")])
def test_a_file_of_templates_that_is_none_is_told(color_suite: Suite, tmp_path: Path, data: bytes | None, told: str) -> None:
    if data is not None:
        (tmp_path / "t.txt").write_bytes(data)
    with pytest.raises(UserError, match=told):
        with_templates(color_suite, [str(tmp_path / "t.txt")])


def test_a_task_of_captions_is_sent_to_retrieval(color_encoder: Any, color_suite: Suite, color_data: Path, scratch_run: Run) -> None:
    suite = color_suite.model_copy(update={"tasks": (color_suite.tasks[0].model_copy(update={"kind": "retrieval"}),)})
    report = run_zero_shot(RECIPE, color_encoder, suite, color_data, run=scratch_run, cache=scratch_run.path / "cache")
    assert "use `clipkit eval retrieval`" in report["failed"]["colors"]


def test_templates_of_more_texts_than_are_encoded_are_refused(color_suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipkit.evaluation.class_texts.MAX_TEXTS", 11)
    (tmp_path / "t.txt").write_text("a {}\n" * 2)
    with_templates(color_suite, ["names"])
    with pytest.raises(UserError, match="at most 11 are encoded: give fewer"):
        with_templates(color_suite, [str(tmp_path / "t.txt")])


def test_imagenets_templates_can_be_had_by_name_for_any_task(color_suite: Suite) -> None:
    """Count and some content of what CLIP's authors published; the seven are of the eighty."""
    suite = with_templates(color_suite, ["imagenet-7", "imagenet-80", "task"])
    by_name = {task.name: task.templates for task in suite.tasks}
    seven, eighty = by_name["colors.imagenet-7"], by_name["colors.imagenet-80"]
    assert (len(seven), len(set(eighty)), len(eighty)) == (7, 80, 80)
    assert set(seven) < set(eighty)
    assert (eighty[0], eighty[-1]) == ("a bad photo of a {}.", "a tattoo of the {}.")
    assert by_name["colors.task"] == color_suite.tasks[0].templates
    with pytest.raises(UserError, match="one of task, names, one, imagenet-7, imagenet-80"):
        with_templates(color_suite, ["imagenet-81"])
