"""Gradients against closed forms of linear models, and finite differences of others."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fastsc.errors import UserError
from fastsc.evaluation.questions import gradients as module
from fastsc.evaluation.questions.gradients import gradients
from fastsc.evaluation.views import KINDS
from fastsc.kernels.color import color_jitter
from fastsc.pipelines import Pipeline, keyed
from tests.fastsc.evaluation import tiny
from tests.fastsc.evaluation.questions.attack_cases import curved

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
STRENGTHS = (0.4, 0.3, 0.5, 0.1)
N = 7


@pytest.fixture
def noisy(tmp_path: Path) -> Pipeline:
    pixels = {"a": tiny.noise(np.random.default_rng(1), N, 20, 230)}
    return tiny.loader(tmp_path, pixels, mean=MEAN, std=STD, strengths=STRENGTHS)


def images(loader: Pipeline, factors: Any = None) -> torch.Tensor:
    """(n, 3, 8, 8) float64 on [0, 1], in other colors by the differentiable reference."""
    x = torch.from_numpy(tiny.decoded(loader))
    return x if factors is None else color_jitter(x, torch.from_numpy(np.asarray(factors)))


def forward(model: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Features and logits, in float64, of images on [0, 1]."""
    mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (MEAN, STD))
    features, logits = copy.deepcopy(model).double()((x - mean) / std)
    return features, logits


def losses(model: Any, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(forward(model, x)[1], target, reduction="none")


def numbers(found: Any, table: str) -> dict[str, Any]:
    return dict(found.tables[table].columns)


def test_linear_model_in_closed_form(noisy: Pipeline) -> None:
    model = tiny.flat(3, scale=4.0)
    found = gradients(model, noisy)
    assert found.tables["gradients"].index.tolist() == list(range(N))
    weight = model.net[1].weight.detach().double().numpy()  # type: ignore[index]
    by_pixel = weight.reshape(3, 3, -1) / np.array(STD)[:, None]  # (classes, channels, places)
    by_pixel = by_pixel.reshape(3, -1)
    grads = []
    target = None
    for factors in (None, noisy.plan().factors):
        logits = forward(model, images(noisy, factors))[1]
        target = logits.argmax(1) if target is None else target
        p = logits.softmax(1).numpy()
        grads.append((p - np.eye(3)[target]) @ by_pixel)
    norms = [np.linalg.norm(g, axis=1) for g in grads]
    cosine = (grads[0] * grads[1]).sum(1) / norms[0] / norms[1]
    columns = numbers(found, "gradients")
    np.testing.assert_allclose(columns["norm_clean"], norms[0], rtol=1e-4)
    np.testing.assert_allclose(columns["norm_perturbed"], norms[1], rtol=1e-4)
    np.testing.assert_allclose(columns["cosine"], cosine, atol=1e-5)
    assert cosine.min() < 0.999  # or it shows nothing
    assert target is not None
    assert np.array_equal(found.targets, target)
    assert {m.name: (m.statistic, m.columns) for m in found.measures[:3]} == {
        "gradient_norm": ("mean", ("norm_clean",)),
        "gradient_norm_perturbed": ("mean", ("norm_perturbed",)),
        "gradient_cosine": ("mean", ("cosine",)),
    }


@pytest.mark.parametrize("scale", [1.0, 150.0])
def test_two_classes_have_one_direction(noisy: Pipeline, scale: float) -> None:
    # Of a linear model: ±(w_1 - w_0), as long as the other class's probability, however small.
    model = tiny.flat(2, scale)
    found = gradients(model, noisy)
    np.testing.assert_allclose(numbers(found, "gradients")["cosine"], 1, atol=1e-6)
    weight = model.net[1].weight.detach().double().numpy()  # type: ignore[index]
    apart = ((weight[1] - weight[0]).reshape(3, -1) / np.array(STD)[:, None]).ravel()
    p = forward(model, images(noisy))[1].softmax(1).amin(1).detach().numpy()
    expected = np.linalg.norm(apart) * p
    np.testing.assert_allclose(numbers(found, "gradients")["norm_clean"], expected, rtol=1e-2)
    assert scale == 1 or p.min() < 1e-50  # which float32 does not have


def test_finite_differences(noisy: Pipeline) -> None:
    model = curved()
    labels = np.array([0, 1, 2, 3, 0, 1, 2])
    found = gradients(model, noisy, labels=labels)
    target = torch.from_numpy(labels)
    h = 1e-5
    directions = []
    for name, factors in (("norm_clean", None), ("norm_perturbed", noisy.plan().factors)):
        x = images(noisy, factors).requires_grad_()
        (g,) = torch.autograd.grad(losses(model, x, target).sum(), x)
        unit = g / g.flatten(1).norm(dim=1)[:, None, None, None]
        with torch.no_grad():
            ahead, behind = (losses(model, x + s * h * unit, target) for s in (1, -1))
        slope = ((ahead - behind) / (2 * h)).numpy()
        np.testing.assert_allclose(numbers(found, "gradients")[name], slope, rtol=1e-3)
        directions.append(unit)
    cosine = (directions[0] * directions[1]).sum((1, 2, 3)).numpy()
    np.testing.assert_allclose(numbers(found, "gradients")["cosine"], cosine, atol=1e-4)
    worst = int(cosine.argmin())
    example = found.examples[0]
    assert example.index == worst
    assert example.factors == tuple(noisy.plan().factors[worst].tolist())
    assert example.lines[0] == (
        f"cosine of the two gradients {cosine[worst]:.2f}, of class {labels[worst]}"
    )


def test_labels_where_they_are_known(noisy: Pipeline) -> None:
    model = tiny.flat(3)
    predicted = gradients(model, noisy).targets
    labels = np.full(N, -1)
    labels[2] = (predicted[2] + 1) % 3
    found = gradients(model, noisy, labels=labels)
    expected = predicted.copy()
    expected[2] = labels[2]
    assert np.array_equal(found.targets, expected)


def test_brightness_slope_in_closed_form(tmp_path: Path) -> None:
    # Nothing is clamped: 1.4 · 180 < 255. A step scales the image, and Δf = Δx / std.
    pixels = {"a": tiny.noise(np.random.default_rng(2), 4, 0, 180)}
    loader = tiny.loader(tmp_path, pixels, mean=MEAN, std=STD)
    found = gradients(tiny.flat(), loader)
    x = tiny.decoded(loader)
    normalized = x / np.array(STD)[:, None, None]
    cycle = keyed.cycle(np.arange(4), 4)
    following = np.empty(4, int)
    following[cycle] = np.roll(cycle, -1)
    between = np.sqrt(((normalized - normalized[following]) ** 2).sum((1, 2, 3))).mean()
    assert found.between == pytest.approx(between, rel=1e-6)
    rms = np.sqrt((x**2).mean((1, 2, 3)))
    expected = np.sqrt((normalized**2).sum((1, 2, 3))) / between / rms
    np.testing.assert_allclose(numbers(found, "slopes")["brightness"], expected, rtol=1e-4)


def test_slopes_are_the_largest_of_eight_steps(noisy: Pipeline) -> None:
    model = curved()
    found = gradients(model, noisy)
    features = forward(model, images(noisy))[0].detach()
    cycle = torch.from_numpy(keyed.cycle(np.arange(N), N))
    between = (features[cycle] - features[cycle.roll(-1)]).norm(dim=1).mean()
    assert found.between == pytest.approx(between.item(), rel=1e-5)
    assert {m.name: m.columns for m in found.measures[3:]} == {
        f"lipschitz/{kind}": (kind,) for kind in KINDS
    }
    steepest = set()
    for column, (kind, s) in enumerate(zip(KINDS, STRENGTHS, strict=True)):
        slopes = []
        for step in range(8):
            ends = []
            for k in (step, step + 1):
                factors = np.tile(np.array([1.0, 1, 1, 0]), (N, 1))
                factors[:, column] += s * (k / 4 - 1)
                x = images(noisy, factors)
                ends.append((x, forward(model, x)[0].detach()))
            (x, f), (y, g) = ends
            rms = (y - x).square().mean((1, 2, 3)).sqrt()
            slopes.append((g - f).norm(dim=1) / between / rms)
        expected, at = torch.stack(slopes).max(0)
        steepest |= set(at.tolist())
        np.testing.assert_allclose(numbers(found, "slopes")[kind], expected, rtol=1e-2)
    assert len(steepest) > 2


def test_a_grey_image_stands_still(tmp_path: Path) -> None:
    loader = tiny.loader(tmp_path, {"a": tiny.constant(0.3, 0.6)})
    columns = numbers(gradients(curved(), loader), "slopes")
    assert columns["hue"].tolist() == [0, 0]
    assert columns["saturation"].tolist() == [0, 0]  # grey weights that add up to 0.9999
    assert (columns["brightness"] > 0).all()


def test_parts_batches_and_a_cache_change_nothing(
    noisy: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = gradients(curved(), noisy)
    monkeypatch.setattr(module, "AT_ONCE", 2)
    monkeypatch.setattr(module, "DERIVED", 5)
    monkeypatch.setattr(module, "WALKED", 3)
    cache = tiny.Kept()
    first = gradients(curved(), noisy, cache=cache)
    assert cache.computed == ["gradients-0", "gradients-1", "slopes-0", "slopes-1", "slopes-2"]
    second = gradients(curved(), noisy, cache=cache)
    assert len(cache.computed) == 5
    for found in (first, second):
        assert found.between == pytest.approx(whole.between, rel=1e-6)
        for table in ("gradients", "slopes"):
            for name, column in numbers(whole, table).items():
                np.testing.assert_allclose(numbers(found, table)[name], column, rtol=1e-3)


def test_all_is_computed_in_float32(noisy: Pipeline, tmp_path: Path) -> None:
    options: Any = {"mean": MEAN, "std": STD, "strengths": STRENGTHS}
    half = tiny.loader(tmp_path, {}, dtype=torch.bfloat16, **options)
    a, b = (gradients(curved(), loader) for loader in (noisy, half))
    for table in ("gradients", "slopes"):
        for name, column in numbers(a, table).items():
            assert np.array_equal(numbers(b, table)[name], column), name


def test_a_seed_chooses_images(noisy: Pipeline) -> None:
    chosen = [gradients(curved(), noisy, n=4, seed=seed).tables["gradients"] for seed in (0, 0, 5)]
    first, same, other = (table.index.tolist() for table in chosen)
    assert first == same != other
    assert np.array_equal(chosen[0].columns["cosine"], chosen[1].columns["cosine"])
    more = gradients(curved(), noisy, n=6).tables["gradients"].take(chosen[0].index)
    np.testing.assert_allclose(more.columns["cosine"], chosen[0].columns["cosine"], atol=1e-5)


def test_gradients_that_vanish() -> None:
    class Given:
        """Two views whose gradients are given."""

        def __init__(self) -> None:
            self.gradients = [[[0.0, 0], [0, 0], [3, 4]], [[0.0, 0], [1, 0], [-4, 3]]]

    given = Given()

    def derived(viewer: Any, pixels: Any, labels: Any, factors: Any = None) -> Any:
        grads = torch.tensor(given.gradients[factors is not None], dtype=torch.float64)
        return grads, torch.zeros(3, 1), labels

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "input_gradients", derived)
        columns = module._derive_some(
            None,  # type: ignore[arg-type]
            torch.zeros(3, 8, 8, 3),
            torch.zeros(3, dtype=torch.int64),
            np.ones((3, 4), np.float32),
        )
    assert columns["cosine"].tolist() == [0, 0, 0]
    assert columns["norm_clean"].tolist() == [0, 0, 5]
    assert columns["norm_perturbed"].tolist() == [0, 1, 5]


def test_a_kind_of_strength_zero_is_left_out(tmp_path: Path) -> None:
    pixels = {"a": tiny.noise(np.random.default_rng(1), 3)}
    loader = tiny.loader(tmp_path, pixels, strengths=(0.4, 0, 1.5, 0))
    found = gradients(curved(), loader)
    assert list(numbers(found, "slopes")) == ["brightness", "saturation"]
    assert found.left_out == (
        "lipschitz/contrast: the strength of contrast is 0",
        "lipschitz/hue: the strength of hue is 0",
    )
    assert [m.name for m in found.measures[3:]] == ["lipschitz/brightness", "lipschitz/saturation"]


@pytest.mark.parametrize("values", [(0.5,), (0.5, 0.5)])
def test_no_distance_between_images(tmp_path: Path, values: tuple[float, ...]) -> None:
    found = gradients(curved(), tiny.loader(tmp_path, {"a": tiny.constant(*values)}))
    assert list(found.tables) == ["gradients"]
    assert found.left_out == ("lipschitz: no two of the images have different features",)
    assert np.isfinite(numbers(found, "gradients")["cosine"]).all()


class Cut(nn.Module):
    """Logits that depend on the image through no gradient, or through that of the bias alone."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(192, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.linear(x.detach().flatten(1))
        return logits


@pytest.mark.parametrize("trainable", [False, True])
def test_a_model_that_lets_no_gradient_through(noisy: Pipeline, trainable: bool) -> None:
    model = tiny.classifier(Cut())
    model.requires_grad_(trainable)
    with pytest.raises(UserError, match="gradients: model tiny lets no gradient through"):
        gradients(model, noisy)


def test_a_net_that_begins_in_place(noisy: Pipeline) -> None:
    net = nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(192, 2))
    found = gradients(tiny.classifier(net), noisy)
    assert (numbers(found, "gradients")["norm_clean"] > 0).all()
