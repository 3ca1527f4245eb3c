"""Sub-classes pooled to super-classes: cases worked by hand, a naive loop, and the colours through the whole of zero-shot."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import softmax

from clipkit import UserError
from clipkit.evaluation.class_texts import with_templates
from clipkit.evaluation.intervals import clopper_pearson
from clipkit.evaluation.pooling import pool, pools_of, score_pools
from clipkit.evaluation.suite import Suite, Task, load_task
from clipkit.evaluation.zero_shot import run_zero_shot
from clipkit.recipe import EvalRecipe
from clipkit.run import Run

RECIPE = EvalRecipe(batch_size=8, workers=0)
WARM_COLD = ("warm", "cold", "cold", "warm", "neither", "neither")
# Of red, green, blue, yellow, white, black. Of the test pictures only two greens, which are yellow, and one red, which is blue, are wrong.
KNOBS = {"confidence": 0.95, "seed": 0}


def task_of(classes: tuple[str, ...], **keys: Any) -> Task:
    words = {"name": "t", "title": "t", "folder": "t", "layout": "imagefolder", "templates": ("{}",), "metric": "accuracy"}
    return Task.model_validate({**words, "splits": {"test": "test"}, "published": "here", "classes": classes, **keys})


def test_ways_of_pooling_disagree_where_they_should():
    # Probabilities of one picture: 0.4 | 0.2, 0.2, 0.2 | nothing. The greatest is the first's, the sum the second's, the mean the first's.
    logits = np.log(np.array([[0.4, 0.2, 0.2, 0.2], [0.1, 0.6, 0.1, 0.2]]))
    parents = np.array([0, 1, 1, 1])
    assert np.exp(pool(logits, parents, 3, "max")) == pytest.approx(np.array([[0.4, 0.2, 0], [0.1, 0.6, 0]]))
    assert np.exp(pool(logits, parents, 3, "sum")) == pytest.approx(np.array([[0.4, 0.6, 0], [0.1, 0.9, 0]]))
    assert np.exp(pool(logits, parents, 3, "mean")) == pytest.approx(np.array([[0.4, 0.2, 0], [0.1, 0.3, 0]]))


def test_pooling_is_a_loop_over_softmax_in_float64_whatever_is_added_to_a_pictures_logits():
    rng = np.random.default_rng(0)
    logits, parents = rng.normal(0, 30, (50, 12)), rng.integers(0, 5, 12)
    shares = softmax(logits, axis=1)
    for by, reduce in (("max", np.max), ("mean", np.mean), ("sum", np.sum)):
        found = pool(logits + 1_000 * rng.normal(size=(50, 1)), parents, 5, by)
        for n in range(50):
            wanted = [np.log(reduce(shares[n, parents == s])) if (parents == s).any() else -np.inf for s in range(5)]
            assert np.argmax(found[n]) == np.argmax(wanted)
            known = np.isfinite(wanted)
            assert np.ptp(found[n][known] - np.array(wanted)[known]) < 1e-6  # equal but for one number that a picture has in common


@pytest.mark.parametrize("parents", [[0, 1], [0, 1, 2], [0, -1, 1]])
def test_a_map_that_does_not_fit_the_logits_is_refused(parents: list[int]):
    with pytest.raises(ValueError, match="3 sub-classes need a super-class from 0 to 1 each"):
        pool(np.zeros((1, 3)), np.array(parents), 2, "max")


def test_pictures_labelled_with_sub_classes_are_scored_by_their_super_classes():
    task = task_of(("robin", "jay", "pug"), super_classes=("bird", "bird", "dog"))
    logits = {
        ("robin", "jay", "pug"): np.log([[0.3, 0.3, 0.4], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6], [0.5, 0.4, 0.1]]),
        ("bird", "dog"): np.log([[0.9, 0.1], [0.2, 0.8], [0.2, 0.8], [0.6, 0.4]]),
    }
    labels = np.array([0, 0, 2, 2])  # bird, bird, dog, dog
    pools = pools_of(task)
    assert pools is not None
    values, facts = score_pools(lambda worded: logits[tuple(names[0] for names in worded.classes)], pools, labels, **KNOBS)
    # max: dog, bird, dog, bird; sum: bird (0.6), bird, dog, bird; mean: dog (0.4 against 0.3), bird, dog, bird; own: bird, dog, dog, bird.
    assert {value.metric: value.value for value in values} == {
        "acc1_pooled_max": 0.5,
        "acc1_pooled_mean": 0.5,
        "acc1_pooled_sum": 0.75,
        "acc1_super_names": 0.5,
    }
    assert values[2].interval == clopper_pearson(3, 4, 0.95)
    assert facts["acc1"] == {"own_names": 0.5, "max": 0.5, "mean": 0.5, "sum": 0.75}
    assert facts["gain_from_own_names"]["p"] == 1  # one picture won, one lost
    later = score_pools(lambda worded: logits[tuple(names[0] for names in worded.classes)], pools, np.array([0, 2, 2, 2]), **KNOBS)[1]
    assert later["gain_from_own_names"]["gain"] == 0.5  # the greatest is right on the third alone, own names on the first three
    assert (facts["super_classes"], facts["sub_classes"], facts["without_sub_classes"]) == (2, 3, [])


def test_pictures_labelled_with_super_classes_take_the_sub_classes_of_another_task():
    sub = task_of(("robin", "jay", "pug"), super_classes=("bird", "bird", "dog"))
    task = task_of(("dog", "bird", "cow"), sub_task=sub.model_dump(), templates=("a {}.",))
    pools = pools_of(task)
    assert pools is not None
    assert pools.parent_F.tolist() == [1, 1, 0]
    assert pools.fine.templates == ("a {}.",)
    logits = {
        "robin": np.log([[0.4, 0.3, 0.3], [0.1, 0.1, 0.8], [0.3, 0.3, 0.4]]),
        "dog": np.log([[0.2, 0.7, 0.1], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8]]),
    }
    values, facts = score_pools(lambda worded: logits[worded.classes[0][0]], pools, np.array([1, 0, 2]), **KNOBS)
    # A cow is never said where only birds and dogs have sub-classes; by its own name it is.
    assert {value.metric: value.value for value in values} == {f"acc1_pooled_{by}": 2 / 3 for by in ("max", "mean", "sum")}
    assert (facts["acc1"]["own_names"], facts["without_sub_classes"]) == (2 / 3, ["cow"])


def test_the_colours_pooled_are_right_where_a_wrong_colour_is_of_the_same_kind(
    color_encoder: Any, color_suite: Suite, color_data: Path, scratch_run: Run
) -> None:
    kinds = ("a", "green-yellow", "a", "green-yellow", "c", "c")  # a red picture that is blue, and greens that are yellow, are right now
    task = color_suite.tasks[0].model_copy(update={"super_classes": kinds})
    report = run_zero_shot(
        RECIPE, color_encoder, color_suite.model_copy(update={"tasks": (task,)}), color_data, run=scratch_run, cache=scratch_run.path
    )
    found = {score["metric"]: score["value"] for score in report["scores"]}
    assert (found["acc1"], found["acc1_pooled_max"], found["acc1_pooled_sum"]) == (32 / 35, 1.0, 1.0)
    assert [score["metric"] for score in report["scores"] if score["is_main"]] == ["acc1"]
    result = json.loads((scratch_run.path / "results/colors.json").read_text())
    assert result["metrics"]["acc1_pooled_max"] == 1.0
    assert result["pooling"]["super_classes"] == 3


def test_other_templates_are_other_templates_of_the_sub_classes_too(color_task: Task) -> None:
    sub = color_task.model_copy(update={"super_classes": WARM_COLD})
    task = task_of(("warm", "cold", "neither"), sub_task=sub.model_dump())
    [worded] = with_templates(Suite(name="s", title="s", tasks=(task,)), ["one"]).tasks
    pools = pools_of(worded)
    assert pools is not None
    assert pools.fine.texts(0) == ["a photo of a red."]


def test_a_sub_task_lies_beside_the_task_that_names_it_and_is_part_of_its_fingerprint(color_files: Path, tmp_path: Path) -> None:
    text = (color_files / "colors.toml").read_text()
    lines = [line for line in text.splitlines() if not line.startswith(("classes", "name", "sizes"))]
    coarse = "\n".join([*lines, 'name = "kinds"', 'classes = ["warm", "cold", "neither"]', 'sub_task = "fine.toml"'])
    (tmp_path / "kinds.toml").write_text(coarse)
    (tmp_path / "fine.toml").write_text(f"{text}super_classes = {json.dumps(WARM_COLD)}\n")
    task = load_task(str(tmp_path / "kinds.toml"))
    assert task.sub_task is not None
    assert task.sub_task.super_classes == WARM_COLD
    (tmp_path / "fine.toml").write_text(f"{text}super_classes = {json.dumps(WARM_COLD[::-1])}\n")
    assert load_task(str(tmp_path / "kinds.toml")).fingerprint != task.fingerprint
    (tmp_path / "fine.toml").write_text(coarse)  # a task that is its own sub-task
    with pytest.raises(UserError, match=r"key `sub_task\.sub_task`"):
        load_task(str(tmp_path / "kinds.toml"))


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"super_classes": ("bird",)}, "super_classes names 1 for 3 classes"),
        ({"super_classes": ("bird",) * 3}, "two or more different ones"),
        ({"sub_task": task_of(("a", "b")).model_dump()}, "sub_task `t` has no super_classes"),
        ({"sub_task": task_of(("a", "b"), super_classes=("robin", "cat")).model_dump()}, "super-class 'cat', which is none of the classes"),
        (
            {"super_classes": ("bird", "bird", "dog"), "sub_task": task_of(("a", "b"), super_classes=("jay", "pug")).model_dump()},
            "exclude each other",
        ),
        ({"super_classes": ("x", "x", "y"), "kind": "multilabel", "metric": "11-point-map"}, "for the kind `classification`"),
    ],
)
def test_pools_that_do_not_fit_the_task_are_told(keys: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        task_of(("robin", "jay", "pug"), **keys)


def test_the_shipped_maps_pool_every_class_of_imagenet_that_the_shift_has():
    for name, subs, supers, without in (
        ("imagenet-vid", 288, 30, []),
        ("youtube-bb", 231, 19, ["cow", "giraffe", "skateboard", "toilet"]),
        ("objectnet", 125, 113, []),
    ):
        pools = pools_of(load_task(name))
        assert pools is not None
        assert (len(pools.fine.classes), len(set(pools.parent_F.tolist()))) == (subs, supers)
        assert [names[0] for i, names in enumerate(pools.coarse.classes) if i not in pools.parent_F] == without
    pairs = dict(zip((names[0] for names in pools.fine.classes), (pools.coarse.classes[p][0] for p in pools.parent_F), strict=True))
    assert (pairs["ballpoint pen"], pairs["quill"], pairs["tandem bicycle"], pairs["teddy bear"]) == (
        "pen",
        "pen",
        "bicycle",
        "stuffed animal",
    )


def test_the_bound_on_texts_counts_those_of_the_sub_task():
    fine = task_of(tuple(f"c{i}" for i in range(2_000)), super_classes=("warm", "cold") * 1_000)
    with pytest.raises(ValueError, match="are 6,006,000 texts, at most 5,000,000"):
        task_of(("warm", "cold"), sub_task=fine, templates=tuple(f"{i} {{}}" for i in range(3_000)))


def test_a_task_without_super_classes_keeps_the_fingerprint_that_results_have():
    assert load_task("cifar10").fingerprint == "5b0b0a9c923537ed177025bad2e3764a883504aa31fc7cd8b7ba0db1a54702e8"
    task = task_of(("a", "b"))
    assert len({task.fingerprint, task_of(("a", "b"), super_classes=("c", "d")).fingerprint}) == 2
