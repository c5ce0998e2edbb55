"""The operations of `perturbations` for the CPU, compiled by numba: the same bytes as torch's.

Without fast-math, so that no product is fused with a sum: that would round otherwise than torch.
All constants are np.float32, as in `views_numba`; the GIL is released.
"""

import numpy as np

from fastsc.kernels.jit import jit

_F32, _U32 = np.float32, np.uint32
_HALF, _ZERO, _TOP = _F32(0.5), _F32(0), _F32(255)
_RED, _GREEN, _BLUE = _F32(0.2989), _F32(0.587), _F32(0.114)
_THIRTEENTH = _F32(1 / 13)
_M1, _M2 = _U32(0x7FEB352D), _U32(0x846CA68B)
_S15, _S16 = _U32(15), _U32(16)


@jit()
def look_up(x, tables, out):  # type: ignore[no-untyped-def]
    """x, out (n, 3HW); tables (n, 3, 256)."""
    for i in range(x.shape[0]):
        red, green, blue = tables[i, 0], tables[i, 1], tables[i, 2]
        for j in range(0, x.shape[1], 3):
            out[i, j] = red[x[i, j]]
            out[i, j + 1] = green[x[i, j + 1]]
            out[i, j + 2] = blue[x[i, j + 2]]


@jit()
def _byte(value):  # type: ignore[no-untyped-def]
    return np.uint8(min(max(value + _HALF, _ZERO), _TOP))


@jit()
def grayscale(x, chosen, out):  # type: ignore[no-untyped-def]
    """x, out (n, 3HW); chosen (n,) bool."""
    for i in range(x.shape[0]):
        if not chosen[i]:
            out[i] = x[i]
            continue
        for j in range(0, x.shape[1], 3):
            grey = _F32(x[i, j]) * _RED + _F32(x[i, j + 1]) * _GREEN
            level = _byte(grey + _F32(x[i, j + 2]) * _BLUE)
            out[i, j] = level
            out[i, j + 1] = level
            out[i, j + 2] = level


@jit()
def _reflected(place, size):  # type: ignore[no-untyped-def]
    if size == 1:
        return 0
    place = abs(place) % (2 * size - 2)
    return min(place, 2 * size - 2 - place)


@jit()
def blur(x, weights, radii, out):  # type: ignore[no-untyped-def]
    """x, out (n, H, W, 3); weights (n, 2R + 1), in the middle; radii (n,)."""
    n, height, width, _ = x.shape
    middle = weights.shape[1] // 2
    flat, flat_out = x.reshape(n, height, 3 * width), out.reshape(n, height, 3 * width)
    rows = np.empty((height, 3 * width), np.float32)
    total = np.empty(3 * width, np.float32)
    for i in range(n):
        r = radii[i]
        if r == 0:
            out[i] = x[i]
            continue
        line = np.empty(3 * (width + 2 * r), np.float32)
        own = weights[i, middle - r : middle + r + 1]
        for y in range(height):
            for place in range(width + 2 * r):
                source = 3 * _reflected(place - r, width)
                for c in range(3):
                    line[3 * place + c] = flat[i, y, source + c]
            total[:] = _ZERO
            for k in range(2 * r + 1):
                weight, start = own[k], 3 * k
                for j in range(3 * width):
                    total[j] += weight * line[start + j]
            rows[y] = total
        for y in range(height):
            total[:] = _ZERO
            for k in range(2 * r + 1):
                weight, source = own[k], _reflected(y + k - r, height)
                for j in range(3 * width):
                    total[j] += weight * rows[source, j]
            for j in range(3 * width):
                flat_out[i, y, j] = _byte(total[j])


@jit()
def sharpness(x, amounts, out):  # type: ignore[no-untyped-def]
    """x, out (n, H, W, 3), of at least 3 x 3 pixels; amounts (n,) float32."""
    n, height, width, _ = x.shape
    last = 3 * width - 3
    flat, flat_out = x.reshape(n, height, 3 * width), out.reshape(n, height, 3 * width)
    for i in range(n):
        amount = amounts[i]
        flat_out[i, 0] = flat[i, 0]
        flat_out[i, height - 1] = flat[i, height - 1]
        for y in range(1, height - 1):
            above, here, below = flat[i, y - 1], flat[i, y], flat[i, y + 1]
            flat_out[i, y, :3] = here[:3]
            flat_out[i, y, last:] = here[last:]
            for j in range(3, last):
                total = np.int32(above[j - 3]) + np.int32(above[j]) + np.int32(above[j + 3])
                total += np.int32(here[j - 3]) + np.int32(5) * np.int32(here[j])
                total += np.int32(here[j + 3])
                total += np.int32(below[j - 3]) + np.int32(below[j]) + np.int32(below[j + 3])
                level = _F32(here[j])
                smooth = _F32(np.int32(total)) * _THIRTEENTH
                flat_out[i, y, j] = _byte((level - smooth) * amount + level)


@jit()
def _mixed(value):  # type: ignore[no-untyped-def]
    value = _U32(_U32(value ^ (value >> _S16)) * _M1)
    value = _U32(_U32(value ^ (value >> _S15)) * _M2)
    return _U32(value ^ (value >> _S16))


@jit()
def noise(x, deviations, words, quantiles, out):  # type: ignore[no-untyped-def]
    """x, out (n, 3HW); deviations (n,) float32; words (n, 2) uint32; quantiles (2**16,) float32."""
    for i in range(x.shape[0]):
        first, second, deviation = words[i, 0], words[i, 1], deviations[i]
        for j in range(x.shape[1]):
            hashed = _mixed(_U32(_mixed(_U32(_U32(j) ^ first)) + second))
            out[i, j] = _byte(quantiles[hashed >> _S16] * deviation + _F32(x[i, j]))
