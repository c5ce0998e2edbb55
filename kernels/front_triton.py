"""The front-end for CUDA in Triton: two launches, the images read twice, the channels written once.

The arithmetic is that of `front_numba`, where it is explained: sums in float64, then float32 on the
distance from the mean. `sums` takes an image in parts, whose number depends on its size alone and
which `channels` adds in their order: the bits of an image do not depend on its batch, and there are
neither atomics nor buffers to clear. Values go one by one: neighbours share their sectors, in L1 on
the way in, in L2 on the way out.

Images are contiguous, (N, H, W, 3) in memory. Offsets of images are 64-bit, those inside an image
32-bit: hence at most 2**28 pixels an image, of eight channels.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastsc.kernels.distance_ops import on_device
from fastsc.kernels.front_reference import CHANNELS, FLOOR, GREY, LUMA

_MAX_PIXELS = 1 << 28
_SPLITS, _SHARE, TILE = 32, 2048, 256  # parts of an image at most; pixels of one at least
_SUMS = 10
_LUMA, _FLOOR, _GREY = tl.constexpr(LUMA), tl.constexpr(FLOOR), tl.constexpr(GREY)
_PARTS, _STRIDE = tl.constexpr(_SPLITS), tl.constexpr(_SUMS)


@triton.jit
def _double(value: tl.constexpr):  # type: ignore[no-untyped-def]
    return tl.full([], value, tl.float64)


@triton.jit
def _luma(r, g, b):  # type: ignore[no-untyped-def]
    return _double(_LUMA[0]) * r + _double(_LUMA[1]) * g + _double(_LUMA[2]) * b


@triton.jit(do_not_specialize=["pixels", "share", "splits"])
def sums(  # type: ignore[no-untyped-def]
    x_ptr,  # (N, pixels, 3)
    sums_ptr,  # (N, splits, 10) float64: r, g, b, their squares, luma², C², largest, smallest
    pixels,
    share,  # pixels a program
    splits,
    MEAN: tl.constexpr,
    STD: tl.constexpr,
    TILE: tl.constexpr,
):
    program = tl.program_id(0)
    first = (program % splits) * share
    last = tl.minimum(first + share, pixels)
    image = x_ptr + (program // splits).to(tl.int64) * (3 * pixels)
    t = tl.arange(0, TILE)
    zero = tl.zeros((TILE,), tl.float64)
    r1, g1, b1, r2, g2, b2 = zero, zero, zero, zero, zero, zero
    y2, c2, high, low = zero, zero, zero, zero
    for start in range(first, last, TILE):
        inside = t < last - start
        at = image + 3 * (start + t)
        r = tl.load(at, mask=inside, other=0.0).to(tl.float64)
        g = tl.load(at + 1, mask=inside, other=0.0).to(tl.float64)
        b = tl.load(at + 2, mask=inside, other=0.0).to(tl.float64)
        r = tl.where(inside, r * _double(STD[0]) + _double(MEAN[0]), 0.0)
        g = tl.where(inside, g * _double(STD[1]) + _double(MEAN[1]), 0.0)
        b = tl.where(inside, b * _double(STD[2]) + _double(MEAN[2]), 0.0)
        y = _luma(r, g, b)
        r1, g1, b1 = r1 + r, g1 + g, b1 + b
        r2, g2, b2 = r2 + r * r, g2 + g * g, b2 + b * b
        y2 += y * y
        high += tl.maximum(tl.maximum(r, g), b)
        low += tl.minimum(tl.minimum(r, g), b)
        r, g, b = r - y, g - y, b - y
        c2 += r * r + g * g + b * b
    sums_ptr += _STRIDE * program
    tl.store(sums_ptr, tl.sum(r1))
    tl.store(sums_ptr + 1, tl.sum(g1))
    tl.store(sums_ptr + 2, tl.sum(b1))
    tl.store(sums_ptr + 3, tl.sum(r2))
    tl.store(sums_ptr + 4, tl.sum(g2))
    tl.store(sums_ptr + 5, tl.sum(b2))
    tl.store(sums_ptr + 6, tl.sum(y2))
    tl.store(sums_ptr + 7, tl.sum(c2))
    tl.store(sums_ptr + 8, tl.sum(high))
    tl.store(sums_ptr + 9, tl.sum(low))


@triton.jit
def _mean(sums_ptr, splits, pixels):  # type: ignore[no-untyped-def]
    part = tl.arange(0, _PARTS)
    total = tl.sum(tl.load(sums_ptr + _STRIDE * part, mask=part < splits, other=0.0))
    return total / pixels.to(tl.float64)


@triton.jit
def _center(mean, MEAN: tl.constexpr, STD: tl.constexpr):  # type: ignore[no-untyped-def]
    """The mean as a value of x, rounded to float32; and exactly that on [0, 1]."""
    center = ((mean - _double(MEAN)) / _double(STD)).to(tl.float32)
    return center, center.to(tl.float64) * _double(STD) + _double(MEAN)


@triton.jit
def _scale(mean, square):  # type: ignore[no-untyped-def]
    """1 / sqrt(variance + FLOOR)."""
    return 1.0 / tl.sqrt((square - mean * mean + _double(_FLOOR)).to(tl.float32))


@triton.jit(do_not_specialize=["pixels", "share", "splits"])
def channels(  # type: ignore[no-untyped-def]
    x_ptr,  # (N, pixels, 3)
    sums_ptr,
    out_ptr,  # (N, pixels, C)
    pixels,
    share,
    splits,
    MEAN: tl.constexpr,
    STD: tl.constexpr,
    Z1: tl.constexpr,
    Z2: tl.constexpr,
    C: tl.constexpr,  # 8: the extremes, too
    TILE: tl.constexpr,
):
    program = tl.program_id(0)
    n = (program // splits).to(tl.int64)
    sums_ptr += _STRIDE * n * splits
    r_mean, g_mean = _mean(sums_ptr, splits, pixels), _mean(sums_ptr + 1, splits, pixels)
    b_mean = _mean(sums_ptr + 2, splits, pixels)
    r_center, r_at = _center(r_mean, MEAN[0], STD[0])
    g_center, g_at = _center(g_mean, MEAN[1], STD[1])
    b_center, b_at = _center(b_mean, MEAN[2], STD[2])
    if Z1:
        r_scale = _scale(r_mean, _mean(sums_ptr + 3, splits, pixels))
        g_scale = _scale(g_mean, _mean(sums_ptr + 4, splits, pixels))
        b_scale = _scale(b_mean, _mean(sums_ptr + 5, splits, pixels))
        r_z1 = (r_at - r_mean).to(tl.float32) * r_scale
        g_z1 = (g_at - g_mean).to(tl.float32) * g_scale
        b_z1 = (b_at - b_mean).to(tl.float32) * b_scale
    if Z2:
        y_mean, y_at = _luma(r_mean, g_mean, b_mean), _luma(r_at, g_at, b_at)
        y_scale = _scale(y_mean, _mean(sums_ptr + 6, splits, pixels))
        root = tl.sqrt((_mean(sums_ptr + 7, splits, pixels) / 3.0).to(tl.float32))
        c_scale = 1.0 / (root + _GREY / y_scale)
        y_z2 = (y_at - y_mean).to(tl.float32) * y_scale
        r_z2 = y_z2 + (r_at - y_at).to(tl.float32) * c_scale
        g_z2 = y_z2 + (g_at - y_at).to(tl.float32) * c_scale
        b_z2 = y_z2 + (b_at - y_at).to(tl.float32) * c_scale
    if C == 8:
        high_mean = _mean(sums_ptr + 8, splits, pixels)
        low_mean = _mean(sums_ptr + 9, splits, pixels)
        r_high, r_low = (r_at - high_mean).to(tl.float32), (r_at - low_mean).to(tl.float32)
        g_high, g_low = (g_at - high_mean).to(tl.float32), (g_at - low_mean).to(tl.float32)
        b_high, b_low = (b_at - high_mean).to(tl.float32), (b_at - low_mean).to(tl.float32)
    first = (program % splits) * share
    last = tl.minimum(first + share, pixels)
    x_ptr += n * (3 * pixels)
    out_ptr += n * C * pixels
    t = tl.arange(0, TILE)
    for start in range(first, last, TILE):
        inside = t < last - start
        at = x_ptr + 3 * (start + t)
        r = (tl.load(at, mask=inside, other=0.0).to(tl.float32) - r_center) * STD[0]
        g = (tl.load(at + 1, mask=inside, other=0.0).to(tl.float32) - g_center) * STD[1]
        b = (tl.load(at + 2, mask=inside, other=0.0).to(tl.float32) - b_center) * STD[2]
        to = out_ptr + C * (start + t)
        if Z1:
            tl.store(to, r * r_scale + r_z1, mask=inside)
            tl.store(to + 1, g * g_scale + g_z1, mask=inside)
            tl.store(to + 2, b * b_scale + b_z1, mask=inside)
            to += 3
        if Z2:
            y = _LUMA[0] * r + _LUMA[1] * g + _LUMA[2] * b
            light = y * y_scale
            tl.store(to, light + ((r - y) * c_scale + r_z2), mask=inside)
            tl.store(to + 1, light + ((g - y) * c_scale + g_z2), mask=inside)
            tl.store(to + 2, light + ((b - y) * c_scale + b_z2), mask=inside)
        if C == 8:
            high = tl.maximum(tl.maximum(r + r_high, g + g_high), b + b_high)
            low = tl.minimum(tl.minimum(r + r_low, g + g_low), b + b_low)
            tl.store(to + 3, high * y_scale, mask=inside)
            tl.store(to + 4, low * y_scale, mask=inside)


@torch.library.custom_op("fastsc::front_end", mutates_args=())
def _front_end(x: Tensor, front: str, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    out = _empty(x, front)
    n, _, height, width = x.shape
    pixels, c = height * width, CHANNELS[front]
    if not out.numel():
        return out
    share = max(_SHARE, -(-pixels // (_SPLITS * TILE)) * TILE)
    splits = -(-pixels // share)
    totals = torch.empty((n, splits, _SUMS), dtype=torch.float64, device=x.device)
    same = {"MEAN": tuple(mean), "STD": tuple(std), "TILE": TILE, "num_warps": 4}
    with on_device(x):
        sums[(n * splits,)](x, totals, pixels, share, splits, **same)
        channels[(n * splits,)](
            x,
            totals,
            out,
            pixels,
            share,
            splits,
            Z1=front != "luma",
            Z2=front != "rgb",
            C=c,
            **same,
        )
    return out


@_front_end.register_fake
def _(x: Tensor, front: str, *_: Sequence[float]) -> Tensor:
    return _empty(x, front)


def _empty(x: Tensor, front: str) -> Tensor:
    n, _, height, width = x.shape
    shape = (n, CHANNELS[front], height, width)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def front_end(x: Tensor, front: str, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """See `fastsc.kernels.front`; x (N, 3, H, W) in channels-last memory, on a GPU.

    Raises:
        ValueError: an image has more than 2**28 pixels.
    """
    if x.shape[2] * x.shape[3] > _MAX_PIXELS:
        raise ValueError(f"images {tuple(x.shape)}: impl 'triton' takes at most 2**28 pixels")
    out: Tensor = _front_end(x, front, list(mean), list(std))
    return out


__all__ = ["TILE", "channels", "front_end", "sums"]
