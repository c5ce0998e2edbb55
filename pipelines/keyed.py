"""Keyed randomness: every random choice is a pure function of (seed, epoch, dataset index).

Each kind of choice has its own stream of a counter-based generator (Philox 4x64-10, Salmon et al.,
"Parallel random numbers: as easy as 1, 2, 3", SC 2011), keyed by (seed, epoch, stream). Row i of a
stream belongs to dataset index i, so that nothing here depends on batch size, workers, ranks or on
which files were left out. The raw 64-bit stream is used, not numpy's distributions: numpy promises
that the former never changes between versions.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Validation uses one fixed key, whatever the run's seed and epoch: curves over epochs and runs then
# measure the model and not the draw.
VALIDATION_SEED = 0
VALIDATION_EPOCH = 2**32 - 1

RRC_SCALE = (0.08, 1.0)  # share of the image's area; torchvision's RandomResizedCrop
RRC_RATIO = (3 / 4, 4 / 3)  # width over height
RRC_ATTEMPTS = 10
PAD = 4  # pixels on every side, the CIFAR convention


class Stream(IntEnum):
    """One independent stream of numbers for every kind of choice."""

    ORDER = 0
    BRIGHTNESS = 1
    CONTRAST = 2
    SATURATION = 3
    HUE = 4
    FLIP = 5
    CROP_Y = 6
    CROP_X = 7
    SUBSTITUTE = 8
    NEIGHBOUR = 9
    CROP_AREA = 32  # + attempt
    CROP_RATIO = 64  # + attempt


def raw(seed: int, epoch: int, stream: int, n: int) -> NDArray[np.uint64]:
    """Row i of the stream (seed, epoch, stream), for i < n: (n,) uint64."""
    return np.random.Philox(key=[seed, (epoch << 8) | stream]).random_raw(n)


def uniforms(seed: int, epoch: int, stream: int, n: int) -> Floats:
    """Row i of the stream as a number in [0, 1): (n,) float64, 53 random bits."""
    return (raw(seed, epoch, stream, n) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def factors(
    seed: int, epoch: int, n: int, strengths: tuple[float, float, float, float]
) -> NDArray[np.float32]:
    """Colour factors of dataset indices 0 … n - 1.

    Brightness, contrast and saturation are U[max(0, 1 - s), 1 + s), hue is U[-s, s), in turns of
    the colour circle. Strength 0 is exactly the identity (1, 1, 1, 0).

    Returns:
        (n, 4) float32: brightness, contrast, saturation, hue.
    """
    table = np.empty((n, 4), np.float32)
    streams = (Stream.BRIGHTNESS, Stream.CONTRAST, Stream.SATURATION)
    for column, (stream, strength) in enumerate(zip(streams, strengths[:3], strict=True)):
        low = max(0.0, 1.0 - strength)
        table[:, column] = low + uniforms(seed, epoch, stream, n) * (1.0 + strength - low)
    table[:, 3] = (2.0 * uniforms(seed, epoch, Stream.HUE, n) - 1.0) * strengths[3]
    return table


def flips(seed: int, epoch: int, n: int) -> NDArray[np.bool_]:
    """Whether dataset index i is mirrored left to right: (n,) bool, probability one half."""
    return uniforms(seed, epoch, Stream.FLIP, n) < 0.5


def pad_shifts(seed: int, epoch: int, n: int) -> NDArray[np.int32]:
    """Offsets of a crop out of an image padded by PAD black pixels: (n, 2) int32, y and x.

    Each in [-PAD, PAD], in output pixels; torchvision's RandomCrop(size, padding=PAD) at PAD + it.
    """
    table = np.empty((n, 2), np.int32)
    for column, stream in enumerate((Stream.CROP_Y, Stream.CROP_X)):
        table[:, column] = uniforms(seed, epoch, stream, n) * (2 * PAD + 1)
    return table - PAD


def random_resized_crops(
    seed: int, epoch: int, heights: NDArray[np.int32], widths: NDArray[np.int32]
) -> Floats:
    """RandomResizedCrop's boxes as fractions of each image.

    The rule is torchvision's (`transforms.RandomResizedCrop.get_params`, after Szegedy et al.,
    arXiv 1409.4842): area U[0.08, 1], log aspect ratio U[log 3/4, log 4/3], ten attempts, then the
    largest central crop within the ratio's bounds.

    Args:
        heights, widths: (n,) pixels of dataset index i; rows of zeros, files left out, do no harm.

    Returns:
        (n, 4) float64: top, left, height, width, each as a fraction of the image.
    """
    n = len(heights)
    shape_ratio = np.maximum(widths, 1) / np.maximum(heights, 1)
    box_h, box_w = np.ones(n), np.ones(n)
    open_rows = np.arange(n)
    for attempt in range(RRC_ATTEMPTS):
        area = uniforms(seed, epoch, Stream.CROP_AREA + attempt, n)[open_rows]
        area = RRC_SCALE[0] + area * (RRC_SCALE[1] - RRC_SCALE[0])
        log_ratio = uniforms(seed, epoch, Stream.CROP_RATIO + attempt, n)[open_rows]
        low, high = np.log(RRC_RATIO)
        # The crop's ratio in units of the image's own: fractions need no pixels.
        ratio = np.exp(low + log_ratio * (high - low)) / shape_ratio[open_rows]
        h, w = np.sqrt(area / ratio), np.sqrt(area * ratio)
        fits = (h <= 1) & (w <= 1)
        box_h[open_rows[fits]], box_w[open_rows[fits]] = h[fits], w[fits]
        open_rows = open_rows[~fits]
        if not len(open_rows):
            break
    central = np.zeros(n, np.bool_)
    central[open_rows] = True
    box_h[central] = np.minimum(1, shape_ratio[central] / RRC_RATIO[0])
    box_w[central] = np.minimum(1, RRC_RATIO[1] / shape_ratio[central])
    at_y = np.where(central, 0.5, uniforms(seed, epoch, Stream.CROP_Y, n))
    at_x = np.where(central, 0.5, uniforms(seed, epoch, Stream.CROP_X, n))
    return np.stack([at_y * (1 - box_h), at_x * (1 - box_w), box_h, box_w], axis=1)


def central_squares(
    heights: NDArray[np.int32], widths: NDArray[np.int32], fraction: float
) -> Floats:
    """The central square whose side is `fraction` of the shorter side, as fractions: (n, 4).

    Resizing it to r pixels equals resizing the shorter side to r / fraction and cropping r.
    """
    h, w = np.maximum(heights, 1), np.maximum(widths, 1)
    side = fraction * np.minimum(h, w)
    box_h, box_w = side / h, side / w
    return np.stack([(1 - box_h) / 2, (1 - box_w) / 2, box_h, box_w], axis=1)


def to_pixels(
    boxes: Floats, heights: NDArray[np.int32], widths: NDArray[np.int32]
) -> NDArray[np.int32]:
    """Fractional boxes rounded to whole pixels inside each image, at least 1 × 1.

    Returns:
        (n, 4) int32: top, left, height, width.
    """
    size = np.stack([heights, widths], axis=1)
    extent = np.clip(np.rint(boxes[:, 2:] * size), 1, np.maximum(size, 1))
    start = np.clip(np.rint(boxes[:, :2] * size), 0, np.maximum(size, 1) - extent)
    return np.concatenate([start, extent], axis=1).astype(np.int32)


def order(seed: int, epoch: int, usable: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """The epoch's order of the usable dataset indices, a permutation of them.

    Sorting by a key of each index keeps the relative order of all others when a file is left out.
    """
    return usable[np.argsort(raw(seed, epoch, Stream.ORDER, n)[usable], kind="stable")]


def substitute(seed: int, epoch: int, index: int, usable: NDArray[np.int64], attempt: int) -> int:
    """The dataset index that fills the slot of one that cannot be decoded.

    `attempt` counts up while substitutes turn out to be broken too.
    """
    key = [seed, (epoch << 8) | Stream.SUBSTITUTE]
    draw = np.random.Philox(key=key, counter=[0, 0, attempt, index]).random_raw(1)[0]
    return int(usable[int(draw) % len(usable)])


def cycle(indices: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """A fixed derangement of a split, for the distance between different images.

    Args:
        indices: (m,) different dataset indices below n.

    Returns:
        (m,) positions into `indices`, sorted by a fixed key of each: one cycle through all, in
        which every image is paired with the next and the last with the first.
    """
    keys = raw(VALIDATION_SEED, VALIDATION_EPOCH, Stream.NEIGHBOUR, n)[indices]
    return np.argsort(keys, kind="stable")
