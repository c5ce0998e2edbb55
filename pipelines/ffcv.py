"""The `ffcv` pipeline: samples of a beton, decoded and resized by FFCV's library.

FFCV's file format, JPEG decoder (libjpeg-turbo) and resize (OpenCV's INTER_AREA), under the threads
of the `cpu` pipeline. FFCV's own loader is not used: it draws crops from numba's global generator,
overwrites batches that are kept, leaves threads behind, ignores what its decoder says about a
damaged image, and waits for ever once a worker has raised.
"""

from __future__ import annotations

import threading
from collections.abc import Generator
from dataclasses import replace
from importlib.metadata import version

import numpy as np
from numpy.typing import NDArray

from fastsc.pipelines.base import Decoded, Pipeline
from fastsc.pipelines.beton import BetonIndex, require_ffcv
from fastsc.pipelines.cpu import CpuPipeline, Pending, Task
from fastsc.pipelines.decode import DecodeError
from fastsc.pipelines.errors import UserError
from fastsc.pipelines.index import Index
from fastsc.pipelines.plan import Plan, Settings
from fastsc.pipelines.samples import OK, REASONS, decode, fill
from fastsc.pipelines.sweep import TIMEOUT, failures

STAGE = "reading, decoding or resizing"  # one call of compiled code
_NO_SHIFTS = np.zeros((0, 2), np.int32)


class FfcvPipeline(CpuPipeline):
    """Like `cpu`, with samples out of one file, several of them a call of compiled code."""

    name = "ffcv"

    def __init__(self, index: Index, settings: Settings) -> None:
        assert isinstance(index, BetonIndex), "`build` makes it from the beton"
        require_ffcv()
        if settings.interpolation != "bilinear":
            raise UserError(
                f"--pipeline ffcv has no {settings.interpolation} resize (it averages areas); "
                "take --pipeline cpu or dali"
            )
        super().__init__(index, settings)
        self.decoder = f"ffcv {version('ffcv')}"
        self.samples = index.samples
        self._opened = open(index.root, "rb", buffering=0)  # noqa: SIM115, until close()
        self._local = threading.local()

    def warm_up(self) -> None:
        Pipeline.warm_up(self)
        none, pixel = np.zeros(0, np.int64), np.zeros((1, 1, 3), np.uint8)
        fill(
            self.file, self.samples.columns, none, np.zeros((0, 4), np.int32), _NO_SHIFTS,
            np.zeros(0, np.bool_), False, pixel.reshape(-1), pixel.reshape(-1), pixel,
            pixel[None], np.zeros(0, np.uint8),
        )  # fmt: skip

    @property
    def file(self) -> int:
        """The beton's descriptor."""
        return self._opened.fileno()

    def close(self) -> None:
        """Ends the threads and closes the file."""
        super().close()
        self._opened.close()

    def _decode(
        self, plan: Plan, batches: list[NDArray[np.int64]]
    ) -> Generator[Decoded, None, None]:
        assert not self._opened.closed, "a closed pipeline is not iterated"
        return super()._decode(replace(plan, boxes=self.stored_boxes(plan.boxes)), batches)

    def stored_boxes(self, boxes: NDArray[np.int32]) -> NDArray[np.int32]:
        """Boxes of the originals as boxes of the stored images: the edges scaled and rounded."""
        index, samples = self.index, self.samples
        scaled = np.empty_like(boxes)
        for axis, original, stored in (
            (0, index.heights, samples.heights),
            (1, index.widths, samples.widths),
        ):
            scale = stored / np.maximum(original, 1)
            start = np.rint(boxes[:, axis] * scale)
            start = np.minimum(start, np.maximum(stored - 1, 0))
            end = np.rint((boxes[:, axis] + boxes[:, axis + 2]) * scale)
            scaled[:, axis] = start
            scaled[:, axis + 2] = np.maximum(end - start, 1)
        return scaled

    def _work(self, plan: Plan, batch: Pending, slots: NDArray[np.uint8], task: Task) -> None:
        """The whole task in one call; what fails in it is gone through again, one by one."""
        task.index, task.stage = int(batch.index[task.rows[0]]), STAGE
        rows = slice(task.rows.start, task.rows.stop)
        for row in np.flatnonzero(self.fill(plan, batch.index[rows], slots[rows])).tolist():
            self._work_row(plan, batch, slots, task, task.rows[row])

    def _fill(self, plan: Plan, index: int, slot: NDArray[np.uint8], task: Task) -> None:
        task.stage = STAGE
        (status,) = self.fill(plan, np.array([index]), slot[None])
        if status != OK:
            raise DecodeError(REASONS[int(status)])

    def fill(
        self, plan: Plan, index: NDArray[np.int64], slots: NDArray[np.uint8]
    ) -> NDArray[np.uint8]:
        """Fills (k, R, R, 3) slots with the images of k dataset indices; their statuses."""
        if not hasattr(self._local, "scratch"):
            self._local.scratch = self.samples.scratch()
        status, resized = np.empty(len(index), np.uint8), np.empty(slots.shape[1:], np.uint8)
        shifts = _NO_SHIFTS if plan.shifts is None else plan.shifts
        encoded, pixels = self._local.scratch
        fill(
            self.file, self.samples.columns, index, plan.boxes, shifts, plan.flips,
            plan.reflect, encoded, pixels, resized, slots, status,
        )  # fmt: skip
        return status


def verify(
    index: BetonIndex,
    workers: int | None = None,
    only: NDArray[np.int64] | None = None,
    timeout: float = TIMEOUT,
) -> dict[int, str]:
    """The samples that do not decode, as `Index.without` takes them: what `--verify` does.

    Raw pixels do wherever they can be read.
    """
    local, samples = threading.local(), index.samples
    require_ffcv()
    with open(index.root, "rb", buffering=0) as file:

        def one(i: int) -> str | None:
            if not hasattr(local, "scratch"):
                local.scratch = samples.scratch()
            height = int(samples.heights[i])
            status, _ = decode(file.fileno(), samples.columns, i, 0, height, *local.scratch)
            return REASONS.get(status)

        return failures(index, one, workers=workers, only=only, timeout=timeout, title="Verifying")
