"""The worst colors: what is reported of them, against the record of every pass, and mistakes."""

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
