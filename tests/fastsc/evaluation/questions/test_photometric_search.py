"""The search for the worst colors against closed forms, a dense grid and steps by hand."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastsc.evaluation.questions.robustness import photometric as module
from fastsc.evaluation.questions.robustness.photometric import (
    STARTS,
    STEPS,
)
from fastsc.evaluation.results.answers import Arrays
from fastsc.evaluation.views import Factors, Viewer
from fastsc.pipelines import keyed
from tests.fastsc.evaluation import tiny
from tests.fastsc.evaluation.questions.test_photometric import (
    Grey,
    all_pixels,
    conv_net,
    margins,
    patches,
    predictions,
    same,
    search,
    viewer,
    worst,
)

pytestmark = pytest.mark.heavy


# --- closed forms --------------------------------------------------------------------------------


def test_a_linear_model_of_brightness_is_worst_at_an_end_of_the_box(tmp_path: Path) -> None:
    values = np.array([0.1, 0.25, 0.35, 0.5, 0.65, 0.7])
    v = viewer(tmp_path, Grey(0.4137), tiny.constant(*values), strengths=(0.4, 0, 0, 0))
    level = np.round(255 * values) / 255
    labels = (level > 0.4137).astype(np.int64)
    found = search(v, labels)
    # Class 0 is worst where it is brightest, class 1 where it is darkest.
    end = np.where(labels == 0, 1.4, 0.6)
    margin = np.where(labels == 0, 0.4137 - 1.4 * level, 0.6 * level - 0.4137)
    # A wrong image is searched no further than it has to be: the end is asked of the others.
    right = margin > 0
    assert right.sum() == 3
    np.testing.assert_array_equal(found["photometric_worst"], right)
    np.testing.assert_allclose(found["margin"][right], margin[right], atol=1e-6)
    np.testing.assert_allclose(found["worst/brightness"][right], end[right], rtol=1e-6)
    assert (found["margin"][~right] >= margin[~right] - 1e-6).all()
    assert (found["margin"][~right] < 0).all()
    assert (worst(found)[:, 1:] == (1, 1, 0)).all()


@pytest.mark.parametrize("smooth", [True, False])
def test_an_island_inside_the_box_is_found_with_and_without_a_gradient(
    smooth: bool, tmp_path: Path
) -> None:
    level = round(255 * 0.5) / 255
    # Wrong at brightness 1.17 to 1.23, and nowhere else: neither unchanged nor at an end.
    net = Grey(1.2 * level, 0.03 * level, smooth)
    v = viewer(tmp_path, net, tiny.constant(0.5), strengths=(0.4, 0, 0, 0))
    draw = keyed.factors(1, 0, 1, (0.4, 0, 0, 0))[0, 0]
    assert abs(draw - 1.2) > 0.05
    found = search(v, [0], random=1, sobol=0, seed=1)
    assert found["photometric_random"] == [1.0]
    assert found["photometric_worst"] == [0.0]
    assert abs(found["worst/brightness"][0] - 1.2) < 0.03
    b = found["worst/brightness"][0]
    assert found["margin"][0] == pytest.approx((abs(b - 1.2) - 0.03) * level, abs=1e-6)


def test_without_strengths_all_is_the_unchanged_image(tmp_path: Path) -> None:
    v = viewer(tmp_path, conv_net(), patches(12), strengths=(0, 0, 0, 0))
    labels = np.arange(12) % 6
    found = search(v, labels)
    clean = v.respond(all_pixels(v))
    right = (clean.predicted.numpy() == labels).astype(float)
    assert 0 < right.sum() < 12
    np.testing.assert_array_equal(found["photometric_worst"], right)
    np.testing.assert_array_equal(found["photometric_random"], right)
    np.testing.assert_allclose(found["margin"], margins(clean.logits, labels), atol=1e-5)
    assert (worst(found) == (1, 1, 1, 0)).all()


def test_of_equal_logits_the_first_is_the_prediction(tmp_path: Path) -> None:
    linear = nn.Linear(3 * tiny.SIDE**2, 3)
    with torch.no_grad():
        linear.weight.zero_()
        linear.bias.zero_()
    v = viewer(tmp_path, nn.Sequential(nn.Flatten(), linear), patches(2))
    found = search(v, [0, 1])
    assert found["margin"].tolist() == [0, 0]
    assert found["photometric_worst"].tolist() == [1, 0]
    assert found["photometric_random"].tolist() == [1, 0]


# --- against a dense grid ------------------------------------------------------------------------


def dense(viewer: Viewer, labels: NDArray[np.int64], n: int = 9) -> NDArray[np.float64]:
    """(m,): the least margin of a grid of n⁴ points."""
    pixels, strengths = all_pixels(viewer), viewer.settings.strengths
    axes = [np.linspace(max(0, 1 - s), 1 + s, n) for s in strengths[:3]]
    axes.append(np.linspace(-strengths[3], strengths[3], n))
    grid = np.array(list(product(*axes)), np.float32)
    found = []
    for image, label in zip(pixels, labels, strict=True):
        answer = viewer.respond(image.expand(len(grid), -1, -1, -1), grid)
        found.append(margins(answer.logits, np.full(len(grid), label)).min())
    return np.array(found)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_never_weaker_than_a_dense_grid_on_fifty_images(seed: int, tmp_path: Path) -> None:
    v = viewer(tmp_path, conv_net(), patches(50, seed), batch_size=50)
    labels = predictions(v)
    least = dense(v, labels)
    found = search(v, labels, seed=seed)
    share = (least > 0).mean()
    assert 0.1 < share < 0.5  # or the case shows nothing
    assert found["photometric_worst"].mean() <= share + 0.01
    assert found["photometric_worst"].mean() < found["photometric_random"].mean() - 0.1
    # And where it has to search to the end, it comes about as low.
    standing = found["photometric_worst"] == 1
    assert np.median((found["margin"] - least)[standing]) <= 1e-3


def test_each_stage_finds_what_the_ones_before_it_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    v = viewer(tmp_path, conv_net(), patches(40))
    labels = predictions(v)
    everything = search(v, labels, random=1, sobol=0)
    unpolled = _without(monkeypatch, "POLLS", 0, v, labels, steps=STEPS)
    unwalked = _without(monkeypatch, "POLLS", 0, v, labels, steps=0)
    standing = [c["photometric_worst"] == 1 for c in (everything, unpolled, unwalked)]
    assert (standing[0] <= standing[1]).all()
    assert (standing[1] <= standing[2]).all()
    for later, earlier in ((everything, unpolled), (unpolled, unwalked)):
        both = (later["photometric_worst"] == 1) & (earlier["photometric_worst"] == 1)
        assert (later["margin"][both] <= earlier["margin"][both]).all()
        assert (later["margin"][both] < earlier["margin"][both]).any()


def _without(
    monkeypatch: pytest.MonkeyPatch, name: str, value: int, v: Viewer, labels: Any, **options: Any
) -> Arrays:
    with monkeypatch.context() as patch:
        patch.setattr(module, name, value)
        return search(v, labels, random=1, sobol=0, **options)


def test_a_network_without_a_gradient_is_searched_as_with_no_steps(tmp_path: Path) -> None:
    class Detached(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = super().forward(x)
            return logits.detach()

    v = viewer(tmp_path, Detached(*conv_net()), patches(12))
    labels = predictions(v)
    assert same(search(v, labels), search(v, labels, steps=0))
    through = viewer(tmp_path, conv_net(), patches(12))
    assert not same(search(through, labels), search(through, labels, steps=0))


# --- steps ---------------------------------------------------------------------------------------


def test_slopes_are_those_of_what_the_model_sees(tmp_path: Path) -> None:
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
    images = [image // 4 + 90 for image in patches(3)]  # no view below is clamped
    v = viewer(tmp_path, conv_net(), images, mean=mean, std=std)
    places = np.array([[1.1, 0.9, 1.2, 0.04], [1, 1, 1, 0], [0.9, 1.1, 0.8, -0.06]], np.float32)
    reach = 0.002 * np.array([1, 1, 1, 0.25], np.float32)
    for pixels, label in zip(all_pixels(v), (0, 2, 5), strict=True):
        found = module._Seen(v, pixels, label).slope(places)
        for kind in range(4):
            step = np.zeros(4, np.float32)
            step[kind] = reach[kind]
            ends = [
                margins(v.respond(pixels.expand(3, -1, -1, -1), at).logits, np.full(3, label))
                for at in (places - step, places + step)
            ]
            # Second order in the reach, and float32's rounding of a margin over its length.
            differences = (ends[1] - ends[0]) / (2 * reach[kind])
            np.testing.assert_allclose(found[:, kind], differences, rtol=0.01, atol=0.005)
            assert np.abs(found[:, kind]).max() > 0.05


class Walked(module._Seen):
    """A margin of which nothing is known but its slope."""

    def __init__(self, factors: Any, margins: Any, slopes: Any) -> None:
        self.factors, self.margins = np.array(factors, np.float32), np.array(margins, float)
        self.right, self.slopes = self.margins > 0, iter(slopes)
        self.shown: list[Factors] = []

    def slope(self, factors: Factors) -> NDArray[np.float64]:
        return np.tile(np.array(next(self.slopes), float), (len(factors), 1))

    def evaluate(self, factors: Factors) -> None:
        self.shown.append(factors)


def test_a_walk_step_by_step() -> None:
    box = module._Box.of((1.0, 1.0, 0.5, 0.25))  # sides 2, 2, 1, 0.5
    # Down with brightness, by half a side, to black. Where it would go on, contrast takes the whole
    # step: a tenth of its side.
    seen = Walked([(1, 1, 1, 0)], [1], [(1, 0, 0, 0), (5, 5, 0, 0)])
    module._walk(seen, box, 2)
    np.testing.assert_allclose(seen.shown[0], [(0, 1, 1, 0), (0, 0.8, 1, 0)], atol=1e-6)
    # By the sides' lengths these slopes are as 3 to 4; and a place without a slope is not left.
    seen = Walked([(1, 1, 1, 0)], [1], [(0, 0, -3, 8), (0, 0, 0, 0)])
    module._walk(seen, box, 2)
    there = (1, 1, 1 + 0.5 * 0.6 * 1, -0.5 * 0.8 * 0.5)
    np.testing.assert_allclose(seen.shown[0], [there, there], atol=1e-6)


def test_walks_start_apart() -> None:
    box = module._Box.of((0.5, 0.5, 0.5, 0.5))  # sides of 1
    line = [(0.5 + share, 1, 1, 0) for share in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)]
    seen = Walked(line, [5, 1, 2, 3, 4, 6], [])
    # 0.4 is too near to 0.2, and so is 0; 0.8 to 0.6; the last is as far as it need be.
    np.testing.assert_allclose(module._starts(seen, box)[:, 0], [0.7, 1.1, 1.5])
    many = Walked([*line, *[(1, b, 1, 0) for b in (0.5, 1.5)], (1, 1, 1.5, 0)], range(9), [])
    assert len(module._starts(many, box)) == STARTS
