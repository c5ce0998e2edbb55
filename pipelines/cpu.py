"""The `cpu` pipeline: threads that read, decode a region and resize. No framework needed."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from fastsc.pipelines.base import Decoded, Pipeline
from fastsc.pipelines.batch import BadImage
from fastsc.pipelines.decode import DecodeError, pick
from fastsc.pipelines.files import read_file
from fastsc.pipelines.index import Index
from fastsc.pipelines.plan import Plan, Settings
from fastsc.pipelines.resample import place
from fastsc.pipelines.threads import DaemonPool, StalledError

BATCHES_AHEAD = 3  # being decoded while the trainer works on one
CHUNK = 4  # images a task: a task costs 20 µs to hand out, an image 1 ms to decode


@dataclass
class _Pending:
    """A batch on its way: memory, what fills it, and who is at work."""

    images: torch.Tensor  # (N, R, R, 3) uint8
    index: NDArray[np.int64]  # (N,) as asked for; -1 or a substitute where a slot failed
    tasks: list[Future[None]] = field(default_factory=list)
    bad: list[BadImage] = field(default_factory=list)


class CpuPipeline(Pipeline):
    """Decodes on the CPU with the fastest decoder that is installed, which the log names."""

    name = "cpu"

    def __init__(
        self, index: Index, settings: Settings, report: Callable[[BadImage], None] | None = None
    ) -> None:
        super().__init__(index, settings, report)
        self.decoder, self._decode_region = pick()
        self._threads = DaemonPool(settings.workers, "fastsc-decode")

    def close(self) -> None:
        """Ends the threads."""
        self._threads.close()

    def _region(self, index: int, box: NDArray[np.int32]) -> NDArray[np.uint8]:
        """The pixels of a box (top, left, height, width) of one image: (h, w, 3)."""
        encoded = read_file(self.index.path(index), int(self.index.n_bytes[index]))
        top, left, height, width = box.tolist()
        region = self._decode_region(encoded, top, left, height, width)
        if region.shape != (height, width, 3):
            raise DecodeError("its size differs from its header's")
        return region

    def _decode(
        self, plan: Plan, batches: list[NDArray[np.int64]]
    ) -> Generator[Decoded, None, None]:
        pending: deque[_Pending] = deque()
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
                    task.cancel()

    def _submit(self, plan: Plan, share: NDArray[np.int64]) -> _Pending:
        size = self.settings.resolution
        shape = (len(share), size, size, 3)
        if self.settings.device.type == "cuda":
            images = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        else:
            images = self._pool.empty(shape, torch.uint8)
        batch = _Pending(images, share.copy())
        for at in range(0, len(share), CHUNK):
            rows = range(at, min(at + CHUNK, len(share)))
            batch.tasks.append(self._threads.submit(self._fill, plan, batch, rows))
        return batch

    def _fill(self, plan: Plan, batch: _Pending, rows: range) -> None:
        for row in rows:
            index = wanted = int(batch.index[row])
            attempt = 0
            while index >= 0:
                try:
                    region = self._region(index, plan.boxes[index])
                except DecodeError as error:
                    index, bad = self._replace(plan, wanted, attempt, str(error))
                    batch.bad.append(bad)
                    attempt += 1
                else:
                    shift = None if plan.shifts is None else plan.shifts[index]
                    place(region, batch.images[row], shift, bool(plan.flips[index]))
                    break
            batch.index[row] = index

    def _collect(self, batch: _Pending) -> Decoded:
        for number, task in enumerate(batch.tasks):
            try:
                task.result(self.settings.timeout)
            except TimeoutError:
                first = self.index.path(int(batch.index[number * CHUNK]))
                raise StalledError(
                    f"no image for {self.settings.timeout:g} s: decoding waits at or behind {first}"
                ) from None
        kept = batch.index >= 0
        if kept.all():
            return Decoded(batch.images, batch.index, batch.bad)
        return Decoded(batch.images[torch.from_numpy(kept)], batch.index[kept], batch.bad)


def default_workers() -> int:
    """Threads to decode with: the cores that this process may use, at most 16."""
    return min(16, len(os.sched_getaffinity(0)))
