"""What `clipkit shards ...` and `clipkit score` found, as tables."""

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from clipkit.report.tables import Cell, Share, Table

__all__ = ["pair_tables", "recut_tables", "score_pair_tables", "stats_tables", "verify_tables"]

_SHOWN_PROBLEMS = 50


def verify_tables(report: Mapping[str, Any]) -> list[Table]:
    """What `shards verify` found."""
    problems = report["problems"]
    names = ("shards", "pairs", "megabytes", "problems")
    summary = Table("shards", names, [(report["tars"], report["pairs"], report["bytes"] / 1e6, len(problems))], "\n".join(report["notes"]))
    if not problems:
        return [summary]
    note = f"and {len(problems) - _SHOWN_PROBLEMS:,} more: --json lists all" if len(problems) > _SHOWN_PROBLEMS else ""
    return [summary, Table.from_dicts("problems", problems[:_SHOWN_PROBLEMS], note)]


def stats_tables(report: Mapping[str, Any]) -> list[Table]:
    """What `shards stats` found: sizes, then the most frequent hosts, queries and sources, then the funnel."""
    queries = report["queries"]
    tables = [
        Table("shards", ("what", "value"), _facts(report)),
        _quantile_table(report["quantiles"]),
        _top_table("top hosts", report["hosts"], report["pairs"], f"of {report['distinct_hosts']:,} hosts"),
        _top_table("top queries", queries["top"], report["pairs"], f"{queries['matched']:,} queries have pairs"),
        _top_table("top sources", report["sources"], report["pairs"]),
    ]
    return [*(table for table in tables if table.rows), *_funnel_tables(report["funnel"])]


def _facts(report: Mapping[str, Any]) -> list[tuple[str, Cell]]:
    facts: list[tuple[str, Cell]] = [
        ("pairs", report["pairs"]),
        ("shards", report["tars"]),
        ("megabytes", report["bytes"] / 1e6),
        ("fingerprint", report["fingerprint"]),
    ]
    if report["formats"] is not None:
        facts.append(("image formats", ", ".join(f"{name} {count:,}" for name, count in report["formats"].items())))
        facts.append(("mean image bytes", round(report["image_bytes"] / max(1, report["pairs"]))))
    if report["queries"]["known"] is not None:
        facts.append(("queries in the list", report["queries"]["known"]))
    if report["over_context"] is not None:
        facts.append(("texts over 77 tokens", report["over_context"]))
        facts.append(("their share", Share(report["over_context"] / max(1, report["pairs"]))))
    if report["lineage"]:
        facts.append(("made by", report["lineage"].get("command")))
    return facts


def _quantile_table(quantiles: Mapping[str, Mapping[str, int] | None]) -> Table:
    known = {name: found for name, found in quantiles.items() if found}
    names = next(iter(known.values())) if known else {}
    rows: list[tuple[Cell, ...]] = [(name, *found.values()) for name, found in known.items()]
    return Table("sizes (pixels; characters and words of texts)", ("of", *names), rows)


def _top_table(title: str, top: Sequence[Mapping[str, Any]], pairs: int, note: str = "") -> Table:
    rows = [(row["name"], row["pairs"], Share(row["pairs"] / max(1, pairs))) for row in top]
    return Table(title, ("name", "pairs", "share"), rows, note)


def _funnel_tables(funnel: Sequence[Mapping[str, Any]]) -> list[Table]:
    rows = [
        (stage["stage"], stage["in"], stage["out"], ", ".join(f"{reason} {count:,}" for reason, count in stage["dropped"].items()))
        for stage in funnel
        if {"stage", "in", "out", "dropped"} <= stage.keys()
    ]
    return [Table("funnel", ("stage", "in", "out", "dropped"), rows)] if rows else []


def recut_tables(report: Mapping[str, Any]) -> list[Table]:
    """What `shards reshard`, `merge` and `import` wrote."""
    facts = [("pairs", report["pairs"]), ("shards", report["tars"]), ("fingerprint", report["fingerprint"])]
    broken = report.get("broken_tars", ())
    tables = [Table(report["command"], ("what", "value"), facts), *_funnel_tables(report["funnel"])]
    return [*tables, Table.from_dicts("damaged tars", broken)] if broken else tables


def pair_tables(report: Mapping[str, Any]) -> list[Table]:
    """The pairs that `shards show` chose."""
    rows = [
        {
            "key": pair["key"],
            "text": pair["text"] if len(pair["text"]) <= 100 else f"{pair['text'][:99]}…",
            "size": None if pair["width"] is None else f"{pair['width']} x {pair['height']}",
            "host": _host(pair["image_url"]),
            "queries": ", ".join(pair["query_texts"][:5]) + (" …" if len(pair["query_texts"]) > 5 else ""),
        }
        for pair in report["shown"]
    ]
    return [Table.from_dicts(f"{len(rows):,} of {report['found']:,} pairs", rows)]


def _host(url: str | None) -> str | None:
    try:
        return urlsplit(url or "").hostname
    except ValueError:
        return None


def score_pair_tables(report: Mapping[str, Any]) -> list[Table]:
    """How the scores of `clipkit score` are distributed."""
    facts: list[tuple[str, Cell]] = [
        ("pairs", report["pairs"]),
        ("scored", report["scored"]),
        ("pictures that cannot be decoded", report["undecodable"]),
        ("mean score", report["mean"]),
        ("encoder", report["model"]),
    ]
    rows = [(name, value) for name, value in (report["quantiles"] or {}).items()]
    return [Table("pair scores", ("what", "value"), facts), Table("scores", ("quantile", "score"), rows)]
