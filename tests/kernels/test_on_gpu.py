"""The kernels on a GPU: to the bit where they can be. Needs torch, triton, numba and pytest alone.

FASTSC_DRY=1 runs the same lines in Triton's interpreter on a CPU, which shows that they run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from fastsc.kernels import ds, front_end, normalize, pair_view, perturb, pool_ds

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ON_GPU = torch.cuda.is_available()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not (ON_GPU or os.environ.get("FASTSC_DRY")), reason="needs a CUDA device, or FASTSC_DRY=1"
    ),
]


@pytest.fixture(scope="module")
def device() -> Iterator[str]:
    if ON_GPU:
        yield "cuda"
        return
    from fastsc.kernels import (
        distance_ops,
        distance_triton,
        front_triton,
        pooling_triton,
        triton_pixels,
        views_triton,
    )
    from tests.kernels.triton_tools import interpreted

    modules = (
        triton_pixels, views_triton, front_triton, distance_triton, distance_ops, pooling_triton,
    )  # fmt: skip
    with interpreted(*modules):
        yield "cpu"


def batch(n: int, h: int, w: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images and factors; every fifth image is left as it is, every third is dark."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, (n, h, w, 3), dtype=torch.uint8, generator=generator)
    x[::3] //= 8
    factors = torch.rand(n, 4, generator=generator) * 2
    factors[:, 3] = factors[:, 3] / 2 - 0.5
    factors[::5] = torch.tensor([1.0, 1.0, 1.0, 0.0])
    factors[1::7, 1] = 1.0  # no mean grey
    return x, factors


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (16, 16), (223, 225), (224, 224)])
def test_views_have_the_bits_of_the_cpu(
    device: str, dtype: torch.dtype, size: tuple[int, int]
) -> None:
    x, factors = batch(7 if ON_GPU or size[0] < 200 else 1, *size)
    expected = pair_view(x, factors, MEAN, STD, dtype=dtype, impl="numba")
    x, factors = x.to(device), factors.to(device)
    clean, perturbed = pair_view(x, factors, MEAN, STD, dtype=dtype, impl="triton")
    assert torch.equal(clean.cpu(), expected[0])
    assert torch.equal(perturbed.cpu(), expected[1])
    assert torch.equal(normalize(x, MEAN, STD, dtype=dtype, impl="triton"), clean)
    assert torch.equal(perturb(x, factors, MEAN, STD, dtype=dtype, impl="triton"), perturbed)


def test_many_small_images(device: str) -> None:
    n = 4096 if ON_GPU else 5
    x, factors = batch(n, 12, 20)
    expected = pair_view(x, factors, MEAN, STD)
    found = pair_view(x.to(device), factors.to(device), MEAN, STD, impl="triton")
    assert all(torch.equal(a.cpu(), b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("odd", [0, 3])
def test_more_values_than_32_bits_count(device: str, odd: int) -> None:
    """The last images of a batch of 3.2e9 values; nothing overtakes them."""
    n, side = (4096, 512) if ON_GPU else (3, 16)
    x, factors = batch(4, side - odd, side + odd)
    repeated = x.to(device).repeat(-(-n // 4), 1, 1, 1)[:n]
    rows = factors.to(device).repeat(-(-n // 4), 1)[:n]
    found = pair_view(repeated, rows, MEAN, STD, dtype=torch.bfloat16, impl="triton")
    expected = pair_view(x, factors, MEAN, STD, dtype=torch.bfloat16)
    for view, small in zip(found, expected, strict=True):
        for i in (0, n // 2, n - 2, n - 1):
            assert torch.equal(view[i].cpu(), small[i % 4]), i


def test_views_again_and_into_out(device: str) -> None:
    x, factors = (t.to(device) for t in batch(6, 48, 32))
    first = pair_view(x, factors, MEAN, STD, impl="triton")
    out = tuple(torch.full_like(view, 9.0) for view in first)
    again = pair_view(x, factors, MEAN, STD, impl="triton", out=(out[0], out[1]))
    assert again[0] is out[0]
    assert all(torch.equal(a, b) for a, b in zip(first, out, strict=True))


@pytest.mark.parametrize("offset", [1, 5])
def test_an_address_that_is_not_aligned(device: str, offset: int) -> None:
    x, factors = batch(3, 32, 32)
    expected = pair_view(x, factors, MEAN, STD)
    moved = torch.cat([x.new_zeros(offset), x.flatten()]).to(device)[offset:].view(x.shape)
    found = pair_view(moved, factors.to(device), MEAN, STD, impl="triton")
    assert all(torch.equal(a.cpu(), b) for a, b in zip(found, expected, strict=True))


@pytest.mark.skipif(not ON_GPU, reason="streams are a GPU's")
def test_another_stream_and_no_stall(device: str) -> None:
    x, factors = (t.to(device) for t in batch(8, 64, 64))
    expected = pair_view(x, factors, MEAN, STD, impl="triton")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.cuda.stream(stream):
            found = pair_view(x, factors, MEAN, STD, impl="triton")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    stream.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_compiled_views_agree(device: str) -> None:
    x, factors = batch(6, 33, 47)
    expected = pair_view(x, factors, MEAN, STD)
    pair = pair_view(x.to(device), factors.to(device), MEAN, STD, impl="compiled")
    for view, other in zip(pair, expected, strict=True):
        torch.testing.assert_close(view.cpu(), other, rtol=0, atol=2e-5)


@pytest.mark.parametrize("size", [(1, 1), (223, 225) if ON_GPU else (33, 70)])
@pytest.mark.parametrize("front", ["rgb", "luma", "rgb-luma", "rgb-luma-minmax"])
def test_front_ends(device: str, front: str, size: tuple[int, int]) -> None:
    x_u8, factors = batch(7 if ON_GPU else 1, *size)
    x = pair_view(x_u8, factors, MEAN, STD)[1]
    expected = front_end(x.double(), front, MEAN, STD)
    here = x.to(device)
    found = front_end(here, front, MEAN, STD, impl="triton")
    assert ((found.cpu() - expected).abs() / expected.abs().clamp_min(1)).max() < 1e-5
    assert torch.equal(front_end(here, front, MEAN, STD, impl="triton"), found), "twice the same"
    low = here.bfloat16()
    rounded = front_end(low.float(), front, MEAN, STD, impl="triton").bfloat16()
    torch.testing.assert_close(front_end(low, front, MEAN, STD, impl="triton"), rounded)


def relative_error(found: Tensor, exact: Tensor) -> float:
    return float((found.cpu().double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("impl", ["triton", "compiled"])
@pytest.mark.parametrize("kind", ["l2", "relative", "cosine", "js", "mse", "sq"])
def test_distances(device: str, kind: str, impl: str) -> None:
    n, d = (256, 1000) if ON_GPU else (5, 33)
    generator = torch.Generator().manual_seed(1)
    f = torch.randn(n, d, generator=generator)
    g = f + 0.3 * torch.randn(n, d, generator=generator)
    wide = [x.double().requires_grad_() for x in (f, g)]
    exact = ds(*wide, kind, impl="reference")
    exact.backward()
    here = [x.to(device).requires_grad_() for x in (f, g)]
    value = ds(*here, kind, impl=impl)
    value.backward()
    assert value.item() == pytest.approx(exact.item(), rel=1e-5)
    for x, y in zip(here, wide, strict=True):
        assert x.grad is not None
        assert y.grad is not None
        assert relative_error(x.grad, y.grad) < 1e-5
    again = [x.detach().clone().requires_grad_() for x in here]
    second = ds(*again, kind, impl=impl)
    second.backward()
    assert torch.equal(second, value), "twice the same"
    equal = again[0].detach().clone().requires_grad_()
    nothing = ds(equal, again[0].detach().clone(), kind, impl=impl)
    nothing.backward()
    assert nothing.item() == 0.0, "of equal views, to the last bit"
    assert equal.grad is not None
    assert not equal.grad.any()
    assert all(torch.equal(x.grad, y.grad) for x, y in zip(here, again, strict=True))


@pytest.mark.parametrize("impl", ["triton", "compiled"])
@pytest.mark.parametrize("kind", ["l2", "relative", "cosine", "mse", "sq"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_pooled_distances(device: str, dtype: torch.dtype, kind: str, impl: str) -> None:
    n, c = (64, 2048) if ON_GPU else (3, 16)
    generator = torch.Generator().manual_seed(2)
    base = torch.randn(n, c, 7, 7, generator=generator)
    other = base + 0.3 * torch.randn(base.shape, generator=generator)
    maps = torch.cat([base, other]).to(dtype)
    back = torch.randn(2 * n, c, generator=generator) / c
    wide = maps.double().requires_grad_()
    features, distance = pool_ds(wide, kind, impl="reference")
    (distance + (features * back).sum()).backward()
    here = maps.to(device).contiguous(memory_format=torch.channels_last).requires_grad_()
    pooled, value = pool_ds(here, kind, impl=impl)
    (value + (pooled * back.to(device)).sum()).backward()
    assert relative_error(pooled.detach(), features.detach()) < 1e-6
    assert value.item() == pytest.approx(distance.item(), rel=1e-5)
    assert here.grad is not None
    assert wide.grad is not None
    assert here.grad.dtype == dtype
    limit = {torch.float32: 1e-5, torch.bfloat16: 4e-3, torch.float16: 1e-3}[dtype]
    assert relative_error(here.grad, wide.grad) < limit
