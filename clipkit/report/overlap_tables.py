"""The overlap report for the terminal: scores, counts, words and files; and in more tables, where asked, all that stands beside them."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from clipkit.report.overlap_details import host_tables, text_tables, within_tables
from clipkit.report.overlap_facts import scores_of
from clipkit.report.pages import p_value, points
from clipkit.report.tables import Cell, Paragraphs, Share, Shown, Table

__all__ = ["further_tables", "overlap_tables"]

MOST_NAMED = 5
"""Tasks that a note names."""

Row = Mapping[str, Any]
Report = Mapping[str, Any]


def overlap_tables(report: Report) -> list[Shown]:
    """What a person wants at the end: Overlap, Clean and All per task, the four counts, the report in words, and where the rest is.

    Nothing of a report whose every task failed.
    """
    if not report["tasks"]:
        return []
    return [_scores(report, _rows(report)), _counts(report), Paragraphs(report.get("plain", ())), _files(report)]


def further_tables(report: Report) -> list[Shown]:
    """What stands beside the paper's test, where there is an overlap; then texts, hosts and repeats, where the report has them."""
    if not report["tasks"]:
        return []
    tested = [(name, row) for name, row in _rows(report) if row["p_value"] is not None]
    beyond = [_sureness(tested, report["confidence"]), _other_reasons(tested)] if tested else []
    return [*beyond, *text_tables(report), *host_tables(report), *within_tables(report)]


def _rows(report: Report) -> list[tuple[str, Row]]:
    return [(_name(row, leading), row) for leading in report["tasks"] for row in scores_of(leading)]


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
            points(row["all_minus_clean"]),
            p_value(row["p_value"]),
        )
        for name, row in rows
    ]
    notes = [f"{name}: {note}" for name, note in _notes_once(report["tasks"])]
    return Table(f"overlap of the training data with {report['suite']}", titles, cells, "\n".join([*notes, _where(report)]))


def _where(report: Report) -> str:
    """What the columns are, and why the thresholds stand where they do."""
    other = sorted({row["metric"] for row in report["tasks"] if row.get("metric", "acc1") != "acc1"})
    metrics = f"; scores other than accuracy: {', '.join(other)}" if other else ""
    return "\n".join(["All - Clean in points" + metrics, *_thresholds(report)])


def _thresholds(report: Report) -> list[str]:
    """Each threshold with what has set it; whose it is where tasks have several. Nothing of a report that does not know."""
    tasks_of: defaultdict[tuple[float, str], list[str]] = defaultdict(list)
    for row in report["tasks"]:
        if why := row.get("threshold_from"):
            tasks_of[row["threshold"], why].append(row["task"])
    told = {f"threshold {threshold:g}, from {why}": names for (threshold, why), names in tasks_of.items()}
    return list(told) if len(told) < 2 else [f"{one}: {_named(names)}" for one, names in told.items()]


def _named(names: Sequence[str]) -> str:
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more:,} more" if more > 0 else "")


def _files(report: Report) -> Table:
    """A line for each file, with the least that is to be known of it."""
    rows: list[tuple[Cell, ...]] = [(report["page"], "pairs side by side, with every figure of this report")]
    if report.get("review_page"):
        rows.append((report["review_page"], "the page to judge pairs on"))
    rows += [
        ("summary.md", "the words above"),
        ("overlap.parquet", "every test picture and the training pictures that it resembles"),
        ("overlap-pairs.parquet", _told_of_pairs(report.get("matches"))),
        ("overlap-curve.parquet", "scores, interval and p at other thresholds"),
    ]
    for name, told in (("texts", _told_of_texts), ("hosts", _told_of_hosts), ("within", _told_of_repeats)):
        if found := report.get(name):
            rows.append((f"overlap-{name}.parquet", told(found)))
    rows.append(("overlap.png", "figure 17 of the paper; overlap.svg, too"))
    return Table("where the rest is", ("file", "what it holds"), rows, "--details prints more of it as tables")


def _told_of_pairs(matches: Row | None) -> str:
    return (
        "the pairs that count"
        if matches is None
        else f"{matches['pairs']:,} pairs that count, of {matches['training_pictures']:,} training pictures"
    )


def _told_of_texts(texts: Row) -> str:
    found, count = (sum(row[name] for row in texts["tasks"]) for name in ("ngram", "texts"))
    return f"test texts: {found:,} of {count:,} found in training texts"


def _told_of_hosts(hosts: Row) -> str:
    count, first = (hosts["image_url"][name] for name in ("named", "first"))
    return f"hosts of the overlap: {count:,}" + (f", the most from {first['host']} ({first['share']:.1%})" if first else "")


def _told_of_repeats(within: Row) -> str:
    repeated, count = (sum(row[name] for row in within["tests"]) for name in ("repeated", "count"))
    training = within["training"]
    share = "" if training is None or training["share"] is None else f"; inside the training data: {training['share']:.1%}"
    return f"repeated inside their test set: {repeated:,} of {count:,}{share}"


def _notes_once(tasks: Sequence[Row]) -> list[tuple[str, str]]:
    """Names and notes; what holds for all scores of a task is said once."""
    found: list[tuple[str, str]] = []
    for leading in tasks:
        said: dict[str, str] = {}
        for row in scores_of(leading):
            for note in _notes(row):
                said.setdefault(note, _name(row, leading))
        found += [(name, note) for note, name in said.items()]
    return found


def _notes(row: Row) -> list[str]:
    """What a reader should know before he believes a row."""
    notes = [row["note"]] if row["note"] else []
    if row.get("is_imbalanced"):
        notes.append(f"Overlap has another mix of classes than Clean (p {p_value(row['imbalance_p'])}): read the difference at one mix.")
    if row.get("blank_overlap"):
        without = row["overlap_minus_clean_without_blank"]
        told = (
            f"without them Overlap - Clean is {points(without)} points"
            if without is not None
            else "there is no Overlap or no Clean without them"
        )
        notes.append(f"{row['blank_overlap']:,} pictures of Overlap and {row['blank_clean']:,} of Clean are all but blank: {told}.")
    return notes


def _sureness(rows: Sequence[tuple[str, Row]], confidence: float) -> Table:
    cells = [
        (
            name,
            points(row["overlap_minus_clean"]),
            _ends(row["all_minus_clean_low"], row["all_minus_clean_high"]),
            p_value(row["p_holm"]),
            p_value(row["p_two_sided"]),
            p_value(row["p_exchange"]),
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
            points(row["detectable"]),
            points(row["standardised_difference"]),
            p_value(row["standardised_p"]),
            _share(row["standardised_cover"]),
            _share(row["class_distance"]),
            p_value(row["imbalance_p"]),
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


def _counts(report: Report) -> Table:
    """The paper's four counts, for each score that was compared; below them what they are worth."""
    families = {"count": report["summary"], **report.get("further", {})}
    if len(families) > 1:
        leading = report["tasks"][0]["score"]
        families = {
            f"{asked} ({found['tasks']})": found for asked, found in zip((leading, *report["further"]), families.values(), strict=True)
        }
    rows: list[tuple[Cell, ...]] = [
        (label, *(found[name] for found in families.values()))
        for label, name in (
            ("score moved by more than 0.1 points", "shifted"),
            (f"{100 * report['confidence']:g}% interval of Overlap excludes Clean", "interval_excludes_clean"),
            ("one-sided p below 0.05", "significant"),
            ("one-sided p below 0.05 / tasks (Bonferroni)", "significant_bonferroni"),
        )
    ]
    notes = [f"{name}: {_worth(found)}" if len(families) > 1 else _worth(found) for name, found in families.items()]
    count = report["summary"]["tasks"]
    return Table("over tasks", (f"of {count:,} task{'' if count == 1 else 's'}", *families), rows, "\n".join(notes))


def _worth(found: Row) -> str:
    told = f"with overlap: {found['tasks'] - found['without_overlap']}"
    if found.get("by_chance") is None:
        return told
    return f"{told}; p < 0.05: {found['by_chance']:.2f} by chance, {found['significant_holm']} after Holm"


def _share(share: float | None) -> Share | None:
    return None if share is None else Share(share)


def _ends(low: float | None, high: float | None) -> str | None:
    return None if low is None or high is None else f"{points(low)} to {points(high)}"
