"""ds and pool_ds as cases for `bench.kernels`: forward and backward, checked against float64."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from bench.common import Case
from bench.kernel_table import Cases
from fastsc.kernels import ds, pool_ds
from fastsc.kernels.devices import has_triton
from fastsc.kernels.distance import KINDS
from fastsc.kernels.pooling import KINDS as POOLED

FEATURES, CLASSES, SIDE = 2048, 1000, 7

Outcome = tuple[Tensor, tuple[Tensor, ...]]  # a value and its gradients


def _impls(cases: Cases) -> list[str]:
    compiled, triton = ["compiled"] * cases.inductor, ["triton"] * has_triton(cases.device)
    return ["reference", *compiled, *triton]


def _with_gradient(function: Callable[..., Tensor], *inputs: Tensor) -> Outcome:
    value = function(*inputs)
    return value.detach(), torch.autograd.grad(value, inputs)


def _error(found: Outcome, exact: Outcome) -> float:
    """Largest relative error of the value, and of each gradient as a whole."""
    pairs = [(found[0], exact[0]), *zip(found[1], exact[1], strict=True)]
    return max(float((a.double() - b).norm() / b.norm()) for a, b in pairs)


def add_ds(cases: Cases, rows: int) -> None:
    """(rows, 2048) features or (rows, 1000) logits, float32."""
    generator = torch.Generator().manual_seed(1)
    for kind in KINDS:
        width = CLASSES if kind == "js" else FEATURES
        f = torch.randn(rows, width, generator=generator)
        g = f + 0.3 * torch.randn(rows, width, generator=generator)
        f, g = (x.to(cases.device).requires_grad_() for x in (f, g))
        wide = [x.detach().double().requires_grad_() for x in (f, g)]
        exact = _with_gradient(functools.partial(ds, kind=kind, impl="reference"), *wide)
        for impl in _impls(cases):
            call = functools.partial(ds, kind=kind, impl=impl)
            error = _error(_with_gradient(call, f, g), exact)
            if not error < 1e-4:
                raise AssertionError(f"ds {kind} by {impl} is off by {error}")
            run = functools.partial(_with_gradient, call, f, g)
            # Both inputs read, both gradients written.
            case = Case(f"ds/{kind}-{impl}", run, unit="ms")
            cases.add(case, bytes=4 * f.nbytes, error=error)


def add_pool_ds(cases: Cases, rows: int, channels: int, dtype: torch.dtype) -> None:
    """Pooling, DS and the backward of both, from (2 rows, channels, 7, 7) maps, channels-last.

    The gradient that comes back from a classifier is there too, as in training. "separate" is what
    a trainer without the fused step runs: the mean over the map in float32, then the reference ds.
    """
    generator = torch.Generator().manual_seed(2)
    base = torch.randn(rows, channels, SIDE, SIDE, generator=generator)
    other = base + 0.3 * torch.randn(base.shape, generator=generator)
    maps = torch.cat([base, other]).to(cases.device, dtype).relu()
    maps = maps.to(memory_format=torch.channels_last).requires_grad_()
    back = torch.randn(2 * rows, channels, generator=generator).to(cases.device) / channels

    def separate(maps: Tensor, kind: str) -> tuple[Tensor, Tensor]:
        features = maps.to(back.dtype if maps.dtype != torch.float64 else maps.dtype).mean((2, 3))
        return features, ds(features[:rows], features[rows:], kind, impl="reference")

    def total(step: Callable[[Tensor], tuple[Tensor, Tensor]], maps: Tensor) -> Tensor:
        features, distance = step(maps)
        return distance + (features * back).sum()

    for kind in POOLED:
        plain = functools.partial(total, functools.partial(separate, kind=kind))
        exact = _with_gradient(plain, maps.detach().double().requires_grad_())
        steps = {"separate": plain}
        for impl in _impls(cases):
            if impl != "reference":
                steps[impl] = functools.partial(
                    total, functools.partial(pool_ds, kind=kind, impl=impl)
                )
        limit = 1e-4 if dtype == torch.float32 else 1e-2
        for name, step in steps.items():
            error = _error(_with_gradient(step, maps), exact)
            if not error < limit:
                raise AssertionError(f"pool_ds {kind} by {name} is off by {error}")
            run = functools.partial(_with_gradient, step, maps)
            # The map read once, its gradient written once.
            cases.add(
                Case(f"pool_ds/{kind}-{name}", run, unit="ms"),
                bytes=2 * maps.numel() * maps.element_size(),
                error=error,
            )
