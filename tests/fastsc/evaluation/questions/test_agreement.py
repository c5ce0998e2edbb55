"""Measures of attribution maps against closed forms, hand-computed cases, and libraries."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from skimage.metrics import structural_similarity

from fastsc.evaluation.questions.explanations import agreement


def noise(seed: int, side: int = 20) -> Any:
    return np.random.default_rng(seed).normal(size=(side, side)).astype(np.float32)


def test_rank_correlation() -> None:
    a, b = noise(0), noise(1)
    assert agreement.spearman(a, np.exp(3 * a)) == pytest.approx(1)
    assert agreement.spearman(a, -a) == pytest.approx(-1)
    assert agreement.spearman(a, b) == pytest.approx(spearmanr(a.ravel(), b.ravel()).statistic)
    assert abs(agreement.spearman(a, b)) < 0.15


def test_rank_correlation_of_constant_maps() -> None:
    a, flat = noise(0), np.zeros((20, 20), np.float32)
    assert agreement.spearman(a, flat) == agreement.spearman(flat, a) == 0
    assert agreement.spearman(flat, flat + 3) == 0  # what says nothing does not agree
    assert agreement.empty(flat + 3)
    assert not agreement.empty(a)


def test_similarity() -> None:
    a, b = noise(0), noise(1)
    assert agreement.similarity(a, a) == pytest.approx(1)
    assert agreement.similarity(a, 1000 * a) == pytest.approx(1)
    assert agreement.similarity(a, -a) < -0.5
    x, y = (0.5 + agreement.drawn(one) / 2 for one in (a, b))
    expected = structural_similarity(x, y, data_range=1)
    assert agreement.similarity(a, b) == pytest.approx(expected)
    assert expected < 0.3
    small = noise(2, 4)  # smaller than the window
    assert agreement.similarity(small, small) == pytest.approx(1)


def test_drawn() -> None:
    one = np.zeros((10, 20))
    one[0, :4] = -2, 1, 8, 2  # three of 200 are beyond the 99th percentile, or at it
    scale = np.percentile(np.abs(one), 99)
    assert 1 < scale < 8
    expected = np.clip(np.array([-2, 1, 8, 2]) / scale, -1, 1)
    np.testing.assert_allclose(agreement.drawn(one)[0, :4], expected)
    single = np.zeros((20, 20))
    single[3, 3] = -7  # whose 99th percentile is 0
    assert agreement.drawn(single)[3, 3] == -1
    assert not agreement.drawn(np.zeros((4, 4))).any()


def test_overlap_of_the_most_important_pixels() -> None:
    a, b = np.arange(100.0).reshape(10, 10), np.zeros((10, 10))
    b[9, 5:] = -1, -2, -3, -4, -5  # what speaks against is important too
    b[0, :5] = 1, 2, 3, 4, 5
    assert agreement.overlap(a, b) == 0.5
    assert agreement.overlap(a, -a) == 1
    assert agreement.overlap(a, 100 - a) == 0
    assert agreement.overlap(a, b, share=0.01) == 0.5  # the last pixel, and one of two halves
    assert agreement.overlap(a, np.where(a == 99, 1, 0), share=0.01) == 1


def test_overlap_where_pixels_are_equal() -> None:
    a, flat = np.arange(100.0).reshape(10, 10), np.zeros((10, 10))
    assert agreement.overlap(a, flat) == pytest.approx(0.1)  # each pixel a tenth: chance
    assert agreement.overlap(flat, flat) == pytest.approx(1)
    half = np.zeros((10, 10))
    half[8:] = 1  # twenty share ten places, and ten of them are a's
    assert agreement.overlap(a, half) == pytest.approx(0.5)


def test_entropy_and_gini_in_closed_form() -> None:
    flat, one = np.full((4, 8), -3.0), np.zeros((4, 8))
    one[1, 2] = 5
    assert agreement.entropy(flat) == pytest.approx(1)
    assert agreement.entropy(one) == 0
    assert agreement.gini(flat) == pytest.approx(0)
    assert agreement.gini(one) == pytest.approx(1 - 1 / 32)
    half = np.zeros((4, 8))
    half[:2] = 1, -1, 1, -1, 1, -1, 1, -1  # sixteen equal magnitudes: log 16 / log 32
    assert agreement.entropy(half) == pytest.approx(4 / 5)
    assert agreement.gini(half) == pytest.approx(0.5)
    assert agreement.gini(7 * half) == pytest.approx(0.5)
    assert (agreement.entropy(flat * 0), agreement.gini(flat * 0)) == (1, 0)


def test_gini_is_the_mean_difference() -> None:
    x = np.abs(noise(3, 6)).ravel().astype(float)
    apart = np.abs(x[:, None] - x).mean()
    assert agreement.gini(noise(3, 6)) == pytest.approx(apart / (2 * x.mean()))


def test_insertion_and_deletion_of_three_pixels() -> None:
    image = torch.tensor([[[0.5, 0.25, 1.0]]]).expand(3, 1, 3)
    blurred, empty = torch.full((3, 1, 3), 0.125), torch.zeros(3, 1, 1)
    seen = []

    def score(x: torch.Tensor) -> torch.Tensor:
        seen.append(x[:, 0, 0].tolist())
        return x[:, 0, 0].sum(1)

    one = torch.tensor([[-1.0, 5.0, 2.0]])  # the middle, the right, the left
    found = agreement.insertion_deletion(score, image, one, blurred, empty, 3)
    assert seen == [
        [
            [0.125, 0.125, 0.125],
            [0.125, 0.25, 0.125],
            [0.125, 0.25, 1.0],
            [0.5, 0.25, 1.0],
            [0.5, 0.25, 1.0],
            [0.5, 0.0, 1.0],
            [0.5, 0.0, 0.0],
            [0.0, 0.0, 0.0],
        ]
    ]
    # Scores .375, .5, 1.375, 1.75 and 1.75, 1.5, .5, 0, by the trapezoid rule.
    assert found[0] == pytest.approx((0.375 / 2 + 0.5 + 1.375 + 1.75 / 2) / 3)
    assert found[1] == pytest.approx((1.75 / 2 + 1.5 + 0.5) / 3)


def test_pixels_as_important_come_in_their_order() -> None:
    image = torch.arange(1.0, 5.0).view(1, 2, 2).expand(3, 2, 2)
    seen = []

    def score(x: torch.Tensor) -> torch.Tensor:
        seen.append(x[:3, 0].flatten(1).tolist())
        return x[:, 0, 0, 0]

    zero = torch.zeros(3, 2, 2)
    agreement.insertion_deletion(score, image, torch.zeros(2, 2), zero, zero, 2)
    assert seen == [[[0, 0, 0, 0], [1, 2, 0, 0], [1, 2, 3, 4]]]
