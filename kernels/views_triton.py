"""pair_view for CUDA in Triton: two launches, each input byte fetched from device memory once.

Why it looks as it does (judged by the machine code for sm_80 and sm_90):
- `_grey_sums` reads the batch to know the mean grey of each image, `_views` reads it again and
  writes. It takes the images in reverse, for what was read last is still in the L2 cache; loads of
  the first launch ask to stay there, last loads and stores of the second to leave (".cs").
- How pixels get into registers and out, 128 bits an access, is told in `triton_pixels`.
- `_views` is one warp a block: the exchange through shared memory then needs no barrier. It loads
  the input anew for the second view, from L1: kept, it takes 156 registers a thread, not 80 (to 16
  bits, sm_90), and so halves the number of warps. Blocks of four warps needed more of everything.
- The arithmetic is that of `views_numba`, where it is explained, in the same order and fused in the
  same places, so that the bits agree; nothing else may fuse, hence `enable_fp_fusion=False`. Levels
  are kept on 0..255/256: the power of two changes no bit, and clamping at 0 then comes free with
  the multiply-add, whose .SAT clamps to [0, 1].
- Partial sums are integers, so the mean does not depend on how an image is split over programs, and
  there are neither atomics nor buffers to clear.

Images and views are contiguous, (N, H, W, 3) in memory. Offsets of images are 64-bit, those inside
an image 32-bit: hence at most 2**28 pixels an image.
"""

from contextlib import nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastsc.kernels.color import GREY_WEIGHTS
from fastsc.kernels.triton_pixels import by_channel, cut, load, places, store

_MAX_PIXELS = 1 << 28
_MAX_SHARE = 1 << 23  # pixels; 255 times that fits the int32 of a partial sum
_MAX_SPLITS = 32
_PROGRAMS = 2048  # of _grey_sums where the batch is large enough: twice what an H100 holds at once
_SUMS_STEP_FAST, _SUMS_STEP = 64, 512  # units a program of _grey_sums takes at once
_ROUNDS = 4  # tiles a program of _views: its parameters cost a quarter of a tile

_GREY_RED = tl.constexpr(GREY_WEIGHTS[0])
_GREY_GREEN = tl.constexpr(GREY_WEIGHTS[1])
_GREY_BLUE = tl.constexpr(GREY_WEIGHTS[2])
_SPLITS_READ = tl.constexpr(_MAX_SPLITS)
_UNIT = tl.constexpr(1 / 256)
_TOP = 255 / 256


# --- first launch: sums of bytes ------------------------------------------------------------------


@triton.jit
def _limit(brightness):  # type: ignore[no-untyped-def]
    """Where a level is clamped before it is brightened: floor and rest, float64."""
    top = tl.full([], 255.0, tl.float64)
    limit = top / tl.maximum(brightness.to(tl.float64), 1.0)
    cap = tl.floor(limit)
    return cap, limit - cap


@triton.jit(do_not_specialize=["units", "share", "splits"])
def _grey_sums(  # type: ignore[no-untyped-def]
    x_ptr,  # (N, size) uint8
    factors_ptr,  # (N, 4) float32
    sums_ptr,  # (N, splits, 6) int32: of min(x, cap) in red, green, blue, of min(x, cap + 1)
    size,  # bytes of an image
    units,  # of an image: groups of 16 pixels if FAST, else pixels
    share,  # units a program
    splits,
    FAST: tl.constexpr,
    TILE: tl.constexpr,  # units
):
    program = tl.program_id(0)
    n = program // splits
    first = (program % splits) * share
    last = tl.minimum(first + share, units)
    brightness, contrast = tl.load(factors_ptr + 4 * n), tl.load(factors_ptr + 4 * n + 1)
    last = tl.where(contrast == 1.0, first, last)  # the mean has no weight: sums of 0 will do
    cap = _limit(brightness)[0].to(tl.int32)
    image = x_ptr + n.to(tl.int64) * size
    low_r, low_g, low_b = 0, 0, 0
    high_r, high_g, high_b = 0, 0, 0
    if FAST:
        words_ptr = image.to(tl.pointer_type(tl.uint32))
        at, unit, unpadded = places(4)  # three of four words
        eight = 8 * tl.arange(0, TILE // 8)[:, None]
        at, unit = 12 * eight + at, eight + unit
        add = (255 - cap).to(tl.uint32) * 0x00010001
        for chunk in range(first, last, 256 * TILE):  # a half of a word holds 257 bytes of 255
            even_sum = tl.zeros((TILE // 8, 128), tl.uint32)
            odd_sum = tl.zeros((TILE // 8, 128), tl.uint32)
            even_over = tl.zeros((TILE // 8, 128), tl.uint32)
            odd_over = tl.zeros((TILE // 8, 128), tl.uint32)
            for start in range(chunk, tl.minimum(chunk + 256 * TILE, last), 2 * TILE):
                # Two at once, and written out: more bytes are on their way.
                left = last - start
                here = words_ptr + 12 * start + at
                inside = (unit < left) & unpadded
                inside_too = (unit + TILE < left) & unpadded
                a = tl.load(here, mask=inside, other=0, eviction_policy="evict_last")
                b = tl.load(
                    here + 12 * TILE, mask=inside_too, other=0, eviction_policy="evict_last"
                )
                even_a, odd_a = a & 0x00FF00FF, (a >> 8) & 0x00FF00FF
                even_b, odd_b = b & 0x00FF00FF, (b >> 8) & 0x00FF00FF
                if cap < 255:
                    even_a, even_over_a = cut(even_a, add)
                    odd_a, odd_over_a = cut(odd_a, add)
                    even_b, even_over_b = cut(even_b, add)
                    odd_b, odd_over_b = cut(odd_b, add)
                    even_over += even_over_a + even_over_b
                    odd_over += odd_over_a + odd_over_b
                even_sum += even_a + even_b
                odd_sum += odd_a + odd_b
            r, g, b = by_channel(even_sum, odd_sum, TILE)
            over_r, over_g, over_b = by_channel(even_over, odd_over, TILE)
            high_r, high_g, high_b = high_r + r, high_g + g, high_b + b
            low_r, low_g, low_b = low_r + r - over_r, low_g + g - over_g, low_b + b - over_b
    else:
        t = tl.arange(0, TILE)
        red, green, blue = t * 0, t * 0, t * 0
        over_r, over_g, over_b = t * 0, t * 0, t * 0
        for start in range(first, last, TILE):
            here = image + 3 * start
            inside = t < last - start
            r = tl.load(here + 3 * t, mask=inside, other=0).to(tl.int32)
            g = tl.load(here + (3 * t + 1), mask=inside, other=0).to(tl.int32)
            b = tl.load(here + (3 * t + 2), mask=inside, other=0).to(tl.int32)
            red += tl.minimum(r, cap)
            green += tl.minimum(g, cap)
            blue += tl.minimum(b, cap)
            over_r += (r > cap).to(tl.int32)
            over_g += (g > cap).to(tl.int32)
            over_b += (b > cap).to(tl.int32)
        low_r, low_g, low_b = tl.sum(red), tl.sum(green), tl.sum(blue)
        high_r, high_g, high_b = (
            low_r + tl.sum(over_r),
            low_g + tl.sum(over_g),
            low_b + tl.sum(over_b),
        )
    sums_ptr += 6 * program
    tl.store(sums_ptr, low_r)
    tl.store(sums_ptr + 1, low_g)
    tl.store(sums_ptr + 2, low_b)
    tl.store(sums_ptr + 3, high_r)
    tl.store(sums_ptr + 4, high_g)
    tl.store(sums_ptr + 5, high_b)


# --- second launch: parameters of an image --------------------------------------------------------


@triton.jit
def _total(sums_ptr, splits):  # type: ignore[no-untyped-def]
    """One of the six sums over an image, exact, as float64."""
    part = tl.arange(0, _SPLITS_READ)
    sums = tl.load(sums_ptr + 6 * part, mask=part < splits, other=0)
    # Halves, for the hardware adds 32-bit integers over a warp in one instruction.
    upper = tl.sum(sums >> 16).to(tl.float64) * 65536.0
    return upper + tl.sum(sums & 0xFFFF).to(tl.float64)


@triton.jit
def _grey(sums_ptr, splits):  # type: ignore[no-untyped-def]
    red = tl.full([], _GREY_RED, tl.float64) * _total(sums_ptr, splits)
    green = tl.full([], _GREY_GREEN, tl.float64) * _total(sums_ptr + 1, splits)
    blue = tl.full([], _GREY_BLUE, tl.float64) * _total(sums_ptr + 2, splits)
    return red + green + blue


@triton.jit
def _mean_grey(sums_ptr, splits, brightness, pixels):  # type: ignore[no-untyped-def]
    """Mean grey, 0..255, of an image brightened and clamped, float64."""
    above = _limit(brightness)[1]
    low = _grey(sums_ptr, splits)
    high = _grey(sums_ptr + 3, splits)
    mean = low + above * (high - low)
    return mean * brightness.to(tl.float64) / pixels.to(tl.float64)


@triton.jit
def _turn(hue, offset: tl.constexpr):  # type: ignore[no-untyped-def]
    """The place of a channel on the circle of six, turned, in (-3, 3]; hue is in [-0.5, 0.5]."""
    turn = offset + 6.0 * hue.to(tl.float64)
    return tl.where(turn > 3.0, turn - 6.0, turn).to(tl.float32)


# --- second launch: pixels ------------------------------------------------------------------------


@triton.jit
def _clamp(x, low, high):  # type: ignore[no-untyped-def]
    return tl.minimum(tl.maximum(x, low), high)


@triton.jit
def _turned(chroma, turn, p, value):  # type: ignore[no-untyped-def]
    weight = tl.abs(tl.abs(tl.fma(chroma, turn, p)) - 3.0 * chroma)
    return value + chroma - _clamp(weight, chroma, chroma + chroma)


@triton.jit
def _perturb(r, g, b, gain, offset, high, saturation, top, turn_r, turn_g, turn_b):  # type: ignore[no-untyped-def]
    """Levels 0..255 -> perturbed levels 0..255/256; `gain`, `offset`, `high` are for the latter."""
    pale = 1.0 - saturation
    wr, wg, wb = pale * _GREY_RED, pale * _GREY_GREEN, pale * _GREY_BLUE
    r = tl.minimum(_clamp(tl.fma(r, gain, offset), 0.0, 1.0), high)
    g = tl.minimum(_clamp(tl.fma(g, gain, offset), 0.0, 1.0), high)
    b = tl.minimum(_clamp(tl.fma(b, gain, offset), 0.0, 1.0), high)
    grey = tl.fma(wb, b, tl.fma(wg, g, wr * r))
    r = tl.minimum(_clamp(tl.fma(saturation, r, grey), 0.0, 1.0), top)
    g = tl.minimum(_clamp(tl.fma(saturation, g, grey), 0.0, 1.0), top)
    b = tl.minimum(_clamp(tl.fma(saturation, b, grey), 0.0, 1.0), top)
    larger, smaller = tl.maximum(r, b), tl.minimum(r, b)
    value, least = tl.maximum(larger, g), tl.minimum(smaller, g)
    chroma = value - least
    p = chroma + ((r + b) - (g + least))
    p = tl.where(r < b, p, -p)
    return (
        _turned(chroma, turn_r, p, value),
        _turned(chroma, turn_g, p, value),
        _turned(chroma, turn_b, p, value),
    )


@triton.jit(do_not_specialize=["units", "parts", "splits"])
def _views(  # type: ignore[no-untyped-def]
    x_ptr,  # (N, size) uint8
    factors_ptr,  # (N, 4) float32
    sums_ptr,  # (N, splits, 6) int32
    scale_ptr,  # (3,) float32
    shift_ptr,  # (3,) float32
    clean_ptr,  # (N, size)
    perturbed_ptr,  # (N, size)
    size,
    units,
    parts,  # programs an image
    splits,
    top,  # 255/256; as a constant it would swallow the clamp at 1, and cost the free one at 0
    CLEAN: tl.constexpr,
    PERTURBED: tl.constexpr,
    FAST: tl.constexpr,
    TILE: tl.constexpr,  # units
    ROUNDS: tl.constexpr,  # tiles a program
):
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    n = program // parts
    image = n.to(tl.int64) * size
    scale_r, scale_g, scale_b = tl.load(scale_ptr), tl.load(scale_ptr + 1), tl.load(scale_ptr + 2)
    shift_r, shift_g, shift_b = tl.load(shift_ptr), tl.load(shift_ptr + 1), tl.load(shift_ptr + 2)
    if PERTURBED:
        factors_ptr += 4 * n
        brightness, contrast = tl.load(factors_ptr), tl.load(factors_ptr + 1)
        saturation, hue = tl.load(factors_ptr + 2), tl.load(factors_ptr + 3)
        untouched = (brightness == 1.0) & (contrast == 1.0) & (saturation == 1.0) & (hue == 0.0)
        mean = _mean_grey(sums_ptr + 6 * splits * n, splits, brightness, size // 3)
        offset = ((1.0 - contrast.to(tl.float64)) * mean).to(tl.float32)
        high = tl.minimum(contrast * 255.0 + offset, 255.0) * _UNIT
        gain, offset = brightness * contrast * _UNIT, offset * _UNIT
        turn_r, turn_g, turn_b = _turn(hue, 5.0), _turn(hue, 3.0), _turn(hue, 1.0)
        wide_r, wide_g, wide_b = scale_r * 256.0, scale_g * 256.0, scale_b * 256.0
    per: tl.constexpr = 48 if FAST else 3
    start = (program % parts) * (ROUNDS * TILE)
    for first in range(start, tl.minimum(start + ROUNDS * TILE, units), TILE):
        left = units - first
        here = image + per * first
        if CLEAN:
            r, g, b = load(x_ptr + here, left, FAST, TILE, "")
            r, g, b = r * scale_r + shift_r, g * scale_g + shift_g, b * scale_b + shift_b
            store(clean_ptr + here, left, r, g, b, FAST, TILE)
        if PERTURBED:
            r, g, b = load(x_ptr + here, left, FAST, TILE, "evict_first")
            if untouched:
                r, g, b = r * scale_r + shift_r, g * scale_g + shift_g, b * scale_b + shift_b
            else:
                r, g, b = _perturb(
                    r, g, b, gain, offset, high, saturation, top, turn_r, turn_g, turn_b
                )
                r = tl.fma(r, wide_r, shift_r)
                g = tl.fma(g, wide_g, shift_g)
                b = tl.fma(b, wide_b, shift_b)
            store(perturbed_ptr + here, left, r, g, b, FAST, TILE)


# --- launches -------------------------------------------------------------------------------------


def paint(
    x_u8: Tensor,
    factors: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    clean: Tensor | None,
    perturbed: Tensor | None,
) -> None:
    """Fill the views that are not None; `factors` are needed for the perturbed one only.

    Args:
        x_u8: (N, H, W, 3) uint8, contiguous, not empty.
        factors: (N, 4) float32; not looked at by the host.
        scale, shift: (3,) float32, which take a level 0..255 to a normalized value.
        clean, perturbed: (N, 3, H, W) float32, bfloat16 or float16, in channels-last memory.

    Raises:
        ValueError: an image has more than 2**28 pixels.
    """
    n, height, width, _ = x_u8.shape
    pixels = height * width
    if pixels > _MAX_PIXELS:
        raise ValueError(f"images of {height}x{width}: impl 'triton' takes at most 2**28 pixels")
    views = [view for view in (clean, perturbed) if view is not None]
    fast = pixels % 16 == 0 and not any(t.data_ptr() % 16 for t in (x_u8, *views))
    units, size = pixels // 16 if fast else pixels, 3 * pixels
    splits, sums = 0, None
    # Triton launches on the current device, and its current stream.
    with torch.cuda.device_of(x_u8) if x_u8.is_cuda else nullcontext():
        if perturbed is not None:
            assert factors is not None
            factors = factors.contiguous()
            step = _SUMS_STEP_FAST if fast else _SUMS_STEP
            splits, share = _split(n, pixels, units, step)
            sums = torch.empty((n, splits, 6), dtype=torch.int32, device=x_u8.device)
            _grey_sums[(n * splits,)](
                x_u8, factors, sums, size, units, share, splits,
                FAST=fast, TILE=step // 2 if fast else step, num_warps=4, enable_fp_fusion=False,
            )  # fmt: skip
        tile, warps = (32, 1) if fast else (256, 4)
        parts = -(-units // (_ROUNDS * tile))
        _views[(n * parts,)](
            x_u8, factors, sums, scale, shift, clean, perturbed, size, units, parts, splits, _TOP,
            CLEAN=clean is not None, PERTURBED=perturbed is not None, FAST=fast, TILE=tile,
            ROUNDS=_ROUNDS, num_warps=warps, enable_fp_fusion=False,
        )  # fmt: skip


def _split(n: int, pixels: int, units: int, step: int) -> tuple[int, int]:
    """Into how many parts `_grey_sums` takes an image, and of how many units each."""
    steps = -(-units // step)
    wanted = max(_PROGRAMS // n, -(-pixels // _MAX_SHARE), 1)
    share = -(-steps // min(wanted, _MAX_SPLITS, steps))
    return -(-steps // share), share * step


__all__ = ["paint"]
