"""The report in words: the figures are the report's, numbers agree with their nouns, and no case says more than it knows."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipkit.overlap.pages.summary import counted, tell, write_summary
from clipkit.overlap.statistics.effect import LEVEL, Effect, count_right, effect_of, summarise
from clipkit.overlap.statistics.power import false_alarms
from tests.overlap.cloths import analyse, cloth, cloth_suite, pair, shards_of


def report(*tasks: tuple[str, int, int, int, int], train: int = 1_000, **more: Any) -> dict[str, Any]:
    """A report of tasks (name, overlap, right in the overlap, clean, right in the clean part)."""
    effects = [
        effect_of(
            count_right(
                np.repeat([True, False, True, False], [right, overlap - right, right_clean, clean - right_clean]),
                np.repeat([True, False], [overlap, clean]),
            ),
            confidence=0.995,
        )
        for _, overlap, right, clean, right_clean in tasks
    ]
    rows = [
        {
            "task": name, "title": name, "threshold": 0.85, **vars(effect), "is_shifted": effect.is_shifted,
            "is_significant": effect.is_significant(LEVEL), "is_significant_bonferroni": effect.is_significant(LEVEL / len(tasks)),
            "verdicts": 0,
        }
        for (name, *_), effect in zip(tasks, effects, strict=True)
    ]  # fmt: skip
    pairs = sum(overlap for _, overlap, *_ in tasks)
    return {
        "model": "runs/m", "suite": "small", "detector": "pixels", "training_pictures": train, "training": "0123456789abcdef", "failed": {},
        "tasks": rows, "summary": vars(summarise(effects)) | {"by_chance": by_chance(effects)},
        "matches": {"pairs": pairs, "training_pictures": pairs, "equal": 0, "cut_short": 0}, **more,
    }  # fmt: skip


def by_chance(effects: list[Effect]) -> float:
    return sum(false_alarms(one.overlap, one.accuracy_clean) for one in effects if one.overlap and one.accuracy_clean is not None)


def words(found: dict[str, Any]) -> str:
    return "\n".join(tell(found))


def test_one_task_in_words() -> None:
    told = tell(report(("birds", 20, 19, 80, 60)))
    assert told[0] == (
        "Each of the 100 test pictures of one task was compared with all 1,000 training pictures by the detector `pixels`. "
        "A picture counts as overlap at a similarity of 0.85 or more to a training picture. "
        "20 test pictures of 100 (20.0%) have a near-duplicate in the training data. 20 training pictures are like them."
    )
    assert told[1] == (
        "On birds the score of `runs/m` is 79.0% with the overlap and 75.0% without it: the overlap moved it by +4.00 points. "
        "A one-sided binomial test of the overlap against the rest gives p = 0.024, below 0.05."
    )
    assert "recall over a whole training set cannot be known" in told[2]
    assert "False near-duplicates are counted too; no pair was judged by a person." in told[2]
    assert told[3].startswith("Method: train-test overlap as in section 5 of Radford et al. 2021")
    assert "training shards 0123456789ab)" in told[3]


def test_no_overlap_at_all_claims_nothing_about_scores() -> None:
    told = words(report(("birds", 0, 0, 80, 60), ("cars", 0, 0, 10, 5)))
    assert "No test picture was found to have a near-duplicate" in told
    assert "points" not in told
    assert "memorised" not in told
    assert "judged" not in told
    assert "False near-duplicates" not in told


def test_everything_overlapping_has_no_clean_part() -> None:
    told = words(report(("birds", 80, 60, 0, 0)))
    assert "Every test picture has a near-duplicate in the training data: there is no clean part" in told
    assert "points" not in told


def test_one_picture_is_spoken_of_in_the_singular() -> None:
    told = words(report(("birds", 1, 1, 0, 0), train=1))
    assert told.startswith("The one test picture was compared with the one training picture by")
    assert "It has a near-duplicate" in told
    assert "1 training picture is like them" not in told
    assert "1 training picture is like it." in told
    one = words(report(("birds", 1, 1, 99, 50)))
    assert "1 test picture of 100 (1.0%) has a near-duplicate" in one


def test_without_training_pictures_nothing_can_overlap() -> None:
    assert "There are no training pictures: nothing can overlap." in words(report(("birds", 0, 0, 8, 6), train=0))


def test_over_many_tasks_the_counts_and_chance_are_told() -> None:
    tasks = [("a", 20, 20, 80, 40), ("b", 20, 16, 80, 60), ("c", 0, 0, 10, 5)]
    told = words(report(*tasks))
    assert "2 of 3 tasks are touched" in told
    assert "Over tasks, the median share is 20.0% and the mean 13.3%; the greatest is 20.0% (b)." in told
    assert "Of the 2 tasks with overlap and a clean part, the score of 2 moved by more than 0.1 points" in told
    assert "the most is +10.00 points (a: 60.0% on all pictures, 50.0% without the overlap)" in told
    assert (
        "In 1 task of 2 tested the overlap is easier than the rest at a one-sided p below 0.05, where chance alone gives about 0.045;"
        in told
    )
    assert "after Bonferroni's correction 1 task remains." in told


def test_texts_hosts_and_repeats_are_told_where_they_were_looked_at() -> None:
    texts = {"ngram": 13, "tasks": [{"kind": "caption", "texts": 1, "exact": 1, "contained": 1, "ngram": 1}]}
    hosts = {"image_url": {"named": 1, "first": {"host": "a.example", "share": 1.0}}}
    within = {
        "tests": [{"task": "birds", "repeated": 2, "count": 100, "distinct": 99}],
        "training": {"share": 0.1, "low": 0.05, "high": 0.2, "drawn": 50},
    }
    told = tell(report(("birds", 20, 19, 80, 60), texts=texts, hosts=hosts, within=within))[2]
    assert told == (
        "Of 1 test caption, 1 is a training text word for word, 1 is contained in one, and 1 shares a run of 13 tokens with one (shorter "
        "texts: the whole). All of the overlap comes from one host, `a.example`. Within birds, 2 pictures of 100 have a near-duplicate in "
        "the test set itself: 99 are distinct. Of 50 training pictures drawn at random, 10.0% (interval 5.0% to 20.0%) have a "
        "near-duplicate among the training pictures."
    )


def test_texts_that_are_nowhere_and_pairs_without_a_host_are_not_spoken_of_as_found() -> None:
    texts = {"ngram": 13, "tasks": [{"kind": "prompt", "texts": 12, "exact": 0, "contained": 0, "ngram": 0}]}
    hosts = {"image_url": {"named": 0, "first": None}}
    told = words(report(("birds", 20, 19, 80, 60), texts=texts, hosts=hosts))
    assert "None of the 12 prompts is found in the training texts." in told
    assert "host" not in told


def test_failed_tasks_verdicts_and_what_may_be_left_are_told() -> None:
    found = report(("birds", 20, 19, 80, 60), failed={"cars": "no data"})
    found["tasks"][0]["verdicts"] = 1
    found["matches"]["cut_short"] = 1
    told = words(found)
    assert "1 task could not be analysed (cars)." in told
    assert "False near-duplicates are counted too, except where a person has judged: 1 picture was judged." in told
    assert "Of 1 test picture there may be more in the training data" in told


def test_where_a_person_has_judged_all_overlap_away_that_is_told() -> None:
    found = report(("birds", 0, 0, 80, 60), ("cars", 0, 0, 10, 5))
    found["tasks"][0]["verdicts"] = 2
    told = words(found)
    assert "2 pictures were judged by a person." in told
    assert "False near-duplicates" not in told


def test_no_task_at_all_is_one_sentence() -> None:
    assert tell({"tasks": [], "suite": "small"}) == ["No task of suite `small` could be analysed: nothing is known of its overlap."]


def test_names_cannot_break_out_of_the_markdown() -> None:
    found = report(("birds", 20, 19, 80, 60), model="a`b\n# c\x1b[31m")
    assert "`a'b # c[31m`" in words(found)


@pytest.mark.parametrize(("number", "told"), [(0, "no tasks"), (1, "1 task"), (2_000, "2,000 tasks")])
def test_numbers_and_nouns_agree(number: int, told: str) -> None:
    assert counted(number, "task") == told


def test_the_file_and_the_page_say_what_the_report_says(tmp_path: Path, color_encoder: Any) -> None:
    suite = cloth_suite(tmp_path, [cloth("red", i) for i in range(5)], [cloth("green", i) for i in range(5)])
    shards = shards_of([pair(cloth("red", 2).resize((40, 44)), 0), pair(cloth("red", 100), 1)], tmp_path / "shards")
    found = analyse(tmp_path, color_encoder, shards, suite)
    assert (tmp_path / "out" / "summary.md").read_text() == "\n\n".join(found["plain"]) + "\n"
    assert "1 test picture of 10 (10.0%) has a near-duplicate in the training data." in found["plain"][0]
    html = (tmp_path / "out" / "overlap.html").read_text()
    assert '<p class="plain">Each of the 10 test pictures of one task was compared with all 2 training pictures' in html
    assert "<code>pixels</code>" in html


def test_paragraphs_stand_apart_in_the_file(tmp_path: Path) -> None:
    write_summary(tmp_path / "summary.md", ["a.", "b."])
    assert (tmp_path / "summary.md").read_text() == "a.\n\nb.\n"
