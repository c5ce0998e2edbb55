"""The front-end for the CPU, compiled by numba: an image read twice, its channels written once.

- The first pass sums in float64, where squares lose nothing that shows: means and variances come
  from sums of values and of squares, at any contrast. The compiler orders the sums as it likes,
  which decides digits far behind those of float32.
- The second pass works in float32 on a pixel's distance from the mean: nothing cancels where the
  colors of a grey image, which are rounding, are divided by their root mean square. The mean is
  rounded to float32 first, and what that leaves is in the constants that are added.
- Values are read and written as bits, for numpy has no bfloat16.

Arrays: `x` (N, 3HW) and `out` (N, CHW), the bits of float32 (uint32) or of bfloat16 (uint16),
contiguous; `mean`, `std` and `luma` (3,) float64.
"""

import numpy as np

from fastsc.kernels.jit import jit

_F32, _U32 = np.float32, np.uint32


@jit(fastmath={"reassoc", "nsz"})
def _means(x, mean, std, luma, means):  # type: ignore[no-untyped-def]
    """Of an image: its channels' (3), their squares' (3), luma², C², largest's, smallest's."""
    shift = _U32(32 - 8 * x.itemsize)
    std_r, std_g, std_b = std[0], std[1], std[2]
    mean_r, mean_g, mean_b = mean[0], mean[1], mean[2]
    luma_r, luma_g, luma_b = luma[0], luma[1], luma[2]
    r1 = g1 = b1 = r2 = g2 = b2 = y2 = c2 = high = low = 0.0
    for k in range(x.size // 3):
        r = np.float64(_U32(_U32(x[3 * k]) << shift).view(np.float32))
        g = np.float64(_U32(_U32(x[3 * k + 1]) << shift).view(np.float32))
        b = np.float64(_U32(_U32(x[3 * k + 2]) << shift).view(np.float32))
        r, g, b = r * std_r + mean_r, g * std_g + mean_g, b * std_b + mean_b
        y = luma_r * r + luma_g * g + luma_b * b
        r1, g1, b1 = r1 + r, g1 + g, b1 + b
        r2, g2, b2 = r2 + r * r, g2 + g * g, b2 + b * b
        y2 += y * y
        r, g, b = r - y, g - y, b - y
        c2 += r * r + g * g + b * b
        high += y + max(max(r, g), b)
        low += y + min(min(r, g), b)
    for i, total in enumerate((r1, g1, b1, r2, g2, b2, y2, c2, high, low)):
        means[i] = total / (x.size // 3)


@jit()
def _put(out, k, value):  # type: ignore[no-untyped-def]
    bits = _F32(value).view(np.uint32)
    if out.itemsize == 2:  # to nearest even
        bits = _U32((bits + _U32(0x7FFF) + ((bits >> _U32(16)) & _U32(1))) >> _U32(16))
    out[k] = bits


@jit()
def _constants(means, mean, std, luma, floor, grey, lines):  # type: ignore[no-untyped-def]
    """(8, 3) float32: center, std, luma, scale and addend of z1, addend of z2, of the extremes."""
    lines[0] = (means[:3] - mean) / std
    center = mean + std * lines[0]  # as it is rounded
    lines[1], lines[2] = std, luma
    lines[3] = 1 / np.sqrt(means[3:6] - means[:3] ** 2 + floor)
    lines[4] = (center - means[:3]) * lines[3]
    y, y_mean = (luma * center).sum(), (luma * means[:3]).sum()
    spread = np.sqrt(means[6] - y_mean**2 + floor)
    balance = np.sqrt(means[7] / 3) + grey * spread
    lines[5] = (y - y_mean) / spread + (center - y) / balance
    lines[6], lines[7] = center - means[8], center - means[9]
    return _F32(1 / spread), _F32(1 / balance)


@jit()
def front_batch(x, mean, std, luma, floor, grey, z1, z2, channels, out):  # type: ignore[no-untyped-def]
    """The front-end of each image.

    z1, z2: Whether their channels are wanted; the extremes are wanted where `channels`, a tuple,
        has eight members: its length is a constant to the compiler.
    """
    width, shift = len(channels), _U32(32 - 8 * x.itemsize)
    means, lines = np.empty(10), np.empty((8, 3), np.float32)
    for n in range(x.shape[0]):
        pixels, made = x[n], out[n]
        _means(pixels, mean, std, luma, means)
        y_scale, c_scale = _constants(means, mean, std, luma, floor, grey, lines)
        center_r, center_g, center_b = lines[0]
        std_r, std_g, std_b = lines[1]
        luma_r, luma_g, luma_b = lines[2]
        scale_r, scale_g, scale_b = lines[3]
        z1_r, z1_g, z1_b = lines[4]
        z2_r, z2_g, z2_b = lines[5]
        high_r, high_g, high_b = lines[6]
        low_r, low_g, low_b = lines[7]
        for k in range(pixels.size // 3):
            r = (_U32(_U32(pixels[3 * k]) << shift).view(np.float32) - center_r) * std_r
            g = (_U32(_U32(pixels[3 * k + 1]) << shift).view(np.float32) - center_g) * std_g
            b = (_U32(_U32(pixels[3 * k + 2]) << shift).view(np.float32) - center_b) * std_b
            at = width * k
            if z1:
                _put(made, at, r * scale_r + z1_r)
                _put(made, at + 1, g * scale_g + z1_g)
                _put(made, at + 2, b * scale_b + z1_b)
                at += 3
            if z2:
                y = luma_r * r + luma_g * g + luma_b * b
                light = y * y_scale
                _put(made, at, light + (r - y) * c_scale + z2_r)
                _put(made, at + 1, light + (g - y) * c_scale + z2_g)
                _put(made, at + 2, light + (b - y) * c_scale + z2_b)
            if width == 8:
                high = max(max(r + high_r, g + high_g), b + high_b)
                low = min(min(r + low_r, g + low_g), b + low_b)
                _put(made, at + 3, high * y_scale)
                _put(made, at + 4, low * y_scale)


__all__ = ["front_batch"]
