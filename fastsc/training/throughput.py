"""What a step cost: throughput and the share of time spent waiting for the loader."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import closing

from fastsc.pipelines import PairBatch, Pipeline


class Meter:
    """Measures from one reading to the next; always on, since it costs two clock calls a step.

    On a GPU the clock is right at readings only, where the caller has the figures of a step and so
    has waited for it. The images of that step were `take`n with it; later ones are under way.
    """

    def __init__(self, world_size: int = 1) -> None:
        self._world_size = world_size  # each rank has an equal share of every batch
        self.restart()

    def restart(self) -> None:
        """Forgets the time since the last reading: validation and checkpoints are not training."""
        self._began = time.perf_counter()
        self._waited = 0.0
        self._images = 0

    def batches(self, loader: Pipeline) -> Generator[PairBatch, None, None]:
        """One epoch of the loader, with the time that its batches were waited for."""
        with closing(iter(loader)) as batches:  # ends what works ahead
            while True:
                asked = time.perf_counter()
                batch = next(batches, None)
                self._waited += time.perf_counter() - asked
                if batch is None:
                    return
                self._images += len(batch.target)
                yield batch

    def take(self) -> tuple[int, float]:
        """Images handed over since the last time, and seconds that they were waited for."""
        taken = self._images, self._waited
        self._images, self._waited = 0, 0.0
        return taken

    def read(self, images: int, waited: float) -> tuple[float, float]:
        """Unique images a second over all ranks, and this rank's waiting share in [0, 1].

        Since the last reading, by what was taken.
        """
        now = time.perf_counter()
        elapsed, self._began = max(now - self._began, 1e-9), now
        return images * self._world_size / elapsed, min(waited / elapsed, 1.0)
