"""From a decoded region to an output slot: antialiased bilinear resize, shift, flip."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray


def place(
    region: NDArray[np.uint8], slot: torch.Tensor, shift: NDArray[np.int32] | None, flip: bool
) -> None:
    """Resizes a region to fill a slot, reads it `shift` off-centre with black around, mirrors it.

    The resize is torch's antialiased bilinear one on uint8, bit-equal to
    `torchvision.transforms.v2.functional.resize` of a uint8 tensor.

    Args:
        region: (h, w, 3) uint8.
        slot: (R, R, 3) uint8, contiguous; written.
        shift: (2,) y and x in output pixels, or None.
        flip: Mirror left to right, after the shift.
    """
    size = slot.shape[0]
    # (1, 3, h, w), channels-last: torch's fast path for uint8, and no copy.
    image = torch.from_numpy(region).permute(2, 0, 1)[None]
    if image.shape[-2:] != (size, size):
        image = torch.nn.functional.interpolate(
            image, (size, size), mode="bilinear", antialias=True
        )
    target = slot.permute(2, 0, 1)[None]
    if shift is None:
        target.copy_(image.flip(-1) if flip else image)
        return
    (to_y, from_y), (to_x, from_x) = (_overlap(int(step), size) for step in shift)
    shifted = torch.zeros_like(target)
    shifted[..., to_y, to_x] = image[..., from_y, from_x]
    target.copy_(shifted.flip(-1) if flip else shifted)


def _overlap(step: int, size: int) -> tuple[slice, slice]:
    """Rows of the output and of the image that coincide when reading begins at row `step`."""
    low, high = max(0, -step), min(size, size - step)
    return slice(low, max(low, high)), slice(low + step, max(low, high) + step)


@njit(nogil=True, cache=True)
def gather(
    pixels: Any,  # (n, S, S, 3) uint8
    index: Any,  # (N,) int64
    shifts: Any,  # (N, 2) int32
    flips: Any,  # (N,) bool
    out: Any,  # (N, S, S, 3) uint8, written
) -> None:
    """`place` for images that already have the output's size, a whole batch at once."""
    size = pixels.shape[1]
    for k in range(len(index)):
        image, slot = pixels[index[k]], out[k]
        dy, dx = shifts[k, 0], shifts[k, 1]
        for y in range(size):
            inside = 0 <= y + dy < size
            for x in range(size):
                from_x = (size - 1 - x if flips[k] else x) + dx
                if inside and 0 <= from_x < size:
                    for channel in range(3):
                        slot[y, x, channel] = image[y + dy, from_x, channel]
                else:
                    for channel in range(3):
                        slot[y, x, channel] = 0
