"""The worst colors against closed forms, a dense grid, and the record of every look."""

from __future__ import annotations

import json
from collections import defaultdict
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import qmc
from torch import Tensor, nn

from fastsc.errors import UserError
from fastsc.evaluation.questions.robustness import photometric as module
from fastsc.evaluation.questions.robustness.photometric import (
    POLLS,
    RANDOM,
    SOBOL,
    STARTS,
    STEPS,
    photometric,
)
from fastsc.evaluation.results.answers import Arrays, compute
from fastsc.evaluation.views import KINDS, Factors, Response, Viewer
from fastsc.pipelines import keyed
from tests.fastsc.evaluation import tiny

pytestmark = pytest.mark.heavy

BOX = (0.4, 0.4, 0.4, 0.1)
WORST = [f"worst/{kind}" for kind in KINDS]


class Grey(nn.Module):
    """Logits 0 and a function of the image's mean, with or without a gradient."""

    def __init__(self, centre: float, half: float | None = None, smooth: bool = True) -> None:
        super().__init__()
        self.centre, self.half, self.smooth = centre, half, smooth
        self.last = nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            self.last.weight.copy_(torch.eye(2))

    def forward(self, x: Tensor) -> Tensor:
        score = x.mean((1, 2, 3)) - self.centre
        if self.half is not None:
            score = self.half - score.abs()  # class 1 in a band alone
        logits: Tensor = self.last(torch.stack([torch.zeros_like(score), score], 1))
        return logits if self.smooth else logits.detach()


def conv_net(scale: float = 2.0) -> nn.Sequential:
    """Random, and sensitive to colors."""
    torch.manual_seed(3)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 6)
    )
    with torch.no_grad():
        net[0].weight.mul_(scale)
        net[4].bias.zero_()
    return net


def patches(n: int, seed: int = 7) -> list[NDArray[np.uint8]]:
    """Images of four pixels, each 4 × 4."""
    coarse = np.random.default_rng(seed).integers(0, 256, (n, 2, 2, 3)).astype(np.uint8)
    return [image.repeat(4, 0).repeat(4, 1) for image in coarse]


def viewer(root: Path, net: nn.Module, images: list[Any], **options: Any) -> Viewer:
    root.mkdir(exist_ok=True)
    loader = tiny.loader(root, {"a": images}, **{"strengths": BOX, **options})
    return Viewer(tiny.classifier(net), loader)


def all_pixels(viewer: Viewer) -> Tensor:
    index = viewer.loader.index.usable
    return torch.cat([images.pixels.clone() for images in viewer.images(index, "")])


def predictions(viewer: Viewer) -> NDArray[np.int64]:
    found: NDArray[np.int64] = viewer.respond(all_pixels(viewer)).predicted.numpy()
    return found


def search(viewer: Viewer, labels: Any = None, **options: Any) -> Arrays:
    labels = predictions(viewer) if labels is None else np.array(labels)
    options = {"seed": 0, "cache": compute, **options}
    return photometric(viewer, viewer.loader.index.usable, labels, **options)


def margins(logits: Tensor, labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """(n,), by a loop."""
    rows = zip(logits.double().tolist(), labels.tolist(), strict=True)
    return np.array([row[y] - max(row[:y] + row[y + 1 :]) for row, y in rows])


def worst(columns: Arrays) -> NDArray[np.float64]:
    """(m, 4): the factors that are reported."""
    return np.stack([columns[name] for name in WORST], 1)


def same(a: Arrays, b: Arrays, rows: Any = slice(None)) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k][rows], b[k]) for k in a)


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


# --- what is reported ----------------------------------------------------------------------------


class Spy(Viewer):
    """Remembers all that the model was shown, an image by its bytes."""

    def __init__(self, viewer: Viewer) -> None:
        super().__init__(viewer.model, viewer.loader)
        self.seen: dict[bytes, list[tuple[Factors, Tensor]]] = defaultdict(list)

    def respond(self, pixels: Tensor, factors: Factors | None = None) -> Response:
        answer = super().respond(pixels, factors)
        assert factors is not None
        assert all(torch.equal(image, pixels[0]) for image in pixels), "images share a pass"
        self.seen[pixels[0].numpy().tobytes()].append((factors.copy(), answer.logits))
        return answer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("strengths", [BOX, (0.1, 0.0, 1.5, 0.05)])
def test_the_columns_are_those_of_the_views_that_the_model_was_shown(
    dtype: torch.dtype, strengths: tuple[float, float, float, float], tmp_path: Path
) -> None:
    spy = Spy(viewer(tmp_path, conv_net(), patches(16), dtype=dtype, strengths=strengths))
    labels = super(Spy, spy).respond(all_pixels(spy)).predicted.numpy()
    labels[0] = (labels[0] + 1) % 6  # wrong as it is
    # Backwards: rows of the columns, and not dataset indices, are what the columns are in.
    index = spy.loader.index.usable[::-1].copy()
    found = photometric(spy, index, labels[index], seed=0, cache=compute)
    found = {name: column[::-1] for name, column in found.items()}
    low = [max(0, 1 - s) for s in strengths[:3]] + [-strengths[3]]
    high = [1 + s for s in strengths[:3]] + [strengths[3]]
    corners = np.array(list(product(*zip(low, high, strict=True))), np.float32)
    most = 41 + RANDOM + SOBOL + 16 + 4 * STEPS
    assert (STARTS, 8 * POLLS) == (4, 40)
    for row, image in enumerate(all_pixels(spy)):
        looked = spy.seen[image.numpy().tobytes()]
        factors = np.concatenate([f for f, _ in looked])
        logits = torch.cat([answer for _, answer in looked])
        margin = margins(logits, np.full(len(logits), labels[row]))
        right = logits.argmax(1).numpy() == labels[row]
        # No view outside the box, by not so much as a rounding.
        assert (factors.astype(np.float64) >= low).all()
        assert (factors.astype(np.float64) <= high).all()
        least = np.flatnonzero(margin == found["margin"][row])
        assert margin.min() == found["margin"][row]
        assert any((factors[at] == worst(found)[row]).all() for at in least)
        assert found["photometric_worst"][row] == right.all()
        assert (factors[0] == (1, 1, 1, 0)).all()
        first = right[: 1 + RANDOM]
        assert found["photometric_random"][row] == first[1:].mean()
        if not first.all():
            assert len(factors) == 1 + RANDOM
        else:
            box, points = np.split(factors[1 + RANDOM :], [len(np.unique(corners, axis=0))])
            np.testing.assert_allclose(np.unique(corners, axis=0), box, atol=1e-6)
            spread = 1.5 * qmc.Sobol(4, seed=np.random.default_rng((0, row))).random(SOBOL) - 0.25
            inside = np.array(low) + np.subtract(high, low) * spread.clip(0, 1)
            np.testing.assert_allclose(points[:SOBOL], inside, atol=1e-6)
        if right.all():
            assert len(factors) > 1 + RANDOM + len(np.unique(corners, axis=0)) + SOBOL
        assert len(factors) <= most
    assert found["photometric_worst"][0] == 0
    assert 0 < found["photometric_worst"].sum() < 15


def test_the_factors_give_the_margin_in_another_batch(tmp_path: Path) -> None:
    v = viewer(tmp_path, conv_net(), patches(16), batch_size=16)
    labels = predictions(v)
    found = search(v, labels)
    again = v.respond(all_pixels(v), worst(found).astype(np.float32))
    # A pass of another size may sum in another order: float32's 6e-8 of logits below 10, often.
    assert again.logits.abs().max() < 10
    np.testing.assert_allclose(margins(again.logits, labels), found["margin"], rtol=0, atol=2e-5)
    sure = np.abs(found["margin"]) > 2e-5
    right = (again.predicted.numpy() == labels)[sure]
    np.testing.assert_array_equal(found["photometric_worst"][sure], right)


def test_the_average_is_that_of_the_keyed_draws(tmp_path: Path) -> None:
    v = viewer(tmp_path, conv_net(), patches(16), batch_size=16)
    labels = predictions(v)
    found = search(v, labels, seed=3, random=5)
    pixels, right = all_pixels(v), np.zeros(16)
    for draw in range(5):
        answer = v.respond(pixels, keyed.factors(3, draw, 16, BOX))
        right += answer.predicted.numpy() == labels
    np.testing.assert_allclose(found["photometric_random"], right / 5)
    assert len(set(right.tolist())) > 2


def test_it_depends_on_the_seed_alone(tmp_path: Path) -> None:
    images = patches(11)
    v = viewer(tmp_path, conv_net(), images)
    labels = predictions(v)
    found = search(v, labels)
    assert same(found, search(v, labels))
    assert not same(found, search(v, labels, seed=1))
    other = viewer(tmp_path, conv_net(), images, batch_size=3)
    assert same(found, search(other, labels))
    some = np.flatnonzero(found["photometric_random"] == 1)[::-1][:3]  # searched beyond the draws
    assert len(some) == 3
    assert not (some == np.arange(3)).any()
    assert same(found, photometric(v, some, labels[some], seed=0, cache=compute), some)


# --- parts and mistakes --------------------------------------------------------------------------


def test_parts_are_kept_and_say_what_they_depend_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    v = viewer(tmp_path, conv_net(), patches(7))
    labels = predictions(v)
    whole = search(v, labels)
    monkeypatch.setattr(module, "LARGEST", 3)
    kept = tiny.Kept()
    assert same(whole, search(v, labels, cache=kept))
    assert kept.computed == ["photometric-0", "photometric-1", "photometric-2"]
    assert same(whole, search(v, labels, cache=kept))
    assert len(kept.computed) == 3
    said = json.loads(json.dumps(kept.settings["photometric-1"]))
    assert said["index"] == [3, 4, 5]
    assert said["labels"] == labels[3:6].tolist()
    assert (said["seed"], said["strengths"]) == (0, list(BOX))

    def settings(**options: Any) -> Any:
        kept = tiny.Kept()
        search(v, labels, cache=kept, **options)
        return kept.settings["photometric-0"]

    different = [settings(), settings(random=2), settings(sobol=0), settings(steps=0)]
    assert len({json.dumps(said) for said in different}) == 4


@pytest.mark.parametrize(("resolution", "at_least", "at_most"), [(224, 10, 17), (32, 64, 64)])
def test_a_part_takes_no_more_than_a_minute(resolution: int, at_least: int, at_most: int) -> None:
    size = module._images_a_part(resolution, RANDOM, SOBOL, STEPS)
    assert at_least <= size <= at_most
    # At 49 passes and 17 gradients a second at 224 px; a walk's places are looked at besides.
    if resolution == 224:
        looks = 1 + RANDOM + 16 + SOBOL + STARTS * STEPS + 8 * POLLS
        assert size * (looks / 49 + STARTS * STEPS / 17) <= 60
    assert module._images_a_part(2000, 256, 1024, 50) == 1


def test_without_scipy_nothing_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    v = viewer(tmp_path, conv_net(), patches(2))
    labels = predictions(v)
    monkeypatch.setattr("fastsc.cli.packages.installed", lambda name: name != "scipy")
    kept = tiny.Kept()
    with pytest.raises(UserError, match=r"^robustness: .*pip install scipy"):
        search(v, labels, cache=kept)
    assert kept.computed == []


@pytest.mark.parametrize(
    ("labels", "options"),
    [
        ([0, -1], {}),
        ([0, 6], {}),
        ([0], {}),
        ([0, 0], {"random": 0}),
        ([0, 0], {"sobol": 24}),
    ],
)
def test_what_cannot_be_asked(labels: list[int], options: Any, tmp_path: Path) -> None:
    v = viewer(tmp_path, conv_net(), patches(2))
    with pytest.raises(AssertionError):
        search(v, labels, **options)
