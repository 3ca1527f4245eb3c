"""The overlap report for the terminal: scores of All, Overlap and Clean, how sure they are, and the counts over tasks."""

from collections.abc import Mapping, Sequence
from typing import Any

from clipkit.report.tables import Cell, Share, Table

Row = Mapping[str, Any]


def overlap_tables(report: Mapping[str, Any]) -> list[Table]:
    """Overlap, Clean and All per task; what stands beside the paper's test, where there is an overlap; the counts over tasks."""
    rows = [(_name(row, leading), row) for leading in report["tasks"] for row in (leading, *leading.get("further", ()))]
    tested = [(name, row) for name, row in rows if row["p_value"] is not None]
    tables = [_scores(report, rows)]
    if tested:
        tables += [_sureness(tested, report["confidence"]), _other_reasons(tested)]
    tables.append(_counts("over tasks", report["summary"], report["confidence"]))
    return tables + [_counts(f"over tasks: {asked}", found, report["confidence"]) for asked, found in report.get("further", {}).items()]


def _name(row: Row, leading: Row) -> str:
    """A task, and what was asked of it where that is not what the report leads with."""
    return leading["task"] if row is leading else f"{leading['task']}: {row['score']}"


def _scores(report: Mapping[str, Any], rows: Sequence[tuple[str, Row]]) -> Table:
    titles = ("task", "overlap", "of", "share", "All", "Overlap", "Clean", "All - Clean", "p")
    cells = [
        (
            name,
            row["overlap"],
            row["count"],
            _share(row["contamination"]),
            *(_share(row[f"accuracy_{part}"]) for part in ("all", "overlap", "clean")),
            _points(row["all_minus_clean"]),
            _p(row["p_value"]),
        )
        for name, row in rows
    ]
    notes = [f"{name}: {note}" for name, row in rows for note in _notes(row)]
    return Table(f"overlap of the training data with {report['suite']}", titles, cells, "\n".join([*notes, _where(report)]))


def _where(report: Mapping[str, Any]) -> str:
    other = sorted({row["metric"] for row in report["tasks"] if row.get("metric", "acc1") != "acc1"})
    metrics = f"; scores other than accuracy: {', '.join(other)}" if other else ""
    judged = f"\nto judge them: {report['review_page']}" if report.get("review_page") else ""
    why = report.get("threshold_measured_on")
    measured = f"threshold {report['default_threshold']:g}, from {why}" if why else ""
    lines = ["All - Clean in points" + metrics, measured]
    return "\n".join(filter(None, lines)) + f"\npairs side by side: {report['page']}{judged}"


def _notes(row: Row) -> list[str]:
    """What a reader should know before he believes a row."""
    notes = [row["note"]] if row["note"] else []
    if row.get("is_imbalanced"):
        notes.append(f"Overlap has another mix of classes than Clean (p {_p(row['imbalance_p'])}): read the difference at one mix.")
    if row.get("blank_overlap"):
        without = _points(row["overlap_minus_clean_without_blank"])
        told = f"without them Overlap - Clean is {without} points" if without else "there is no Overlap or no Clean without them"
        notes.append(f"{row['blank_overlap']:,} pictures of Overlap and {row['blank_clean']:,} of Clean are all but blank: {told}.")
    return notes


def _sureness(rows: Sequence[tuple[str, Row]], confidence: float) -> Table:
    cells = [
        (
            name,
            _points(row["overlap_minus_clean"]),
            _ends(row["all_minus_clean_low"], row["all_minus_clean_high"]),
            _p(row["p_holm"]),
            _p(row["p_two_sided"]),
            _p(row["p_exchange"]),
        )
        for name, row in rows
    ]
    titles = ("task", "Overlap - Clean", f"{100 * confidence:g}% of All - Clean", "Holm", "two-sided", "exchange")
    note = (
        "in points; Holm: p for the number of tasks; two-sided: sees a model do worse, too\n"
        "exchange: p among splits of the same sizes (Fisher); does not take Clean's score as known"
    )
    return Table("how sure that is", titles, cells, note)


def _other_reasons(rows: Sequence[tuple[str, Row]]) -> Table:
    cells = [
        (
            name,
            _points(row["detectable"]),
            _points(row["standardised_difference"]),
            _p(row["standardised_p"]),
            _share(row["standardised_cover"]),
            _share(row["class_distance"]),
            _p(row["imbalance_p"]),
        )
        for name, row in rows
    ]
    note = (
        "detectable: the smallest true Overlap - Clean found by the one-sided test in 80% of cases\n"
        "at one mix: Overlap - Clean at Clean's classes, its p, and the share of Clean it covers\n"
        "mixes apart: the share of Overlap that would have to change class, and the p of that"
    )
    titles = ("task", "detectable", "at one mix", "p", "covers", "mixes apart", "p of mixes")
    return Table("what the overlap could show, and what else it could be", titles, cells, note)


def _counts(title: str, found: Mapping[str, Any], confidence: float) -> Table:
    tasks = found["tasks"]
    counts: list[tuple[Cell, ...]] = [
        ("tasks with overlap", tasks - found["without_overlap"]),
        ("score moved by more than 0.1 points", found["shifted"]),
        (f"{100 * confidence:g}% interval of Overlap excludes Clean", found["interval_excludes_clean"]),
        ("one-sided p below 0.05", found["significant"]),
        (f"one-sided p below 0.05 / {max(1, tasks)} (Bonferroni)", found["significant_bonferroni"]),
        ("one-sided p below 0.05 after Holm", found.get("significant_holm")),
    ]
    by_chance = found.get("by_chance")
    note = "" if by_chance is None else f"below 0.05 by chance: {by_chance:.2f} of {found['tested']} tests"
    return Table(title, (f"of {tasks} tasks", "count"), counts, note)


def _share(share: float | None) -> Share | None:
    return None if share is None else Share(share)


def _points(difference: float | None) -> str | None:
    return None if difference is None else f"{100 * difference:+.2f}"


def _ends(low: float | None, high: float | None) -> str | None:
    return None if low is None or high is None else f"{_points(low)} to {_points(high)}"


def _p(p: float | None) -> str | None:
    return None if p is None else "<.001" if p < 0.001 else f"{p:.3f}"
