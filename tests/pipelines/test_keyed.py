"""Keyed randomness: pure functions of (seed, epoch, dataset index), with torchvision's laws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms import RandomResizedCrop

from fastsc.pipelines import keyed

STRENGTHS = (0.4, 0.4, 0.4, 0.1)
FROZEN_RAW = [213000021201967259, 4455796210202625458]
FROZEN_FACTORS = [1.3880475, 1.1095641, 1.388671, 0.0797158]
seeds = st.integers(0, 2**63 - 1)
epochs = st.integers(0, 1000)


@given(seeds, epochs, st.integers(1, 50), st.integers(0, 50))
def test_row_of_an_index_does_not_depend_on_how_many_there_are(
    seed: int, epoch: int, n: int, more: int
) -> None:
    assert np.array_equal(
        keyed.factors(seed, epoch, n, STRENGTHS),
        keyed.factors(seed, epoch, n + more, STRENGTHS)[:n],
    )
    sizes = np.arange(30, 30 + n + more, dtype=np.int32), np.full(n + more, 64, np.int32)
    some = keyed.random_resized_crops(seed, epoch, sizes[0][:n], sizes[1][:n])
    assert np.array_equal(some, keyed.random_resized_crops(seed, epoch, *sizes)[:n])
    assert np.array_equal(keyed.flips(seed, epoch, n), keyed.flips(seed, epoch, n + more)[:n])
    assert np.array_equal(
        keyed.pad_shifts(seed, epoch, n), keyed.pad_shifts(seed, epoch, n + more)[:n]
    )


def test_streams_never_change() -> None:
    # A run of last year must give the same batches this year: these values are frozen.
    assert keyed.raw(0, 0, keyed.Stream.ORDER, 2).tolist() == FROZEN_RAW
    assert keyed.factors(1, 2, 1, STRENGTHS)[0].tolist() == pytest.approx(FROZEN_FACTORS, abs=1e-7)


def test_streams_seeds_and_epochs_differ() -> None:
    n = 1000
    columns = [keyed.uniforms(0, 0, stream, n) for stream in keyed.Stream]
    columns += [keyed.uniforms(0, 0, keyed.Stream.CROP_AREA + a, n) for a in range(1, 10)]
    columns += [keyed.uniforms(0, 0, keyed.Stream.CROP_RATIO + a, n) for a in range(1, 10)]
    columns += [keyed.uniforms(1, 0, 0, n), keyed.uniforms(0, 1, 0, n)]
    correlation = np.corrcoef(np.stack(columns)) - np.eye(len(columns))
    assert np.abs(correlation).max() < 0.17  # 5 standard errors at n = 1000


def test_factors_are_uniform_between_their_bounds() -> None:
    table = keyed.factors(3, 5, 20_000, (0.4, 1.5, 0.0, 0.1))
    assert table.dtype == np.float32
    for column, low, high in ((0, 0.6, 1.4), (1, 0.0, 2.5), (3, -0.1, 0.1)):
        values = np.sort((table[:, column] - low) / (high - low))
        # Kolmogorov-Smirnov against the uniform law: 1.95 / sqrt(n) is its 0.1 % point.
        assert np.abs(values - np.linspace(0, 1, len(values))).max() < 1.95 / np.sqrt(len(values))
    assert (table[:, 2] == 1).all()


def test_strength_zero_is_exactly_the_identity() -> None:
    assert (keyed.factors(9, 9, 100, (0, 0, 0, 0)) == [1, 1, 1, 0]).all()


@pytest.mark.parametrize(
    ("height", "width"), [(224, 224), (100, 500), (375, 500), (9, 3000), (32, 32), (5, 7)]
)
def test_crops_follow_torchvision(height: int, width: int) -> None:
    n = 4000
    sizes = np.full(n, height, np.int32), np.full(n, width, np.int32)
    ours = keyed.random_resized_crops(0, 0, *sizes)
    image = torch.empty(3, height, width)
    torch.manual_seed(0)
    theirs = np.array(
        [RandomResizedCrop.get_params(image, keyed.RRC_SCALE, keyed.RRC_RATIO) for _ in range(n)]
    )
    for column in range(4):
        a, b = np.sort(ours[:, column]), np.sort(theirs[:, column])
        grid = np.union1d(a, b)
        gap = np.abs(
            np.searchsorted(a, grid, "right") / n - np.searchsorted(b, grid, "right") / n
        ).max()
        # Two-sample Kolmogorov-Smirnov at 0.1 %.
        assert gap < 1.95 * np.sqrt(2 / n), column


@given(
    st.integers(0, 99),
    st.lists(st.tuples(st.integers(1, 4000), st.integers(1, 4000)), min_size=1, max_size=20),
)
def test_crops_lie_inside_the_image(epoch: int, sizes: list[tuple[int, int]]) -> None:
    heights, widths = np.array(sizes, np.int32).T
    for boxes in (
        keyed.random_resized_crops(0, epoch, heights, widths),
        keyed.central_squares(heights, widths, 0.875),
    ):
        top, left, h, w = boxes.T
        assert (top >= 0).all()
        assert (left >= 0).all()
        assert (h >= 1).all()
        assert (w >= 1).all()
        assert (top + h <= heights).all()
        assert (left + w <= widths).all()


def test_central_square_of_the_shorter_side() -> None:
    sizes = np.array([256], np.int32), np.array([512], np.int32)
    boxes = keyed.central_squares(*sizes, 0.875)
    assert boxes.tolist() == [[16, 144, 224, 224]]


def test_pad_shifts_reach_every_offset_equally_often() -> None:
    counts = np.zeros((9, 9))
    shifts = keyed.pad_shifts(0, 0, 81 * 400) + keyed.PAD
    np.add.at(counts, (shifts[:, 0], shifts[:, 1]), 1)
    assert counts.sum() == 81 * 400
    assert np.abs(counts - 400).max() < 6 * np.sqrt(400)


@given(seeds, epochs, st.sets(st.integers(0, 99), min_size=1))
def test_order_is_a_permutation_that_a_missing_file_does_not_disturb(
    seed: int, epoch: int, kept: set[int]
) -> None:
    usable = np.array(sorted(kept), np.int64)
    order = keyed.order(seed, epoch, usable, 100)
    assert sorted(order.tolist()) == usable.tolist()
    full = keyed.order(seed, epoch, np.arange(100), 100)
    assert [i for i in full.tolist() if i in kept] == order.tolist()


def test_order_changes_with_epoch_and_seed() -> None:
    usable = np.arange(100)
    orders = [keyed.order(s, e, usable, 100).tolist() for s, e in ((0, 0), (0, 1), (1, 0))]
    assert orders[0] != orders[1]
    assert orders[0] != orders[2]
    assert orders[1] != orders[2]


def test_substitutes_depend_on_seed_epoch_index_and_attempt() -> None:
    usable = np.arange(10_000)
    draws = {
        keyed.substitute(s, e, i, usable, a)
        for s in range(3)
        for e in range(3)
        for i in range(3)
        for a in range(3)
    }
    assert len(draws) > 75  # of 81 draws out of 10,000
    assert keyed.substitute(1, 2, 3, usable, 0) == keyed.substitute(1, 2, 3, usable, 0)


@given(st.sets(st.integers(0, 999), min_size=2, max_size=50))
def test_cycle_pairs_every_image_with_another(kept: set[int]) -> None:
    indices = np.array(sorted(kept), np.int64)
    cycle = keyed.cycle(indices, 1000)
    assert sorted(cycle.tolist()) == list(range(len(indices)))
    assert (np.roll(cycle, -1) != cycle).all()
