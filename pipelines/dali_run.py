"""One life of a DALI graph: what is read for it, what is inside it, and what comes out."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from fastsc.pipelines.base import Decoded
from fastsc.pipelines.batch import BadImage
from fastsc.pipelines.errors import StalledError
from fastsc.pipelines.index import Index
from fastsc.pipelines.plan import Plan, Settings
from fastsc.pipelines.threads import DaemonPool

# Images of an iteration on a CPU, where its threads wait for each other at the end of every
# operator: small batches go in together (+7 % at 32 images a batch on two cores).
TOGETHER = 128
READ_AHEAD = 4  # batches of files read ahead of DALI, or two iterations
CHUNK = 8  # files a task: handing one out costs as much as reading a cached file


@dataclass(frozen=True)
class Sample:
    """One slot: the file that fills it and why others did not. index -1: left out."""

    index: int
    encoded: NDArray[np.uint8]
    bad: tuple[BadImage, ...]


# The files of a batch that are being read: first dataset index of each chunk, and its samples.
Reading = list[tuple[int, Future[list[Sample]]]]


class Owner(Protocol):
    """What a run needs of its pipeline."""

    index: Index
    settings: Settings
    runner: DaemonPool

    def submit(self, plan: Plan, share: NDArray[np.int64]) -> Reading: ...

    def graph(self, source: Callable[[], Any] | None, batch_size: int) -> Any: ...

    def inputs(self, plan: Plan, samples: list[Sample]) -> tuple[Any, ...]: ...


class Run:
    """One life of a DALI graph over some batches."""

    def __init__(self, owner: Owner, plan: Plan, batches: list[NDArray[np.int64]]) -> None:
        self._owner, self._plan = owner, plan
        self._upcoming = iter(batches)
        self._reading: deque[Reading] = deque()
        settings = owner.settings
        self._size = -(-settings.batch_size // settings.world_size)  # of this rank's batches
        on_gpu = settings.decodes_on_gpu
        self._together = 1 if on_gpu else max(1, TOGETHER // self._size)
        # Batches by iteration, given to DALI and not yet got back; and the last that was, whose
        # bytes a GPU may still be reading.
        self._inside: deque[list[list[Sample]]] = deque()
        self._returned: list[list[Sample]] = []
        self._reads = False  # DALI waits for files, and not we for DALI

    @property
    def in_flight(self) -> list[Sample]:
        """Samples that DALI has and has not given back."""
        inside = (sample for group in self._inside for batch in group for sample in batch)
        return [sample for sample in inside if sample.index >= 0]

    def __iter__(self) -> Iterator[Decoded]:
        for _ in range(max(READ_AHEAD, 2 * self._together)):
            self._read_next()
        graph = self._owner.graph(self._feed, self._size * self._together)
        graph.build()
        while True:
            try:
                (images,) = self._wait(self._owner.runner.submit(graph.run))
            except StopIteration:
                break
            yield from self._left_out()
            self._returned = self._inside.popleft()
            # Zero copy: the tensor keeps DALI's buffer alive, and DALI takes a fresh one.
            rest = torch.from_dlpack(images.as_tensor())
            for samples in self._returned:
                index, bad = _slots(samples)
                yield Decoded(rest[: len(index)], index, bad)
                rest = rest[len(index) :]
        yield from self._left_out()

    def _wait(self, run: Future[Any]) -> Any:
        timeout = self._owner.settings.timeout
        try:
            while True:
                try:
                    return run.result(timeout)
                except TimeoutError:
                    if self._reads:  # `_feed` has a clock of its own
                        continue
                    files = [self._owner.index.path(sample.index) for sample in self.in_flight]
                    raise StalledError(
                        f"no batch for {timeout:g} s: DALI decodes or resizes {files[0]} or one of "
                        f"the {len(files) - 1} files behind it"
                    ) from None
        finally:
            del run  # it holds its error, whose traceback holds this frame

    def _left_out(self) -> Iterator[Decoded]:
        """Validation batches next in line without one usable image: DALI never saw them."""
        size = self._owner.settings.resolution
        while self._inside and not any(len(_slots(samples)[0]) for samples in self._inside[0]):
            for samples in self._inside.popleft():
                index, bad = _slots(samples)
                yield Decoded(torch.empty(0, size, size, 3, dtype=torch.uint8), index, bad)

    def stop(self) -> None:
        """Drops what is being read and what is held: DALI's graph and this refer to each other."""
        for reading in self._reading:
            for _, task in reading:
                task.cancel()
        self._reading.clear()
        self._inside.clear()
        self._returned = []

    def _read_next(self) -> None:
        if (share := next(self._upcoming, None)) is not None:
            self._reading.append(self._owner.submit(self._plan, share))

    def _feed(self) -> tuple[Any, ...]:
        """DALI's source: called from `run`, PREFETCH iterations ahead."""
        while self._reading:
            self._reads, group = True, list[list[Sample]]()
            while self._reading and len(group) < self._together:
                chunks = self._await_files(self._reading.popleft())
                group.append([sample for chunk in chunks for sample in chunk])
                self._read_next()
            self._reads = False
            self._inside.append(group)
            # DALI takes no empty batch.
            if kept := [sample for batch in group for sample in batch if sample.index >= 0]:
                return self._owner.inputs(self._plan, kept)
        raise StopIteration

    def _await_files(self, reading: Reading) -> list[list[Sample]]:
        timeout = self._owner.settings.timeout
        deadline, chunks = time.monotonic() + timeout, []
        for first, task in reading:
            try:
                chunks.append(task.result(max(0.0, deadline - time.monotonic())))
            except TimeoutError:
                raise StalledError(
                    f"no batch for {timeout:g} s: reading {self._owner.index.path(first)} or one "
                    f"of the {CHUNK - 1} files behind it"
                ) from None
        return chunks


def _slots(samples: list[Sample]) -> tuple[NDArray[np.int64], list[BadImage]]:
    """Dataset indices of the rows that DALI gives back, and the records of what failed."""
    kept = [sample.index for sample in samples if sample.index >= 0]
    return np.array(kept, np.int64), [record for sample in samples for record in sample.bad]
