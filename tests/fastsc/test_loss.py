"""ContinuityLoss against plain formulas in float64, and what gets a gradient."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fastsc import ContinuityLoss

N, C, D = 5, 7, 11


def batch(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """logits, logits perturbed, target, features, features perturbed."""
    g = torch.Generator().manual_seed(3)
    a, b = (torch.randn(N, C, generator=g, dtype=torch.float64).to(dtype) for _ in range(2))
    f, h = (torch.randn(N, D, generator=g, dtype=torch.float64).to(dtype) for _ in range(2))
    return [a, b, torch.randint(C, (N,), generator=g), f, h]


def oracle_ds(f: Tensor, g: Tensor, kind: str) -> float:
    """Image by image, in Python's floats."""
    within, between, cosines, divergences = [], [], [], []
    center, spread = ((f + g) / 2).mean(0), 0.0
    for i in range(len(f)):
        within.append(math.dist(f[i].tolist(), g[i].tolist()))
        between.append(math.dist(f[i].tolist(), f[(i + 1) % len(f)].tolist()))
        spread += math.dist(((f[i] + g[i]) / 2).tolist(), center.tolist()) ** 2
        cosines.append(1 - float(f[i] @ g[i] / (f[i].norm() * g[i].norm())))
        p, q = f[i].softmax(0).tolist(), g[i].softmax(0).tolist()
        js = [a * math.log(2 * a / (a + b)) + b * math.log(2 * b / (a + b)) for a, b in zip(p, q)]
        divergences.append(sum(js) / 2)
    mean = {
        "l2": sum(within),
        "mse": sum(d**2 for d in within) / f.shape[1],
        "cosine": sum(cosines),
        "js": sum(divergences),
        "relative": sum(within) / sum(between) * len(f),
        "sq": sum(d**2 for d in within) / (2 * spread) * len(f),
    }
    return mean[kind] / len(f)


def oracle_ce(logits: Tensor, target: Tensor, smoothing: float) -> float:
    total = 0.0
    for row, label in zip(logits, target.tolist()):
        logp = row.log_softmax(0).tolist()
        total -= (1 - smoothing) * logp[label] + smoothing * sum(logp) / len(logp)
    return total / len(logits)


@pytest.mark.parametrize(
    ("kind", "at"),
    [
        ("l2", "features"),
        ("relative", "features"),
        ("cosine", "features"),
        ("mse", "features"),
        ("sq", "features"),
        ("l2", "logits"),
        ("relative", "logits"),
        ("cosine", "logits"),
        ("mse", "logits"),
        ("sq", "logits"),
        ("js", "logits"),
    ],
)
@pytest.mark.parametrize("ce_views", ["clean", "both"])
def test_parts_and_sum(kind: str, at: str, ce_views: str) -> None:
    a, b, target, f, g = batch(torch.float64)
    loss = ContinuityLoss(0.7, kind, at=at, ce_views=ce_views, label_smoothing=0.1)  # type: ignore[arg-type]
    parts = loss(a, b, target, f, g)
    ce = oracle_ce(a, target, 0.1)
    if ce_views == "both":
        ce = (ce + oracle_ce(b, target, 0.1)) / 2
    ds = oracle_ds(f, g, kind) if at == "features" else oracle_ds(a, b, kind)
    assert float(parts.ce) == pytest.approx(ce, rel=1e-9)
    assert float(parts.ds) == pytest.approx(ds, rel=1e-9)
    assert float(parts.loss) == pytest.approx(ce + 0.7 * ds, rel=1e-9)
    assert float(parts.ds_relative) == pytest.approx(oracle_ds(f, g, "relative"), rel=1e-9)


def test_only_the_loss_has_a_gradient() -> None:
    a, b, target, f, g = batch()
    leaves = [x.requires_grad_() for x in (a, b, f, g)]
    parts = ContinuityLoss()(a, b, target, f, g)
    assert parts.loss.requires_grad
    assert not any(x.requires_grad for x in parts[1:])
    parts.loss.backward()
    assert all(x.grad is not None and x.grad.abs().sum() > 0 for x in leaves)


@pytest.mark.parametrize(
    ("stop", "gets"),
    [
        ("none", (True, True)),
        ("clean", (False, True)),
        ("perturbed", (True, False)),
    ],
)
def test_stop_gradient(stop: str, gets: tuple[bool, bool]) -> None:
    a, b, target, f, g = batch()
    f.requires_grad_(), g.requires_grad_()
    a.requires_grad_()
    ContinuityLoss(1.0, "cosine", stop_gradient=stop)(a, b, target, f, g).loss.backward()  # type: ignore[arg-type]
    assert (f.grad is not None, g.grad is not None) == gets


def test_alpha_zero_is_cross_entropy_and_still_logs_ds() -> None:
    a, b, target, f, g = batch()
    f.requires_grad_()
    a.requires_grad_()
    parts = ContinuityLoss(0, "l2", ce_views="clean")(a, b, target, f, g)
    assert parts.loss.item() == pytest.approx(functional.cross_entropy(a, target).item())
    assert float(parts.ds) > 0
    parts.loss.backward()
    assert f.grad is None


def test_detach_scale_changes_the_gradient_and_not_the_value() -> None:
    a, b, target, f, g = batch(torch.float64)
    grads, values = [], []
    for detach in (False, True):
        x = f.clone().requires_grad_()
        parts = ContinuityLoss(1.0, "relative", detach_scale=detach)(a, b, target, x, g)
        parts.loss.backward()
        assert x.grad is not None
        grads.append(x.grad)
        values.append(parts.loss.item())
    assert values[0] == values[1]
    assert (grads[0] - grads[1]).abs().max() > 1e-3
    # With the scale held constant, relative is l2 divided by a number.
    scale = oracle_ds(f, g, "l2") / oracle_ds(f, g, "relative")
    x = f.clone().requires_grad_()
    ContinuityLoss(1 / scale, "l2")(a, b, target, x, g).loss.backward()
    assert x.grad is not None
    torch.testing.assert_close(grads[1], x.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "at"),
    [
        ("l2", "features"),
        ("relative", "features"),
        ("cosine", "features"),
        ("mse", "features"),
        ("sq", "features"),
        ("js", "logits"),
    ],
)
def test_equal_views_cost_exactly_nothing(kind: str, at: str) -> None:
    a, _, target, f, _ = batch()
    a.requires_grad_()
    f.requires_grad_()
    parts = ContinuityLoss(5.0, kind, at=at, ce_views="clean")(a, a, target, f, f)  # type: ignore[arg-type]
    assert float(parts.ds) == 0.0
    assert float(parts.ds_relative) == 0.0
    parts.loss.backward()
    plain = a.detach().clone().requires_grad_()
    functional.cross_entropy(plain, target).backward()
    assert torch.equal(a.grad, plain.grad)  # type: ignore[arg-type]
    assert f.grad is None or not f.grad.any()


def test_low_precision_inputs_are_computed_in_float32_under_autocast_too() -> None:
    parts_of = ContinuityLoss(1.0, "cosine")
    low = [x.bfloat16() if x.is_floating_point() else x for x in batch()]
    wide = [x.float() if x.is_floating_point() else x for x in low]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        parts = parts_of(*low)
    for one, other in zip(parts, parts_of(*wide)):
        assert one.dtype == torch.float32
        assert torch.equal(one, other)


def test_a_batch_of_one_and_collapsed_features() -> None:
    a, b, target, f, g = batch()
    one = ContinuityLoss()(a[:1], b[:1], target[:1], f[:1], g[:1])
    assert math.isnan(float(one.ds_relative))
    assert math.isfinite(float(one.loss))
    same = torch.ones(N, D, requires_grad=True)
    collapsed = ContinuityLoss(1.0, "relative")(a, b, target, same, same)
    assert float(collapsed.ds_relative) == 0.0
    collapsed.loss.backward()
    assert same.grad is None or same.grad.isfinite().all()


def test_logits_alone_are_enough_at_logits() -> None:
    a, b, target, _, _ = batch(torch.float64)
    parts = ContinuityLoss(1.0, "js", at="logits")(a, b, target)
    assert float(parts.ds_relative) == pytest.approx(oracle_ds(a, b, "relative"), rel=1e-9)
    with pytest.raises(ValueError, match="needs features"):
        ContinuityLoss()(a, b, target)


def test_gradcheck() -> None:
    a, b, target, f, g = (x[:3] for x in batch(torch.float64))
    for x in (a, b, f, g):
        x.requires_grad_()
    for kind, ce_views in itertools.product(
        ("l2", "relative", "cosine", "mse", "sq"), ("clean", "both")
    ):
        loss = ContinuityLoss(0.5, kind, ce_views=ce_views, label_smoothing=0.1)  # type: ignore[arg-type]
        assert torch.autograd.gradcheck(
            lambda *x, loss=loss: loss(x[0], x[1], target, x[2], x[3]).loss, (a, b, f, g)
        )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"alpha": -1.0}, "alpha"),
        ({"alpha": math.nan}, "alpha"),
        ({"alpha": math.inf}, "alpha"),
        ({"ds": "js"}, 'at="logits"'),
        ({"ds": "l1"}, "ds must be one of"),
        ({"at": "input"}, "at must be one of"),
        ({"ce_views": "none"}, "ce_views"),
        ({"stop_gradient": "both"}, "stop_gradient"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
    ],
)
def test_mistakes(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ContinuityLoss(**arguments)  # type: ignore[arg-type]
