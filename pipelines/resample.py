"""From a decoded region to an output slot: antialiased resize, shift, flip."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastsc.kernels.jit import jit
from fastsc.pipelines.plan import Interpolation

FloatBox = tuple[float, float, float, float]  # top, left, height, width
Floats = NDArray[np.float64]


def place(
    region: NDArray[np.uint8],
    slot: NDArray[np.uint8],
    shift: tuple[int, int],
    flip: bool,
    interpolation: Interpolation = "bilinear",
    box: FloatBox | None = None,
    reflect: bool = False,
) -> None:
    """Resizes a region to fill a slot, reads it `shift` off-centre with a border, mirrors it.

    The resize is torch's antialiased one on uint8, bit-equal to
    `torchvision.transforms.v2.functional.resize` of a uint8 tensor; of a box, `resized_box`.

    Args:
        region: (h, w, 3) uint8.
        slot: (R, R, 3) uint8, contiguous; written.
        shift: y and x, in output pixels.
        flip: Mirror left to right, after the shift.
        interpolation: Of the resize.
        box: The part of the region to take in its place.
        reflect: The border is the region mirrored at its outermost pixels; else it is black.
    """
    size = slot.shape[0]
    if box is not None:
        region = resized_box(region, box, size, interpolation)
    elif region.shape[:2] != (size, size):
        # (1, 3, h, w), channels-last: torch's fast path for uint8, and no copy.
        image = torch.from_numpy(region).permute(2, 0, 1)[None]
        resized = torch.nn.functional.interpolate(
            image, (size, size), mode=interpolation, antialias=True
        )
        region = resized[0].permute(1, 2, 0).numpy()
    # Not torch's copy and flip: these would start a team of OpenMP threads for every thread here.
    move(region, slot, *shift, flip, reflect)


def resized_box(
    pixels: NDArray[np.uint8], box: FloatBox, size: int, interpolation: Interpolation
) -> NDArray[np.uint8]:
    """A box whose sides lie between pixels, shrunk by torch's antialiasing filters.

    Args:
        pixels: (h, w, 3) uint8.
        box: top, left, height, width in pixels, inside of them; no side shorter than `size`. A
            pixel that is partly in the box counts by that part, and one outside not at all.
        size: Side of the output.
        interpolation: The filter.

    Returns:
        (size, size, 3) uint8.
    """
    top, left, height, width = box
    rows = _taps(top, height, size, pixels.shape[0], interpolation)
    columns = _taps(left, width, size, pixels.shape[1], interpolation)
    out = np.empty((size, size, 3), np.uint8)
    _shrink(pixels, *rows, *columns, out)
    return out


def _taps(
    start: float, length: float, size: int, n: int, interpolation: Interpolation
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Of each output pixel: the first input pixel of n, and the weights of those from there on."""
    scale = length / size
    radius, filter_ = _FILTERS[interpolation]
    centers = start + (np.arange(size) + 0.5) * scale
    n_taps = min(n, int(np.ceil(2 * radius * scale)) + 1)
    first = np.clip(np.floor(centers - radius * scale).astype(np.int64), 0, n - n_taps)
    at = first[:, None] + np.arange(n_taps)
    inside = np.minimum(at + 1, start + length) - np.maximum(at, start)
    weights = filter_(np.abs(at + 0.5 - centers[:, None]) / scale) * inside.clip(0, 1)
    return first, (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def _triangle(x: Floats) -> Floats:
    return (1 - x).clip(0)


def _cubic(x: Floats) -> Floats:
    """Keys' cubic convolution with a = -1/2, as torch and Pillow antialias by."""
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


_FILTERS = {"bilinear": (1, _triangle), "bicubic": (2, _cubic)}  # radius, and the filter


@jit()
def _shrink(pixels: Any, first_y: Any, by_y: Any, first_x: Any, by_x: Any, out: Any) -> None:
    """Rows by their weights, then columns, in float32; out: (S, S, 3), written."""
    left, right = first_x[0], first_x[-1] + by_x.shape[1]
    line = np.empty((right - left) * 3, np.float32)
    for y in range(out.shape[0]):
        line[:] = 0
        for k in range(by_y.shape[1]):
            row = pixels[first_y[y] + k, left:right].reshape(-1)
            weight = by_y[y, k]
            for i in range(line.size):
                line[i] += weight * np.float32(row[i])
        for x in range(out.shape[1]):
            r, g, b = np.float32(0.5), np.float32(0.5), np.float32(0.5)  # rounds to the nearest
            for k in range(by_x.shape[1]):
                weight, i = by_x[x, k], (first_x[x] - left + k) * 3
                r += weight * line[i]
                g += weight * line[i + 1]
                b += weight * line[i + 2]
            out[y, x, 0] = min(max(r, np.float32(0)), np.float32(255))
            out[y, x, 1] = min(max(g, np.float32(0)), np.float32(255))
            out[y, x, 2] = min(max(b, np.float32(0)), np.float32(255))


@jit()
def _reflected(at: int, size: int) -> int:
    """The place in 0 … size - 1 that shows at a place at most size - 1 outside of them."""
    return size - 1 - abs(size - 1 - abs(at))


@jit()
def move(image: Any, slot: Any, dy: int, dx: int, flip: bool, reflect: bool) -> None:
    """slot[y, x] = image[y + dy, (x mirrored) + dx]; both (S, S, 3) uint8.

    Outside of the image it is black, or, with `reflect`, torch's padding "reflect", which takes
    shifts below S.
    """
    size = slot.shape[0]
    if reflect:
        for y in range(size):
            row = image[_reflected(y + dy, size)]
            for x in range(size):
                at = _reflected(x + dx, size)
                to = size - 1 - x if flip else x
                slot[y, to, 0] = row[at, 0]
                slot[y, to, 1] = row[at, 1]
                slot[y, to, 2] = row[at, 2]
        return
    if dy != 0 or dx != 0:
        slot[:] = 0
    for y in range(max(0, -dy), min(size, size - dy)):
        row, to = image[y + dy], slot[y]
        if flip:
            for x in range(max(0, -dx), min(size, size - dx)):
                to[size - 1 - x, 0] = row[x + dx, 0]
                to[size - 1 - x, 1] = row[x + dx, 1]
                to[size - 1 - x, 2] = row[x + dx, 2]
        else:
            for x in range(max(0, -dx), min(size, size - dx)):
                to[x, 0] = row[x + dx, 0]
                to[x, 1] = row[x + dx, 1]
                to[x, 2] = row[x + dx, 2]


@jit()
def gather(
    pixels: Any,  # (n, S, S, 3) uint8
    index: Any,  # (N,) int64
    shifts: Any,  # (N, 2) int32
    flips: Any,  # (N,) bool
    reflect: bool,
    out: Any,  # (N, S, S, 3) uint8, written
) -> None:
    """`place` for images that already have the output's size, a whole batch at once."""
    for k in range(len(index)):
        move(pixels[index[k]], out[k], shifts[k, 0], shifts[k, 1], flips[k], reflect)
