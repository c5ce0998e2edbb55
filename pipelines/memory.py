"""The `memory` pipeline: small images, decoded once and held as one uint8 array."""

from __future__ import annotations

from collections.abc import Generator

import numpy as np
import torch
from numpy.typing import NDArray

from fastsc.pipelines.base import Decoded
from fastsc.pipelines.cpu import CpuPipeline, Task
from fastsc.pipelines.decode import RGB8, DecodeError, pick
from fastsc.pipelines.errors import UserError
from fastsc.pipelines.index import Index
from fastsc.pipelines.plan import Plan, Settings
from fastsc.pipelines.resample import FloatBox, gather
from fastsc.pipelines.scaled import Box
from fastsc.pipelines.sweep import decoding, failures

MAX_BYTES = 8 * 2**30  # of decoded pixels; ImageNet is 700 GB


class MemoryPipeline(CpuPipeline):
    """Like `cpu` with the decoding done beforehand.

    Images may differ in size: the array is flat, one image after the other. Where all have the
    output's size already and none is resized (CIFAR, MNIST), a batch is one compiled gather.
    """

    name = "memory"

    def __init__(self, index: Index, settings: Settings) -> None:
        super().__init__(index, settings)
        self._pixels, self._offsets, self._broken = _load(index, settings)
        if self._broken and settings.on_bad_image == "raise":
            first = min(self._broken)
            self._replace(self.plan(), first, 0, self._broken[first])
        sizes = np.stack([index.heights, index.widths], axis=1)
        resized = settings.val_crop != 1
        if settings.train:
            resized = settings.crop == "rrc" or settings.train_crop != 1
        self._square = None
        if not resized and not self._broken and (sizes == sizes[0, 0]).all():
            self._square = self._pixels.reshape(len(index), *sizes[0], 3)

    def warm_up(self) -> None:
        super().warm_up()
        pixels, none = np.zeros((1, 1, 1, 3), np.uint8), np.zeros(0, np.int64)
        gather(pixels, none, np.zeros((0, 2), np.int32), np.zeros(0, np.bool_), False, pixels)

    def _region(self, index: int, box: Box, task: Task) -> tuple[RGB8, FloatBox | None]:
        task.stage = "cutting out"
        if index in self._broken:
            raise DecodeError(self._broken[index])
        shape = int(self.index.heights[index]), int(self.index.widths[index]), 3
        image = self._pixels[self._offsets[index] : self._offsets[index + 1]].reshape(shape)
        top, left, height, width = box
        return image[top : top + height, left : left + width], None

    def _decode(
        self, plan: Plan, batches: list[NDArray[np.int64]]
    ) -> Generator[Decoded, None, None]:
        if self._square is None or self._square.shape[1] != self.settings.resolution:
            return super()._decode(plan, batches)
        return self._gathered(self._square, plan, batches)

    def _gathered(
        self, square: NDArray[np.uint8], plan: Plan, batches: list[NDArray[np.int64]]
    ) -> Generator[Decoded, None, None]:
        for share in batches:
            images = self._pool.empty((len(share), *square.shape[1:]), torch.uint8)
            unmoved = np.zeros((len(share), 2), np.int32)
            shifts = unmoved if plan.shifts is None else plan.shifts[share]
            gather(square, share, shifts, plan.flips[share], plan.reflect, images.numpy())
            yield Decoded(images, share)


def _load(
    index: Index, settings: Settings
) -> tuple[NDArray[np.uint8], NDArray[np.int64], dict[int, str]]:
    """All usable images as one flat array, the offsets (n + 1,), and why some did not decode."""
    sizes = index.heights.astype(np.int64) * index.widths * 3
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    if offsets[-1] > MAX_BYTES:
        raise UserError(
            f"{index.root}: its images take {offsets[-1] / 2**30:.0f} GiB decoded; "
            "--pipeline memory is for small images, take cpu or dali"
        )
    pixels = np.zeros(offsets[-1], np.uint8)

    def keep(i: int, image: RGB8) -> None:
        pixels[offsets[i] : offsets[i + 1]] = image.reshape(-1)

    one = decoding(index, pick()[1], keep)
    workers, timeout = settings.workers, settings.timeout
    broken = failures(index, one, workers=workers, timeout=timeout, title="Decoding")
    return pixels, offsets, broken
