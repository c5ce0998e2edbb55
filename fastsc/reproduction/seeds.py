"""Figures over seeds: means, paired differences and ratios with their 95 % intervals, verdicts.

The unit is a training. An interval says how a figure varies with the seed of a training (weights,
order, crops, factors) on the same images; arms are paired by seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fastsc.cli.packages import needed

LEVEL = 0.95
NAN = float("nan")
MOST_SEEDS = 1000
Verdict = Literal["holds", "does not hold", "not shown"]


@dataclass(frozen=True)
class SeedEstimate:
    """A figure over n seeds.

    Attributes:
        value: The mean; of ratios the geometric one.
        low, high: Ends of its 95 % interval by Student's t; NaN for one seed.
        n: Seeds.
        lower: End of the one-sided 95 % interval below, `upper` of the one above.
    """

    value: float
    low: float
    high: float
    n: int
    lower: float = NAN
    upper: float = NAN

    def times(self, factor: float) -> SeedEstimate:
        """The same in another unit."""
        ends = (self.value, self.low, self.high, self.lower, self.upper)
        value, low, high, lower, upper = (factor * end for end in ends)
        return SeedEstimate(value, low, high, self.n, lower, upper)


def mean_over(values: Sequence[float]) -> SeedEstimate:
    """The mean of a value per seed; NaN where there is none or one of them is NaN."""
    x = np.asarray(values, np.float64)
    n = len(x)
    if n == 0 or not np.isfinite(x).all():
        return SeedEstimate(NAN, NAN, NAN, n)
    value = float(x.mean())
    if n == 1:
        return SeedEstimate(value, NAN, NAN, 1)
    error = float(x.std(ddof=1)) / math.sqrt(n)
    two, one = (_quantile(q, n - 1) * error for q in ((1 + LEVEL) / 2, LEVEL))
    return SeedEstimate(value, value - two, value + two, n, value - one, value + one)


def difference_over(a: Sequence[float], b: Sequence[float]) -> SeedEstimate:
    """The mean of a - b, seed by seed."""
    assert len(a) == len(b), "arms are paired by seed"
    return mean_over([x - y for x, y in zip(a, b)])


def ratio_over(a: Sequence[float], b: Sequence[float]) -> SeedEstimate:
    """The geometric mean of a / b, seed by seed; NaN where one of them, or a ratio, is not a number
    above 0."""
    assert len(a) == len(b), "arms are paired by seed"
    if any(not (x > 0 and y > 0 and 0 < x / y < math.inf) for x, y in zip(a, b)):
        return SeedEstimate(NAN, NAN, NAN, len(a))
    logs = mean_over([math.log(x / y) for x, y in zip(a, b)])
    ends = (logs.value, logs.low, logs.high, logs.lower, logs.upper)
    with np.errstate(over="ignore"):  # of few seeds far apart an end may be beyond every float
        value, low, high, lower, upper = (float(np.exp(end)) for end in ends)
    return SeedEstimate(value, low, high, logs.n, lower, upper)


def verdict_below(effect: SeedEstimate, bound: float) -> Verdict:
    """Whether a figure lies below a bound: "holds" or "does not hold" if the interval says so.

    Seeds that agree exactly have an interval of no length: one at the bound shows nothing.
    """
    if effect.high < bound:
        return "holds"
    return "does not hold" if effect.low > bound else "not shown"


def verdict_above(effect: SeedEstimate, bound: float) -> Verdict:
    """Likewise, above it."""
    if effect.low > bound:
        return "holds"
    return "does not hold" if effect.high < bound else "not shown"


def verdict_not_worse(effect: SeedEstimate, margin: float) -> Verdict:
    """Whether a difference is above -margin, one-sided at 95 % (non-inferiority)."""
    if effect.lower >= -margin:
        return "holds"
    return "does not hold" if effect.upper < -margin else "not shown"


def seeds_to_decide(
    estimate: SeedEstimate, bound: float, *, log: bool = False, one_sided: bool = False
) -> int | None:
    """How many seeds have an interval that leaves out a bound, if their mean and spread stay these.

    Args:
        estimate: Of at least two seeds.
        bound: On the estimate's scale.
        log: The interval is one of logarithms, as a ratio's.
        one_sided: The bound is tested on one side alone.

    Returns:
        The least such number; None beyond MOST_SEEDS, or where the seeds do not differ.
    """
    q, end = (LEVEL, estimate.upper) if one_sided else ((1 + LEVEL) / 2, estimate.high)
    value, end, bound = (math.log(x) if log else x for x in (estimate.value, end, bound))
    spread = (end - value) * math.sqrt(estimate.n) / _quantile(q, estimate.n - 1)
    if not spread > 0:
        return None
    decides = (
        n
        for n in range(2, MOST_SEEDS + 1)
        if _quantile(q, n - 1) * spread / math.sqrt(n) < abs(value - bound)
    )
    return next(decides, None)


def prediction(values: Sequence[float], m: int) -> tuple[float, float]:
    """The interval that the mean of m further seeds falls into, 95 times of 100; NaN for one value.

    mean ± t √(1/n + 1/m) s (Hahn and Meeker, Statistical Intervals, 1991).
    """
    n = len(values)
    if n < 2:
        return NAN, NAN
    x = np.asarray(values, np.float64)
    spread = math.sqrt(1 / n + 1 / m) * float(x.std(ddof=1))
    reach = _quantile((1 + LEVEL) / 2, n - 1) * spread
    return float(x.mean()) - reach, float(x.mean()) + reach


def _quantile(q: float, freedom: int) -> float:
    """Of Student's t."""
    needed("scipy", "an interval over seeds")
    from scipy.stats import t

    return float(t.ppf(q, freedom))
