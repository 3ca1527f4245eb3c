import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipkit import UserError
from clipkit.evaluation.compare.figure import Figure, Figures, Runner
from clipkit.evaluation.compare.reading import read_results
from clipkit.evaluation.few_shot import run_few_shot
from clipkit.evaluation.linear_probe import run_linear_probe
from clipkit.evaluation.zero_shot import run_zero_shot
from clipkit.recipe import EvalRecipe
from clipkit.run import Run

LONG = "model,task,kind,value,count\na,birds,zero-shot,0.5,100\na,birds,linear-probe,0.7,100\n"


def figures(tmp_path, text, name="t.csv", **options):
    path = tmp_path / name
    path.write_text(text)
    return read_results([path], **{"kind": None, "percent": False, **options}).figures


def test_long_wide_and_percent_tables_say_the_same(tmp_path):
    long = figures(tmp_path, "model,task,kind,value\na,birds,zero-shot,0.5\na,cars,zero-shot,0.25\n")
    assert long == figures(tmp_path, "model,birds,cars\na,0.5,0.25\n", kind="zero-shot")
    assert long == figures(tmp_path, "model,birds,cars\na,50,25\n", kind="zero-shot", percent=True)


def test_clip_benchmarks_json_and_csv_say_the_same(tmp_path):
    metrics = {"lp_acc1": 0.7, "lp_acc5": 0.9, "lp_mean_per_class_recall": 0.6, "weight_decay": 0.1, "fewshot_k": -1}
    data = {"dataset": "birds", "model": "RN50", "pretrained": "openai", "task": "linear_probe", "metrics": metrics}
    (tmp_path / "r.json").write_text(json.dumps(data))
    (from_json, *_) = read_results([tmp_path / "r.json"], kind=None, percent=False).figures
    header = [*metrics, "dataset", "model", "pretrained", "task", "model_fullname"]
    row = [*metrics.values(), "birds", "RN50", "openai", "linear_probe", "RN50 openai"]
    (from_csv, *_) = figures(tmp_path, ",".join(header) + "\n" + ",".join(map(str, row)) + "\n")
    assert from_csv._replace(source="") == from_json._replace(source="")
    assert from_json[:5] == ("RN50 openai", "birds", "linear-probe", "acc1", 0.7)


def test_results_that_went_through_clip_benchmarks_build_say_the_same(color_encoder, color_suite, color_data, tmp_path):
    """Its `build` puts `metrics` and all other fields of each file into one csv: a field of a metric's name would hide the metric."""
    knobs = {"few_shot": {"shots": [1, 2], "draws": 2}, "probe": {"steps_per_decade": 1}, "workers": 0}
    engines = {"zero-shot": run_zero_shot, "probe": run_linear_probe, "few-shot": run_few_shot}
    rows, wanted = [], {}
    for name, engine in engines.items():
        with Run.scratch(tmp_path / name) as run:
            report = engine(EvalRecipe.model_validate(knobs), color_encoder, color_suite, color_data, run=run, cache=tmp_path / "cache")
        data = json.loads((tmp_path / name / "results" / "colors.json").read_text())
        assert not data["metrics"].keys() & data.keys()
        others = {key: value for key, value in data.items() if key != "metrics"}
        rows.append({**data["metrics"], **others, "model_fullname": data["model"] + " " + data["pretrained"]})
        wanted |= {(name, score["metric"].removeprefix("lp_")): score["value"] for score in report["scores"]}
    with open(tmp_path / "built.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, sorted({key for row in rows for key in row}))
        writer.writeheader()
        writer.writerows(rows)
    found = {
        (figure.kind, figure.metric): figure.value for figure in read_results([tmp_path / "built.csv"], kind=None, percent=False).figures
    }
    assert found["zero-shot", "acc1"] == pytest.approx(wanted["zero-shot", "acc1"])
    assert found["linear-probe", "acc1"] == pytest.approx(wanted["probe", "acc1"])
    assert found["2-shot ridge", "acc1"] == pytest.approx(wanted["few-shot", "acc1_2_shot_ridge"])
    assert found["fully-supervised", "acc1"] == pytest.approx(wanted["few-shot", "acc1_all_logistic"])


def test_a_run_and_its_result_files_say_the_same(tmp_path):
    score = {"task": "birds", "metric": "lp_acc1", "value": 0.7, "count": 10, "is_main": True}
    (tmp_path / "report.json").write_text(json.dumps({"command": "eval linear-probe", "model": "m", "scores": [score]}))
    result = {"task": "linear_probe", "model": "m", "scores": [score], "dataset": "birds", "metrics": {}}
    (tmp_path / "birds.json").write_text(json.dumps(result))
    found = read_results([tmp_path, tmp_path / "birds.json"], kind=None, percent=False).figures
    assert len(found) == 2
    assert [figure[:7] for figure in Figures(found).rows()] == [("m", "birds", "linear-probe", "acc1", 0.7, 10, 2)]


def test_a_score_is_the_main_one_where_the_run_says_so_alone(tmp_path):
    scores = [
        {"task": "birds", "metric": metric, "value": value, "count": 10, "is_main": is_main}
        for metric, value, is_main in (("acc1", 0.7, False), ("mean_per_class_recall", 0.6, True))
    ]
    (tmp_path / "report.json").write_text(json.dumps({"command": "eval zero-shot", "model": "m", "scores": scores}))
    table = Figures(read_results([tmp_path], kind=None, percent=False).figures)
    assert table.get(Runner("m", "zero-shot"), "birds").value == 0.6


def test_columns_about_models_are_read_beside_their_figures(tmp_path):
    (tmp_path / "t.csv").write_text("model,birds,gmacs,is_reference\na,0.5,4.1,yes\nb,0.6,,no\nc,0.7,8,\nd,0.8,16,1\n")
    found = read_results([tmp_path / "t.csv"], kind="zero-shot", percent=False)
    assert (found.references, found.gmacs) == ({"a", "d"}, {"a": 4.1, "c": 8.0, "d": 16.0})
    assert [(figure.model, figure.task, figure.value) for figure in found.figures] == [
        ("a", "birds", 0.5),
        ("b", "birds", 0.6),
        ("c", "birds", 0.7),
        ("d", "birds", 0.8),
    ]


def test_few_shots_of_clip_benchmark_are_no_linear_probe(tmp_path):
    for shots in (-1, 16):
        data = {"dataset": "birds", "model": "m", "pretrained": "p", "task": "linear_probe"}
        (tmp_path / f"{shots}.json").write_text(json.dumps({**data, "metrics": {"lp_acc1": 0.5 + shots / 100, "fewshot_k": shots}}))
    found = read_results([tmp_path], kind=None, percent=False).figures
    assert {figure.kind: figure.value for figure in found} == pytest.approx({"linear-probe": 0.49, "16-shot": 0.66})


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ("model,task,kind,value\na,b,zero-shot,76.2\n", {}, "--percent"),
        ("model,task,kind,value\na,b,zero-shot,-0.2\n", {}, "from 0 to 1"),
        ("model,task,kind,value\na,b,zero-shot,nan\n", {}, "from 0 to 1"),
        ("model,task,kind,value,cuont\na,b,zero-shot,0.2,3\n", {}, "did you mean `count`"),
        ("model,task,value\na,b,0.2\n", {}, "no column `kind`"),
        ("model,birds\na,0.2\n", {}, "--kind"),
        ("model,birds,remark\na,0.2,good\n", {"kind": "zero-shot"}, "unknown column `remark`"),
        ("model,task,kind,value\na,b,zero-shot\n", {}, "3 cells"),
        ("model,task,kind,value,count\na,b,zero-shot,0.5,1.5\n", {}, "count '1.5'"),
        ("", {}, "empty"),
    ],
)
def test_what_is_wrong_with_a_table_is_said_in_a_sentence(tmp_path, text, options, said):
    with pytest.raises(UserError, match=said):
        figures(tmp_path, text, **options)


@pytest.mark.parametrize(
    ("score", "said"),
    [
        ("x", "has the score 'x'"),
        ({"task": "t", "metric": "acc1", "value": 0.5}, "a score without `count`"),
        ({"task": "t", "metric": "acc1", "value": 0.5, "count": "many"}, "has 'many' as the count of acc1"),
        ({"task": "t", "metric": "acc1", "value": 0.5, "count": float("inf")}, "has 'inf' as the count"),
    ],
)
def test_what_is_wrong_with_a_result_file_is_said_in_a_sentence(tmp_path, score, said):
    (tmp_path / "r.json").write_text(json.dumps({"model": "m", "task": "linear_probe", "scores": [score]}))
    with pytest.raises(UserError, match=said):
        read_results([tmp_path / "r.json"], kind=None, percent=False)


def test_predictions_beside_a_foreign_report_are_called_after_their_file(tmp_path):
    (tmp_path / "report.json").write_text("[1]")
    (tmp_path / "predictions").mkdir()
    pq.write_table(pa.table({"index": [0], "label": [1], "prediction": [1]}), tmp_path / "predictions" / "birds.parquet")
    assert list(read_results([tmp_path / "predictions" / "birds.parquet"], kind=None, percent=False).predictions) == ["birds"]


def one(value, source, **changes):
    return Figure("a", "birds", "zero-shot", "acc1", value, None, 1, source)._replace(**changes)


def test_two_files_that_disagree_are_both_named_and_those_that_agree_are_one():
    with pytest.raises(UserError, match=r"`x` says 0.5000 and `y` says 0.6000"):
        Figures([one(0.6, "y"), one(0.5, "x")])
    assert len(Figures([one(0.5, "x"), one(0.5 + 1e-8, "y")])) == 1


def test_the_metric_that_a_task_is_said_to_have_is_compared():
    table = Figures(
        [
            one(0.5, "x"),
            one(0.4, "x", metric="mean_per_class_recall", main=0),
            one(0.3, "y", model="b", metric="mean_per_class_recall", main=2),
        ]
    )
    assert [table.get(Runner(model, "zero-shot"), "birds").value for model in "ab"] == [0.4, 0.3]
    with pytest.raises(UserError, match="cannot be compared"):
        Figures([one(0.5, "x"), one(0.3, "y", model="b", metric="f1_macro", main=2)]).values(Runner("a", "zero-shot"))


@pytest.mark.parametrize("written", ["130", "-1", "nan", "many"])
def test_a_share_outside_of_per_cent_is_shown_as_it_is_written(tmp_path, written):
    text = f"model,task,kind,value\na,cifar10,zero-shot,91.2\na,digits,zero-shot,{written}\n"
    with pytest.raises(UserError, match=rf"has '{written}' as digits of a: with `--percent` a number from 0 to 100 was expected"):
        figures(tmp_path, text, percent=True)
