"""How sure a difference of two accuracies is, beside the paper's one-sided test. Pure functions.

The paper gives Overlap an interval and takes Clean as known. Here both parts are samples of pictures.
"""

import math

from scipy.stats import binomtest, hypergeom, norm

from clipkit.evaluation.intervals import Interval


def wilson(right: int, count: int, confidence: float) -> Interval:
    """The score interval of a share (Wilson 1927). Raises ValueError without pictures."""
    if not 0 <= right <= count or count == 0:
        raise ValueError(f"{right} right of {count}: at least one picture is needed")
    z = float(norm.ppf((1 + confidence) / 2))
    share, scale = right / count, 1 + z * z / count
    middle = (share + z * z / (2 * count)) / scale
    reach = z / scale * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    low, high = max(0.0, middle - reach), min(1.0, middle + reach)
    return Interval(low if right else 0.0, high if right < count else 1.0)


def newcombe(right_a: int, count_a: int, right_b: int, count_b: int, confidence: float) -> Interval:
    """The hybrid score interval of a - b, two shares of different pictures (Newcombe 1998, method 10)."""
    a, b = right_a / count_a, right_b / count_b
    of_a, of_b = wilson(right_a, count_a, confidence), wilson(right_b, count_b, confidence)
    return Interval(a - b - math.hypot(a - of_a.low, of_b.high - b), a - b + math.hypot(of_a.high - a, b - of_b.low))


def shift_interval(right_overlap: int, overlap: int, right_clean: int, clean: int, confidence: float) -> Interval | None:
    """The interval of All - Clean of an accuracy: Newcombe's of Overlap - Clean, times the contamination, which is taken as given.

    Chosen before a bootstrap, which has no width where all pictures of a part are right, as in a small Overlap they often are; and it
    needs no seed. None where a part is empty.
    """
    if overlap == 0 or clean == 0:
        return None
    share = overlap / (overlap + clean)
    interval = newcombe(right_overlap, overlap, right_clean, clean, confidence)
    return Interval(share * interval.low, share * interval.high)


def two_sided_p(right: int, count: int, clean: float | None) -> float | None:
    """The exact two-sided binomial test of Overlap at Clean's accuracy: all counts as unlikely as the one seen, or more.

    The paper's is one-sided: it cannot see that a model does worse on what it has seen, as on Kinetics-700. None as `one_sided_p`.
    """
    if count == 0 or clean is None:
        return None
    return float(binomtest(right, count, clean).pvalue)


def exchange_p(right_overlap: int, overlap: int, right: int, count: int) -> float | None:
    """The chance of so many right in Overlap, were its pictures any of the test set's: Fisher's exact test, one-sided.

    The binomial test takes Clean's accuracy as known, and finds too much where Clean is small; this one does not. None where a part is
    empty.
    """
    if overlap in (0, count):
        return None
    return min(1.0, float(hypergeom.sf(right_overlap - 1, count, right, overlap)))
