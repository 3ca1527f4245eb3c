"""What `overlap-report` found beside the scores, as tables: texts, hosts, repeats. For the page, and for the terminal where asked."""

from collections.abc import Mapping
from typing import Any

from clipkit.report.tables import Cell, Share, Table

__all__ = ["host_tables", "text_tables", "within_tables"]

_SHOWN = 10
_ADDRESSES = {"image_url": "picture", "page_url": "page"}


def text_tables(report: Mapping[str, Any]) -> list[Table]:
    """Test texts found in the training texts, and some of them; none where the report did not look."""
    texts = report.get("texts")
    return [_text_table(texts), *_example_tables(texts)] if texts else []


def host_tables(report: Mapping[str, Any]) -> list[Table]:
    """The hosts of the pictures and those of the pages that the overlap comes from; none where there is none."""
    found = report.get("hosts") or {}
    return [_host_table(address, hosts, report["training_pictures"]) for address, hosts in found.items() if hosts["hosts"]]


def within_tables(report: Mapping[str, Any]) -> list[Table]:
    """Near-duplicates inside the test sets and inside the training data; none where the report did not look."""
    within = report.get("within")
    return [_repeat_table(within["tests"]), *_training_tables(within["training"])] if within else []


def _text_table(texts: Mapping[str, Any]) -> Table:
    names = ("task", "kind", "texts", "exact", "contained", "ngram", "share", "too_short")
    rows = [tuple(Share(row[name]) if name == "share" and row[name] is not None else row[name] for name in names) for row in texts["tasks"]]
    notes = [
        f"of {texts['training_texts']:,} training texts; n-gram: {texts['ngram']} tokens in a row, or the whole of a shorter text",
        f"short: under {texts['least']} tokens, which only an equal text counts for; share: of the others, those found in any way",
    ]
    notes += [f"{task}: too many texts to compare" for task in texts["too_many"]]
    titles = ("task", "kind", "texts", "exact", "contained", "n-gram", "share", "short")
    return Table("test texts in the training texts", titles, rows, "\n".join(notes))


def _example_tables(texts: Mapping[str, Any]) -> list[Table]:
    examples = texts["examples"][:_SHOWN]
    rows = [(example["task"], example["how"], example["text"], example["training_text"]) for example in examples]
    return [Table("some of them", ("task", "how", "test text", "training text"), rows)] if rows else []


def _host_table(address: str, found: Mapping[str, Any], training: int) -> Table:
    shown, others = found["top"][:_SHOWN], found["top"][_SHOWN:]
    rows: list[tuple[Cell, ...]] = [
        (row["host"], row["pairs"], row["overlap_pairs"], row["per_million"], row["test_pictures"], Share(row["share"])) for row in shown
    ]
    hosts = found["rest"]["hosts"] + len(others)
    if hosts:
        pairs, overlap = (found["rest"][name] + sum(row[name] for row in others) for name in ("pairs", "overlap_pairs"))
        rows.append((f"({hosts:,} more)", pairs, overlap, 1e6 * overlap / max(1, pairs), None, None))
    titles = ("host", "pairs", "overlap", "per million", "test pictures", "share")
    without = f"{found['pairs_without']:,} of {training:,} pairs are of hosts without overlap"
    note = f"{without}; a test picture that is like pairs of two hosts counts for both"
    return Table(f"overlap by the {_ADDRESSES[address]}'s host", titles, rows, note)


def _repeat_table(tests: list[Mapping[str, Any]]) -> Table:
    names = ("task", "count", "repeated", "equal", "groups", "largest", "distinct", "effective")
    titles = ("task", "pictures", "repeated", "equal files", "groups", "largest", "distinct", "effective")
    note = "effective: the pictures that a mean is worth if each group answers as one"
    return Table("near-duplicates inside the test sets", titles, [tuple(row[name] for name in names) for row in tests], note)


def _training_tables(near: Mapping[str, Any] | None) -> list[Table]:
    if near is None:
        return []
    rows: list[tuple[Cell, ...]] = [
        ("pictures", near["pictures"]),
        ("searched for among all", near["drawn"]),
        ("of them with a near-duplicate", near["repeated"]),
        ("share", Share(near["share"])),
    ]
    if near["low"] is not None:
        rows.append(("interval", f"{near['low']:.1%} to {near['high']:.1%}"))
    for name, what in (("equal_files", "files"), ("equal_vectors", "vectors")):
        rows.append((f"with equal {what}", near[name]["repeated"]))
        rows.append((f"surplus, if each of the equal {what} stood once", near[name]["surplus"]))
    return [Table("near-duplicates inside the training data", ("what", "value"), rows)]
