"""Intervals over seeds, against scipy's own tests, and the verdicts that follow from them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from fastsc.reproduction.seeds import (
    SeedEstimate,
    difference_over,
    mean_over,
    prediction,
    ratio_over,
    seeds_to_decide,
    verdict_above,
    verdict_below,
    verdict_not_worse,
)

A = [0.553, 0.559, 0.5526, 0.5485]
B = [0.5601, 0.5633, 0.5595, 0.5574]


def test_a_mean_has_scipys_interval() -> None:
    found = mean_over(A)
    ends = stats.ttest_1samp(A, 0).confidence_interval(0.95)
    assert (found.value, found.n) == (pytest.approx(np.mean(A), abs=1e-15), 4)
    assert (found.low, found.high) == (pytest.approx(ends.low), pytest.approx(ends.high))
    one = stats.ttest_1samp(A, 0, alternative="greater").confidence_interval(0.95)
    assert found.lower == pytest.approx(one.low)
    other = stats.ttest_1samp(A, 0, alternative="less").confidence_interval(0.95)
    assert found.upper == pytest.approx(other.high)


def test_a_difference_is_paired() -> None:
    found = difference_over(A, B)
    ends = stats.ttest_rel(A, B).confidence_interval(0.95)
    assert (found.low, found.high) == (pytest.approx(ends.low), pytest.approx(ends.high))
    shuffled = difference_over(A, B[::-1])
    assert shuffled.value == pytest.approx(found.value)
    assert shuffled.high - shuffled.low > found.high - found.low


def test_a_ratio_is_the_geometric_mean() -> None:
    found = ratio_over(A, B)
    assert found.value == pytest.approx(stats.gmean(np.divide(A, B)))
    assert found.low < found.value < found.high
    assert math.log(found.high / found.value) == pytest.approx(math.log(found.value / found.low))
    inverse = ratio_over(B, A)
    assert (inverse.low, inverse.high) == (
        pytest.approx(1 / found.high),
        pytest.approx(1 / found.low),
    )
    scaled = ratio_over([7 * x for x in A], [7 * x for x in B])
    assert scaled.low == pytest.approx(found.low)


def test_one_seed_has_no_interval_and_none_no_value() -> None:
    assert mean_over([0.5]).value == 0.5
    assert math.isnan(mean_over([0.5]).low)
    assert math.isnan(mean_over([]).value)
    assert mean_over([]).n == 0
    assert math.isnan(mean_over([0.5, math.nan]).value)
    assert math.isnan(ratio_over([0.5, 0.0], [0.5, 0.5]).value)
    assert math.isnan(ratio_over([0.5], [0.0]).value)
    with pytest.raises(AssertionError, match="paired by seed"):
        difference_over([1.0], [1.0, 2.0])


def test_equal_values_have_an_interval_of_no_length() -> None:
    found = mean_over([0.5, 0.5, 0.5])
    assert (found.low, found.high) == (0.5, 0.5)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.4, 0.6, "holds"), (1.1, 1.2, "does not hold"), (0.9, 1.1, "not shown"),
     (math.nan, math.nan, "not shown"), (0.9, 1.0, "not shown"), (1.0, 1.0, "not shown")],
)  # fmt: skip
def test_a_verdict_needs_the_whole_interval(low: float, high: float, verdict: str) -> None:
    assert verdict_below(SeedEstimate((low + high) / 2, low, high, 3), 1.0) == verdict
    assert verdict_above(SeedEstimate(-(low + high) / 2, -high, -low, 3), -1.0) == verdict


@pytest.mark.parametrize(
    ("values", "verdict"),
    [([-0.001, 0.002, 0.0], "holds"), ([-0.02, -0.021, -0.019], "does not hold"),
     ([-0.02, 0.0, -0.004], "not shown"), ([-0.001], "not shown")],
)  # fmt: skip
def test_not_worse_is_one_sided(values: list[float], verdict: str) -> None:
    assert verdict_not_worse(mean_over(values), 0.01) == verdict


def test_not_worse_is_decided_where_two_sides_would_not_be() -> None:
    found = mean_over([-0.0045, -0.001, 0.004])
    assert found.low < -0.01 < found.lower
    assert verdict_not_worse(found, 0.01) == "holds"


def test_further_seeds_fall_into_their_interval_95_times_of_100() -> None:
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(2000):
        values = rng.normal(5, 2, 8).tolist()
        low, high = prediction(values[:5], 3)
        hits += low <= float(np.mean(values[5:])) <= high
    assert 0.935 < hits / 2000 < 0.965  # three standard errors
    assert all(map(math.isnan, prediction([1.0], 3)))


def of_spread(n: int, mean: float, spread: float) -> list[float]:
    """n values of exactly this mean and standard deviation."""
    x = np.arange(n) - (n - 1) / 2
    return (mean + spread * x / x.std(ddof=1)).tolist()


@pytest.mark.parametrize("one_sided", [False, True])
@pytest.mark.parametrize(("mean", "bound"), [(0.5, 0.0), (0.3, 1.0), (-2.0, -1.9)])
def test_so_many_seeds_decide_and_one_less_does_not(
    mean: float, bound: float, one_sided: bool
) -> None:
    """By scipy's own test, of as many values of the same mean and spread."""
    found = seeds_to_decide(mean_over(of_spread(4, mean, 1.0)), bound, one_sided=one_sided)
    assert found is not None
    side = "two-sided" if not one_sided else "less" if mean < bound else "greater"
    before, enough = (
        stats.ttest_1samp(of_spread(n, mean, 1.0), bound, alternative=side).pvalue
        for n in (found - 1, found)
    )
    assert enough < 0.05 <= before


def test_seeds_of_a_ratio_are_of_its_logarithm() -> None:
    ratios = [math.exp(x) for x in of_spread(4, -0.2, 0.5)]
    plain = seeds_to_decide(mean_over([math.log(x) for x in ratios]), math.log(0.9))
    assert seeds_to_decide(ratio_over(ratios, [1.0] * 4), 0.9, log=True) == plain


def test_an_interval_of_ratios_may_have_no_end() -> None:
    found = ratio_over([1e-300, 1.0], [1.0, 1.0])
    assert (found.low, found.high) == (0, math.inf)
    assert verdict_below(found, 1) == "not shown"
    assert seeds_to_decide(found, 1, log=True) is None
    none = ratio_over([5e-324, 5e-324], [1e300, 1e308])
    assert math.isnan(none.value)
    assert seeds_to_decide(none, 1, log=True) is None


def test_what_no_number_of_seeds_decides() -> None:
    assert seeds_to_decide(mean_over([0.5, 0.5]), 0.5) is None  # they do not differ
    assert seeds_to_decide(mean_over([-1.0, 1.0001]), 0.0) is None  # beyond any study
