"""What the tests of many tasks say together: how many would be significant by chance, and which still are when that is allowed for."""

from collections.abc import Sequence
from typing import Any

from clipkit.evaluation.significance import holm
from clipkit.overlap.statistics.comparison import Comparison
from clipkit.overlap.statistics.effect import LEVEL, summarise


def holm_over(p_values: Sequence[float | None]) -> list[float | None]:
    """p-values adjusted after Holm (1979), in their order. A task without a test counts as one of p = 1, as in the paper's 0.05 / 35.

    So whatever is significant after Bonferroni is so after Holm, which is as safe and finds more.
    """
    adjusted = holm([1.0 if p is None else p for p in p_values])
    return [None if p is None else q for p, q in zip(p_values, adjusted, strict=True)]


def rows_together(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """The rows of comparisons that are one family of tests, with what depends on how many there are."""
    adjusted = holm_over([comparison.effect.p_value for comparison in comparisons])
    return [
        comparison.row
        | {
            "is_shifted": comparison.effect.is_shifted,
            "interval_excludes_clean": comparison.effect.interval_excludes_clean,
            "is_significant": comparison.effect.is_significant(LEVEL),
            "is_significant_bonferroni": comparison.effect.is_significant(LEVEL / len(comparisons)),
            "p_holm": p_holm,
            "is_significant_holm": p_holm is not None and p_holm < LEVEL,
        }
        for comparison, p_holm in zip(comparisons, adjusted, strict=True)
    ]


def summary_of(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """The paper's counts over tasks, and those beside them. `by_chance`: how many of the tests one would expect to be significant
    were Overlap nowhere easier; exact for the binomial tests, whose counts are whole, so that they err less often than 5%."""
    adjusted = holm_over([comparison.effect.p_value for comparison in comparisons])
    chances = [chance for comparison in comparisons if isinstance(chance := comparison.beyond["false_alarm"], float)]
    return vars(summarise([comparison.effect for comparison in comparisons])) | {
        "tested": len(chances),
        "by_chance": sum(chances),
        "significant_holm": sum(p is not None and p < LEVEL for p in adjusted),
        "significant_two_sided": sum(_below_level(comparison, "p_two_sided") for comparison in comparisons),
        "significant_exchange": sum(_below_level(comparison, "p_exchange") for comparison in comparisons),
        "significant_standardised": sum(_below_level(comparison, "standardised_p") for comparison in comparisons),
        "imbalanced": sum(bool(comparison.beyond["is_imbalanced"]) for comparison in comparisons),
    }


def _below_level(comparison: Comparison, name: str) -> bool:
    p = comparison.beyond[name]
    return isinstance(p, float) and p < LEVEL
