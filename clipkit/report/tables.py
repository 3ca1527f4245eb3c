"""Reports as tables: one plain `Table`, shown by rich, Markdown or HTML; and paragraphs between them."""

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from clipkit import printable

Cell = str | int | float | None


class Share(float):
    """A number from 0 to 1 that a table shows as per cent."""


LINE = 100
"""Characters of a paragraph's line, at most."""

LONGEST_NAME = 28
"""Characters of a cell that is not folded in a narrow terminal."""


@dataclass(frozen=True)
class Table:
    """Rows under column names. Numbers are right-aligned; a `note` stands below."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""

    @classmethod
    def from_dicts(cls, title: str, rows: Sequence[Mapping[str, Cell]], note: str = "") -> "Table":
        """A table whose columns are the first row's keys."""
        columns = tuple(rows[0]) if rows else ()
        return cls(title, columns, [tuple(row[c] for c in columns) for row in rows], note)

    def to_rich(self) -> RichTable:
        """For the terminal. Cells are plain text: markup in data is shown, not obeyed."""
        table = RichTable(
            title=Text(self.title), title_justify="left", caption=Text(self.note) if self.note else None, caption_justify="left"
        )
        for i, name in enumerate(self.columns):
            is_short = all(len(text(row[i])) <= LONGEST_NAME for row in self.rows)  # names and numbers never fold, sentences do
            table.add_column(Text(name), justify="right" if self._is_numeric(i) else "left", overflow="fold", no_wrap=is_short)
        for row in self.rows:
            table.add_row(*(Text(text(cell)) for cell in row))
        return table

    def to_markdown(self) -> str:
        """For README and docs."""
        marks = ["---:" if self._is_numeric(i) else "---" for i in range(len(self.columns))]
        lines = [list(self.columns), marks, *([text(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in self.rows)]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"

    def _is_numeric(self, i: int) -> bool:
        return bool(self.rows) and all(isinstance(row[i], int | float) or row[i] is None for row in self.rows)


class Shown(Protocol):
    """What a report has for the terminal."""

    def to_rich(self) -> RenderableType:
        """For the terminal."""


@dataclass(frozen=True)
class Paragraphs:
    """Sentences among tables: an empty line between paragraphs, folded where a line would be too long to read."""

    texts: Sequence[str]

    def to_rich(self) -> RenderableType:
        """For the terminal. Markup in data is shown, not obeyed."""
        return _Folded("\n\n".join(printable(one) for one in self.texts))


@dataclass(frozen=True)
class _Folded:
    """A text between empty lines, in lines of at most LINE characters that end where they end: a pipe gets no spaces behind them."""

    text: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        yield Text()
        for line in Text(self.text).wrap(console, min(LINE, options.max_width)):
            line.rstrip()
            yield line
        yield Text()


def text(cell: Cell) -> str:
    """One cell as text: thousands separated, four significant digits, shares as per cent, nothing for None; no control characters."""
    if cell is None:
        return ""
    if isinstance(cell, int) and not isinstance(cell, bool):
        return f"{cell:,}"
    if isinstance(cell, Share):
        return f"{cell:.1%}"
    if isinstance(cell, float):
        return f"{cell:.4g}" if abs(cell) < 1000 else f"{cell:,.0f}"
    return printable(str(cell))


def console() -> Console:
    """stdout; in a pipe, where there is no width to keep to, wide enough for every table."""
    return Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160)


def print_tables(tables: Sequence[Table], data: Any, *, as_json: bool) -> None:
    """Tables, or the data behind them as JSON, on stdout."""
    if as_json:
        typer.echo(json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False))
        return
    for table in tables:
        console().print(table.to_rich())


METACLIP = {"words": 251_465, "bigrams": 100_646, "titles": 61_235, "wordnet": 86_654}
"""Queries of each source in MetaCLIP's list (arXiv 2309.16671, table 1), which follows the CLIP paper's recipe."""


def query_tables(report: Mapping[str, Any]) -> list[Table]:
    """Composition of a build-queries report beside the published lists, then what was left out and the best of each source."""
    count = report["count"]
    rows: list[tuple[Cell, ...]] = [
        (row["source"], row["queries"], _percent(row["queries"] / count), row["offered"], row["least_count"], METACLIP.get(row["source"]))
        for row in report["sources"]
    ]
    rows.append(("all", count, _percent(1.0), sum(row["offered"] for row in report["sources"]), None, sum(METACLIP.values())))
    note = (
        f"offered: before duplicates went; least count: occurrences or page views; the CLIP paper's list has 500,000, without a split\n"
        f"content hash {report['content_hash']}"
    )
    examples = [(row["source"], ", ".join(row["examples"])) for row in report["sources"] if row["examples"]]
    facts = [(f"Wikipedia: {name.replace('_', ' ')}", value) for name, value in (report["wikipedia"] or {}).items()]
    facts += [(f"bigrams: {name.replace('_', ' ')}", value) for name, value in (report["bigrams"] or {}).items()]
    facts += [(f"page views: {name.replace('_', ' ')}", value) for name, value in (report.get("page_views") or {}).items()]
    return [
        Table("queries", ("source", "queries", "share", "offered", "least count", "MetaCLIP"), rows, note),
        Table("from each source, evenly over its queries", ("source", "queries"), examples),
        *([Table("counted", ("what", "count"), facts)] if facts else []),
        *([Table("left out", ("reason", "queries"), _most_first(report["left_out"]))] if report["left_out"] else []),
    ]


def build_tables(report: Mapping[str, Any]) -> list[Table]:
    """Balance of a build-dataset report, then the funnel with the downloads and where the shards are: what a person looks for last."""
    funnel = [
        (line["stage"], line["in"], line["out"], Share(line["out"] / line["in"]) if line["in"] else None, _counts(line["dropped"]))
        for line in report["funnel"]
    ]
    broken = [(name, reason) for name, reason in report["broken_sources"].items()]
    pairs = "1 pair" if report["pairs"] == 1 else f"{report['pairs']:,} pairs"
    notes = [*report.get("empty_sources", ()), f"downloaded URLs: {_counts(report['outcomes'])}"]
    if taken_over := report.get("taken_over"):
        notes.append(f"of these taken from the run that this one extends, not fetched again: {taken_over:,}")
    if repaired := report.get("repaired_texts"):
        notes.append(f"texts repaired before anything was dropped: {repaired:,}")
    notes.append(f"{pairs} in {report['shards']}; dropped pairs to look at: {report['dropped_examples']}")
    before = report["queries_before_download"]
    return [
        *(_balance_tables(before, report["queries"]) if before["matches"] else []),
        *([Table("broken sources", ("file", "reason"), broken)] if broken else []),
        *_host_tables(report),
        Table("funnel", ("stage", "in", "out", "share", "dropped"), funnel, "\n".join(notes)),
    ]


def _host_tables(report: Mapping[str, Any]) -> list[Table]:
    """The hosts that lost most URLs; nothing where none was lost."""
    hosts = report.get("hosts", [])
    if not hosts:
        return []
    rows = [(host["host"], _counts(host["outcomes"])) for host in hosts[:SHOWN_HOSTS]]
    return [
        Table("hosts that lost most", ("host", "URLs"), rows, f"of {report['num_hosts']:,} hosts; all of them: {report['hosts_table']}")
    ]


SHOWN_HOSTS = 5
"""Rows of the table of hosts; the report has more."""
BALANCE_ROWS = {
    "queries": "count",
    "never matched": "never_matched",
    "above the limit": "above_limit",
    "their share of the matches": "above_limit_share",
    "matches (query, pair)": "matches",
    "picks (query, pair)": "picks",
    "union of the picks (pairs)": "union",
    "occurrences (query, pair)": "occurrences",
    "occurrences of one query": "largest_occurrence",
}
LARGEST_QUERIES = 5
"""Rows of the table of queries; the report has more."""


def _balance_tables(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Table]:
    rows = [(title, *(_as_share(name, told[name]) for told in (before, after))) for title, name in BALANCE_ROWS.items()]
    note = "picks: at most the limit for each query; union: the distinct pairs among them; occurrences: all matches of these pairs"
    largest = [(row["query"], row["before"], row["picks"], row["after"]) for row in before["largest"][:LARGEST_QUERIES]]
    return [
        Table("queries with the most pairs, before the download", ("query", "pairs before", "picks", "pairs after"), largest),
        Table(f"balance ({after['mode']})", ("what", "before the download", "after it"), rows, note),
    ]


def _as_share(name: str, value: Cell) -> Cell:
    return Share(value) if name.endswith("_share") and value is not None else value


def _counts(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in _most_first(reasons))


def _most_first(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda count: (-count[1], count[0]))


def train_tables(report: Mapping[str, Any]) -> list[Table]:
    """Summary of a training run; the verdict stands below."""
    rows: list[tuple[str, Cell]] = [
        ("architecture", report["architecture"]),
        ("pairs", report["pairs"]),
        ("steps", report["steps"]),
        ("samples seen", report["samples_seen"]),
        ("unique pairs seen", report["unique_pairs"]),
        ("loss", report["loss"]),
        ("chance loss", report["chance_loss"]),
        ("logit scale", report["logit_scale"]),
        ("pairs per second", report["samples_per_second"]),
        ("share of the hardware's peak", None if report["peak_share"] is None else f"{report['peak_share']:.1%}"),
        ("share of time waiting for data", f"{report['data_wait_share']:.1%}"),
        ("seconds", report["seconds"]),
        ("broken pictures", report["broken_pictures"]),
    ]
    rows += [(f"held out: {name.replace('_', ' ')}", value) for name, value in (report["held_out"] or {}).items()]
    rows += [(name.replace("_", " "), value) for name, value in _flat(report["evaluation"] or {}).items()]
    return [Table("training", ("what", "value"), rows, note=report["verdict"])]


def _flat(evaluation: Mapping[str, Any]) -> dict[str, Cell]:
    """Parts of an evaluation under their full names."""
    found: dict[str, Cell] = {}
    for name, value in evaluation.items():
        found |= {f"{name}: {inner}": one for inner, one in _flat(value).items()} if isinstance(value, Mapping) else {name: value}
    return found


def score_tables(report: Mapping[str, Any]) -> list[Table]:
    """Scores of a suite with their intervals, in percent; `*` marks the main metric of a task."""
    scores = report["scores"]
    rows = [
        {
            "task": score["task"],
            "metric": score["metric"] + ("*" if score["is_main"] else ""),
            "score": f"{score['value']:.2%}",
            f"{100 * report['confidence']:g}% interval": f"{score['low']:.2%} to {score['high']:.2%}",
            "pictures": score["count"],
            "seconds": score["seconds"],
        }
        for score in scores
    ]
    main = [score["value"] for score in scores if score["is_main"]]
    mean = f"* main metric; mean over {len(main)} of {len(main) + len(report['failed'])} tasks {sum(main) / len(main):.2%}" if main else ""
    return [Table.from_dicts(f"{report['command']}: {report['model']} on {report['suite']}", rows, note=mean)]


def encode_tables(report: Mapping[str, Any]) -> list[Table]:
    """What was encoded of each split, and how fast: a picture counts once for each model."""
    names = ("split", "pictures", "models", "encoded", "seconds", "per_second")
    titles = ("split", "pictures", "models", "encoded now", "seconds", "encoded per second")
    note = f"models: {', '.join(report['models'])}; ranks: {report['ranks']}"
    return [Table(f"eval encode: {report['suite']}", titles, [tuple(row[name] for name in names) for row in report["splits"]], note)]


def diff_tables(report: Mapping[str, Any]) -> list[Table]:
    """The difference of two runs on each task, in points, with its paired interval and p-values."""
    rows = [
        {
            "task": row["task"],
            "metric": row["metric"],
            "a": f"{row['a']:.2%}",
            "b": f"{row['b']:.2%}",
            "b - a": f"{100 * row['difference']:+.2f}",
            f"{100 * report['confidence']:g}% interval": f"{100 * row['low']:+.2f} to {100 * row['high']:+.2f}",
            "p": f"{row['p_value']:.3g}",
            "p (Holm)": f"{row['p_holm']:.3g}",
            "test": row["test"],
        }
        for row in report["tasks"]
    ]
    a, b = report["runs"]
    return [Table.from_dicts("eval diff", rows, note=f"a: {a}\nb: {b}\ndifferences in points")]


def hash_tables(report: Mapping[str, Any]) -> list[Table]:
    """Pictures of each task in a file of hashes."""
    rows = [(task, counts["pictures"], counts["undecodable"], counts["flat"]) for task, counts in report["tasks"].items()]
    note = "undecodable: known by the file's bytes alone; flat: by bytes and pixels, as one colour has no perceptual hash"
    return [Table("hashed pictures of test splits", ("task", "pictures", "undecodable", "flat"), rows, note)]


def suite_tables(report: Mapping[str, Any]) -> list[Table]:
    """The tasks of a suite: what they ask, and where their data is published."""
    tasks = report["tasks"]
    asked = [
        {
            "task": task["task"],
            "title": task["title"],
            "classes": task["classes"],
            "templates": task["templates"],
            "metric": task["metric"],
            "pictures": ", ".join(f"{name} {text(task['sizes'].get(name))}".strip() for name in task["splits"]),
        }
        for task in tasks
    ]
    data = [{name: task[name] for name in ("task", "folder", "layout", "published")} for task in tasks]
    return [Table.from_dicts(f"{report['suite']}: {report['title']}", asked), Table.from_dicts("Folders under `--data`", data)]


def demo_tables(report: Mapping[str, Any]) -> list[Table]:
    """The tour: command lines, funnel, scores, overlap."""
    stages = [
        (stage["stage"], stage["in"], stage["out"], ", ".join(f"{reason} {count:,}" for reason, count in stage["dropped"].items()))
        for stage in report["funnel"]
    ]
    scores = [
        (score["command"], score["task"], score["metric"], f"{score['value']:.1%}", f"{score['low']:.1%} to {score['high']:.1%}")
        for score in report["scores"]
        if score["is_main"]
    ]
    overlaps = [
        (task["task"], task["count"], task["overlap"], *(_percent(task[f"accuracy_{part}"]) for part in ("all", "overlap", "clean")))
        for task in report["overlap"]
    ]
    planted = report["planted"]
    found = (
        f"planted near-duplicates: {planted['planted']}, of which {planted['right']} were found; "
        f"precision {_percent(planted['precision'])}, recall {_percent(planted['recall'])}"
    )
    return [
        Table("the five commands", ("command",), [(line,) for line in report["commands"]]),
        Table("from pages to pairs", ("stage", "in", "out", "dropped"), stages),
        Table("what the model is worth", ("command", "task", "metric", "score", "95% interval"), scores),
        Table("train against test", ("task", "pictures", "overlap", "all", "overlap only", "clean"), overlaps, note=found),
    ]


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{share:.1%}"
