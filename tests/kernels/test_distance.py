"""ds: values against independent formulas, gradients, and the places where they break."""

import math
from collections.abc import Iterable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scipy.spatial.distance import jensenshannon
from torch import Tensor

from fastsc.kernels import ds
from fastsc.kernels.distance import (
    BATCH_SCALED,
    KINDS,
    between_distance,
    fusible,
    relative,
    scale_rows,
)

pytestmark = pytest.mark.heavy

N, D = 9, 33  # odd on purpose


def slow_but(kinds: Iterable[str], *quick: str) -> list[Any]:
    """Kinds of DS as parameters: all but the quick ones are left to `make test-slow`."""
    return [pytest.param(kind, marks=() if kind in quick else pytest.mark.slow) for kind in kinds]


def pair(seed: int = 0, scale: float = 1.0, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(seed)
    f = torch.randn(N, D, dtype=torch.float64, generator=generator) * scale
    g = f + torch.randn(N, D, dtype=torch.float64, generator=generator) * 0.3 * scale
    return f.to(dtype).requires_grad_(), g.to(dtype).requires_grad_()


def oracle(f: Tensor, g: Tensor, kind: str) -> float:
    f, g = f.detach().double(), g.detach().double()
    l2 = F.pairwise_distance(f, g, eps=0).mean()
    if kind == "l2":
        return l2.item()
    if kind == "relative":
        between = [torch.dist(f[i], f[(i + 1) % len(f)]) for i in range(len(f))]
        return (l2 / (sum(between) / len(f))).item()
    if kind == "cosine":
        return (1 - F.cosine_similarity(f, g)).mean().item()
    if kind == "mse":
        return sum(torch.dist(a, b).item() ** 2 for a, b in zip(f, g)) / f.numel()
    if kind == "sq":
        moved = sum(torch.dist(a, b).item() ** 2 for a, b in zip(f, g)) / len(f)
        return moved / (2 * ((f + g) / 2).var(0, correction=0).sum().item())
    return float((jensenshannon(f.softmax(1), g.softmax(1), axis=1) ** 2).mean())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_values(kind: str, scale: float) -> None:
    f, g = pair(scale=scale)
    assert ds(f, g, kind).item() == pytest.approx(oracle(f, g, kind), rel=1e-9, abs=1e-12)
    single = ds(f.float(), g.float(), kind)
    assert single.dtype == torch.float32
    assert single.item() == pytest.approx(oracle(f, g, kind), rel=2e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1.0, 12.0])
def test_gradcheck(kind: str, scale: float) -> None:
    f, g = (x.detach()[:4, :7].clone().requires_grad_() for x in pair(scale=scale))
    assert torch.autograd.gradcheck(lambda a, b: ds(a, b, kind), (f, g))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_zero_at_the_diagonal(kind: str, dtype: torch.dtype) -> None:
    f, _ = pair(scale=3, dtype=dtype)
    g = f.detach().clone().requires_grad_()
    value = ds(f, g, kind)
    value.backward()
    assert value.item() == 0.0
    for x in (f, g):
        assert x.grad is not None
        assert torch.equal(x.grad, torch.zeros_like(x))
    same = f.detach().clone().requires_grad_()
    ds(same, same, kind).backward()
    assert same.grad is not None
    assert torch.equal(same.grad, torch.zeros_like(same))


@pytest.mark.parametrize("kind", KINDS)
def test_one_equal_row_among_others(kind: str) -> None:
    f, g = pair(dtype=torch.float32)
    with torch.no_grad():
        g[4] = f[4]
    ds(f, g, kind).backward()
    assert f.grad is not None
    assert g.grad is not None
    assert f.grad.isfinite().all()
    # The midpoint of "sq" still moves away from the others', by both its ends alike.
    assert torch.equal(g.grad[4], f.grad[4] if kind == "sq" else torch.zeros(D))
    assert g.grad[3].abs().max() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_only_what_asks_for_them(kind: str) -> None:
    f, g = pair(dtype=torch.float32)
    ds(f, g, kind).backward()
    full = g.grad
    f2, g2 = f.detach(), g.detach().clone().requires_grad_()
    ds(f2, g2, kind).backward()
    torch.testing.assert_close(g2.grad, full)
    assert f.grad is not None
    assert f.grad.abs().max() > 0


@pytest.mark.parametrize("kind", slow_but(KINDS, "relative"))
def test_compiled_agrees_forward_and_backward(kind: str) -> None:
    f, g = pair(dtype=torch.float32)
    f2, g2 = (x.detach().clone().requires_grad_() for x in (f, g))
    value, compiled = ds(f, g, kind), ds(f2, g2, kind, impl="compiled")
    value.backward()
    compiled.backward()
    torch.testing.assert_close(compiled, value, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(f2.grad, f.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(g2.grad, g.grad, rtol=1e-4, atol=1e-6)
    same, copy = (f.detach().clone().requires_grad_() for _ in range(2))
    zero = ds(same, copy, kind, impl="compiled")
    zero.backward()
    assert zero.item() == 0.0
    for x in (same, copy):
        assert x.grad is not None
        assert torch.equal(x.grad, torch.zeros_like(x))


@pytest.mark.parametrize("rows", [2, 3, N])
def test_relative_in_one_pass_is_relative(rows: int) -> None:
    """What the compiler gets in its place: same value, same gradient."""
    f, g = (x.detach()[:rows].clone().requires_grad_() for x in pair())
    with torch.no_grad():
        f[1] = f[0]  # the distance to a neighbour is 0
    results = []
    for function in (relative, fusible("relative")):
        for options in ({}, {"detach_scale": True}, {"others": pair(seed=1)[0].detach()}):
            value = function(f, g, **options)
            results.append((value.detach(), *torch.autograd.grad(value, (f, g))))
    for a, b in zip(results[:3], results[3:], strict=True):
        assert torch.equal(a[0], b[0])
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def eager(f: Tensor, g: Tensor, kind: str) -> Tensor:
    """The plain formula in the inputs' own precision."""
    if kind == "cosine":
        return (1 - F.cosine_similarity(f, g)).mean()
    if kind == "js":
        p, q = f.softmax(1), g.softmax(1)
        m = ((p + q) / 2).log()
        return ((p * (p.log() - m)).sum(1) + (q * (q.log() - m)).sum(1)).mean() / 2
    if kind == "mse":
        return (f - g).square().mean()
    if kind == "sq":
        variance = ((f + g) / 2).var(0, correction=0).sum()
        return (f - g).square().sum(1).mean() / (2 * variance)
    l2 = (f - g).norm(dim=1).mean()
    return l2 if kind == "l2" else l2 / (f - f.roll(-1, 0)).norm(dim=1).mean()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_bfloat16_is_no_worse_than_eager(kind: str, seed: int) -> None:
    """Value and gradients, by element: |ours - truth| <= |eager bfloat16 - truth| + 1e-2."""
    f, g = pair(seed=seed, dtype=torch.bfloat16)
    results = []
    for function, dtype in ((ds, torch.bfloat16), (eager, torch.bfloat16), (ds, torch.float32)):
        inputs = [x.detach().to(dtype).requires_grad_() for x in (f, g)]
        value = function(*inputs, kind)
        value.backward()
        results.append([value.detach().double(), *(x.grad.double() for x in inputs)])
    ours, plain, truth = results
    for a, b, c in zip(ours, plain, truth, strict=True):
        excess = (a - c).abs() - (b - c).abs()
        assert excess.max() <= 1e-2, f"worst element: {int(excess.argmax())}"
    assert ours[0].item() == pytest.approx(truth[0].item(), rel=1e-6)  # upcasting loses nothing


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_does_not_lower_the_precision(kind: str) -> None:
    f, g = pair(dtype=torch.float32)
    expected = ds(f, g, kind)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = ds(f, g, kind)
        mixed = ds(f.bfloat16(), g, kind)
    assert inside.dtype == mixed.dtype == torch.float32
    assert torch.equal(inside, expected)


def test_detach_scale() -> None:
    f, g = pair()
    scale = between_distance(f).detach()
    ds(f, g, "relative", detach_scale=True).backward()
    f2, g2 = (x.detach().clone().requires_grad_() for x in (f, g))
    (ds(f2, g2, "l2") / scale).backward()
    torch.testing.assert_close(f.grad, f2.grad)
    f3 = f.detach().clone().requires_grad_()
    ds(f3, g.detach(), "relative").backward()
    assert not torch.allclose(f3.grad, f.grad)
    assert torch.equal(relative(f, g), ds(f, g, "relative"))


@pytest.mark.parametrize("kind", BATCH_SCALED)
def test_collapsed_features_stay_finite(kind: str) -> None:
    same = torch.ones(N, D, requires_grad=True)
    assert between_distance(same).item() == 0.0
    zero = ds(same, same.detach().clone(), kind)
    zero.backward()
    assert zero.item() == 0.0
    assert same.grad is not None
    assert same.grad.isfinite().all()
    far = ds(same, same.detach() + 1, kind)
    assert far.isfinite()
    assert far > 1e6


def test_sq_is_blind_to_a_common_scale_and_offset() -> None:
    """What a cosine is cheated by: a part that all features share."""
    f, g = pair()
    plain = ds(f, g, "sq").item()
    assert ds(100 * f + 5, 100 * g + 5, "sq").item() == pytest.approx(plain, rel=1e-12)
    assert ds(f + 5, g + 5, "cosine") < ds(f, g, "cosine") / 10


@pytest.mark.parametrize("impl", ["reference", pytest.param("compiled", marks=pytest.mark.slow)])
def test_sq_by_the_midpoints_of_all(impl: str) -> None:
    """The shares' mean is the whole batch's, in value and gradient: what ranks compute."""
    f, g = pair()
    whole = ds(f, g, "sq")
    halves = [
        ds(f[part], g[part], "sq", impl=impl, others=scale_rows(f, g, "sq"))
        for part in (slice(0, 4), slice(4, 8), slice(8, 9))
    ]
    together = sum(w * half for w, half in zip((4 / N, 4 / N, 1 / N), halves, strict=True))
    assert together.item() == pytest.approx(whole.item(), rel=1e-12)
    for a, b in zip(*(torch.autograd.grad(x, (f, g)) for x in (whole, together)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("other", [0.0, 1.0])
def test_cosine_of_zero_vectors(other: float) -> None:
    f = torch.zeros(2, D, requires_grad=True)
    g = torch.full((2, D), other, requires_grad=True)
    value = ds(f, g, "cosine")
    value.backward()
    assert value.item() == pytest.approx(other / 2)
    for x in (f, g):
        assert x.grad is not None
        assert x.grad.abs().max() <= 1


def test_cosine_is_scale_free() -> None:
    f, g = pair(dtype=torch.float32)
    assert ds(f * 1000, g / 1000, "cosine").item() == pytest.approx(
        ds(f, g, "cosine").item(), rel=1e-5
    )
    assert ds(f, -f, "cosine").item() == pytest.approx(2)


@pytest.mark.parametrize("size", [50.0, 1e3, 1e30])
def test_js_of_large_logits(size: float) -> None:
    f = (F.one_hot(torch.tensor([0, 1]), 5) * size).requires_grad_()
    g = (F.one_hot(torch.tensor([2, 1]), 5) * size).requires_grad_()
    value = ds(f, g, "js")
    value.backward()
    assert value.item() == pytest.approx(math.log(2) / 2, rel=1e-6)  # one of the two rows differs
    for x in (f, g):
        assert x.grad is not None
        assert x.grad.isfinite().all()


def test_js_keeps_its_digits_between_near_neighbours() -> None:
    f, g = pair()
    near = f + 1e-4 * g
    exact = ds(f, near, "js").item()
    assert 0 < exact < 1e-8
    assert ds(f.float(), near.float(), "js").item() == pytest.approx(exact, rel=5e-2)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_mse_is_that_of_torch(scale: float) -> None:
    """To the last bit, in value and gradients: it is the same call."""
    f, g = pair(scale=scale)
    results = []
    for function in (lambda a, b: ds(a, b, "mse"), F.mse_loss):
        value = function(f, g)
        results.append((value.detach(), *torch.autograd.grad(value, (f, g))))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
    torch.testing.assert_close(results[0][1], 2 * (f - g).detach() / f.numel())


def test_nan_is_not_hidden() -> None:
    f, g = pair(dtype=torch.float32)
    broken = f.detach().clone()
    broken[2, 3] = float("nan")
    for kind in KINDS:
        assert ds(broken, g, kind).isnan()


@pytest.mark.parametrize(
    ("f", "g", "options", "message"),
    [
        (torch.ones(2, 3), torch.ones(2, 4), {}, "flatten or pool"),
        (torch.ones(2, 3, 1, 1), torch.ones(2, 3, 1, 1), {}, "flatten or pool"),
        (torch.ones(0, 3), torch.ones(0, 3), {}, "empty batch"),
        (torch.ones(2, 3).int(), torch.ones(2, 3), {}, "floating-point"),
        (torch.ones(2, 3), torch.ones(2, 3, device="meta"), {}, "device"),
        (torch.ones(1, 3), torch.ones(1, 3), {"kind": "relative"}, "at least two"),
        (torch.ones(1, 3), torch.ones(1, 3), {"kind": "sq"}, "'sq' compares .* at least two"),
        (torch.ones(2, 3), torch.ones(2, 3), {"kind": "kl"}, "l2, relative, cosine, js, mse, sq"),
        (torch.ones(2, 3), torch.ones(2, 3), {"impl": "numba"}, "auto, reference, compiled"),
    ],
)
def test_arguments_that_do_not_fit(f: Tensor, g: Tensor, options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ds(f, g, **options)


def test_between_distance_of_one_image() -> None:
    with pytest.raises(ValueError, match="at least two"):
        between_distance(torch.ones(1, 3))
