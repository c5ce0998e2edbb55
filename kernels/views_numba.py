"""pair_view for the CPU, compiled by numba: one uint8 read, two normalized views written.

Why it looks as it does (AMD Zen 4, float32, a 224x224 image):
- The clean view is affine in each channel, so it runs over the flat interleaved row with scale and
  shift vectors of period three, which vectorizes without a shuffle.
- Brightness then contrast is one line, clamped twice: both factors are non-negative, so
  clamp(c * min(b*x, 255) + d) = min(max(b*c*x + d, 0), min(255*c + d, 255)).
- The mean grey needs only the sum of min(b*x, 255) in each channel. min(x, T) is linear in T
  between two integers, so sums of bytes clamped at floor(T) and floor(T) + 1 give it exactly;
  16-bit column sums take 32 bytes an instruction.
- Hue needs no division and no branch. Everything is kept multiplied by the chroma C: with
  p = C * (hue - 2), the weight of a channel is clamp(||p + C*s| - 3C| - C, 0, C), s its offset on
  the circle of six, wrapped to [-3, 3]; p is +-(C + r + b - g - min), positive where r < b.
- The loops have no call, no branch and a constant stride, so LLVM interleaves with shuffles in
  registers. Tone and hue are two loops over planes of one row in L1: as one loop the chain of
  dependent instructions is too long for the core to overlap pixels (0.065 ms against 0.050).
- Levels stay on 0..255 until the last line.
- All constants are np.float32: one Python float would take a whole loop to float64.
- No `parallel=True`: numba's default threading layer is not thread-safe, and loaders call this from
  threads of their own. The GIL is released and all scratch belongs to the call.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from fastsc.kernels.colour import GREY_WEIGHTS

_F32 = np.float32
_ZERO, _ONE, _THREE, _TOP = _F32(0), _F32(1), _F32(3), _F32(255)
_WR, _WG, _WB = (_F32(w) for w in GREY_WEIGHTS)
_GREY_RED, _GREY_GREEN, _GREY_BLUE = GREY_WEIGHTS
# Plain minimum and maximum; factors are checked to be finite. Not "contract": it leaves LLVM to
# choose which product it fuses with which sum, and on some CPUs that came out differently for
# another dtype, and for code compiled anew and code from the cache. `_fma` says where.
_FAST = {"nnan", "nsz"}
# 257 rows of 255 are the most that a 16-bit column sum holds.
_ROWS_A_SUM = 256

# numpy has no bfloat16, and numba no float16 on the CPU: both are written as their bits, told apart
# by signedness.
BF16_BITS, FP16_BITS = np.dtype(np.uint16), np.dtype(np.int16)


def _jit(fastmath: set[str] | bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": fastmath}
        try:
            return njit(cache=True, **options)(function)
        except RuntimeError:  # no writable folder for the cache: compile anew in every process
            return njit(**options)(function)

    return decorate


def _store_as_typed(_typing: Any, _value: Any, out: Any) -> Any:
    """A float32 in the representation that the array `out` holds, rounded to nearest even."""
    storage = out.dtype

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        number = args[0]
        if storage == types.int16:
            half = builder.fptrunc(number, ir.HalfType())
            return builder.bitcast(half, ir.IntType(16))
        if storage == types.uint16:
            # Views are finite, so the carry of the rounding needs no case for NaN.
            word = ir.IntType(32)
            bits = builder.bitcast(number, word)
            odd = builder.and_(builder.lshr(bits, word(16)), word(1))
            rounded = builder.add(bits, builder.add(odd, word(0x7FFF)))
            return builder.trunc(builder.lshr(rounded, word(16)), ir.IntType(16))
        return number

    return storage(types.float32, out), codegen


# numba hands the typing context to the function; type checkers would ask the caller for it.
_store_as: Any = intrinsic(_store_as_typed)


def _fma_typed(_typing: Any, _a: Any, _b: Any, _c: Any) -> Any:
    """a * b + c with one rounding, on every CPU; one without the instruction is slow, not other."""

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.fma(*args)

    return types.float32(types.float32, types.float32, types.float32), codegen


_fma: Any = intrinsic(_fma_typed)


@_jit()  # strict arithmetic: bit-equal to the torch reference
def _normalize_row(x, scale, shift, out):  # type: ignore[no-untyped-def]
    for i in range(x.size):
        out[i] = _store_as(_F32(x[i]) * scale[i] + shift[i], out)


@_jit(fastmath=_FAST)
def _tone_row(x, gain, offset, high, saturation, red, green, blue):  # type: ignore[no-untyped-def]
    """Brightness, contrast and saturation of a row `x` (3W,) uint8, into planes (W,) of 0..255."""
    pale = _ONE - saturation
    wr, wg, wb = pale * _WR, pale * _WG, pale * _WB
    for i in range(red.size):
        r = min(max(_fma(_F32(x[3 * i]), gain, offset), _ZERO), high)
        g = min(max(_fma(_F32(x[3 * i + 1]), gain, offset), _ZERO), high)
        b = min(max(_fma(_F32(x[3 * i + 2]), gain, offset), _ZERO), high)
        grey = _fma(wb, b, _fma(wg, g, wr * r))
        red[i] = min(max(_fma(saturation, r, grey), _ZERO), _TOP)
        green[i] = min(max(_fma(saturation, g, grey), _ZERO), _TOP)
        blue[i] = min(max(_fma(saturation, b, grey), _ZERO), _TOP)


@_jit(fastmath=_FAST)
def _hue_row(red, green, blue, turn, scale, shift, out):  # type: ignore[no-untyped-def]
    """Turn the hue of three planes (W,), normalize, and interleave them into `out` (3W,)."""
    turn_r, turn_g, turn_b = turn
    scale_r, scale_g, scale_b = scale[0], scale[1], scale[2]
    shift_r, shift_g, shift_b = shift[0], shift[1], shift[2]
    for i in range(red.size):
        r, g, b = red[i], green[i], blue[i]
        larger, smaller = max(r, b), min(r, b)
        value, least = max(larger, g), min(smaller, g)
        chroma = value - least
        p = chroma + ((r + b) - (g + least))
        p = p if r < b else -p
        chroma2, chroma3, top = chroma + chroma, _THREE * chroma, value + chroma
        r = top - min(max(abs(abs(_fma(chroma, turn_r, p)) - chroma3), chroma), chroma2)
        g = top - min(max(abs(abs(_fma(chroma, turn_g, p)) - chroma3), chroma), chroma2)
        b = top - min(max(abs(abs(_fma(chroma, turn_b, p)) - chroma3), chroma), chroma2)
        out[3 * i] = _store_as(_fma(r, scale_r, shift_r), out)
        out[3 * i + 1] = _store_as(_fma(g, scale_g, shift_g), out)
        out[3 * i + 2] = _store_as(_fma(b, scale_b, shift_b), out)


@_jit()
def _add_row(x, sums):  # type: ignore[no-untyped-def]
    for i in range(x.size):
        sums[i] += x[i]


@_jit()
def _add_row_clamped(x, cap, sums, sums_above):  # type: ignore[no-untyped-def]
    for i in range(x.size):
        sums[i] += min(x[i], cap)
        sums_above[i] += min(x[i], np.uint8(cap + 1))


@_jit()
def _mean_grey(x, brightness, sums):  # type: ignore[no-untyped-def]
    """Mean grey, 0..255, of an image (H, 3W) brightened and clamped; `sums` (2, 3W) is scratch."""
    limit = 255.0 / brightness if brightness > _ONE else 255.0
    cap = math.floor(limit)
    above = limit - cap
    low, high = 0.0, 0.0
    for start in range(0, x.shape[0], _ROWS_A_SUM):
        sums[:] = 0
        for y in range(start, min(start + _ROWS_A_SUM, x.shape[0])):
            if cap == 255:  # nothing is clamped
                _add_row(x[y], sums[0])
            else:
                _add_row_clamped(x[y], np.uint8(cap), sums[0], sums[1])
        for k in range(1 if cap == 255 else 2):
            r, g, b = 0, 0, 0
            for i in range(x.shape[1] // 3):
                r += sums[k, 3 * i]
                g += sums[k, 3 * i + 1]
                b += sums[k, 3 * i + 2]
            grey = _GREY_RED * r + _GREY_GREEN * g + _GREY_BLUE * b
            if k == 0:
                low += grey
            else:
                high += grey
    mean = low + above * (high - low)
    return mean * brightness / (x.shape[0] * (x.shape[1] // 3))


@_jit()
def _periodic(values, size):  # type: ignore[no-untyped-def]
    row = np.empty(size, np.float32)
    for i in range(size):
        row[i] = values[i % 3]
    return row


@_jit()
def _wrap(turn):  # type: ignore[no-untyped-def]
    return _F32(turn - 6.0 * np.rint(turn / 6.0))


@_jit()
def normalize_batch(x, scale, shift, out):  # type: ignore[no-untyped-def]
    """`out` (N, H, 3W) = `x` (N, H, 3W) uint8 * `scale` + `shift`, both (3,) float32."""
    scale_row, shift_row = _periodic(scale, x.shape[2]), _periodic(shift, x.shape[2])
    for n in range(x.shape[0]):
        for y in range(x.shape[1]):
            _normalize_row(x[n, y], scale_row, shift_row, out[n, y])


@_jit()
def pair_batch(x, factors, scale, shift, clean, perturbed):  # type: ignore[no-untyped-def]
    """Both views of `x` (N, H, 3W) uint8, contiguous; `factors` (N, 4) float32.

    `scale` and `shift` (3,) float32 take a level 0..255 to a normalized value. `clean` and
    `perturbed` are (N, H, 3W) float32, or uint16 and int16 for the bits of bfloat16 and float16.
    """
    scale_row, shift_row = _periodic(scale, x.shape[2]), _periodic(shift, x.shape[2])
    sums = np.empty((2, x.shape[2]), np.uint16)
    planes = np.empty((3, x.shape[2] // 3), np.float32)
    for n in range(x.shape[0]):
        brightness, contrast = factors[n, 0], factors[n, 1]
        saturation, hue = factors[n, 2], factors[n, 3]
        if brightness == _ONE and contrast == _ONE and saturation == _ONE and hue == _ZERO:
            for y in range(x.shape[1]):
                _normalize_row(x[n, y], scale_row, shift_row, clean[n, y])
                _normalize_row(x[n, y], scale_row, shift_row, perturbed[n, y])
            continue
        mean = 0.0 if contrast == _ONE else _mean_grey(x[n], brightness, sums)
        offset = _F32((1.0 - contrast) * mean)
        high = min(contrast * _TOP + offset, _TOP)
        turn = (_wrap(5.0 + 6.0 * hue), _wrap(3.0 + 6.0 * hue), _wrap(1.0 + 6.0 * hue))
        gain = brightness * contrast
        for y in range(x.shape[1]):
            _normalize_row(x[n, y], scale_row, shift_row, clean[n, y])
            _tone_row(x[n, y], gain, offset, high, saturation, planes[0], planes[1], planes[2])
            _hue_row(planes[0], planes[1], planes[2], turn, scale, shift, perturbed[n, y])
