"""The `cpu` pipeline: threads that read, decode a region and resize. No framework needed."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from fastsc.pipelines.base import Decoded, Pipeline
from fastsc.pipelines.batch import BadImage
from fastsc.pipelines.decode import RGB8, DecodeError, decoded, pick
from fastsc.pipelines.errors import StalledError
from fastsc.pipelines.files import read_file
from fastsc.pipelines.index import Index
from fastsc.pipelines.plan import Plan, Settings
from fastsc.pipelines.resample import FloatBox, place
from fastsc.pipelines.scaled import Box, decode_scaled, divisor_of_crop
from fastsc.pipelines.threads import DaemonPool

BATCHES_AHEAD = 4  # being decoded while the trainer works on one
# Images of a task at most: handing one out costs 20 µs, decoding an image 300 µs to 1 ms. Fewer
# where a batch would not keep all threads busy.
CHUNK = 16


@dataclass
class Task:
    """A few images of a batch, and what its thread is doing, for whoever waits for it in vain."""

    rows: range
    index: int = -1  # dataset index at hand
    stage: str = "waiting for a free thread, to read"
    done: Future[None] = field(default_factory=Future)


@dataclass
class Pending:
    """A batch on its way: memory, what fills it, and who is at work."""

    images: torch.Tensor  # (N, R, R, 3) uint8
    index: NDArray[np.int64]  # (N,) as asked for; -1 or a substitute where a slot failed
    tasks: list[Task] = field(default_factory=list)
    bad: list[BadImage] = field(default_factory=list)


class CpuPipeline(Pipeline):
    """Decodes on the CPU with the fastest decoder that is installed, which the log names."""

    name = "cpu"

    def __init__(self, index: Index, settings: Settings) -> None:
        super().__init__(index, settings)
        self.decoder, self._decode_region = pick()
        self._threads = DaemonPool(settings.n_workers, "fastsc-decode")

    def warm_up(self) -> None:
        super().warm_up()
        image, slot = np.zeros((4, 4, 3), np.uint8), np.zeros((2, 2, 3), np.uint8)
        for box in (None, (0.0, 0.0, 4.0, 4.0)):
            place(image, slot, (0, 0), False, self.settings.interpolation, box)

    def close(self) -> None:
        """Ends the threads."""
        self._threads.close()

    def _region(self, index: int, box: Box, task: Task) -> tuple[RGB8, FloatBox | None]:
        """Pixels (h, w, 3) of one image, and where a box of it lies in them; None: they are it."""
        task.stage = "reading"
        encoded = read_file(self.index.place(index))
        task.stage = "decoding"
        by_pillow = index in self.index.by_pillow
        if self.settings.train and not (self.settings.exact_decode or by_pillow):
            height, width = int(self.index.heights[index]), int(self.index.widths[index])
            k = divisor_of_crop(width, box, self.settings.resolution)
            if k > 1:
                image = decode_scaled(encoded, height, width, k, end=box[0] + box[2])
                if image is not None:
                    top, left, rows, columns = (side / k for side in box)
                    return image, (top, left, rows, columns)
        return decoded(encoded, box, self._decode_region, by_pillow=by_pillow), None

    def _fill(self, plan: Plan, index: int, slot: NDArray[np.uint8], task: Task) -> None:
        """Writes one image, cropped, resized and flipped, into its slot: (R, R, 3).

        Raises:
            DecodeError: The image cannot be decoded.
        """
        region, box = self._region(index, plan.boxes[index].tolist(), task)
        task.stage = "resizing"
        shift, flip = plan.shift(index), bool(plan.flips[index])
        place(region, slot, shift, flip, self.settings.interpolation, box, plan.reflect)

    def _decode(
        self, plan: Plan, batches: list[NDArray[np.int64]]
    ) -> Generator[Decoded, None, None]:
        pending: deque[Pending] = deque()
        upcoming = iter(batches)
        try:
            while True:
                while len(pending) < BATCHES_AHEAD and (share := next(upcoming, None)) is not None:
                    pending.append(self._submit(plan, share))
                if not pending:
                    return
                yield self._collect(pending.popleft())
        finally:
            # What already runs goes on into memory that it holds itself, and is not waited for.
            for batch in pending:
                for task in batch.tasks:
                    task.done.cancel()

    def _submit(self, plan: Plan, share: NDArray[np.int64]) -> Pending:
        size = self.settings.resolution
        images = self._pool.empty((len(share), size, size, 3), torch.uint8)
        batch = Pending(images, share.copy())
        slots = batch.images.numpy()
        chunk = min(CHUNK, -(-len(share) // self.settings.n_workers))
        for at in range(0, len(share), chunk):
            task = Task(range(at, min(at + chunk, len(share))))
            task.done = self._threads.submit(self._work, plan, batch, slots, task)
            batch.tasks.append(task)
        return batch

    def _work(self, plan: Plan, batch: Pending, slots: NDArray[np.uint8], task: Task) -> None:
        for row in task.rows:
            self._work_row(plan, batch, slots, task, row)

    def _work_row(
        self, plan: Plan, batch: Pending, slots: NDArray[np.uint8], task: Task, row: int
    ) -> None:
        index = wanted = int(batch.index[row])
        attempt = 0
        while index >= 0:
            task.index = index
            try:
                self._fill(plan, index, slots[row], task)
            except DecodeError as error:
                index, bad = self._replace(plan, wanted, attempt, str(error))
                batch.bad.append(bad)
                attempt += 1
            else:
                break
        batch.index[row] = index

    def _collect(self, batch: Pending) -> Decoded:
        deadline = time.monotonic() + self.settings.timeout
        for task in batch.tasks:
            try:
                task.done.result(max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                at = task.index if task.index >= 0 else int(batch.index[task.rows[0]])
                raise StalledError(
                    f"no batch for {self.settings.timeout:g} s: {task.stage} {self.index.path(at)}"
                ) from None
        kept = batch.index >= 0
        if kept.all():
            return Decoded(batch.images, batch.index, batch.bad)
        return Decoded(batch.images[torch.from_numpy(kept)], batch.index[kept], batch.bad)
