"""Estimates with 95 % intervals, and differences of two models over the same images."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fastsc.cli.packages import needed

Statistic = Literal["mean", "share", "rate", "ratio", "median"]
Floats = NDArray[np.float64]

RESAMPLES = 2_000
BCA_IMAGES = 2_000  # at most: the jackknife is n², and for more images the correction is nothing
BATCH = 2**21  # elements of the resamples that are held at a time
TAIL = 0.025
Z_TAIL, Z_POWER = 1.959964, 0.841621  # normal quantiles at .975 and .80
NAN = float("nan")


@dataclass(frozen=True)
class Estimate:
    """A figure over n images with its 95 % interval; NaN where there is none, inf beyond a range.

    Attributes:
        value, low, high: The figure and the interval's ends.
        n: Images.
        seed: Of the resampling.
        method: "BCa", "percentile", "Wilson" or "none".
    """

    value: float
    low: float
    high: float
    n: int
    seed: int
    method: str


@dataclass(frozen=True)
class Difference:
    """A figure of one model less that of another, over the n images that both have.

    Attributes:
        value, low, high: The difference and the ends of its 95 % interval.
        n: Images.
        seed: Of the resampling.
        p: Of no difference, two-sided: exact McNemar for shares, else the paired bootstrap's.
        smallest: The smallest difference that so many images show with a power of 80 %.
    """

    value: float
    low: float
    high: float
    n: int
    seed: int
    p: float
    smallest: float


def estimate(
    columns: Floats, statistic: Statistic, *, seed: int = 0, resamples: int = RESAMPLES
) -> Estimate:
    """A statistic over images and its 95 % interval.

    Shares have Wilson's score interval (JASA 22, 1927); means and ratios the bootstrap's BCa one
    (Efron, JASA 82, 1987) up to BCA_IMAGES images; medians, and whatever has more images, its
    percentiles; but for medians it is widened as Student's t is over the normal distribution, and
    by √(n / (n - 1)), since what is resampled varies less than images do (Hesterberg, The American
    Statistician 69, 2015). There is no interval of one image, nor a figure where a value is NaN or
    the mean below a ratio is 0. Values that are all equal have an interval of no length, but for
    shares, and for rates that are all 0 or all 1: the next image may be another.

    Args:
        columns: (1, n), or (2, n) for "ratio": mean of the first over mean of the second. Shares
            are of 0 and 1, rates of values from 0 to 1. In a median values may be inf: known only
            to lie beyond a range.
        statistic: What to make of them.
        seed: Of the resampling.
        resamples: How many.
    """
    columns = np.asarray(columns, np.float64)
    n = columns.shape[1]
    value = _value(columns, statistic)
    if np.isnan(value):
        return Estimate(NAN, NAN, NAN, n, seed, "none")
    if statistic == "share":
        return Estimate(value, *_wilson(columns[0]), n, seed, "Wilson")
    if n < 2:
        return Estimate(value, NAN, NAN, n, seed, "none")
    if (columns == columns[:, :1]).all():
        if statistic == "rate" and value in (0, 1):
            return Estimate(value, *_wilson(columns[0]), n, seed, "Wilson")
        return Estimate(value, value, value, n, seed, "none")
    of = FUNCTIONS[statistic]
    resampled = bootstrapped(columns, of, seed, resamples)
    drawn, tail = resampled.bootstrap_distribution, _tail(statistic, n)
    if statistic != "median" and n <= BCA_IMAGES and np.isfinite(drawn).all():
        low, high = _bca(columns, of, resampled, tail)
        if np.isfinite([low, high]).all():
            return Estimate(value, low, high, n, seed, "BCa")
    return Estimate(value, *_percentiles(drawn, tail), n, seed, "percentile")


def compare(
    a: Floats, b: Floats, statistic: Statistic, *, seed: int = 0, resamples: int = RESAMPLES
) -> Difference:
    """statistic(a) - statistic(b) over the same images, which are resampled together.

    The interval is the paired bootstrap's percentile one, widened as in `estimate`, and p the level
    at which it would end at 0, at least 1 / resamples, so that the two agree. Of shares p is
    McNemar's exact one (Psychometrika 12, 1947), which may say a little less. `smallest` is 2.80
    standard errors: the bootstrap's, of shares Agresti and Min's (Statistics in Medicine 24, 2005),
    which is not 0, and neither is the interval's length, where the models never differ; so for
    rates, where they never do.

    Args:
        a, b: As in `estimate`, of the same images in the same order.
        statistic, seed, resamples: As in `estimate`.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert a.shape == b.shape, "a comparison is over the same images"
    (k, n), of = a.shape, FUNCTIONS[statistic]

    def difference(*columns: Floats, axis: int = -1) -> Floats:
        with np.errstate(invalid="ignore"):  # inf - inf
            return of(*columns[:k], axis=axis) - of(*columns[k:], axis=axis)

    with np.errstate(invalid="ignore"):
        value = float(np.subtract(_value(a, statistic), _value(b, statistic)))
    if np.isnan(value) or n < 2:
        return Difference(value, NAN, NAN, n, seed, NAN, NAN)
    drawn = bootstrapped(np.concatenate([a, b]), difference, seed, resamples).bootstrap_distribution
    low, high = _percentiles(drawn, _tail(statistic, n))
    if statistic == "share":
        p, error = _mcnemar(a[0], b[0]), _share_error(a[0], b[0])
        if (a == b).all():
            low, high = -Z_TAIL * error, Z_TAIL * error
    else:
        p, error = _two_sided(drawn, statistic, n), _deviation(drawn)
        if statistic == "rate" and (a == b).all():
            error = _share_error(a[0], b[0])
            low, high = -Z_TAIL * error, Z_TAIL * error
    return Difference(value, low, high, n, seed, p, (Z_TAIL + Z_POWER) * error)


def _ratio(above: Floats, below: Floats, axis: int = -1) -> Floats:
    """x / 0 is NaN, not inf: there is no scale."""
    with np.errstate(invalid="ignore", divide="ignore"):
        divisor = np.mean(below, axis=axis)
        return np.mean(above, axis=axis) / np.where(divisor == 0, NAN, divisor)


FUNCTIONS: dict[Statistic, Callable[..., Any]] = {
    "mean": np.mean,
    "share": np.mean,
    "rate": np.mean,
    "ratio": _ratio,
    "median": np.median,
}


def _value(columns: Floats, statistic: Statistic) -> float:
    assert len(columns) == (2 if statistic == "ratio" else 1), f"{statistic} of {len(columns)} rows"
    if not columns.shape[1] or np.isnan(columns).any():
        return NAN
    return float(FUNCTIONS[statistic](*columns))


def bootstrapped(columns: Floats, of: Callable[..., Any], seed: int, n: int) -> Any:
    """scipy's result, with the statistic of each of n resamples of the images."""
    # Its own percentiles, of inf and NaN, are not used.
    rng = np.random.default_rng(seed)
    return _bootstrap(columns, of, n_resamples=n, method="percentile", rng=rng)


def _bootstrap(columns: Floats, of: Callable[..., Any], **options: Any) -> Any:
    needed("scipy", "an interval")
    from scipy.stats import bootstrap

    paired, batch = len(columns) > 1, max(1, BATCH // len(columns[0]))
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return bootstrap(tuple(columns), of, paired=paired, batch=batch, vectorized=True, **options)


def _tail(statistic: Statistic, n: int) -> float:
    """The share of resamples beyond either end of the interval: 2.5 %, or less for few images."""
    from scipy.stats import norm, t

    if statistic in ("median", "share"):
        return TAIL
    return float(norm.cdf(t.ppf(TAIL, n - 1) * np.sqrt(n / (n - 1))))


def _bca(columns: Floats, of: Callable[..., Any], drawn: Any, tail: float) -> tuple[float, float]:
    """The BCa interval out of resamples that are drawn; NaN where it is degenerate."""
    level = 1 - 2 * tail
    interval = _bootstrap(
        columns, of, n_resamples=0, method="BCa", confidence_level=level, bootstrap_result=drawn
    ).confidence_interval
    return float(interval.low), float(interval.high)


def _percentiles(drawn: Floats, tail: float) -> tuple[float, float]:
    """What lies between the tails of what was drawn, without what is undefined."""
    drawn = drawn[~np.isnan(drawn)]
    if not len(drawn):
        return NAN, NAN
    # Of what was drawn itself: nothing lies between a number and infinity.
    low, high = np.quantile(drawn, (tail, 1 - tail), method="inverted_cdf").tolist()
    return low, high


def _two_sided(drawn: Floats, statistic: Statistic, n: int) -> float:
    """The level at which the percentile interval of these differences ends at 0: `_tail` undone."""
    from scipy.stats import norm, t

    drawn = drawn[~np.isnan(drawn)]
    if not len(drawn):
        return NAN
    tail = min(np.mean(drawn <= 0), np.mean(drawn >= 0))
    if statistic != "median":
        tail = t.cdf(norm.ppf(tail) * np.sqrt((n - 1) / n), n - 1)
    return float(np.clip(2 * tail, 1 / len(drawn), 1))


def _deviation(drawn: Floats) -> float:
    """The standard error; inf where some of the differences are."""
    drawn = drawn[~np.isnan(drawn)]
    if not len(drawn):
        return NAN
    return float(np.std(drawn)) if np.isfinite(drawn).all() else float("inf")


def _wilson(hits: Floats) -> tuple[float, float]:
    needed("scipy", "an interval")
    from scipy.stats import binomtest

    interval = binomtest(int(hits.sum()), len(hits)).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def _mcnemar(a: Floats, b: Floats) -> float:
    """Exact: where the two differ, each is as often the larger."""
    from scipy.stats import binomtest

    larger, discordant = int((a > b).sum()), int((a != b).sum())
    return float(binomtest(larger, discordant).pvalue) if discordant else 1.0


def _share_error(a: Floats, b: Floats) -> float:
    """Standard error of a paired difference of shares, half a pair added to each of the cells."""
    n, larger, smaller = len(a) + 2, (a > b).sum() + 0.5, (a < b).sum() + 0.5
    return float(np.sqrt(larger + smaller - (larger - smaller) ** 2 / n) / n)
