"""Task and suite files: what is accepted, and what a mistake in one is told."""

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from clipkit import UserError
from clipkit.evaluation.suite import Suite, Task, describe, load_suite, load_task
from clipkit.resources import names

TASK = """\
name = "pets"
title = "Pets"
folder = "pets"
layout = "imagefolder"
classes = [["cat", "kitten"], "dog"]
class_folders = ["cats", "dogs"]
templates = ["a photo of a {}.", "a {}"]
metric = "mean-per-class"
splits = { test = "test" }
published = "nowhere"
"""


def write(folder: Path, *changes: tuple[str, str]) -> Path:
    text = TASK
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = folder / "pets.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", names("benchmarks/tasks"))
def test_every_shipped_task_loads_under_its_own_name(name: str) -> None:
    task = load_task(name)
    assert task.name == name
    assert "test" in task.splits


@pytest.mark.parametrize("name", names("benchmarks/suites"))
def test_every_shipped_suite_loads_and_describes_itself(name: str) -> None:
    suite = load_suite(name)
    report = describe(suite)
    assert report["suite"] == name
    assert [task["task"] for task in report["tasks"]] == [task.name for task in suite.tasks]


def test_cifar10_has_the_papers_ten_classes_and_eighteen_templates() -> None:
    task = load_task("cifar10")
    assert (len(task.classes), len(set(task.templates))) == (10, 18)
    assert task.texts(0)[0] == "a photo of a airplane."
    assert task.sizes == {"train": 50_000, "test": 10_000}


def test_texts_of_a_class_are_all_names_in_all_templates(tmp_path: Path) -> None:
    task = load_task(str(write(tmp_path)))
    assert task.texts(0) == ["a photo of a cat.", "a cat", "a photo of a kitten.", "a kitten"]
    assert task.texts(1) == ["a photo of a dog.", "a dog"]


def test_a_class_name_with_braces_is_put_in_as_it_is(tmp_path: Path) -> None:
    task = load_task(str(write(tmp_path, ('"dog"', '"{0.__class__} {}"'))))
    assert task.texts(1)[1] == "a {0.__class__} {}"


def test_a_task_is_frozen(color_task: Task) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        color_task.name = "other"


def test_the_fingerprint_changes_with_a_template(tmp_path: Path) -> None:
    before = load_task(str(write(tmp_path))).fingerprint
    assert load_task(str(write(tmp_path))).fingerprint == before
    assert load_task(str(write(tmp_path, ("a photo of a {}.", "a photo of the {}.")))).fingerprint != before


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("templates", "templtes", "unknown key `templtes`: did you mean `templates`"),
        ('"a {}"', '"a thing"', "template 'a thing' should contain `{}` once"),
        ('folder = "pets"', 'folder = "../pets"', "key `folder`: folder '../pets' should be a relative path"),
        ('test = "test"', 'test = "/etc"', "folder '/etc' should be a relative path"),
        ('"dogs"]', '"dogs", "birds"]', "class_folders has 3 folders for 2 classes"),
        ('"dogs"]', '"cats"]', "two classes have the same folder"),
        ('"mean-per-class"', '"map"', "key `metric`: Input should be 'accuracy', 'top-5', 'mean-per-class'"),
        ('name = "pets"', 'name = "../pets"', "key `name`: String should match pattern"),
        ('[["cat", "kitten"], "dog"]', '["cat"]', "classes should have two entries or more"),
        ('{ test = "test" }', '{ test = "test", tset = "x" }', "key `splits.tset.[key]`"),
        ('published = "nowhere"', "", "key `published`: Field required"),
        ('published = "nowhere"', 'published = "nowhere"\nsizes = { train = 3 }', "sizes names the split `train`, which splits does not"),
        ('title = "Pets"', "title = ", "is not valid TOML"),
        ('title = "Pets"', "title = 3", "key `title`: it is 3, and a text in quotes was expected"),
        (
            'published = "nowhere"',
            'published = "nowhere"\nsuper_classes = "animal"',
            "key `super_classes`: it is 'animal', and a list was expected, as in",
        ),
        ('published = "nowhere"', 'published = "nowhere"\nsuper_classes = [1, 2]', "key `super_classes.0`: it is 1, and a text in quotes"),
        (
            'published = "nowhere"',
            'published = "nowhere"\nsuper_classes = ["animal"]',
            "super_classes names 1 for 2 classes: give one for each class",
        ),
    ],
)
def test_a_mistake_in_a_task_names_the_file_and_the_key(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = write(tmp_path, (old, new))
    with pytest.raises(UserError, match=re.escape(message)) as error:
        load_task(str(path))
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_misspelt_suite_gets_the_nearest_name() -> None:
    with pytest.raises(UserError, match="no suite `cifar1`: did you mean `cifar10`"):
        load_suite("cifar1")


def test_a_misspelt_task_in_a_suite_gets_the_nearest_name(tmp_path: Path) -> None:
    path = tmp_path / "suite.toml"
    path.write_text('name = "mine"\ntitle = "Mine"\ntasks = ["cifar10", "minst"]\n')
    with pytest.raises(UserError, match="no task `minst`: did you mean `mnist`"):
        load_suite(str(path))


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ('tasks = "cifar10"', "`tasks` should be a list"),
        ("tasks = [3]", "`tasks` should be a list"),
        ("tasks = []", "key `tasks`: Tuple should have at least 1 item"),
        ('tasks = ["cifar10", "cifar10"]', "task `cifar10` stands in it twice"),
        ('tasks = ["cifar10"]\ntask = 1', "unknown key `task`: did you mean `tasks`"),
        ('tasks = ["other.toml"]', "cannot be read (No such file or directory)"),
    ],
)
def test_a_mistake_in_a_suite_is_told(tmp_path: Path, tasks: str, message: str) -> None:
    path = tmp_path / "suite.toml"
    path.write_text(f'name = "mine"\ntitle = "Mine"\n{tasks}\n')
    with pytest.raises(UserError, match=re.escape(message)):
        load_suite(str(path))


def test_a_huge_file_is_no_task(tmp_path: Path) -> None:
    path = tmp_path / "big.toml"
    path.write_text("#" * 5_000_001)
    with pytest.raises(UserError, match="over 5,000,000 bytes"):
        load_task(str(path))


def test_missing_data_says_where_it_is_published(color_task: Task, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no data for task `colors` at .*drawn by the tests.*--data"):
        color_task.split(tmp_path, "test")


def test_a_split_that_a_task_does_not_have_is_told(color_task: Task, color_data: Path) -> None:
    with pytest.raises(UserError, match="has no split `validation`: it has test, train"):
        color_task.split(color_data, "validation")


def test_a_split_of_the_wrong_size_is_told(own_color_files: Path) -> None:
    (own_color_files / "data/colors/test/red/000.png").unlink()
    with pytest.raises(UserError, match=r"has 34 pictures at .*, not 35: fetch it again"):
        load_task(str(own_color_files / "colors.toml")).split(own_color_files / "data", "test")


def test_the_suite_of_the_tests_has_the_colour_task(color_suite: Suite) -> None:
    assert [task.name for task in color_suite.tasks] == ["colors"]


def test_a_task_of_endless_texts_is_refused(color_task: Task) -> None:
    with pytest.raises(ValueError, match="are 6,000,000 texts, at most 5,000,000"):
        Task.model_validate(
            {**color_task.model_dump(), "classes": [["x"] * 100] * 6, "class_folders": list("abcdef"), "templates": ["{}"] * 10_000}
        )


def test_a_split_of_several_classes_without_any_is_refused(tmp_path: Path) -> None:
    several = ('layout = "imagefolder"', 'layout = "parquet"\nkind = "multilabel"'), ('"mean-per-class"', '"mean-average-precision"')
    task = load_task(str(write(tmp_path, *several, ('test = "test"', 'test = "t.parquet"'))))
    (tmp_path / "pets").mkdir()
    pq.write_table(pa.table({"image": [b"x"], "label": pa.array([[]], pa.list_(pa.int64()))}), tmp_path / "pets" / "t.parquet")
    with pytest.raises(UserError, match="no picture of split `test` of task `pets` has a class"):
        task.split(tmp_path, "test")
