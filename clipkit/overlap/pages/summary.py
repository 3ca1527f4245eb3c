"""The report in plain language: what a paper could quote, with its figures and its caveats, and a sentence on the method.

Everything is read off the report; nothing is said that its figures do not hold.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clipkit import __version__, printable
from clipkit.overlap.statistics.effect import LEVEL
from clipkit.report.pages import p_value, percent, points
from clipkit.run import replacing

__all__ = ["counted", "tell", "write_summary"]

MOST_NAMED = 5
"""Tasks that a sentence names."""

Report = Mapping[str, Any]


def write_summary(path: Path, paragraphs: Sequence[str]) -> None:
    """The paragraphs as `summary.md`."""
    with replacing(path) as temporary:
        temporary.write_text("\n\n".join(paragraphs) + "\n", encoding="utf-8")


def tell(report: Report) -> list[str]:
    """The paragraphs of `overlap-report`'s report: what was found, what it did to the scores, what else, caveats, method."""
    if not report["tasks"]:
        return [f"No task of suite {_code(report['suite'])} could be analysed: nothing is known of its overlap."]
    parts = (_found(report), _scores(report), _beside(report), _caveats(report), _method(report))
    return [" ".join(sentences) for sentences in parts if sentences]


def counted(number: int, one: str, more: str | None = None) -> str:
    """1 task, 2 tasks; no tasks."""
    return f"{number:,} {one}" if number == 1 else f"{number:,} {more or one + 's'}" if number else f"no {more or one + 's'}"


def _code(text: str) -> str:
    """A name in Markdown that can do nothing but be read."""
    return f"`{printable(text).replace('`', chr(39))}`"


def _is(number: int) -> str:
    return "is" if number == 1 else "are"


# ----------------------------------------------------------------- what was found


def _found(report: Report) -> list[str]:
    tasks, train = report["tasks"], report["training_pictures"]
    count, overlap = sum(row["count"] for row in tasks), sum(row["overlap"] for row in tasks)
    pictures = f"the {counted(count, 'test picture')} of {_the(len(tasks), 'task')}" if count > 1 else "the one test picture"
    told = [
        f"Each of {pictures} was compared with {_all(train)} by the detector {_code(report['detector'])}."
        if count > 1
        else f"The one test picture was compared with {_all(train)} by the detector {_code(report['detector'])}."
    ]
    told.append(f"A picture counts as overlap at a similarity of {_thresholds(tasks)} or more to a training picture.")
    if not train:
        return [*told, "There are no training pictures: nothing can overlap."]
    if not overlap:
        return [*told, "No test picture was found to have a near-duplicate in the training data."]
    if overlap == count:
        all_ = "Every test picture has" if count > 1 else "It has"
        told.append(f"{all_} a near-duplicate in the training data: there is no clean part to compare with.")
        return told + _matched(report)
    has = "has" if overlap == 1 else "have"
    share = f"{counted(overlap, 'test picture')} of {count:,} ({percent(overlap / count)}) {has} a near-duplicate in the training data"
    touched = sum(row["overlap"] > 0 for row in tasks)
    told.append(f"{share}; {touched:,} of {counted(len(tasks), 'task')} {_is(touched)} touched." if len(tasks) > 1 else f"{share}.")
    return told + _shares(report) + _matched(report)


def _the(number: int, what: str) -> str:
    return f"one {what}" if number == 1 else f"{number:,} {what}s"


def _all(number: int) -> str:
    return {0: "none", 1: "the one training picture"}.get(number, f"all {number:,} training pictures")


def _thresholds(tasks: Sequence[Report]) -> str:
    values = sorted({row["threshold"] for row in tasks})
    return f"{values[0]:g}" if len(values) == 1 else f"{values[0]:g} to {values[-1]:g}, set task by task,"


def _shares(report: Report) -> list[str]:
    tasks = report["tasks"]
    if len(tasks) == 1:
        return []
    most = max(tasks, key=lambda row: (row["contamination"], row["task"]))
    median, mean = (percent(report["summary"][f"{name}_contamination"]) for name in ("median", "mean"))
    greatest = f"{percent(most['contamination'])} ({most['task']})"
    return [f"Over tasks, the median share is {median} and the mean {mean}; the greatest is {greatest}."]


def _matched(report: Report) -> list[str]:
    matches = report["matches"]
    them = "it" if sum(row["overlap"] for row in report["tasks"]) == 1 else "them"
    told = [f"{counted(matches['training_pictures'], 'training picture')} {_is(matches['training_pictures'])} like {them}."]
    if matches["equal"]:
        told.append(f"For {counted(matches['equal'], 'test picture')} the training data holds the very same file.")
    if matches["cut_short"]:
        told.append(
            f"Of {counted(matches['cut_short'], 'test picture')} there may be more in the training data: once those are dropped, "
            "the report should be made again."
        )
    return told


# ---------------------------------------------------------------------- the scores


def _scores(report: Report) -> list[str]:
    compared = [row for row in report["tasks"] if row["all_minus_clean"] is not None and row["overlap"]]
    if not compared:
        return []
    if len(compared) == 1:
        return _one_score(report, compared[0])
    moved = sum(row["is_shifted"] for row in compared)
    most = max(compared, key=lambda row: abs(row["all_minus_clean"]))
    scores = f"{percent(most['accuracy_all'])} on all pictures, {percent(most['accuracy_clean'])} without the overlap"
    told = f"Of the {len(compared):,} tasks with overlap and a clean part, the score of {moved:,} moved by more than 0.1 points"
    return [f"{told}; the most is {_points(most)} ({most['task']}: {scores}).", *_tests(report)]


def _one_score(report: Report, row: Report) -> list[str]:
    told = [
        f"On {row['task']} the score of {_code(report['model'])} is {percent(row['accuracy_all'])} with the overlap and "
        f"{percent(row['accuracy_clean'])} without it: the overlap moved it by {_points(row)}."
    ]
    if row["p_value"] is None:
        return told
    told.append(f"A one-sided binomial test of the overlap against the rest gives {_p(row)}, {_side(row['is_significant'])} {LEVEL:g}")
    if len(report["tasks"]) > 1:
        also = "and" if row["is_significant_bonferroni"] == row["is_significant"] else "but"
        told[-1] += f" {also} {_side(row['is_significant_bonferroni'])} {LEVEL:g} / {len(report['tasks']):,} (Bonferroni)"
    return [*told[:-1], told[-1] + "."]


def _p(row: Report) -> str:
    shown = p_value(row["p_value"])
    return f"p {shown}" if shown.startswith("<") else f"p = {shown}"


def _side(is_below: Any) -> str:
    return "below" if is_below else "not below"


def _points(row: Report) -> str:
    return f"{points(row['all_minus_clean'])} points"


def _tests(report: Report) -> list[str]:
    tested, found = sum(row["p_value"] is not None for row in report["tasks"]), report["summary"]
    if not tested:
        return []
    easier = f"In {counted(found['significant'], 'task')} of {tested:,} tested the overlap is easier than the rest at a one-sided p below "
    left = found["significant_bonferroni"]
    corrected = f"after Bonferroni's correction {counted(left, 'task')} {'remains' if left == 1 else 'remain'}"
    return [f"{easier}{LEVEL:g}, where chance alone gives about {found['by_chance']:.2g}; {corrected}."]


# ------------------------------------------------------------------ texts, hosts, repeats


def _beside(report: Report) -> list[str]:
    return [*_texts(report.get("texts")), *_hosts(report.get("hosts")), *_within(report.get("within"))]


def _texts(texts: Report | None) -> list[str]:
    told = []
    for kind, name in (("caption", "test caption"), ("prompt", "prompt")) if texts else ():
        rows = [row for row in texts["tasks"] if row["kind"] == kind] if texts else []
        exact, contained, ngram, count = (sum(row[how] for row in rows) for how in ("exact", "contained", "ngram", "texts"))
        if texts and count and not ngram:
            nothing = f"The one {name} is not" if count == 1 else f"None of the {count:,} {name}s is"
            told.append(f"{nothing} found in the training texts.")
        elif texts and count:
            found = f"{exact:,} {_is(exact)} a training text word for word, {contained:,} {_is(contained)} contained in one"
            runs = f"{ngram:,} {'shares' if ngram == 1 else 'share'} a run of {texts['ngram']} tokens with one"
            told.append(f"Of {counted(count, name)}, {found}, and {runs} (shorter texts: the whole).")
    return told


def _hosts(hosts: Report | None) -> list[str]:
    first, count = (hosts["image_url"][name] for name in ("first", "named")) if hosts else (None, 0)
    if not first:
        return []
    if count == 1 and first["share"] == 1:
        return [f"All of the overlap comes from one host, {_code(first['host'])}."]
    return [
        f"The overlap comes from {counted(count, 'host')}; {_code(first['host'])} has the most, "
        f"{percent(first['share'])} of the overlapping test pictures."
    ]


def _within(within: Report | None) -> list[str]:
    if not within:
        return []
    rows = [row for row in within["tests"] if row["repeated"]]
    told = [
        f"Within {row['task']}, {counted(row['repeated'], 'picture')} of {row['count']:,} {'has' if row['repeated'] == 1 else 'have'} "
        f"a near-duplicate in the test set itself: {row['distinct']:,} are distinct."
        for row in rows[:MOST_NAMED]
    ]
    if not rows:
        told.append("No test picture has a near-duplicate in its own test set.")
    if len(rows) > MOST_NAMED:
        told.append(f"So it is in {len(rows) - MOST_NAMED:,} more.")
    return told + _within_training(within["training"])


def _within_training(near: Report | None) -> list[str]:
    if not near or near["share"] is None:
        return []
    interval = "" if near["low"] is None else f" (interval {percent(near['low'])} to {percent(near['high'])})"
    drawn = "the training pictures" if near["low"] is None else f"{counted(near['drawn'], 'training picture')} drawn at random"
    return [f"Of {drawn}, {percent(near['share'])}{interval} have a near-duplicate among the training pictures."]


# ------------------------------------------------------------------- caveats and method


def _caveats(report: Report) -> list[str]:
    told = ["What the detector misses is not counted: its recall over a whole training set cannot be known.", *_mistaken(report["tasks"])]
    if any(row["overlap"] and row["all_minus_clean"] is not None for row in report["tasks"]):
        told.append(
            "The pictures with and without a near-duplicate may differ in more than having been trained on: a difference of scores is no "
            "proof that the model has memorised, and none is no proof that it has not."
        )
    if report["failed"]:
        names = sorted(report["failed"])
        shown = ", ".join(names[:MOST_NAMED]) + (f" and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else "")
        told.append(f"{counted(len(names), 'task')} could not be analysed ({shown}).")
    return told


def _mistaken(tasks: Sequence[Report]) -> list[str]:
    """What holds of pictures that the detector takes for near-duplicates wrongly; nothing where it found none and nobody judged."""
    judged = sum(row["verdicts"] for row in tasks)
    were = f"{counted(judged, 'picture')} {'was' if judged == 1 else 'were'} judged"
    if not any(row["overlap"] for row in tasks):
        return [f"{were[0].upper()}{were[1:]} by a person."] if judged else []
    if not judged:
        return ["False near-duplicates are counted too; no pair was judged by a person."]
    return [f"False near-duplicates are counted too, except where a person has judged: {were}."]


def _method(report: Report) -> list[str]:
    return [
        f"Method: train-test overlap as in section 5 of Radford et al. 2021 (arXiv 2103.00020), measured with clipkit {__version__} "
        f"(`clipkit overlap-report`; model {_code(report['model'])}, suite {_code(report['suite'])}, detector {_code(report['detector'])}, "
        f"threshold {_thresholds(report['tasks']).rstrip(',')}, training shards {report['training'][:12]})."
    ]
