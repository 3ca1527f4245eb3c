"""The tasks and suites that ship: what they say against the tables they were taken from, written down anew here."""

import re
from pathlib import Path

import pytest

from clipkit.evaluation.suite import Suite, Task, load_suite, load_task
from clipkit.resources import names, resource_root

# Table 9 of the CLIP paper: classes, train, test, metric. Two slips of the print are mended: Food-101 has 101 classes, not 102, and
# FER2013 has the 7 of data/prompts.md, not 8.
TABLE_9 = {
    "food101": (101, 75_750, 25_250, "accuracy"),
    "cifar10": (10, 50_000, 10_000, "accuracy"),
    "cifar100": (100, 50_000, 10_000, "accuracy"),
    "birdsnap": (500, 42_283, 2_149, "accuracy"),
    "sun397": (397, 19_850, 19_850, "accuracy"),
    "stanford-cars": (196, 8_144, 8_041, "accuracy"),
    "fgvc-aircraft": (100, 6_667, 3_333, "mean-per-class"),
    "voc2007": (20, 5_011, 4_952, "11-point-map"),
    "dtd": (47, 3_760, 1_880, "accuracy"),
    "oxford-pets": (37, 3_680, 3_669, "mean-per-class"),
    "caltech101": (102, 3_060, 6_085, "mean-per-class"),
    "flowers102": (102, 2_040, 6_149, "mean-per-class"),
    "mnist": (10, 60_000, 10_000, "accuracy"),
    "fer2013": (7, 32_140, 3_574, "accuracy"),
    "stl10": (10, 1_000, 8_000, "accuracy"),
    "eurosat": (10, 10_000, 5_000, "accuracy"),
    "resisc45": (45, 3_150, 25_200, "accuracy"),
    "gtsrb": (43, 26_640, 12_630, "accuracy"),
    "kitti-distance": (4, 6_770, 711, "accuracy"),
    "country211": (211, 43_200, 21_100, "accuracy"),
    "pcam": (2, 294_912, 32_768, "accuracy"),
    "ucf101": (101, 9_537, 1_794, "accuracy"),
    "kinetics700": (700, 494_801, 31_669, "mean-top1-top5"),
    "clevr-counts": (8, 2_000, 500, "accuracy"),
    "hateful-memes": (2, 8_500, 500, "roc-auc"),
    "rendered-sst2": (2, 7_792, 1_821, "accuracy"),
    "imagenet": (1_000, 1_281_167, 50_000, "accuracy"),
}
# Printed sizes that published files cannot give (the task's opening comment says why): they are not checked.
UNCHECKED = {
    ("birdsnap", "train"),
    ("birdsnap", "test"),
    ("fer2013", "train"),
    ("fer2013", "test"),
    ("stl10", "train"),
    ("country211", "train"),
    ("ucf101", "test"),
    ("kinetics700", "train"),
    ("kinetics700", "test"),
}
# Templates per set in openai/CLIP, data/prompts.md and the notebook for ImageNet.
TEMPLATES = {
    "birdsnap": 1, "cifar10": 18, "cifar100": 18, "clevr-counts": 1, "caltech101": 34, "country211": 5, "dtd": 8, "eurosat": 3,
    "fgvc-aircraft": 2, "fer2013": 6, "flowers102": 1, "food101": 1, "gtsrb": 3, "hateful-memes": 1, "kitti-distance": 1,
    "kinetics700": 28, "mnist": 1, "oxford-pets": 1, "voc2007": 1, "pcam": 1, "resisc45": 18, "rendered-sst2": 1, "stl10": 2,
    "sun397": 2, "stanford-cars": 8, "ucf101": 48, "imagenet": 80,
}  # fmt: skip
# DataComp's tasklist.yml: classes, test, metric. Retrieval has no classes.
DATACOMP = {
    "imagenet": (1_000, 50_000, "accuracy"),
    "caltech101": (102, 6_085, "mean-per-class"),
    "cifar10": (10, 10_000, "accuracy"),
    "cifar100": (100, 10_000, "accuracy"),
    "clevr-counts-datacomp": (8, 15_000, "accuracy"),
    "clevr-distance": (6, 15_000, "accuracy"),
    "country211": (211, 21_100, "accuracy"),
    "dtd": (47, 1_880, "accuracy"),
    "eurosat-datacomp": (10, 5_400, "accuracy"),
    "fgvc-aircraft": (100, 3_333, "mean-per-class"),
    "food101": (101, 25_250, "accuracy"),
    "gtsrb": (43, 12_630, "accuracy"),
    "imagenet-sketch": (1_000, 50_889, "accuracy"),
    "imagenet-v2": (1_000, 10_000, "accuracy"),
    "imagenet-a": (200, 7_500, "accuracy"),
    "imagenet-o": (200, 2_000, "accuracy"),
    "imagenet-r": (200, 30_000, "accuracy"),
    "kitti-distance": (4, 711, "accuracy"),
    "mnist": (10, 10_000, "accuracy"),
    "objectnet": (113, 18_574, "accuracy"),
    "flowers102": (102, 6_149, "mean-per-class"),
    "oxford-pets": (37, 3_669, "mean-per-class"),
    "voc2007-datacomp": (20, 14_976, "accuracy"),
    "pcam-datacomp": (2, 32_768, "accuracy"),
    "rendered-sst2": (2, 1_821, "accuracy"),
    "resisc45-datacomp": (45, 6_300, "accuracy"),
    "stanford-cars": (196, 8_041, "accuracy"),
    "stl10": (10, 8_000, "accuracy"),
    "sun397-datacomp": (397, 108_754, "accuracy"),
    "svhn-datacomp": (10, 26_032, "accuracy"),
    "flickr30k-datacomp": (0, 1_000, "mean-recall-at-1"),
    "mscoco-datacomp": (0, 5_000, "mean-recall-at-1"),
}
SUITES = {
    "clip-27": 27,
    "clip-zero-shot-36": 32,
    "datacomp-38": 32,
    "imagenet-shifts": 13,
    "few-shot-20": 20,
    "small-real": 8,
    "small-captions": 1,
    "small-probes": 5,
    "wilds": 3,
}


def tasks_of(suite: Suite) -> dict[str, Task]:
    return {task.name: task for task in suite.tasks}


@pytest.fixture(scope="module")
def clip27() -> dict[str, Task]:
    return tasks_of(load_suite("clip-27"))


@pytest.mark.parametrize("name", names("benchmarks/tasks"))
def test_a_shipped_task_has_no_template_twice_and_opens_with_its_source(name: str) -> None:
    task = load_task(name)
    assert len(set(task.templates)) == len(task.templates)
    lines = (resource_root() / "benchmarks/tasks" / f"{name}.toml").read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# ")
    assert max(map(len, lines)) <= 140


@pytest.mark.parametrize("name", [name for name in names("benchmarks/tasks") if not name.startswith(("imagenet", "iwildcam"))])
def test_two_classes_of_a_shipped_task_never_share_a_name(name: str) -> None:
    every = [text for names_ in load_task(name).classes for text in names_]
    assert len({text.casefold() for text in every}) == len(every)


def test_wilds_has_the_classes_and_sizes_of_datacomps_list_and_four_animals_have_two_numbers() -> None:
    tasks = tasks_of(load_suite("wilds"))
    found = {name: (len(task.classes), task.sizes["test"], task.metric, task.protocol) for name, task in tasks.items()}
    assert found == {
        "iwildcam": (182, 42_791, "macro-f1", "own"),
        "fmow": (62, 22_108, "accuracy", "own"),  # DataComp's is the worst region's
        "camelyon17": (2, 85_054, "accuracy", "own"),
    }
    animals = [alike[0] for alike in tasks["iwildcam"].classes]
    assert {name for name in animals if animals.count(name) > 1} == {
        "lowland paca",
        "jaguarundi",
        "unknown bird",
        "central american red brocket",
    }
    # In the order of WILDS' numbers: empty is 0, a motorcycle 172; the 62 of FMoW are sorted.
    assert (animals[0], animals[14], animals[96], animals[172]) == ("empty", "crab-eating raccoon", "zebra", "motorcycle")
    places = [alike[0] for alike in tasks["fmow"].classes]
    assert (places[0], places[30], places[61]) == ("airport", "multi-unit residential", "zoo")
    assert places == sorted(places)
    assert tasks["camelyon17"].classes == load_task("pcam").classes


@pytest.mark.parametrize(("name", "count"), SUITES.items())
def test_a_suite_has_as_many_tasks_as_the_docs_say(name: str, count: int) -> None:
    assert len(load_suite(name).tasks) == count


def test_clip_27_is_table_9_of_the_paper_in_its_order(clip27: dict[str, Task]) -> None:
    assert list(clip27) == list(TABLE_9)
    for name, (classes, train, test, metric) in TABLE_9.items():
        task = clip27[name]
        assert (name, len(task.classes), task.metric, task.protocol) == (name, classes, metric, "clip-paper")
        printed = {"train": train, "test": test}
        assert (name, dict(task.sizes)) == (name, {s: n for s, n in printed.items() if (name, s) not in UNCHECKED})
        assert {"train", "test"} <= set(task.splits)


def test_clip_27_has_as_many_templates_per_set_as_the_paper_published(clip27: dict[str, Task]) -> None:
    assert {name: len(task.templates) for name, task in clip27.items()} == TEMPLATES


def test_the_36_zero_shot_classifiers_are_the_27_less_two_and_seven_shifts_with_four_missing(clip27: dict[str, Task]) -> None:
    shifts = ["imagenet-v2", "imagenet-sketch", "youtube-bb", "imagenet-vid", "objectnet", "imagenet-a", "imagenet-r"]
    expected = [name for name in clip27 if name not in ("kitti-distance", "stl10")] + shifts
    assert list(tasks_of(load_suite("clip-zero-shot-36"))) == expected
    assert len(expected) + 4 == 36


def test_datacomp_has_the_classes_metric_and_test_size_of_its_tasklist() -> None:
    tasks = tasks_of(load_suite("datacomp-38"))
    assert list(tasks) == list(DATACOMP)
    for name, (classes, test, metric) in DATACOMP.items():
        task = tasks[name]
        assert (name, len(task.classes), task.sizes["test"], task.metric) == (name, classes, test, metric)
        assert task.protocol == (
            "datacomp-38" if name not in TABLE_9 and not name.startswith(("imagenet-", "objectnet")) else task.protocol
        )


def test_few_shot_20_has_sixteen_pictures_for_each_class_on_average_and_one_label_each() -> None:
    tasks = tasks_of(load_suite("few-shot-20"))
    for name, task in tasks.items():
        classes, train, _, _ = TABLE_9[name]
        assert train / classes >= 16
        assert task.kind == "classification"
    assert set(TABLE_9) - set(tasks) == {"voc2007", "flowers102", "birdsnap", "kinetics700", "eurosat", "resisc45", "clevr-counts"}


def test_imagenet_has_a_thousand_names_of_which_two_stand_twice() -> None:
    every = [names_[0] for names_ in load_task("imagenet").classes]
    assert len(every) == 1_000
    assert sorted({name for name in every if every.count(name) > 1}) == ["missile", "sunglasses"]


@pytest.mark.parametrize(("name", "classes"), [("a", 200), ("r", 200), ("objectnet", 125), ("vid", 288), ("youtube-bb", 231)])
def test_a_subset_of_imagenet_has_the_names_of_its_labels_and_fifty_pictures_each(name: str, classes: int) -> None:
    """125, 288 and 231 classes, thus 6,250, 14,400 and 11,550 pictures, are those of ImageNet Testbed."""
    whole, part = load_task("imagenet"), load_task(f"imagenet-on-{name}")
    assert part.labels is not None
    assert len(part.labels) == classes
    assert list(part.labels) == sorted(part.labels)
    assert part.classes == tuple(whole.classes[label] for label in part.labels)
    assert (part.templates, part.folder, part.sizes["test"]) == (whole.templates, whole.folder, 50 * classes)


@pytest.mark.parametrize("name", ["a", "r"])
def test_a_shift_of_200_classes_has_the_same_classes_as_its_subset_of_imagenet(name: str) -> None:
    assert load_task(f"imagenet-{name}").classes == load_task(f"imagenet-on-{name}").classes


def test_fer2013_has_several_names_per_class_in_the_paper_and_one_in_clip_benchmark() -> None:
    assert sum(map(len, load_task("fer2013").classes)) == 12
    assert all(len(names_) == 1 for names_ in load_task("fer2013-clip-benchmark").classes)


def test_the_four_styles_of_emoji_share_their_classes() -> None:
    tasks = [load_task(f"emoji-{style}") for style in ("google", "twitter", "apple", "facebook")]
    assert len({(task.classes, task.templates) for task in tasks}) == 1
    assert len(tasks[0].classes) > 1_500


# The last name of each set in the last template, and the first in the first, as data/prompts.md and the notebook have them.
ENDS = {
    "birdsnap": ("a photo of a Acadian Flycatcher, a type of bird.", "a photo of a Zone tailed Hawk, a type of bird."),
    "cifar100": ("a photo of a apple.", "a photo of the big worm."),
    "clevr-counts": ("a photo of 10 objects.", "a photo of 9 objects."),
    "country211": ("a photo i took in Andorra.", "a photo showing the country of Zimbabwe."),
    "eurosat": ("a centered satellite photo of forest.", "a centered satellite photo of the highway or road."),
    "fgvc-aircraft": ("a photo of a 707-320, a type of aircraft.", "a photo of the Yak-42, a type of aircraft."),
    "food101": ("a photo of apple pie, a type of food.", "a photo of waffles, a type of food."),
    "hateful-memes": ("a meme.", "a hatespeech meme."),
    "kinetics700": ("a photo of abseiling.", "a demonstration of a person practicing zumba."),
    "pcam": ("this is a photo of lymph node", "this is a photo of lymph node containing metastatic tumor tissue"),
    "resisc45": ("satellite imagery of airplane.", "aerial view of the wetland."),
    "rendered-sst2": ("a negative review of a movie.", "a positive review of a movie."),
    "stanford-cars": ("a photo of a AM General Hummer SUV 2000.", "a photo of my old smart fortwo Convertible 2012."),
    "sun397": ("a photo of a abbey.", "a photo of the youth hostel."),
    "ucf101": ("a photo of a person Apply Eye Makeup.", "a demonstration of the person practicing Yo Yo."),
    "imagenet": ("a bad photo of a tench.", "a tattoo of the toilet paper."),
}


@pytest.mark.parametrize(("name", "ends"), ENDS.items())
def test_the_first_and_the_last_text_of_a_task_are_the_papers(name: str, ends: tuple[str, str]) -> None:
    task = load_task(name)
    assert (task.texts(0)[0], task.texts(len(task.classes) - 1)[-1]) == ends


def test_a_fairness_task_is_scored_by_the_worst_of_its_first_group() -> None:
    for task in load_suite("fairness").tasks:
        assert (task.metric, task.protocol) == ("worst-group", "own")
        assert {"image", "label", *task.groups} == set(task.columns)


# docs/suites.md: the table of differences.

PAIRS = {
    "clevr-counts": "clevr-counts-datacomp",
    "eurosat": "eurosat-datacomp",
    "fer2013": "fer2013-clip-benchmark",
    "flickr30k": "flickr30k-datacomp",
    "mscoco": "mscoco-datacomp",
    "pcam": "pcam-datacomp",
    "resisc45": "resisc45-datacomp",
    "sun397": "sun397-datacomp",
    "voc2007": "voc2007-datacomp",
    "voc2007 ": "voc2007-clip-benchmark",
}


def difference(paper: Task, other: Task) -> str:
    """One row of the docs' table, from the files alone."""
    ours, theirs = ({frozenset(text.casefold() for text in names_) for names_ in task.classes} for task in (paper, other))
    differing = len(ours - theirs)
    cells = [
        f"{differing} of {len(ours)} differ" if differing else "same",
        "same" if paper.templates == other.templates else f"{len(paper.templates)} / {len(other.templates)}, differ",
        _pair(*(f"{task.sizes['test']:,}" if "test" in task.sizes else "not checked" for task in (paper, other))),
        _pair(paper.metric, other.metric),
    ]
    return f"| `{paper.name}` | `{other.name}` | " + " | ".join(cells) + " |"


def _pair(ours: str, theirs: str) -> str:
    return "same" if ours == theirs != "not checked" else f"{ours} / {theirs}"


def test_the_docs_table_of_differences_is_what_the_files_say() -> None:
    docs = (Path(__file__).parents[2] / "docs" / "suites.md").read_text(encoding="utf-8")
    written = [line for line in docs.splitlines() if re.match(r"\| `[a-z0-9-]+` \| `[a-z0-9-]+-(datacomp|clip-benchmark)` \|", line)]
    assert written == [difference(load_task(paper.strip()), load_task(other)) for paper, other in PAIRS.items()]


def test_every_task_of_another_protocol_beside_the_papers_is_in_the_docs_table() -> None:
    others = {name for name in names("benchmarks/tasks") if name.endswith(("-datacomp", "-clip-benchmark"))}
    assert others - set(PAIRS.values()) == {"svhn-datacomp"}  # the paper's SVHN is another task, and its texts are not published
