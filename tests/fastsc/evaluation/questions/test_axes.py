"""Classes by kinds of change: against scipy, closed forms, and simulations in which nothing is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, hypergeom, permutation_test

from fastsc.errors import UserError
from fastsc.evaluation.questions.bias import axes as module
from fastsc.evaluation.questions.bias.axes import (
    axis_rows,
    by_class,
    chances,
    choose_images,
    dependences,
    respond,
)
from fastsc.evaluation.results.answers import Rows
from fastsc.evaluation.results.statistics import estimate
from fastsc.evaluation.views import KINDS, Viewer, choose, ends
from fastsc.kernels.color import color_jitter
from fastsc.pipelines import Pipeline, keyed
from tests.fastsc.evaluation import tiny

STRENGTHS = (0.4, 0.3, 0.5, 0.1)
SIZES = {"a": 9, "b": 7, "c": 4, "d": 12, "e": 1}


@pytest.fixture
def noisy(tmp_path: Path) -> Pipeline:
    rng = np.random.default_rng(1)
    pixels = {name: tiny.noise(rng, n, 20, 230) for name, n in SIZES.items()}
    return tiny.loader(tmp_path, pixels, strengths=STRENGTHS)


# --- which images --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "counts"),
    [
        (None, {"a": 9, "b": 7, "d": 12}),
        (28, {"a": 9, "b": 7, "d": 12}),
        (27, {"a": 9, "b": 7, "d": 11}),
        (21, {"a": 7, "b": 7, "d": 7}),
        (20, {"a": 6, "b": 6, "d": 6}),
        (15, {"a": 5, "b": 5, "d": 5}),
    ],
)
def test_classes_get_equally_many_images(
    noisy: Pipeline, n: int | None, counts: dict[str, int]
) -> None:
    index, left_out = choose_images(noisy, n, 0)
    targets, names = noisy.index.targets, noisy.index.classes
    assert np.array_equal(index, np.unique(index))
    found = {names[c]: int((targets[index] == c).sum()) for c in np.unique(targets[index])}
    assert found == counts
    for name, count in counts.items():
        own = np.flatnonzero(targets == names.index(name))
        chosen = index[targets[index] == names.index(name)]
        assert np.array_equal(chosen, choose(noisy, count, 0, own))
    assert left_out == ("classes: 2 of 5 have fewer than 5 images",)


@pytest.mark.parametrize(("n", "each"), [(14, 7), (11, 5), (1, 5)])
def test_too_few_images_for_every_class_are_of_some_classes(
    noisy: Pipeline, n: int, each: int
) -> None:
    chosen = set()
    for seed in range(8):
        index, left_out = choose_images(noisy, n, seed)
        classes, counts = np.unique(noisy.index.targets[index], return_counts=True)
        assert counts.tolist() == [each, each]
        assert left_out[1] == "classes: 2 of 3, a keyed choice, are looked at"
        chosen.add(tuple(classes.tolist()))
    assert len(chosen) > 1
    assert {c for pair in chosen for c in pair} <= {0, 1, 3}


def test_what_the_data_cannot_answer(noisy: Pipeline, tmp_path: Path) -> None:
    index, targets = noisy.index, noisy.index.targets
    others = np.flatnonzero(targets != 0).tolist()
    noisy.index = index.without(dict.fromkeys(others, "broken"))
    with pytest.raises(UserError, match="bias: 1 of 1 class folders have 5 images or more"):
        choose_images(noisy, None, 0)
    noisy.index = replace(index, classes=("",) * 5)
    with pytest.raises(UserError, match="bias: the images have no labels"):
        choose_images(noisy, None, 0)
    still = tiny.loader(tmp_path, {}, strengths=(0, 0, 0, 0))
    with pytest.raises(UserError, match="bias: the strengths are 0"):
        choose_images(still, None, 0)


def test_ends() -> None:
    assert ends("brightness", 0.4) == pytest.approx((0.6, 1.4))
    assert ends("saturation", 1.5) == (0, 2.5)
    assert ends("hue", 0.1) == (-0.1, 0.1)
    assert ends("hue", 0.7) == (-0.5, 0.5)


# --- a row an image ------------------------------------------------------------------------------


def test_grey_images_by_hand(tmp_path: Path) -> None:
    values = np.round(255 * np.array([0.2, 0.4, 0.9])) / 255
    loader = tiny.loader(tmp_path, {"a": tiny.constant(0.2, 0.4, 0.9)}, strengths=(0.5, 0, 0, 0))
    index = np.arange(3)
    answered = respond(Viewer(tiny.flat(), loader), index, ["brightness"])
    rows = axis_rows(answered, index, loader, ["brightness"])
    unit = np.sqrt(192)  # of a difference of grey values
    moved = 0.5 * abs(0.5 * values - values) + 0.5 * abs(np.minimum(1.5 * values, 1) - values)
    np.testing.assert_allclose(rows.columns["moved/brightness"], unit * moved, rtol=1e-5)
    cycle = keyed.cycle(index, 3)
    for at, following in zip(cycle, np.roll(cycle, -1), strict=True):
        expected = unit * abs(values[at] - values[following])
        assert rows.columns["between"][at] == pytest.approx(expected, rel=1e-5)


def test_every_kind_beside_the_reference(noisy: Pipeline) -> None:
    model = tiny.flat(4, scale=30.0)
    index = np.array([0, 3, 8, 20, 30])
    rows = axis_rows(respond(Viewer(model, noisy), index, KINDS), index, noisy, KINDS)
    x = torch.from_numpy(tiny.decoded(noisy))[index]
    double = model.net.double()

    def answer(images: torch.Tensor) -> tuple[Any, Any]:
        return images.flatten(1).numpy(), double(images).argmax(1).numpy()

    features, predicted = answer(x)
    shares = []
    for column, kind in enumerate(KINDS):
        moved, flipped = np.zeros(5), np.zeros(5)
        for sign in (-1, 1):
            factors = torch.tensor([[1.0, 1, 1, 0]], dtype=torch.float64).repeat(5, 1)
            factors[:, column] += sign * STRENGTHS[column]
            there, after = answer(color_jitter(x, factors))
            moved += np.linalg.norm(there - features, axis=1) / 2
            flipped += (after != predicted) / 2
        np.testing.assert_allclose(rows.columns[f"moved/{kind}"], moved, rtol=1e-3)
        assert rows.columns[f"flipped/{kind}"].tolist() == flipped.tolist()
        shares.append(flipped)
    assert 0 < np.mean(shares) < 1  # or it shows nothing
    assert rows.columns["predicted"].tolist() == predicted.tolist()
    assert rows.columns["class"].tolist() == noisy.index.targets[index].tolist()


# --- the test ------------------------------------------------------------------------------------


def test_chances_equal_the_exact_permutation_test() -> None:
    rng = np.random.default_rng(5)
    groups = np.array([7, 2, 2, 5, 7, 5, 2, 5, 7, 5, 7, 5])  # of 3, 5 and 4
    columns = rng.lognormal(size=(3, 12))
    columns[0, groups == 2] += 9
    columns[1] = rng.integers(0, 3, 12) / 2  # ties
    found = chances(columns, groups, 0)
    for row, column in enumerate(columns):
        for place, name in enumerate((2, 5, 7)):
            exact = permutation_test(
                (column[groups == name], column[groups != name]),
                lambda a, b, axis: a.mean(axis) - b.mean(axis),
                vectorized=True,
                n_resamples=np.inf,
                alternative="greater",
            ).pvalue
            assert found[row, place] == pytest.approx(exact, abs=0.01)
    assert found[0, 0] < 0.02  # something was found


def test_chances_of_shares_are_hypergeometric() -> None:
    hits = np.zeros(60)
    hits[[0, 1, 2, 3, 30, 40]] = 1
    groups = np.repeat(np.arange(6), 10)
    found = chances(hits[None], groups, 0)[0]
    expected = [hypergeom.sf(k - 1, 60, 6, 10) for k in (4, 0, 0, 1, 1, 0)]
    np.testing.assert_allclose(found, expected, rtol=0.1)
    assert found[0] == pytest.approx(expected[0], rel=0.1)


@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3])
def test_equal_values_stand_out_nowhere(value: float) -> None:
    groups = np.repeat(np.arange(4), [5, 7, 7, 9])
    assert (chances(np.full((1, 28), value), groups, 0) == 1).all()


def test_what_is_surely_larger_has_the_least_p_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 1000)
    columns = np.ones((1, 200))
    columns[0, :20] = 2
    found = chances(columns, np.repeat(np.arange(10), 20), 0)
    assert found[0, 0] == 1 / (1 + 1000 * 10)
    assert found[0, 1] > 0.5


def test_a_seed_draws_the_permutations() -> None:
    columns = np.random.default_rng(0).normal(size=(2, 40))
    groups = np.arange(40) % 4
    first, same, other = (chances(columns, groups, seed) for seed in (0, 0, 1))
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)


@pytest.mark.heavy
def test_false_discoveries_stay_under_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """120 data sets in which no class differs; skewed distances, rare flips, uneven classes."""
    monkeypatch.setattr(module, "MOST", 1000)
    groups = np.repeat(np.arange(10), [5, 5, 8, 10, 10, 20, 20, 20, 20, 30])
    named = tested = 0
    for seed in range(120):
        rng = np.random.default_rng(seed)
        image = rng.lognormal(sigma=1, size=len(groups))  # an image that moves, moves under all
        moved = image * rng.lognormal(sigma=0.5, size=(4, len(groups)))
        flipped = rng.binomial(2, [[0.02], [0.1], [0.3], [0.5]], (4, len(groups))) / 2
        p = chances(np.concatenate([moved, flipped]), groups, seed).reshape(2, 4, 10)
        table = dependences(fake(p), KINDS, "abcdefghij")
        named += any(one.stands_out for one in table)
        tested += bool((p < 0.05).any())
    # Of 120 at 5 %, 6 are expected; more than 14 come once in 1,000 times.
    assert named <= 14
    assert tested > 100  # uncorrected, the page would name noise nearly always


def fake(p: Any, value: float = 1.0) -> dict[str, Any]:
    figure = np.full(p.shape, value)
    classes = np.arange(p.shape[2])
    ones = np.full(len(classes), 9)
    return {"class": classes, "n": ones, "value": figure, "low": figure, "high": figure, "p": p}


# --- the table -----------------------------------------------------------------------------------


def test_benjamini_and_hochberg_by_hand() -> None:
    p = np.full((2, 2, 5), 0.9)
    # Of 20: the third step is 3/20 · 5 % = 0.0075, above which the fourth, 0.01, does not get.
    p[0, 0, 3], p[1, 1, 0], p[0, 1, 2], p[1, 0, 4] = 0.0001, 0.006, 0.0074, 0.0101
    table = dependences(fake(p), ["contrast", "hue"], "abcde")
    assert len(table) == 20
    assert [(d.class_name, d.kind, d.what) for d in table[:3]] == [
        ("a", "contrast", "moved"),
        ("a", "contrast", "flipped"),
        ("a", "hue", "moved"),
    ]
    assert {(d.class_name, d.kind, d.what, d.p) for d in table if d.stands_out} == {
        ("d", "contrast", "moved", 0.0001),
        ("a", "hue", "flipped", 0.006),
        ("c", "hue", "moved", 0.0074),
    }


@pytest.mark.parametrize(("value", "whats"), [(0.049, {"flipped"}), (0.051, {"moved", "flipped"})])
def test_what_hardly_moves_stands_still(value: float, whats: set[str]) -> None:
    table = dependences(fake(np.full((2, 1, 2), 1e-5), value), ["hue"], "ab")
    assert {one.what for one in table if one.stands_out} == whats


def test_figures_of_a_class() -> None:
    rng = np.random.default_rng(3)
    groups = np.array([4] * 6 + [1] * 8)
    flips = np.concatenate([np.zeros(6), rng.integers(0, 3, 8) / 2])
    rows = Rows(
        np.arange(14),
        {
            "class": groups,
            "between": np.full(14, 2.0),
            "moved/hue": rng.random(14),
            "flipped/hue": flips,
        },
    )
    found = by_class(rows, ["hue"], 7)
    assert found["class"].tolist() == [1, 4]
    assert found["n"].tolist() == [8, 6]
    for place, group in enumerate((1, 4)):
        own = rows.columns["moved/hue"][groups == group][None] / 2
        expected = estimate(own, "mean", seed=7)
        figures = [found[name][0, 0, place] for name in ("value", "low", "high")]
        assert figures == [expected.value, expected.low, expected.high]
    # Six images that do not flip are not a class that never flips.
    assert found["value"][1, 0, 1] == 0
    assert found["low"][1, 0, 1] == 0
    wilson = binomtest(0, 6).proportion_ci(method="wilson")
    assert found["high"][1, 0, 1] == pytest.approx(wilson.high)


def test_an_interval_where_each_image_flips_one_way() -> None:
    low, high = (binomtest(k, 5).proportion_ci(method="wilson") for k in (2, 3))
    assert module._figure(np.full(5, 0.5), 0, flips=True) == pytest.approx(
        (0.5, low.low, high.high)
    )
    assert module._figure(np.full(5, 0.5), 0, flips=False) == (0.5, 0.5, 0.5)


def test_no_distance_between_images() -> None:
    columns = {
        "class": np.repeat([0, 1], 5), "between": np.zeros(10), "moved/hue": np.ones(10),
        "flipped/hue": np.tile([0, 0.5], 5),
    }  # fmt: skip
    table = dependences(by_class(Rows(np.arange(10), columns), ["hue"], 0), ["hue"], "ab")
    assert [np.isnan(one.value) for one in table] == [True, False, True, False]
    assert not any(one.stands_out for one in table)
