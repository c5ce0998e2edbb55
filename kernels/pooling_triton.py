"""Global average pooling fused with DS, in Triton: the map is read once, its gradient written once.

- `means` is one warp a program: a thread sums its own channels over all positions, so that nothing
  is exchanged between threads, and seven 128-bit loads of a thread are on their way at once (a 7x7
  map is seven rounds). A grid of rows times channels fills the device for any usual batch.
- DS is then measured on the means, 1/HW of the map and still in the L2 cache, by the kernels of
  `distance_triton`; and their `gradient` adds what comes back from the classifier before it writes.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastsc.kernels.distance_ops import (
    columns,
    launch_gradient,
    launch_values,
    on_device,
    statistics_like,
)
from fastsc.kernels.distance_triton import OPTIONS

_MAX_ROW = 1 << 31  # elements of a row of maps: offsets inside it are 32-bit
STEP = 7


@triton.jit(do_not_specialize=["units", "blocks", "positions"])
def means(  # type: ignore[no-untyped-def]
    maps_ptr,  # (R, positions, C)
    out_ptr,  # (R, C) float32
    units,  # C = units * VEC: what the compiler knows to divide C makes its accesses wide
    blocks,  # programs a row
    positions,
    VEC: tl.constexpr,
    BLOCK: tl.constexpr,
    STEP: tl.constexpr,
):
    """Mean over the positions: one part of one row's channels a program."""
    program = tl.program_id(0)
    row = (program // blocks).to(tl.int64)
    size = units * VEC
    at = (program % blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    x = maps_ptr + row * (positions.to(tl.int64) * size) + at
    total = tl.zeros((BLOCK,), tl.float32)
    whole = positions - positions % STEP
    for start in range(0, whole, STEP):
        # By parts: fewer roundings pile up in a large map.
        part = tl.zeros((BLOCK,), tl.float32)
        for k in tl.static_range(STEP):
            part += tl.load(x + (start + k) * size, mask=inside, other=0.0).to(tl.float32)
        total += part
    for position in range(whole, positions):
        total += tl.load(x + position * size, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * size + at, total / positions.to(tl.float32), mask=inside)


@torch.library.custom_op("fastsc::pool_ds", mutates_args=())
def _pool_ds(
    maps: Tensor, kind: str, n_clean: int, stop_gradient: str, detach_scale: bool
) -> tuple[Tensor, Tensor, Tensor]:
    del stop_gradient, detach_scale  # the backward pass reads them
    rows, size, height, width = maps.shape
    maps = maps.contiguous(memory_format=torch.channels_last)
    features = torch.empty((rows, size), dtype=torch.float32, device=maps.device)
    vec, block = columns(size, maps.dtype)
    blocks = -(-size // block)
    with on_device(maps):
        means[(rows * blocks,)](
            maps, features, size // vec, blocks, height * width,
            VEC=vec, BLOCK=block, STEP=STEP, num_warps=1, **OPTIONS,
        )  # fmt: skip
    value, stats = launch_values(features[:n_clean], features[n_clean:], kind)
    return features, value, stats


@_pool_ds.register_fake
def _(maps: Tensor, kind: str, n_clean: int, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    features = maps.new_empty(maps.shape[:2], dtype=torch.float32)
    return features, *statistics_like(maps, maps.shape[0] - n_clean, kind)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    maps, ctx.kind, ctx.n_clean, ctx.stop_gradient, ctx.detach_scale = inputs
    ctx.map = (maps.shape[0], maps.shape[2], maps.shape[3], maps.dtype)
    features, value, stats = output
    ctx.mark_non_differentiable(stats)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(features, stats, value)


def _backward(
    ctx: Any, grad_features: Tensor | None, grad_ds: Tensor | None, _: Tensor | None
) -> tuple[Tensor | None, ...]:
    if grad_features is None and grad_ds is None:
        return None, None, None, None, None
    features, stats, value = ctx.saved_tensors
    grad = launch_gradient(
        features[: ctx.n_clean], features[ctx.n_clean :], stats, value, grad_ds, grad_features,
        ctx.kind, ctx.stop_gradient, ctx.detach_scale, 0, *ctx.map,
    )  # fmt: skip
    return grad, None, None, None, None


_pool_ds.register_autograd(_backward, setup_context=_save)


def pool_ds(
    maps: Tensor, kind: str, n_clean: int, stop_gradient: str, detach_scale: bool
) -> tuple[Tensor, Tensor]:
    """See `fastsc.kernels.pool_ds`; maps float32, bfloat16 or float16, on a GPU.

    Raises:
        ValueError: a map of one image has 2**31 elements or more.
    """
    if maps[0].numel() >= _MAX_ROW:
        raise ValueError(f"maps {tuple(maps.shape)}: impl 'triton' takes fewer than 2**31 an image")
    features, value, _ = _pool_ds(maps, kind, n_clean, stop_gradient, detach_scale)
    return features, value


__all__ = ["STEP", "means", "pool_ds"]
