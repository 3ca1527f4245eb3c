import json
import math
from itertools import permutations

import numpy as np
import pyarrow as pa
import pytest
from scipy.special import expit, logit
from scipy.stats import linregress

from clipkit import UserError
from clipkit.evaluation.compare.analyses import ANALYSES, compare
from clipkit.evaluation.compare.csv_tables import read_csv
from clipkit.evaluation.compare.deltas import newcombe
from clipkit.evaluation.compare.figure import Figure, Figures, Runner
from clipkit.evaluation.compare.humans import rates, read_answers
from clipkit.evaluation.compare.question import Question
from clipkit.evaluation.compare.shipped import paper_lists, shifts
from clipkit.evaluation.suite import load_suite


def asked(values, **about):
    """A question about {(model, kind): {task: value}}."""
    rows = [
        Figure(model, task, kind, "score", value, about.get("count"), 1, "t")
        for (model, kind), tasks in values.items()
        for task, value in tasks.items()
    ]
    about.pop("count", None)
    return Question(Figures(rows), resamples=200, **about)


def made(question, name):
    return compare(question, [name])["analyses"][name]


TABLE_1 = {
    ("Visual N-Grams", "zero-shot"): {"aYahoo": 0.724, "ImageNet": 0.115, "SUN": 0.230},
    ("CLIP", "zero-shot"): {"aYahoo": 0.984, "ImageNet": 0.762, "SUN": 0.585},
}


def test_the_papers_first_table_gives_its_gains_and_wins():
    between = Runner("Visual N-Grams", "zero-shot"), Runner("CLIP", "zero-shot")
    found = made(asked(TABLE_1, between=between), "deltas")
    assert [(row["task"], round(row["delta"], 3)) for row in found["rows"]] == [("ImageNet", 0.647), ("SUN", 0.355), ("aYahoo", 0.26)]
    assert (found["wins"], found["losses"], found["ties"], found["with_interval"]) == (3, 0, 0, 0)


def test_differences_come_greatest_first_and_each_side_has_its_own_count():
    rows = [Figure("a", task, "k", "score", 0.5, 100, 1, "t") for task in "xyz"]
    rows += [Figure("b", task, "k", "score", value, 400, 1, "t") for task, value in (("x", 0.4), ("y", 0.9), ("z", 0.6))]
    found = made(Question(Figures(rows)), "deltas")["rows"]
    assert [(row["task"], row["count"]) for row in found] == [("y", None), ("z", None), ("x", None)]
    assert (found[1]["low"], found[1]["high"]) == pytest.approx(newcombe(50, 100, 240, 400, 0.95))


def test_equal_scores_are_no_win_and_counts_give_intervals():
    found = made(asked({("a", "k"): {"x": 0.5, "y": 0.5}, ("b", "k"): {"x": 0.5, "y": 0.9}}, count=100), "deltas")
    assert (found["wins"], found["ties"], found["with_interval"], found["interval_excludes_0"]) == (1, 1, 2, 1)


def test_an_average_is_refused_where_a_task_is_missing_unless_partial_and_then_counted():
    values = {("a", "k"): {"x": 0.2, "y": 0.4}, ("b", "k"): {"x": 0.6}}
    rows = {row["model"]: row for row in made(asked(values), "averages")["rows"]}
    assert (rows["a"]["average"], rows["b"]["average"], rows["b"]["missing"]) == (pytest.approx(0.3), None, ["y"])
    rows = {row["model"]: row for row in made(asked(values, partial=True), "averages")["rows"]}
    assert (rows["b"]["average"], rows["b"]["tasks"], rows["b"]["of"]) == (0.6, 1, 2)
    with pytest.raises(UserError, match="lacks 1 of 3, such as z"):
        made(asked(values, over={"mine": ["x", "y", "z"]}), "averages")


def test_zero_shot_against_probe_is_fitted_by_task():
    probe, zero = [0.3, 0.5, 0.7, 0.9, 0.8], [0.2, 0.45, 0.5, 0.85, 0.6]
    values = {("a", kind): dict(zip("vwxyz", each, strict=True)) for kind, each in (("linear-probe", probe), ("zero-shot", zero))}
    found = made(asked(values), "zero-shot-and-probe")["models"][0]
    known = linregress(probe, zero)
    assert (found["r"], found["p"], found["slope"]) == pytest.approx((known.rvalue, known.pvalue, known.slope))
    assert found["slope_low"] < known.slope < found["slope_high"]
    assert (found["band"]["x"][0], found["band"]["x"][-1]) == (0.3, 0.9)
    assert found["band"]["y"] == pytest.approx(known.slope * np.array(found["band"]["x"]) + known.intercept)
    assert (np.array(found["band"]["low"]) <= found["band"]["high"]).all()


def test_averages_come_best_first_and_models_without_one_last():
    values = {("a", "k"): {"x": 0.2, "y": 0.4}, ("b", "k"): {"x": 0.9}, ("c", "k"): {"x": 0.6, "y": 0.8}}
    rows = made(asked(values, gmacs={"c": 4.1}), "averages")["rows"]
    assert [(row["model"], row["gmacs"]) for row in rows] == [("c", 4.1), ("a", None), ("b", None)]


def test_people_and_a_model_agree_on_what_is_hard_by_spearmans_rank_correlation(tmp_path):
    people_right, model_right = {"cat": 10, "dog": 7, "owl": 6, "fox": 1}, {"cat": 9, "dog": 8, "owl": 10, "fox": 0}
    lines, rows = ["rater,picture,answer,truth"], {"index": [], "label": [], "prediction": []}
    for label, name in enumerate(people_right):
        for i in range(10):
            lines.append(f"r,{10 * label + i},{name if i < people_right[name] else 'other'},{name}")
            for column, value in zip(rows, (10 * label + i, label, label if i < model_right[name] else 9), strict=True):
                rows[column].append(value)
    table = people(tmp_path, "\n".join(lines))
    found = made(asked({}, humans=[table], predictions={"m": pa.table(rows)}), "humans")["files"][0]
    # Ranks 4 3 2 1 of people, 3 2 4 1 of the model: 1 - 6 x (1 + 1 + 4) / (4 x 15).
    assert found["models"][0]["rank_correlation"] == pytest.approx(0.4)
    assert found["accuracy"] == pytest.approx(0.6)


def test_an_error_that_follows_a_power_of_multiply_adds_has_its_exponent_as_slope():
    gmacs = {"a": 1.0, "b": 10.0, "c": 100.0, "d": 1000.0}
    values = {(model, "k"): {"x": 1 - 0.5 * g**-0.2, "y": 1 - 0.9 * g**-0.2, model: 0.5} for model, g in gmacs.items()}
    found = made(asked(values, gmacs=gmacs), "scaling")["kinds"][0]
    assert (found["slope"], found["intercept"], found["r"]) == pytest.approx((-0.2, np.log10(0.7), -1))
    assert (found["tasks"], found["tasks_left_out"]) == (2, 4)


def shifted():
    random = np.random.default_rng(0)
    values = {}
    for i, x in enumerate(np.linspace(0.5, 0.9, 8)):
        under = expit(1.1 * logit(x) - 1 + random.normal(0, 0.05, 4))
        values[(f"r{i}", "k")] = {"imagenet": x, "imagenet-on-vid": x + 0.05, "imagenet-v2": under[0], "imagenet-vid": under[1]}
        values[(f"r{i}", "k")]["imagenet-vid-pm10"] = under[2]
    values[("clip", "k")] = {"imagenet": 0.7, "imagenet-on-vid": 0.8, "imagenet-v2": 0.7, "imagenet-vid": 0.9, "imagenet-vid-pm10": 0.7}
    return values


def without(task):
    return {runner: {name: v for name, v in tasks.items() if name != task} for runner, tasks in shifted().items()}


REFERENCES = frozenset(f"r{i}" for i in range(8))


def test_the_shifts_are_the_shipped_suites_and_each_has_the_task_of_its_own_classes():
    tasks = {task.name: task for task in load_suite("imagenet-shifts").tasks}
    named = {shift.task for shift in shifts()} | {shift.matching for shift in shifts()}
    assert named == set(tasks)
    matching = {shift.task: shift.matching for shift in shifts()}
    assert matching == {
        "imagenet-v2": "imagenet", "imagenet-sketch": "imagenet", "youtube-bb": "imagenet-on-youtube-bb", "imagenet-vid": "imagenet-on-vid",
        "objectnet": "imagenet-on-objectnet", "imagenet-a": "imagenet-on-a", "imagenet-r": "imagenet-on-r",
    }  # fmt: skip
    for name in ("imagenet-a", "imagenet-r"):
        assert tasks[name].classes == tasks[matching[name]].classes
    assert [shift.name for shift in shifts() if shift.is_video] == ["Youtube-BB-Robust", "ImageNet-Vid-Robust"]


def test_the_papers_two_averages_are_made_where_all_of_their_tasks_are_there():
    tasks = paper_lists()["clip-27"]
    assert paper_lists()["kornblith-12"] == (
        "food101", "cifar10", "cifar100", "birdsnap", "sun397", "stanford-cars", "fgvc-aircraft", "voc2007", "dtd", "oxford-pets",
        "caltech101", "flowers102",
    )  # fmt: skip
    values = {task: i / 100 for i, task in enumerate(tasks)}
    rows = made(asked({("a", "k"): values | {"mine": 1.0}}), "averages")["rows"]
    assert [(row["over"], row["of"]) for row in rows] == [("all 28 tasks", 28), ("kornblith-12", 12), ("clip-27", 27)]
    assert [row["average"] for row in rows[1:]] == pytest.approx([0.055, 0.13])
    assert [row["over"] for row in made(asked({("a", "k"): values}), "averages")["rows"]] == ["all 27 tasks", "kornblith-12"]
    del values["dtd"]
    assert [row["over"] for row in made(asked({("a", "k"): values}), "averages")["rows"]] == ["all 26 tasks"]


def test_effective_robustness_is_what_is_above_the_references_line_in_logit_space():
    values, names = shifted(), sorted(REFERENCES)
    report = made(asked(values, references=REFERENCES), "robustness")
    found = report["shifts"]
    assert [one["shift"] for one in found] == ["ImageNetV2", "ImageNet-Vid-Robust", "average of 2"]
    assert report["notes"] == []
    x = {name: (values[name, "k"]["imagenet"] + values[name, "k"]["imagenet-on-vid"]) / 2 for name in [*names, "clip"]}
    vid = {n: (values[n, "k"]["imagenet-vid"] + values[n, "k"]["imagenet-vid-pm10"]) / 2 for n in x}
    y = {name: (values[name, "k"]["imagenet-v2"] + vid[name]) / 2 for name in x}
    known = linregress(logit([x[n] for n in names]), logit([y[n] for n in names]))
    point = next(point for point in found[-1]["points"] if point["model"] == "clip")
    assert (point["in_distribution"], point["under_shift"]) == pytest.approx((0.75, 0.75))
    assert point["effective"] == pytest.approx(0.75 - expit(known.slope * logit(0.75) + known.intercept))
    assert point["low"] < point["effective"] < point["high"]


def test_all_of_imagenet_stands_in_for_matching_classes_and_that_is_said():
    found = made(asked(without("imagenet-on-vid"), references=REFERENCES), "robustness")
    assert any("ImageNet-Vid-Robust: no figure of `imagenet-on-vid`" in note for note in found["notes"])


def test_anchor_frames_count_alone_where_no_worst_frames_are_given_and_that_is_said():
    found = made(asked(without("imagenet-vid-pm10"), references=REFERENCES), "robustness")
    assert any("no figure of `imagenet-vid-pm10`, so anchor frames (pm-0) alone count" in note for note in found["notes"])
    point = next(point for point in found["shifts"][1]["points"] if point["model"] == "clip")
    assert (point["in_distribution"], point["under_shift"]) == pytest.approx((0.8, 0.9))


def test_relative_robustness_is_the_gain_under_shift():
    between = Runner("r0", "k"), Runner("clip", "k")
    rows = made(asked(shifted(), references=frozenset(f"r{i}" for i in range(8)), between=between), "robustness")["relative"]["rows"]
    assert rows[0]["relative"] == pytest.approx(0.7 - shifted()["r0", "k"]["imagenet-v2"])
    assert rows[0]["in_distribution"] == pytest.approx(0.2)


def test_a_reference_that_is_always_right_has_no_logit_and_others_get_no_effective_robustness():
    values = shifted()
    values["r0", "k"]["imagenet-v2"] = 1.0
    with pytest.raises(UserError, match="accuracy 1: 0 and 1 have no logit"):
        made(asked(values, references=frozenset(f"r{i}" for i in range(8))), "robustness")
    values = shifted()
    values["clip", "k"]["imagenet"] = 1.0
    found = made(asked(values, references=frozenset(f"r{i}" for i in range(8))), "robustness")["shifts"][0]
    assert next(p for p in found["points"] if p["model"] == "clip")["effective"] is None


def test_task_shift_leaves_imagenet_out_of_the_transfer_average():
    values = {(f"m{i}", "k"): {"ImageNet-1k": x, "a": x / 2, "b": x / 4} for i, x in enumerate((0.4, 0.6, 0.8))}
    found = made(asked(values), "task-shift")
    assert found["imagenet"] == "ImageNet-1k"
    assert [point["transfer"] for point in found["lists"][0]["points"]] == pytest.approx([0.15, 0.225, 0.3])


def test_task_shift_puts_models_beside_the_line_of_the_references_alone():
    x = {"r0": 0.4, "r1": 0.6, "r2": 0.7, "r3": 0.8, "clip": 0.6}
    transfer = {name: expit(1.2 * logit(value) - 0.3) for name, value in x.items()} | {"clip": 0.9}
    values = {(name, "k"): {"imagenet": x[name], "a": transfer[name] - 0.05, "b": transfer[name] + 0.05} for name in x}
    (found,) = made(asked(values, references=frozenset(["r0", "r1", "r2", "r3"])), "task-shift")["lists"]
    points = {point["model"]: point for point in found["points"]}
    assert [points[f"r{i}"]["effective"] for i in range(4)] == pytest.approx([0] * 4)
    assert points["clip"]["effective"] == pytest.approx(0.9 - expit(1.2 * logit(0.6) - 0.3))
    assert found["band"]["x"][0] == 0.4
    (bare,) = made(asked(values, references=frozenset(["r0", "r1"])), "task-shift")["lists"]
    assert bare["band"] is None


def test_the_order_of_figures_changes_nothing_in_the_report():
    rows = asked(shifted()).figures.rows()
    names = frozenset(f"r{i}" for i in range(8))
    one, other = (compare(Question(Figures(each), references=names, resamples=100)) for each in (rows, rows[::-1]))
    assert json.dumps(one) == json.dumps(other)
    assert one != compare(Question(Figures(rows), references=names, resamples=100, seed=1))


def test_what_cannot_be_made_says_what_it_misses_and_is_an_error_where_asked_for():
    report = compare(asked(TABLE_1))
    assert set(report["analyses"]) | set(report["skipped"]) == set(ANALYSES)
    assert "--reference" in report["skipped"]["robustness"]
    with pytest.raises(UserError, match="three models or more with multiply-adds"):
        compare(asked(TABLE_1), ["scaling"])
    with pytest.raises(UserError, match="there is no analysis `delta`"):
        compare(asked(TABLE_1), ["delta"])
    with pytest.raises(UserError, match="names no model"):
        compare(asked(TABLE_1, references=frozenset(["no such"])))


PEOPLE = """rater,picture,answer,truth
r1,0,cat,cat
r2,0,cat,cat
r3,0,dog,cat
r1,1,don't know,cat
r2,1,cat,cat
r3,1,I don't know,cat
r1,2,dog,dog
r2,2,cat,dog
r3,2,don't know,dog
"""


def people(tmp_path, text=PEOPLE):
    (tmp_path / "people.csv").write_text(text)
    return read_csv(tmp_path / "people.csv")


def test_the_four_rates_of_people_are_those_worked_by_hand(tmp_path):
    found = rates(read_answers(people(tmp_path)))
    # cat: 3 of 6 answers, 3 of 4 guesses; dog: 1 of 3, 1 of 2. Votes: picture 0 cat, picture 1 "don't know", picture 2 a tie.
    assert found["accuracy"] == pytest.approx((3 / 6 + 1 / 3) / 2)
    assert found["guesses"] == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert (found["majority"], found["majority_of_guesses"]) == (0.5, 1.0)


def test_a_model_is_judged_on_the_same_pictures(tmp_path):
    predictions = {"m": pa.table({"index": [0, 1, 2, 3], "label": [7, 7, 4, 4], "prediction": [7, 4, 4, 7]})}
    found = made(asked({}, humans=[people(tmp_path)], predictions=predictions), "humans")["files"][0]
    assert found["models"][0]["per_class"] == {"cat": 0.5, "dog": 1.0}
    assert found["models"][0]["accuracy"] == 0.75


@pytest.mark.parametrize(
    ("more", "said"),
    [("r1,0,dog,cat\n", "two answers"), ("r4,0,dog,dog\n", "two truths"), ("r1,9,dog,dog\n", "no prediction for picture `9`")],
)
def test_answers_that_cannot_be_true_are_refused(tmp_path, more, said):
    predictions = {"m": pa.table({"index": [0, 1, 2], "label": [7, 7, 4], "prediction": [7, 4, 4]})}
    with pytest.raises(UserError, match=said):
        made(asked({}, humans=[people(tmp_path, PEOPLE + more)], predictions=predictions), "humans")


def test_an_average_is_the_same_in_any_order_of_its_tasks():
    values = {"a": 0.1, "b": 0.2, "c": 0.3, "d": 0.7, "e": 1e-17, "f": 0.15}
    found = {
        made(asked({("m", "zero-shot"): values}, over={"mine": tasks}), "averages")["rows"][0]["average"] for tasks in permutations(values)
    }
    assert found == {math.fsum(values.values()) / 6}


def test_what_is_too_few_is_said_in_plain_sentences():
    tasks = {"x": 0.5, "y": 0.4, "z": 0.3}
    few = asked({("m", "zero-shot"): {"x": 0.5}, ("m", "linear-probe"): {"x": 0.6, "y": 0.7}, ("n", "linear-probe"): tasks})
    skipped = compare(few)["skipped"]
    assert skipped["zero-shot-and-probe"] == (
        "it needs zero-shot and linear-probe figures of one model on three tasks or more, and `m` has both on 1 task"
    )
    assert skipped["scaling"] == (
        "it needs three models or more with multiply-adds (`--gmacs FILE`) and the same tasks, and by linear-probe, "
        "none of 2 models has multiply-adds"
    )
    two = asked({(model, "zero-shot"): {"imagenet": 0.5, "x": 0.4} for model in "mn"})
    assert compare(two)["skipped"]["task-shift"] == (
        "it needs three models or more with `imagenet` and a list of other tasks, and by zero-shot over all 2 tasks, 2 models have both"
    )


def test_two_models_of_two_kinds_are_four_results_and_a_pair_to_name_is_shown():
    four = asked({(model, kind): {"x": 0.5} for model in ("m", "n o") for kind in ("zero-shot", "linear-probe")})
    assert compare(four)["skipped"]["deltas"] == (
        "it compares two results, and there are 4 (2 models by 2 kinds of evaluation): name two, such as "
        "`--between m:linear-probe --between 'n o:linear-probe'`"
    )
    two = asked({("m", kind): {"x": 0.5} for kind in ("zero-shot", "linear-probe")})
    assert made(two, "deltas")["names"] == ("linear-probe", "zero-shot")
    one = asked({("m", "zero-shot"): {"x": 0.5}})
    assert compare(one)["skipped"]["deltas"].endswith("and there is m (zero-shot)")


def test_shots_are_sorted_by_their_number():
    kinds = ["1-shot", "2-shot", "4-shot", "16-shot", "16-shot ridge", "fully-supervised", "zero-shot"]
    figures = asked({("m", kind): {"x": 0.5} for kind in reversed(kinds)}).figures
    assert [kind for kind in figures.kinds if kind[0].isdigit()] == kinds[:5]
    assert [runner.kind for runner in figures.runners] == figures.kinds


def test_few_references_give_a_line_without_a_band():
    skill = {"a": 0.5, "b": 0.6, "c": 0.75, "clip": 0.7}
    values = {(m, "zero-shot"): {"imagenet": s, "imagenet-r": s * 0.8} for m, s in skill.items()}
    [found] = made(asked(values, references=frozenset("abc")), "robustness")["shifts"]
    assert found["band"]["low"] is None
    assert len(found["band"]["y"]) == 41
    assert all(point["low"] is None and point["effective"] is not None for point in found["points"])
