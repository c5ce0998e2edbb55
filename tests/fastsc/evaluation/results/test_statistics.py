"""Estimates and differences against scipy, cases of three images by hand, and simulations."""

from __future__ import annotations

import tracemalloc
import warnings
from math import comb, inf, isnan, nan, sqrt

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import bootstrap, norm
from scipy.stats import t as student

from fastsc.evaluation.results.statistics import RESAMPLES, Statistic, compare, estimate

pytestmark = pytest.mark.heavy

SIMULATIONS = 1000
FEWER = 500  # resamples in a simulation


@pytest.fixture(autouse=True)
def no_warnings() -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def row(*values: float) -> NDArray[np.float64]:
    return np.array([values])


def skewed(n: int, rows: int = 1, seed: int = 3) -> NDArray[np.float64]:
    return np.random.default_rng(seed).exponential(size=(rows, n))


def widened(n: int) -> float:
    """The level at which percentiles of normal means are Student's interval at 95 %."""
    return float(1 - 2 * norm.cdf(-student.ppf(0.975, n - 1) * sqrt(n / (n - 1))))


# --- one figure -----------------------------------------------------------------------------------


def test_mean_is_scipys_bca() -> None:
    columns = skewed(40)
    expected = bootstrap(
        (columns[0],),
        np.mean,
        n_resamples=RESAMPLES,
        method="BCa",
        confidence_level=widened(40),
        rng=np.random.default_rng(7),
    ).confidence_interval
    found = estimate(columns, "mean", seed=7)
    assert (found.low, found.high) == (expected.low, expected.high)
    assert found.value == columns.mean()
    assert (found.n, found.seed, found.method) == (40, 7, "BCa")


def test_ratio_is_scipys_paired_bca_of_a_ratio_of_means() -> None:
    columns = skewed(40, 2)

    def ratio(a: NDArray[np.float64], b: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
        return a.mean(axis) / b.mean(axis)

    expected = bootstrap(
        tuple(columns),
        ratio,
        paired=True,
        n_resamples=RESAMPLES,
        method="BCa",
        confidence_level=widened(40),
        rng=np.random.default_rng(0),
    ).confidence_interval
    found = estimate(columns, "ratio")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-12)
    assert found.value == pytest.approx(columns[0].sum() / columns[1].sum(), rel=1e-12)
    assert found.method == "BCa"


def test_share_has_wilsons_interval() -> None:
    """(p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n), of 2 out of 3."""
    found = estimate(row(1, 0, 1), "share")
    z, p, n = 1.959963984540054, 2 / 3, 3
    centre, half = p + z * z / (2 * n), z * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    ends = (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)
    assert (found.low, found.high) == pytest.approx(ends, rel=1e-12)
    assert (found.value, found.n, found.method) == (p, 3, "Wilson")


def test_median_of_three_with_one_beyond_the_range() -> None:
    """The median of a resample is beyond with probability 7/27, and the least with 7/27, too."""
    found = estimate(row(1, inf, 2), "median")
    assert (found.value, found.low, found.high, found.method) == (2, 1, inf, "percentile")


def test_median_that_most_images_are_beyond() -> None:
    found = estimate(row(*[1] * 10, *[inf] * 11), "median")
    assert (found.value, found.low, found.high) == (inf, 1, inf)


def test_interval_of_many_images_is_of_percentiles_and_memory_is_bounded() -> None:
    columns = skewed(50_000)
    tracemalloc.start()
    found = estimate(columns, "mean", resamples=200)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.method == "percentile"
    error = 1 / sqrt(50_000)  # of the mean of a standard exponential
    assert found.low == pytest.approx(found.value - 1.96 * error, abs=0.6 * error)
    assert found.high == pytest.approx(found.value + 1.96 * error, abs=0.6 * error)
    assert peak < 100e6  # 200 resamples at once would be 160 MB


@pytest.mark.parametrize(
    ("columns", "statistic", "expected"),
    [
        (row(0.1, 0.1, 0.1), "mean", (0.1, 0.1, 0.1)),
        (np.array([[0.3, 0.3], [0.6, 0.6]]), "ratio", (0.5, 0.5, 0.5)),
        (row(inf, inf, inf), "median", (inf, inf, inf)),
        (row(2), "mean", (2, nan, nan)),
        (row(2, nan), "mean", (nan, nan, nan)),
        (row(1, nan), "share", (nan, nan, nan)),
        (np.zeros((1, 0)), "mean", (nan, nan, nan)),
        (np.zeros((1, 0)), "share", (nan, nan, nan)),
        (np.array([[1.0, 2.0], [0.0, 0.0]]), "ratio", (nan, nan, nan)),
    ],
)
def test_cases_without_an_interval(
    columns: NDArray[np.float64], statistic: Statistic, expected: tuple[float, float, float]
) -> None:
    found = estimate(columns, statistic)
    assert (found.value, found.low, found.high) == pytest.approx(expected, nan_ok=True)
    assert found.method == "none"


def test_ratio_whose_divisor_is_zero_in_some_resamples() -> None:
    found = estimate(np.array([[1.0, 1.0, 2.0], [0.0, 0.0, 1.0]]), "ratio")
    assert found.value == 4
    assert found.method == "percentile"
    # Resamples with one, two and three of the third image: (1+1+2)/1, (1+2+2)/2, (2+2+2)/3.
    assert (found.low, found.high) == (2, 4)


def test_ratio_that_is_the_same_for_every_image() -> None:
    below = skewed(30)
    found = estimate(np.concatenate([0.3 * below, below]), "ratio")
    assert (found.value, found.low, found.high) == pytest.approx((0.3, 0.3, 0.3))


@pytest.mark.parametrize("statistic", ["mean", "ratio", "median"])
def test_the_seed_decides(statistic: Statistic) -> None:
    columns = skewed(60, 2 if statistic == "ratio" else 1)
    one, again = estimate(columns, statistic, seed=1), estimate(columns, statistic, seed=1)
    assert one == again
    assert estimate(columns, statistic, seed=2).low != one.low
    a, b = columns, 0.9 * columns + skewed(60, len(columns), seed=4)
    assert compare(a, b, statistic, seed=1) == compare(a, b, statistic, seed=1)
    assert compare(a, b, statistic, seed=2).low != compare(a, b, statistic, seed=1).low


# --- two models -----------------------------------------------------------------------------------


def test_difference_of_three_images_by_hand() -> None:
    """Differences 2, 3, 6: a resample is all 2 or all 6 with 1/27 each, more than 2.5 %."""
    found = compare(row(3, 5, 9), row(1, 2, 3), "mean")
    assert found.value == pytest.approx(11 / 3)
    assert (found.low, found.high) == pytest.approx((2, 6))
    assert found.p == 1 / RESAMPLES
    error = sqrt(((2 - 11 / 3) ** 2 + (3 - 11 / 3) ** 2 + (6 - 11 / 3) ** 2) / 3 / 3)
    assert found.smallest == pytest.approx((1.959964 + 0.841621) * error, rel=0.05)


def test_p_is_the_level_at_which_the_interval_ends_at_no_difference() -> None:
    """Differences -1, 1, 1: a resample's mean is at most 0 with probability 7/27.

    That is the normal quantile -0.645, for three images t = -0.645 √(2/3) with 2 degrees of
    freedom, where P(T ≤ t) = 1/2 + t / (2 √(2 + t²)).
    """
    found = compare(row(0, 1, 1), row(1, 0, 0), "mean")
    t = -0.645 * sqrt(2 / 3)
    assert found.p == pytest.approx(1 + t / sqrt(2 + t * t), abs=0.04)
    assert found.low < 0 < found.high


def test_difference_is_paired() -> None:
    """Images differ by far more than the models: only pairs show that one is ahead."""
    b = 100 * skewed(50)
    found = compare(b + 0.1 + 0.01 * skewed(50, seed=9), b, "mean")
    assert 0.1 < found.low < found.high < 0.12
    assert found.p == 1 / RESAMPLES


def test_shares_by_mcnemars_exact_test() -> None:
    """One ahead on 5 images, the other on 1: P(X ≥ 5 or X ≤ 1) of six fair coins is 14/64."""
    a = row(1, 1, 1, 1, 1, 0, 1, 1, 0, 0)
    b = row(0, 0, 0, 0, 0, 1, 1, 1, 0, 0)
    found = compare(a, b, "share")
    assert found.value == pytest.approx(0.4)
    assert found.p == pytest.approx(2 * (comb(6, 5) + comb(6, 6)) / 2**6)
    assert compare(b, a, "share").p == found.p
    # Agresti and Min: half a pair more in each cell.
    error = sqrt((5.5 + 1.5) - (5.5 - 1.5) ** 2 / 12) / 12
    assert found.smallest == pytest.approx((1.959964 + 0.841621) * error)


def test_shares_that_never_differ() -> None:
    a = row(*[1.0] * 15, *[0.0] * 5)
    found = compare(a, a, "share")
    assert (found.value, found.p) == (0, 1)
    assert found.low == -found.high < 0  # that 20 images do not differ does not say that none does
    assert found.smallest == pytest.approx((1.959964 + 0.841621) / 22)


def test_equal_columns() -> None:
    found = compare(skewed(30), skewed(30), "mean")
    assert (found.value, found.low, found.high, found.p, found.smallest) == (0, 0, 0, 1, 0)


@pytest.mark.parametrize(
    ("a", "b", "statistic", "value"),
    [
        (row(inf, inf), row(inf, inf), "median", nan),
        (row(1, nan), row(1, 2), "mean", nan),
        (row(1, nan), row(1, 0), "share", nan),
        (row(2), row(1), "mean", 1),
        (row(1), row(1), "share", 0),
        (np.zeros((1, 0)), np.zeros((1, 0)), "mean", nan),
        (np.array([[1.0, 2.0], [0.0, 0.0]]), np.ones((2, 2)), "ratio", nan),
    ],
)
def test_differences_without_an_interval(
    a: NDArray[np.float64], b: NDArray[np.float64], statistic: Statistic, value: float
) -> None:
    found = compare(a, b, statistic)
    assert found.value == pytest.approx(value, nan_ok=True)
    assert all(isnan(x) for x in (found.low, found.high, found.p, found.smallest))


def test_medians_of_which_some_lie_beyond_the_range() -> None:
    """Resamples where both medians are beyond say nothing; in the others one is behind."""
    a, b = row(*[1.0] * 12, *[inf] * 8), row(*[3.0] * 12, *[inf] * 8)
    found = compare(a, b, "median")
    assert (found.value, found.low, found.high) == (-2, -2, -2)
    assert found.p < 0.01
    beyond = compare(row(*[inf] * 20), b, "median")
    assert (beyond.value, beyond.low, beyond.high, beyond.smallest) == (inf, inf, inf, inf)


# --- simulations ----------------------------------------------------------------------------------


def drawn(statistic: Statistic, rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    """n images whose mean is 1, share 0.1, ratio 0.5, median log 2."""
    if statistic == "share":
        return (rng.random((1, n)) < 0.1).astype(np.float64)
    if statistic == "ratio":
        below = rng.gamma(2, size=n)  # distances: positive and skewed
        return np.stack([below * rng.uniform(0, 1, n), below])
    return rng.exponential(size=(1, n))


TRUTH: dict[Statistic, float] = {"mean": 1, "share": 0.1, "ratio": 0.5, "median": float(np.log(2))}


def coverage(statistic: Statistic, simulations: int, resamples: int) -> float:
    rng, n = np.random.default_rng(20261125), 100
    held = 0
    for seed in range(simulations):
        found = estimate(drawn(statistic, rng, n), statistic, seed=seed, resamples=resamples)
        held += found.low <= TRUTH[statistic] <= found.high
    return held / simulations


def paired(
    statistic: Statistic, rng: np.random.Generator, n: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Two models over the same images, neither ahead, whose answers go together."""
    a, b, either = (drawn(statistic, rng, n) for _ in range(3))
    same = rng.random(n) < 0.6
    return np.where(same, either, a), np.where(same, either, b)


def coverage_of_difference(
    statistic: Statistic, simulations: int, resamples: int
) -> tuple[float, float]:
    """How often the interval holds 0, and how often p is above .05."""
    rng = np.random.default_rng(20261126)
    held = above = 0
    for seed in range(simulations):
        a, b = paired(statistic, rng, 100)
        found = compare(a, b, statistic, seed=seed, resamples=resamples)
        held += found.low <= 0 <= found.high
        above += found.p >= 0.05
    return held / simulations, above / simulations


@pytest.mark.parametrize("statistic", ["mean", "share"])
def test_intervals_cover_95_percent(statistic: Statistic) -> None:
    assert 0.93 <= coverage(statistic, SIMULATIONS // 2, FEWER) <= 0.97


@pytest.mark.parametrize(
    "statistic", ["mean", "share", pytest.param("ratio", marks=pytest.mark.slow)]
)
def test_intervals_of_differences_cover_95_percent(statistic: Statistic) -> None:
    held, above = coverage_of_difference(statistic, SIMULATIONS // 2, FEWER)
    assert 0.93 <= held <= 0.97
    # McNemar's exact test errs on the safe side, with few discordant pairs.
    assert 0.93 <= above <= (1 if statistic == "share" else 0.97)


@pytest.mark.slow
@pytest.mark.parametrize("statistic", TRUTH)
def test_intervals_cover_95_percent_with_all_resamples(statistic: Statistic) -> None:
    assert 0.93 <= coverage(statistic, 2 * SIMULATIONS, RESAMPLES) <= 0.97
    held, _ = coverage_of_difference(statistic, 2 * SIMULATIONS, RESAMPLES)
    assert 0.93 <= held <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("statistic", ["mean", "share"])
def test_the_smallest_difference_is_found_four_times_in_five(statistic: Statistic) -> None:
    """Data with a difference as large as `smallest` says, which a test at 5 % finds in 80 %."""
    rng, n = np.random.default_rng(1), 400
    found, said = 0, []
    for seed in range(SIMULATIONS // 2):
        if statistic == "mean":
            true = (1.959964 + 0.841621) / sqrt(n)
            b = rng.exponential(size=(1, n))
            a = b + rng.normal(true, 1, size=(1, n))
        else:  # ahead on 12 % of the images, behind on 6.1 %
            true = 0.059  # 2.80 √((0.12 + 0.061 - true²) / n)
            u = rng.random((1, n))
            a = np.where(u < 0.12, 1.0, np.where(u < 0.181, 0.0, u > 0.5))
            b = np.where(u < 0.12, 0.0, np.where(u < 0.181, 1.0, u > 0.5))
        result = compare(a, b, statistic, seed=seed, resamples=FEWER)
        found += result.p < 0.05
        said.append(result.smallest)
    assert np.mean(said) == pytest.approx(true, rel=0.05)
    assert 0.75 <= found / (SIMULATIONS // 2) <= 0.85


def test_rates_that_are_all_nothing_or_all_one_are_not_certain() -> None:
    half = np.array([[0.0, 0.5, 1.0, 0.5]])
    assert estimate(half, "rate") == estimate(half, "mean")
    for value in (0.0, 1.0):
        same = np.full((1, 30), value)
        assert estimate(same, "rate") == estimate(same, "share")
        found, oracle = (compare(same, same, statistic) for statistic in ("rate", "share"))
        assert (found.low, found.high, found.smallest) == (oracle.low, oracle.high, oracle.smallest)
        assert found.low < 0 < found.high
        assert found.p == 1
    one = estimate(np.full((1, 4), 0.5), "rate")
    assert (one.low, one.high) == (0.5, 0.5)
