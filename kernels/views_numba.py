"""pair_view for the CPU, compiled by numba: one uint8 read, two normalized views written.

Why it looks as it does (AMD Zen 4 and 5, float32, a 224x224 image):
- An image is one flat run of pixels, worked on in blocks of 256. So every loop has a constant
  length that all vectors divide, and none of them ends in single pixels (rows of 224 left 32:
  0.080 ms against 0.054), and a block's scratch stays in L1. The last, shorter block is padded.
- The clean view is affine in each channel, so it runs over the interleaved block with scale and
  shift vectors of period three, without a shuffle. It alone is written in vectors: LLVM takes
  rounding to bfloat16 for dear, and would work on four values at a time.
- Brightness then contrast is one line, clamped twice: both factors are non-negative, so
  clamp(c * min(b*x, 255) + d) = min(max(b*c*x + d, 0), min(255*c + d, 255)).
- The mean grey needs only the sum of min(b*x, 255) in each channel. min(x, T) is linear in T
  between two integers, so sums of bytes clamped at floor(T) and floor(T) + 1 give it exactly;
  16-bit column sums take 32 bytes an instruction.
- Hue needs no division and no branch. Everything is kept multiplied by the chroma C: with
  p = C * (hue - 2), the weight of a channel is clamp(||p + C*s| - 3C| - C, 0, C), s its offset on
  the circle of six, wrapped to [-3, 3]; p is +-(C + r + b - g - min), positive where r < b.
- The loops have no call, no branch and a constant stride, so LLVM interleaves with shuffles in
  registers. Tone and hue are two loops over planes in L1: as one loop the chain of dependent
  instructions is too long for the core to overlap pixels (0.065 ms against 0.050).
- Levels stay on 0..255 until the last line.
- All constants are np.float32: one Python float would take a whole loop to float64.
- No `parallel=True`: numba's default threading layer is not thread-safe, and loaders call this from
  threads of their own. The GIL is released and all scratch belongs to the call.

Arrays: `x` (N, 3HW) uint8 and the views (N, 3HW), of float32 or of the bits of bfloat16 or float16
(told apart by signedness: numpy has no bfloat16, and numba no float16 on the CPU), contiguous;
`factors` (N, 4) float32; `scale` and `shift` (3,) float32 take a level 0..255 to a view's value.
"""

import math
import platform
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils, codegen, config
from numba.extending import intrinsic

from fastsc.kernels.color import GREY_WEIGHTS
from fastsc.kernels.jit import jit

BF16_BITS, FP16_BITS = np.dtype(np.uint16), np.dtype(np.int16)
LANES = 16
_F32 = np.float32
_ZERO, _ONE, _THREE, _TOP = _F32(0), _F32(1), _F32(3), _F32(255)
_WR, _WG, _WB = (_F32(w) for w in GREY_WEIGHTS)
_GREY_RED, _GREY_GREEN, _GREY_BLUE = GREY_WEIGHTS
# Plain minimum and maximum; factors are checked to be finite. Not "contract": it leaves LLVM to
# choose which product it fuses with which sum, and on some CPUs that came out differently for
# another dtype, and for code compiled anew and code from the cache. `fma` says where.
_FAST = {"nnan", "nsz"}
_BLOCK = 256  # pixels
_BYTES = 3 * _BLOCK
# 257 bytes of 255 are the most that a 16-bit column sum holds.
_BLOCKS_A_SUM = 257

# --- LLVM instructions that numba has no name for -----------------------------------------------
# In this file, and not beside it: numba compiles anew when the file of a function has changed.

_BYTE, _SHORT, _WORD, _FLOAT = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.FloatType()


class _BFloat(ir.Type):
    """LLVM's bfloat, which llvmlite has no class for."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


def _has(feature: str) -> bool:
    """Whether numba compiles for a CPU that has an instruction, by LLVM's name for it.

    Without one LLVM would call a function of a runtime library that numba does not link, and end
    the process.
    """
    features: str | None = config.CPU_FEATURES  # type: ignore[attr-defined]  # the environment's
    if features is None:
        features = codegen.get_host_cpu_features()  # less what NUMBA_ENABLE_AVX=0 takes away
    return f"+{feature}" in features.split(",")


def rounds_to_half() -> bool:
    """Whether arrays of float16 can be written; every x86-64 CPU since 2013 does it."""
    return platform.machine() not in ("x86_64", "AMD64") or _has("f16c")


def _encode(builder: Any, number: Any, storage: Any, lanes: int = 1) -> Any:
    """A float32, or a vector of `lanes`, as `storage` holds it, rounded to nearest even."""

    def of(kind: ir.Type) -> ir.Type:
        return kind if lanes == 1 else ir.VectorType(kind, lanes)

    def constant(value: int) -> Any:
        return ir.Constant(of(_WORD), value if lanes == 1 else [value] * lanes)

    if storage == types.int16:
        return builder.bitcast(builder.fptrunc(number, of(ir.HalfType())), of(_SHORT))
    if storage == types.uint16 and _has("avx512bf16"):
        return builder.bitcast(builder.fptrunc(number, of(_BFloat())), of(_SHORT))
    if storage == types.uint16:
        # Views are finite, so the carry of the rounding needs no case for NaN.
        bits = builder.bitcast(number, of(_WORD))
        odd = builder.and_(builder.lshr(bits, constant(16)), constant(1))
        rounded = builder.add(bits, builder.add(odd, constant(0x7FFF)))
        return builder.trunc(builder.lshr(rounded, constant(16)), of(_SHORT))
    return number


def _store_as_typed(_typing: Any, _value: Any, out: Any) -> Any:
    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return _encode(builder, args[0], out.dtype)

    return out.dtype(types.float32, out), codegen


def _fma_typed(_typing: Any, _a: Any, _b: Any, _c: Any) -> Any:
    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.fma(*args)

    return types.float32(types.float32, types.float32, types.float32), codegen


def _affine_typed(
    _typing: Any, x: Any, _i: Any, scale: Any, shift: Any, _k: Any, out: Any, _j: Any
) -> Any:
    """No bounds are checked, as nowhere in code that numba compiles."""
    signature = types.void(x, types.intp, scale, shift, types.intp, out, types.intp)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kinds = signature.args

        def pointer(array: int, index: int, element: ir.Type) -> Any:
            struct = context.make_array(kinds[array])(context, builder, args[array])
            place = cgutils.get_item_pointer(
                context, builder, kinds[array], struct, [args[index]], wraparound=False
            )
            return builder.bitcast(place, ir.VectorType(element, LANES).as_pointer())

        def load(array: int, index: int, element: ir.Type, align: int) -> Any:
            return builder.load(pointer(array, index, element), align=align)

        levels = builder.uitofp(load(0, 1, _BYTE, 1), ir.VectorType(_FLOAT, LANES))
        product = builder.fmul(levels, load(2, 4, _FLOAT, 4))
        view = _encode(builder, builder.fadd(product, load(3, 4, _FLOAT, 4)), out.dtype, LANES)
        size = 4 if out.dtype == types.float32 else 2
        builder.store(view, pointer(5, 6, view.type.element), align=size)
        return context.get_dummy_value()

    return signature, codegen


# numba hands the typing context to these; type checkers would ask the caller for it.

store_as: Any = intrinsic(_store_as_typed)
"""store_as(number, out): a float32 in the representation that the array `out` holds."""

fma: Any = intrinsic(_fma_typed)
"""fma(a, b, c): a * b + c, one rounding, on every CPU; one without the instruction is slow."""

affine: Any = intrinsic(_affine_typed)
"""affine(x, i, scale, shift, k, out, j): out[j : j + 16] = x[i : ] * scale[k : ] + shift[k : ].

Two roundings, as torch has it. `x` uint8, `scale` and `shift` float32, all flat and contiguous.
"""


# --- blocks --------------------------------------------------------------------------------------


@jit()  # strict arithmetic: bit-equal to the torch reference
def _normalize_block(x, i, scale, shift, out, j):  # type: ignore[no-untyped-def]
    """out[j : j + 768] = x[i : i + 768] * scale + shift, both of period three."""
    for k in range(0, _BYTES, LANES):
        affine(x, i + k, scale, shift, k, out, j + k)


@jit(fastmath=_FAST)
def _tone_block(x, i, gain, offset, high, saturation, red, green, blue):  # type: ignore[no-untyped-def]
    """Brightness, contrast and saturation of 256 pixels from byte i on, into planes of 0..255."""
    pale = _ONE - saturation
    wr, wg, wb = pale * _WR, pale * _WG, pale * _WB
    x = x[i : i + _BYTES]
    for k in range(_BLOCK):
        r = min(max(fma(_F32(x[3 * k]), gain, offset), _ZERO), high)
        g = min(max(fma(_F32(x[3 * k + 1]), gain, offset), _ZERO), high)
        b = min(max(fma(_F32(x[3 * k + 2]), gain, offset), _ZERO), high)
        grey = fma(wb, b, fma(wg, g, wr * r))
        red[k] = min(max(fma(saturation, r, grey), _ZERO), _TOP)
        green[k] = min(max(fma(saturation, g, grey), _ZERO), _TOP)
        blue[k] = min(max(fma(saturation, b, grey), _ZERO), _TOP)


@jit(fastmath=_FAST)
def _hue_block(red, green, blue, turn, scale, shift, out, j):  # type: ignore[no-untyped-def]
    """Turn the hue of three planes, normalize, and interleave them into `out` from j on."""
    turn_r, turn_g, turn_b = turn
    scale_r, scale_g, scale_b = scale[0], scale[1], scale[2]
    shift_r, shift_g, shift_b = shift[0], shift[1], shift[2]
    out = out[j : j + _BYTES]
    for k in range(_BLOCK):
        r, g, b = red[k], green[k], blue[k]
        larger, smaller = max(r, b), min(r, b)
        value, least = max(larger, g), min(smaller, g)
        chroma = value - least
        p = chroma + ((r + b) - (g + least))
        p = p if r < b else -p
        chroma2, chroma3, top = chroma + chroma, _THREE * chroma, value + chroma
        r = top - min(max(abs(abs(fma(chroma, turn_r, p)) - chroma3), chroma), chroma2)
        g = top - min(max(abs(abs(fma(chroma, turn_g, p)) - chroma3), chroma), chroma2)
        b = top - min(max(abs(abs(fma(chroma, turn_b, p)) - chroma3), chroma), chroma2)
        out[3 * k] = store_as(fma(r, scale_r, shift_r), out)
        out[3 * k + 1] = store_as(fma(g, scale_g, shift_g), out)
        out[3 * k + 2] = store_as(fma(b, scale_b, shift_b), out)


@jit()
def _add_bytes(x, sums):  # type: ignore[no-untyped-def]
    for k in range(x.size):
        sums[k] += x[k]


@jit()
def _add_bytes_clamped(x, cap, sums, sums_above):  # type: ignore[no-untyped-def]
    for k in range(x.size):
        sums[k] += min(x[k], cap)
        sums_above[k] += min(x[k], np.uint8(cap + 1))


@jit()
def _mean_grey(x, brightness, sums):  # type: ignore[no-untyped-def]
    """Mean grey, 0..255, of an image (3HW,) brightened and clamped; `sums` (2, 768) is scratch."""
    limit = 255.0 / brightness if brightness > _ONE else 255.0
    cap = math.floor(limit)
    above = limit - cap
    totals = np.zeros((2, 3), np.int64)  # whole numbers: no order of adding can show
    for first in range(0, x.size, _BLOCKS_A_SUM * _BYTES):
        sums[:] = 0
        for i in range(first, min(first + _BLOCKS_A_SUM * _BYTES, x.size), _BYTES):
            block = x[i : i + _BYTES]
            if cap == 255:  # nothing is clamped
                _add_bytes(block, sums[0])
            else:
                _add_bytes_clamped(block, np.uint8(cap), sums[0], sums[1])
        for k in range(1 if cap == 255 else 2):
            for i in range(_BLOCK):
                totals[k, 0] += sums[k, 3 * i]
                totals[k, 1] += sums[k, 3 * i + 1]
                totals[k, 2] += sums[k, 3 * i + 2]
    low = _GREY_RED * totals[0, 0] + _GREY_GREEN * totals[0, 1] + _GREY_BLUE * totals[0, 2]
    high = _GREY_RED * totals[1, 0] + _GREY_GREEN * totals[1, 1] + _GREY_BLUE * totals[1, 2]
    mean = low + above * (high - low)
    return mean * brightness / (x.size // 3)


@jit()
def _periodic(values):  # type: ignore[no-untyped-def]
    block = np.empty(_BYTES, np.float32)
    for i in range(_BYTES):
        block[i] = values[i % 3]
    return block


@jit()
def _wrap(turn):  # type: ignore[no-untyped-def]
    return _F32(turn - 6.0 * np.rint(turn / 6.0))


@jit()
def normalize_batch(x, scale, shift, out):  # type: ignore[no-untyped-def]
    """The clean view alone."""
    scale_block, shift_block = _periodic(scale), _periodic(shift)
    size = x.shape[1]
    whole = size - size % _BYTES
    last_x = np.zeros(_BYTES, np.uint8)
    last_out = np.empty(_BYTES, out.dtype)
    for n in range(x.shape[0]):
        for i in range(0, whole, _BYTES):
            _normalize_block(x[n], i, scale_block, shift_block, out[n], i)
        if whole < size:
            last_x[: size - whole] = x[n, whole:]
            _normalize_block(last_x, 0, scale_block, shift_block, last_out, 0)
            out[n, whole:] = last_out[: size - whole]


@jit()
def pair_batch(x, factors, scale, shift, clean, perturbed, both):  # type: ignore[no-untyped-def]
    """Both views; with `both` False the perturbed one alone, and `clean` is not touched."""
    scale_block, shift_block = _periodic(scale), _periodic(shift)
    size = x.shape[1]
    whole = size - size % _BYTES
    sums = np.empty((2, _BYTES), np.uint16)
    planes = np.empty((3, _BLOCK), np.float32)
    red, green, blue = planes[0], planes[1], planes[2]
    last_x = np.zeros(_BYTES, np.uint8)
    last = np.empty((2, _BYTES), perturbed.dtype)
    for n in range(x.shape[0]):
        brightness, contrast = factors[n, 0], factors[n, 1]
        saturation, hue = factors[n, 2], factors[n, 3]
        untouched = brightness == _ONE and contrast == _ONE and saturation == _ONE and hue == _ZERO
        mean = 0.0 if contrast == _ONE else _mean_grey(x[n], brightness, sums)
        offset = _F32((1.0 - contrast) * mean)
        high = min(contrast * _TOP + offset, _TOP)
        turn = (_wrap(5.0 + 6.0 * hue), _wrap(3.0 + 6.0 * hue), _wrap(1.0 + 6.0 * hue))
        gain = brightness * contrast
        for i in range(0, size, _BYTES):
            block, j, plain, changed = x[n], i, clean[n], perturbed[n]
            if i == whole:
                last_x[: size - whole] = x[n, whole:]
                block, j, plain, changed = last_x, 0, last[0], last[1]
            if both:
                _normalize_block(block, j, scale_block, shift_block, plain, j)
            if untouched:
                _normalize_block(block, j, scale_block, shift_block, changed, j)
            else:
                _tone_block(block, j, gain, offset, high, saturation, red, green, blue)
                _hue_block(red, green, blue, turn, scale, shift, changed, j)
        if whole < size:
            if both:
                clean[n, whole:] = last[0, : size - whole]
            perturbed[n, whole:] = last[1, : size - whole]
