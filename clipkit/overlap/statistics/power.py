"""What the one-sided test of CLIP section 5 could have shown: its power at an overlap of this size, exactly. Pure functions.

A test that finds nothing on twelve pictures says little. With n pictures in Overlap and Clean's accuracy c the test rejects from some
count k of right answers on; a true accuracy p in Overlap gives k or more with the chance I_p(k, n - k + 1), the regularised incomplete
beta function, which grows with p. So the smallest p that is found with a given power is a quantile of a beta distribution.
"""

import numpy as np
from scipy.stats import beta, binom

from clipkit.overlap.statistics.effect import LEVEL

POWER = 0.8
"""How often a difference should be found for the test to be called able to find it (Cohen's convention)."""


def critical_count(count: int, clean: float, *, level: float = LEVEL) -> int | None:
    """The fewest right answers among `count` pictures of Overlap that are significant at Clean's accuracy; None where not even all are."""
    tail = binom.sf(np.arange(-1, count), count, clean)  # of 0, 1, ... or more right
    found = np.flatnonzero(tail < level)
    return int(found[0]) if len(found) else None


def false_alarms(count: int, clean: float, *, level: float = LEVEL) -> float:
    """How often the test rejects where Overlap is just as easy as Clean: at most `level`, and less, as counts are whole."""
    least = critical_count(count, clean, level=level)
    return 0.0 if least is None else float(binom.sf(least - 1, count, clean))


def detectable(count: int, clean: float | None, *, level: float = LEVEL, power: float = POWER) -> float | None:
    """The smallest true Overlap - Clean that the test finds with this power. None where it cannot find any, or has nothing to test.

    Times the contamination it is the smallest All - Clean.
    """
    if clean is None or count == 0:
        return None
    least = critical_count(count, clean, level=level)
    return None if least is None else float(beta.ppf(power, least, count - least + 1)) - clean
