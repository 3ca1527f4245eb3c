"""`clipkit eval compare` from files to tables and figures."""

import json
from xml.etree import ElementTree

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from clipkit.cli import app
from clipkit.evaluation.compare.analyses import ANALYSES

MODELS = {"RN50": 0.5, "RN101": 0.55, "RN50x4": 0.6, "ViT-B-32": 0.58, "<b>$x$ & co": 0.7}
PEOPLE = "rater,picture,answer,truth\nr1,0,cat,cat\nr2,0,dog,cat\nr1,1,don't know,dog\nr2,1,dog,dog\n"


@pytest.fixture
def files(tmp_path):
    rows = ["model,task,kind,value,count,is_reference"]
    for model, skill in MODELS.items():
        for i, task in enumerate(("imagenet", "imagenet-v2", "birds", "cars")):
            value = 100 * min(0.97, skill + 0.07 * i * skill - 0.1 * (task == "imagenet-v2"))
            rows += [f"{model},{task},zero-shot,{value:.3f},1000,{int('RN' in model)}"]
            rows += [f"{model},{task},linear-probe,{value + 2 + i:.3f},1000,{int('RN' in model)}"]
    (tmp_path / "figures.csv").write_text("\n".join(rows))
    (tmp_path / "people.csv").write_text(PEOPLE)
    pq.write_table(pa.table({"index": [0, 1], "label": [0, 1], "prediction": [0, 0]}), tmp_path / "pets.parquet")
    return [str(tmp_path / name) for name in ("figures.csv", "people.csv", "pets.parquet")]


BETWEEN = ["--between", "RN50:zero-shot", "--between", "ViT-B-32:zero-shot"]


def run(*words):
    return CliRunner().invoke(app, ["eval", "compare", *map(str, words)])


def test_every_analysis_gives_a_table_and_a_figure_and_the_same_again(files, tmp_path):
    first, second = tmp_path / "one", tmp_path / "two"
    for out in (first, second):
        result = run(*files, "--percent", *BETWEEN, "--out", out)
        assert result.exit_code == 0, result.output
    for name in ANALYSES:
        assert ElementTree.parse(first / f"{name}.svg").getroot().tag.endswith("svg")
        with Image.open(first / f"{name}.png") as picture:
            assert picture.width > 500
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes(), path.name
    report = json.loads((first / "report.json").read_text())
    assert set(report["analyses"]) == set(ANALYSES)
    assert pq.read_table(first / "figures.parquet").num_rows == report["figures"] == 40
    for title in ("zero-shot against linear probe", "averages", "task shift", "effective robustness", "relative robustness", "people"):
        assert title in result.output


def test_multiply_adds_come_from_the_architecture_of_that_name_or_from_a_file(files, tmp_path):
    (tmp_path / "gmacs.csv").write_text("model,gmacs\nRN50,7\n<b>$x$ & co,20\n")
    rows = json.loads(run(*files, "--percent", "--json").output)["analyses"]["averages"]["rows"]
    known = {row["model"]: row["gmacs"] for row in rows}
    assert known["RN50"] == pytest.approx(6.1, abs=0.05)  # CLIP's figure 9
    assert known["ViT-B-32"] == pytest.approx(4.41, abs=0.01)
    assert known["<b>$x$ & co"] is None
    rows = json.loads(run(*files, "--percent", "--json", "--gmacs", tmp_path / "gmacs.csv").output)["analyses"]["averages"]["rows"]
    assert {row["gmacs"] for row in rows if row["model"] in ("RN50", "<b>$x$ & co")} == {7, 20}


def test_a_list_of_tasks_in_a_file_is_averaged(files, tmp_path):
    (tmp_path / "mine.txt").write_text("# my two\nbirds\ncars\n")
    report = json.loads(run(*files, "--percent", "--json", "--over", tmp_path / "mine.txt", "--analysis", "averages").output)
    assert {(row["over"], row["of"]) for row in report["analyses"]["averages"]["rows"]} == {("mine", 2)}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--percent"),
        (["--percent", "--analysis", "slope"], "there is no analysis `slope`"),
        (["--percent", "--between", "RN50", "--between", "RN101"], "names 2 of the results"),
        (["--percent", "--between", "RN50:zero-shot"], "give it twice"),
        (["--percent", "--metric", "acc5"], "`--metric acc5` is in none"),
        (["--percent", "--reference", "nobody"], "names no model"),
        (["--percent", "--over", "no/such.txt"], "cannot be read"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(files, words, said):
    result = run(*files, *words)
    assert result.exit_code == 2
    assert said in result.output
    assert result.output.count("\n") == 1


def test_a_folder_that_holds_something_else_is_left_alone(files, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "report.json").write_text("{}")
    result = run(*files, "--percent", "--out", tmp_path / "mine")
    assert result.exit_code == 2
    assert (tmp_path / "mine" / "report.json").read_text() == "{}"


def test_of_few_tasks_the_note_says_why_there_is_no_band_and_a_difference_names_its_models(tmp_path):
    rows = [
        "model,task,kind,value",
        *(f"m,t{i},{k},{v}" for k, vs in (("zero-shot", (20, 50, 40)), ("linear-probe", (60, 70, 90))) for i, v in enumerate(vs)),
    ]
    rows += [f"points,t{i},zero-shot,{v}" for i, v in enumerate((30, 40, 50))]
    (tmp_path / "few.csv").write_text("\n".join(rows))
    result = run(tmp_path / "few.csv", "--percent", "--between", "m:zero-shot", "--between", "points", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "of fewer than 5 points slope by Student's t, no band" in result.output
    assert "points better on 2 of 3 tasks" in result.output
    assert "second" not in result.output
    [fit] = json.loads((tmp_path / "out/report.json").read_text())["analyses"]["zero-shot-and-probe"]["models"]
    assert fit["band"]["low"] is None
    assert fit["slope_low"] < 0 < fit["slope_high"]
