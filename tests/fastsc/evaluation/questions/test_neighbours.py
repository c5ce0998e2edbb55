"""Neighbours against distances between pixels: the features of `tiny.flat`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastsc.errors import UserError
from fastsc.evaluation.questions import neighbours as module
from fastsc.evaluation.questions.neighbours import neighbours
from fastsc.pipelines import Pipeline, keyed
from tests.fastsc.evaluation import tiny

BRIGHTNESS = (0.4, 0.0, 0.0, 0.0)
SIZES = {"a": 7, "b": 4, "c": 1, "d": 2}


@pytest.fixture
def noisy(tmp_path: Path) -> Pipeline:
    rng = np.random.default_rng(1)
    pixels = {name: tiny.noise(rng, n, high=120) for name, n in SIZES.items()}
    return tiny.loader(tmp_path, pixels, strengths=BRIGHTNESS, batch_size=3)


def brightened(loader: Pipeline) -> Any:
    """The perturbed views on [0, 1] where nothing but brightness changes."""
    n = len(loader.index)
    factors = keyed.factors(keyed.VALIDATION_SEED, keyed.VALIDATION_EPOCH, n, BRIGHTNESS)
    return np.clip(tiny.decoded(loader) * factors[:, 0, None, None, None], 0, 1)


def apart(a: Any, b: Any) -> Any:
    return np.sqrt(((a - b) ** 2).sum((-3, -2, -1)))


def test_three_images_by_hand(tmp_path: Path) -> None:
    # Grey images: a distance is the difference of two values, √192 times.
    values = [0.4, 0.5, 0.9]
    pixels = {"a": tiny.constant(*values), "b": tiny.constant(0.4)}
    found = neighbours(tiny.flat(), tiny.loader(tmp_path, pixels, strengths=BRIGHTNESS), n=None)

    x = np.round(255 * np.array(values)) / 255
    b = keyed.factors(keyed.VALIDATION_SEED, keyed.VALIDATION_EPOCH, 4, BRIGHTNESS)[:3, 0]
    moved = abs(np.clip(b * x, 0, 1) - x)
    table = found.tables["triples"]
    assert table.index.tolist() == [0, 1, 2]  # b has no other image
    unit = np.sqrt(3 * tiny.SIDE**2)
    np.testing.assert_allclose(table.columns["moved"], unit * moved, rtol=1e-5)
    nearest = np.array([x[1] - x[0], x[1] - x[0], x[2] - x[1]])
    np.testing.assert_allclose(table.columns["nearest"], unit * nearest, rtol=1e-5)
    assert found.others[:, 1].tolist() == [1, 0, 1]
    random = x[found.others[:, 0]]
    np.testing.assert_allclose(table.columns["random"], unit * abs(random - x), rtol=1e-5)
    farther = (moved > nearest).tolist()
    assert 0 < sum(farther) < 3  # or the case shows nothing
    assert table.columns["farther_than_nearest"].tolist() == farther
    assert table.columns["farther_than_random"].tolist() == (moved > abs(random - x)).tolist()
    (measure,) = [m for m in found.measures if m.name == "farther_than_nearest"]
    assert measure.statistic == "share"
    assert found.values(measure).mean() == np.mean(farther)


def test_equals_all_distances_at_once(noisy: Pipeline) -> None:
    found = neighbours(tiny.flat(), noisy, n=None)
    x, targets = tiny.decoded(noisy), noisy.index.targets
    distances = apart(x[:, None], x)
    distances[targets[:, None] != targets] = np.inf
    np.fill_diagonal(distances, np.inf)
    index = np.flatnonzero(targets != 2)  # c has one image
    table = found.tables["triples"]
    assert np.array_equal(table.index, index)
    assert np.array_equal(found.others[:, 1], distances[index].argmin(1))
    np.testing.assert_allclose(table.columns["nearest"], distances[index].min(1), rtol=1e-5)
    random = distances[index, found.others[:, 0]]  # inf for itself and for other classes
    np.testing.assert_allclose(table.columns["random"], random, rtol=1e-5)
    moved = apart(x, brightened(noisy))[index]
    np.testing.assert_allclose(table.columns["moved"], moved, rtol=1e-5)
    assert found.searched == len(index)
    assert not found.left_out

    order = np.argsort(-moved / distances[index].min(1))
    shown = found.examples
    assert [e.index for e in shown] == index[order[: module.N_EXAMPLES]].tolist()
    assert [e.others for e in shown] == [tuple(found.others[row]) for row in order[: len(shown)]]
    factors = noisy.plan().factors
    assert all(e.factors == tuple(factors[e.index].tolist()) for e in shown)


def test_parts_and_a_cache_change_nothing(noisy: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = neighbours(tiny.flat(), noisy, n=9)
    monkeypatch.setattr(module, "SELVES", 4)
    monkeypatch.setattr(module, "SEARCHED", 5)
    cache = tiny.Kept()
    first = neighbours(tiny.flat(), noisy, n=9, cache=cache)
    assert cache.computed == [
        "selves-0",
        "selves-1",
        "selves-2",
        "search-0",
        "search-1",
        "search-2",
    ]
    second = neighbours(tiny.flat(), noisy, n=9, cache=cache)
    assert len(cache.computed) == 6
    for found in (first, second):
        for name, column in whole.tables["triples"].columns.items():
            np.testing.assert_allclose(found.tables["triples"].columns[name], column, rtol=1e-6)
        assert np.array_equal(found.others, whole.others)


def test_a_seed_chooses_images_and_random_others(noisy: Pipeline) -> None:
    def rows(n: int | None, seed: int) -> dict[int, int]:
        found = neighbours(tiny.flat(), noisy, n=n, seed=seed)
        assert found.seed == seed
        index = found.tables["triples"].index
        return dict(zip(index.tolist(), found.others[:, 0].tolist(), strict=True))

    assert rows(6, 0) == rows(6, 0)
    assert len(rows(6, 0)) == 6
    assert rows(6, 0).items() <= rows(None, 0).items()  # more images change nothing of the first
    assert rows(6, 0).keys() != rows(6, 1).keys()
    assert rows(None, 0) != rows(None, 1)


@pytest.mark.parametrize(("most", "limit"), [(12, 6), (10, 4), (9, 3), (1, 2)])
def test_a_bound_holds_for_all_classes_alike(noisy: Pipeline, most: int, limit: int) -> None:
    every = neighbours(tiny.flat(), noisy, n=None)
    found = neighbours(tiny.flat(), noisy, n=None, most=most)
    assert found.searched == sum(min(n, limit) for n in SIZES.values() if n > 1)
    assert found.left_out == (
        f"nearest: it is searched among {limit} images a class, and some have more",
    )
    table = found.tables["triples"]
    assert len(table) == len(every.tables["triples"])
    nearest, least = (t.tables["triples"].columns["nearest"] for t in (found, every))
    assert (nearest >= least).all()
    assert limit > 2 or (nearest > least).any()
    x = tiny.decoded(noisy)
    for column, name in enumerate(("random", "nearest")):
        others = found.others[:, column]
        np.testing.assert_allclose(table.columns[name], apart(x[table.index], x[others]), rtol=1e-5)
        assert (others != table.index).all()
    targets = noisy.index.targets
    for label, n in enumerate(SIZES.values()):
        if n > 1:
            assert len(np.unique(found.others[targets[table.index] == label])) <= min(n, limit)


def test_a_file_twice_is_a_neighbour_and_no_example(tmp_path: Path) -> None:
    image, *others = tiny.noise(np.random.default_rng(2), 4)
    found = neighbours(tiny.flat(), tiny.loader(tmp_path, {"a": [image, image, *others]}))
    table = found.tables["triples"]
    assert table.columns["nearest"][:2].tolist() == [0, 0]
    assert table.columns["farther_than_nearest"][:2].tolist() == [1, 1]
    assert sorted(e.index for e in found.examples) == [2, 3, 4]


def test_strength_zero_moves_nothing(tmp_path: Path) -> None:
    pixels = {"a": tiny.noise(np.random.default_rng(3), 5)}
    found = neighbours(tiny.flat(), tiny.loader(tmp_path, pixels, strengths=(0, 0, 0, 0)))
    columns = found.tables["triples"].columns
    assert not columns["moved"].any()
    assert not columns["farther_than_nearest"].any()


def test_no_other_image_of_a_class(tmp_path: Path) -> None:
    loader = tiny.loader(tmp_path, {name: tiny.constant(0.5) for name in "abc"})
    with pytest.raises(UserError, match="neighbours: the data has one image a class"):
        neighbours(tiny.flat(), loader)


def test_no_labels(noisy: Pipeline) -> None:
    noisy.index = replace(noisy.index, classes=("",) * 4)
    with pytest.raises(UserError, match="no labels"):
        neighbours(tiny.flat(), noisy)
