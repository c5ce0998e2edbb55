"""From a decoded region to an output slot: antialiased resize, shift, flip."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastsc.kernels.jit import jit
from fastsc.pipelines.plan import Interpolation


def place(
    region: NDArray[np.uint8],
    slot: NDArray[np.uint8],
    shift: tuple[int, int],
    flip: bool,
    interpolation: Interpolation = "bilinear",
    *,
    reflect: bool = False,
) -> None:
    """Resizes a region to fill a slot, reads it `shift` off-centre with a border, mirrors it.

    The resize is torch's antialiased one on uint8, bit-equal to
    `torchvision.transforms.v2.functional.resize` of a uint8 tensor.

    Args:
        region: (h, w, 3) uint8.
        slot: (R, R, 3) uint8, contiguous; written.
        shift: y and x, in output pixels.
        flip: Mirror left to right, after the shift.
        interpolation: Of the resize.
        reflect: The border is the region mirrored at its outermost pixels; else it is black.
    """
    size = slot.shape[0]
    if region.shape[:2] != (size, size):
        # (1, 3, h, w), channels-last: torch's fast path for uint8, and no copy.
        image = torch.from_numpy(region).permute(2, 0, 1)[None]
        resized = torch.nn.functional.interpolate(
            image, (size, size), mode=interpolation, antialias=True
        )
        region = resized[0].permute(1, 2, 0).numpy()
    # Not torch's copy and flip: these would start a team of OpenMP threads for every thread here.
    move(region, slot, *shift, flip, reflect)


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
