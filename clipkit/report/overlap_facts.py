"""What a comparison's row says beyond the paper's table: every statistic under a name, with its unit and one line on what it is.

`report.json` has the same figures under the names of its fields. A field that no group knows is shown all the same, under its own name.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from clipkit.report.pages import one_line, p_value, percent, points

__all__ = ["Fact", "FactGroup", "fact_groups", "scores_of"]

MAX_FACT = 300
Unit = Literal["points", "percent", "p", "count", "yes", "text"]
Row = Mapping[str, Any]


class Fact(NamedTuple):
    """One figure: what it is called, the figure with its unit, what it is in one line."""

    name: str
    value: str
    meaning: str


class FactGroup(NamedTuple):
    """Figures that answer one question."""

    title: str
    question: str
    facts: Sequence[Fact]


class _Named(NamedTuple):
    field: str
    name: str
    unit: Unit
    meaning: str


GROUPS: tuple[tuple[str, str, tuple[_Named, ...]], ...] = (
    (
        "The paper's own",
        "Section 5 of the CLIP paper; what it found is of its 35 data sets.",
        (
            _Named("score", "Asked", "text", "what the model was asked: zero-shot, a linear probe, or retrieval in one direction"),
            _Named("metric", "Metric", "text", "what All, Overlap and Clean are; acc1 is the share of right first answers"),
            _Named("threshold_from", "Threshold from", "text", "what has set it, or on what it was measured; the paper's are set by hand"),
            _Named("published", "Score of the whole test set", "percent", "as the evaluation alone gives it"),
            _Named("overlap_minus_clean", "Overlap − Clean", "points", "how much better the model is on pictures with a near-duplicate"),
            _Named("is_shifted", "All − Clean beyond 0.1 points", "yes", "whether the overlap moved the score at all; 7 in the paper"),
            _Named(
                "interval_excludes_clean", "Interval excludes Clean", "yes", "whether that of Overlap leaves out Clean's score; 5 there"
            ),
            _Named("test", "Test", "text", "binomial for a share of right answers; for other metrics, drawn splits of the test set"),
        ),
    ),
    (
        "Corrected, and tested in other ways",
        "Many tasks give small p by chance, and the paper's test takes Clean's score as known.",
        (
            _Named("p_holm", "p, corrected for the number of tasks", "p", "Holm: as safe as Bonferroni's, and finds no less"),
            _Named("is_significant_holm", "Below 0.05 after that", "yes", "whether Overlap is easier than Clean, many tasks allowed for"),
            _Named("p_two_sided", "p, two-sided", "p", "sees a model do worse on what it was trained on, too"),
            _Named("p_exchange", "p among splits of the same sizes", "p", "Fisher's exact test; does not take Clean's score as known"),
            _Named("all_minus_clean_ends", "Interval of All − Clean", "text", "Overlap and Clean both count as drawn pictures"),
        ),
    ),
    (
        "What could have been seen",
        "A test that finds nothing on a few pictures says little.",
        (
            _Named("detectable", "Smallest Overlap − Clean that is found", "points", "in 80% of cases; a smaller one is not ruled out"),
            _Named("detectable_all_minus_clean", "The same for All − Clean", "points", "that difference times the share of overlap"),
            _Named("false_alarm", "p below 0.05 without any effect", "percent", "how often; at most 5%, and less on few pictures"),
        ),
    ),
    (
        "Class mix",
        "Overlap may be easier only because it has more pictures of easy classes.",
        (
            _Named("standardised_difference", "Overlap − Clean at one mix", "points", "with Overlap's classes weighted as Clean's are"),
            _Named("standardised_p", "p at one mix", "p", "one-sided and exact, right answers compared within each class"),
            _Named("standardised_cover", "Share of Clean that this covers", "percent", "pictures of classes that Overlap has, too"),
            _Named("classes_shared", "Classes in both", "count", "only these can be compared"),
            _Named("classes_only_overlap", "Classes in Overlap alone", "count", "left out of the comparison at one mix"),
            _Named("classes_only_clean", "Classes in Clean alone", "count", "left out of it likewise"),
            _Named("class_distance", "Distance of the mixes", "percent", "pictures of Overlap that would have to change class"),
            _Named("imbalance_p", "p of the mixes", "p", "the chance of mixes so far apart, were Overlap drawn from the test set"),
            _Named("imbalance_test", "Test of the mixes", "text", "chi-squared; drawn splits (permutation) where classes are small"),
            _Named("is_imbalanced", "Another mix than Clean's", "yes", "p of the mixes below 0.01: read the difference at one mix"),
        ),
    ),
    (
        "Pictures that show next to nothing",
        "The overlap of Kinetics-700 in the paper was black frames, which say nothing of remembered pictures.",
        (
            _Named("blank_overlap", "All but blank in Overlap", "count", "contrast under 4 grey levels, or 97% of the picture black"),
            _Named("blank_clean", "All but blank in Clean", "count", "likewise"),
            _Named("overlap_minus_clean_without_blank", "Overlap − Clean without them", "points", "the difference of the other pictures"),
            _Named("all_minus_clean_without_blank", "All − Clean without them", "points", "likewise"),
        ),
    ),
)
TOLD = frozenset(
    (
        *("task", "title", "threshold", "count", "overlap", "contamination", "accuracy_all", "accuracy_overlap", "accuracy_clean"),
        *("all_minus_clean", "p_value", "low", "high", "note", "is_significant", "is_significant_bonferroni", "verdicts"),
    )
)
"""Fields of a row that the page's sentences and its table tell."""


ANSWERS_TO = {
    "is_shifted": "overlap_minus_clean",
    "interval_excludes_clean": "low",
    "test": "p_value",
    "is_significant_holm": "p_holm",
    "is_imbalanced": "imbalance_p",
}
"""Fields that say nothing where another is None."""


def scores_of(row: Row) -> list[Row]:
    """The leading comparison of a task and the others, which know no more than their scores."""
    return [row, *({"task": row["task"], **further} for further in row.get("further", ()))]


def fact_groups(row: Row) -> list[FactGroup]:
    """A row's figures, group by group; what is None is left out, and a group without any figure."""
    row = _with_interval(row)
    groups = [FactGroup(title, question, _facts(named, row)) for title, question, named in GROUPS]
    return [group for group in [*groups, FactGroup("Other figures", "As report.json has them.", _others(row))] if group.facts]


def _with_interval(row: Row) -> Row:
    """With both ends of All - Clean's interval as one field, where there are two."""
    low, high = (row.get(f"all_minus_clean_{end}") for end in ("low", "high"))
    rest = {field: value for field, value in row.items() if field not in ("all_minus_clean_low", "all_minus_clean_high")}
    return rest if low is None or high is None else rest | {"all_minus_clean_ends": f"{points(low)} to {points(high)} points"}


def _facts(named: Sequence[_Named], row: Row) -> list[Fact]:
    nothing_blank = row.get("blank_overlap") == row.get("blank_clean") == 0
    return [
        Fact(one.name, _value(row[one.field], one.unit), one.meaning)
        for one in named
        if row.get(one.field) not in (None, "")
        and row.get(ANSWERS_TO.get(one.field, one.field)) is not None
        and not (nothing_blank and one.field.endswith("_without_blank"))
    ]


def _others(row: Row) -> list[Fact]:
    """The simple ones that have no group, and those one level down in a mapping."""
    known = TOLD | {one.field for _, _, named in GROUPS for one in named}
    found: list[Fact] = []
    for field, value in row.items():
        if field in known:
            continue
        inner = value.items() if isinstance(value, Mapping) else [("", value)]
        found += [Fact(f"{field} {key}".replace("_", " ").strip(), _plain(one), "") for key, one in inner if _is_simple(one)]
    return found


def _is_simple(value: object) -> bool:
    return isinstance(value, str | int | float) and value != ""


def _value(value: Any, unit: Unit) -> str:
    if unit == "points":
        return f"{points(value)} points"
    if unit in ("percent", "p"):
        return percent(value) if unit == "percent" else p_value(value)
    return _plain(value)


def _plain(value: str | float) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return one_line(value, MAX_FACT)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
