"""Keyed randomness: every random choice is a pure function of (seed, epoch, dataset index).

Each kind of choice has its own stream of a counter-based generator (Philox 4x64-10, Salmon et al.,
"Parallel random numbers: as easy as 1, 2, 3", SC 2011), keyed by (seed, epoch, stream). Row i of a
stream belongs to dataset index i, so that nothing here depends on batch size, workers, ranks or on
which files were left out. The raw 64-bit stream is used, not numpy's distributions: numpy promises
that the former never changes between versions.
"""

from __future__ import annotations

import hashlib
from enum import IntEnum
from typing import Any

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
    JPEG = 10
    JITTER_ORDER = 11
    CROP_AREA = 32  # + attempt
    CROP_RATIO = 64  # + attempt
    NAMED = 128  # + column


def _key(seed: int, epoch: int, stream: int) -> NDArray[np.uint64]:
    return np.array([seed, (epoch << 8) | stream], np.uint64)  # a list would become float64


def raw(seed: int, epoch: int, stream: int, n: int) -> NDArray[np.uint64]:
    """Row i of the stream (seed, epoch, stream), for i < n: (n,) uint64."""
    return np.random.Philox(key=_key(seed, epoch, stream)).random_raw(n)


def uniforms(seed: int, epoch: int, stream: int, n: int) -> Floats:
    """Row i of the stream as a number in [0, 1): (n,) float64, 53 random bits."""
    return (raw(seed, epoch, stream, n) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def named(seed: int, epoch: int, name: str, n: int, k: int) -> NDArray[np.float32]:
    """Numbers in [0, 1) of dataset indices 0 … n - 1, of a stream that has a name: (n, k) float32.

    The name's hash is part of the key, so that what other names draw does not move it. k is at most
    128; each number has 24 random bits.
    """
    own = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") ^ int(seed)
    columns = [raw(own, epoch, Stream.NAMED + column, n) >> np.uint64(40) for column in range(k)]
    if not columns:
        return np.empty((n, 0), np.float32)
    return np.stack(columns, axis=1).astype(np.float32) * np.float32(2.0**-24)


def factors(
    seed: int, epoch: int, n: int, strengths: tuple[float, float, float, float]
) -> NDArray[np.float32]:
    """Color factors of dataset indices 0 … n - 1.

    Brightness, contrast and saturation are U[max(0, 1 - s), 1 + s), hue is U[-s, s), in turns of
    the color circle. Strength 0 is exactly the identity (1, 1, 1, 0).

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


def permutations(seed: int, epoch: int, n: int) -> NDArray[np.int64]:
    """In which of the 24 orders dataset index i has its colors changed: (n,) int64, uniform."""
    return (24 * uniforms(seed, epoch, Stream.JITTER_ORDER, n)).astype(np.int64)


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
) -> NDArray[np.int32]:
    """RandomResizedCrop's boxes in whole pixels of each image.

    The rule is torchvision's (`transforms.RandomResizedCrop.get_params`, after Szegedy et al.,
    arXiv 1409.4842): area U[0.08, 1], log aspect ratio U[log 3/4, log 4/3], ten attempts, then the
    largest central crop within the ratio's bounds. Each draw is a fraction of the original size, so
    that a backend with resized copies scales the box and has the same crop to one pixel.

    Args:
        heights, widths: (n,) pixels of dataset index i; rows of zeros, files left out, do no harm.

    Returns:
        (n, 4) int32: top, left, height, width.
    """
    n = len(heights)
    full_h, full_w = np.maximum(heights, 1).astype(np.int64), np.maximum(widths, 1).astype(np.int64)
    h, w = np.zeros(n, np.int64), np.zeros(n, np.int64)
    pending = np.arange(n)
    for attempt in range(RRC_ATTEMPTS):
        area = uniforms(seed, epoch, Stream.CROP_AREA + attempt, n)[pending]
        area = (RRC_SCALE[0] + area * (RRC_SCALE[1] - RRC_SCALE[0])) * (full_h * full_w)[pending]
        log_ratio = uniforms(seed, epoch, Stream.CROP_RATIO + attempt, n)[pending]
        low, span = np.log(RRC_RATIO[0]), np.log(RRC_RATIO[1] / RRC_RATIO[0])
        ratio = np.exp(low + log_ratio * span)
        try_h = np.rint(np.sqrt(area / ratio)).astype(np.int64)
        try_w = np.rint(np.sqrt(area * ratio)).astype(np.int64)
        fits = (try_h > 0) & (try_h <= full_h[pending]) & (try_w > 0) & (try_w <= full_w[pending])
        h[pending[fits]], w[pending[fits]] = try_h[fits], try_w[fits]
        pending = pending[~fits]
        if not len(pending):
            break
    top = uniforms(seed, epoch, Stream.CROP_Y, n) * (full_h - h + 1)
    left = uniforms(seed, epoch, Stream.CROP_X, n) * (full_w - w + 1)
    boxes = np.stack([top, left, h, w], axis=1).astype(np.int32)  # rounds down
    high, wide = full_h[pending], full_w[pending]
    ratio_low, ratio_high = RRC_RATIO
    h_most = np.minimum(high, np.rint(wide / ratio_low))
    boxes[pending] = _central(h_most, np.minimum(wide, np.rint(high * ratio_high)), high, wide)
    return boxes


def central_squares(
    heights: NDArray[np.int32], widths: NDArray[np.int32], fraction: float
) -> NDArray[np.int32]:
    """The central square whose side is `fraction` of the shorter side.

    Resizing it to r pixels equals resizing the shorter side to r / fraction and cropping r.

    Returns:
        (n, 4) int32: top, left, height, width in whole pixels, at least 1 × 1.
    """
    full_h, full_w = np.maximum(heights, 1), np.maximum(widths, 1)
    side = np.maximum(np.rint(fraction * np.minimum(full_h, full_w)), 1)
    return _central(side, side, full_h, full_w)


def _central(h: Any, w: Any, full_h: Any, full_w: Any) -> NDArray[np.int32]:
    """Boxes of height h and width w in the middle, half a pixel to the upper left."""
    return np.stack([(full_h - h) // 2, (full_w - w) // 2, h, w], axis=1).astype(np.int32)


def order(seed: int, epoch: int, usable: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """The epoch's order of the usable dataset indices, a permutation of them.

    Sorting by a key of each index keeps the relative order of all others when a file is left out.
    """
    return usable[np.argsort(raw(seed, epoch, Stream.ORDER, n)[usable], kind="stable")]


def substitute(seed: int, epoch: int, index: int, usable: NDArray[np.int64], attempt: int) -> int:
    """The dataset index that fills the slot of one that cannot be decoded.

    `attempt` counts up while substitutes turn out to be broken too.
    """
    key = _key(seed, epoch, Stream.SUBSTITUTE)
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
