"""The `dali` pipeline: one DALI graph, decoding on the GPU where there is one, on the CPU else.

DALI gets encoded bytes, boxes and flips from us, because its own reader shuffles and its own crops
are drawn by generators that nobody can ask ahead. Its color operators are not used at all: they
are up to 29/255 from torchvision's.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastsc.pipelines.base import Decoded, Pipeline
from fastsc.pipelines.batch import BadImage
from fastsc.pipelines.dali_graph import Sample, inputs, make_graph
from fastsc.pipelines.decode import DecodeError, decode_pil, decoded, of_pipeline
from fastsc.pipelines.errors import StalledError, UserError
from fastsc.pipelines.files import read_into
from fastsc.pipelines.index import Index
from fastsc.pipelines.plan import Plan, Settings
from fastsc.pipelines.threads import DaemonPool

# Threads that read, at least: else as many as decode, for a file on a network takes 2 ms. Reading
# releases the interpreter's lock.
READERS = 4
# Images of an iteration on a CPU, where its threads wait for each other at the end of every
# operator: small batches go in together (+7 % at 32 images a batch on two cores).
TOGETHER = 128
READ_AHEAD = 4  # batches of files read ahead of DALI, or two iterations
CHUNK = 8  # files a task: handing one out costs as much as reading a cached file

# The files of a batch that are being read: first dataset index of each chunk, and its samples.
Reading = list[tuple[int, Future[list[Sample]]]]


class Graph:
    """A DALI graph that lives over epochs: built with a GPU's decoders, it costs their set-up.

    Attributes:
        dali: Takes its batches from the last of `feeds`, to whose end it has come where it is
            empty after the first batch.
        feeds: That of the epoch at hand, if there is one. StopIteration ends it.
    """

    def __init__(self, make: Callable[[Callable[[], Any]], Any], resolution: int) -> None:
        self.resolution = resolution
        self.feeds = feeds = list[Callable[[], Any]]()
        self.dali = make(lambda: feeds[-1]())  # without a reference to this object
        self.dali.build()


class DaliPipeline(Pipeline):
    """Decode, resize and flip in one DALI graph: of the region on a CPU, of all on a GPU.

    nvImageCodec 0.9, which DALI 2.3 and 2.4 ask for, crashes in the decoding of a JPEG's region on
    some GPUs (its issue 55).
    """

    name = "dali"

    def __init__(self, index: Index, settings: Settings) -> None:
        super().__init__(index, settings)
        try:
            import nvidia.dali
        except ImportError:
            raise UserError(
                "--pipeline dali: NVIDIA DALI is not installed; pip install 'fastsc[dali]' "
                "(dali-cu12 for CUDA 12), or take --pipeline cpu"
            ) from None
        self.decodes_on = torch.device("cpu") if settings.decode == "cpu" else self.device
        how = "mixed" if self.decodes_on.type == "cuda" else "cpu"
        self.decoder = f"dali {nvidia.dali.__version__} ({how})"
        self._whole = how == "mixed"
        self._idle: Graph | None = None  # of the last epoch
        self._readers = DaemonPool(max(READERS, settings.n_workers), "fastsc-read")
        # DALI's `run` has no time-out: it is waited for from outside.
        self.runner = DaemonPool(1, "fastsc-dali")
        # Found while decoding, by (epoch, dataset index): not given to DALI again. By epoch, since
        # a region may decode where another of the same file does not.
        self._broken: dict[tuple[int, int], str] = {}

    def close(self) -> None:
        """Ends the threads."""
        self._readers.close()
        self.runner.close()
        self._idle = None

    def _decode(
        self, plan: Plan, batches: list[NDArray[np.int64]]
    ) -> Generator[Decoded, None, None]:
        done = 0
        while done < len(batches):
            # Another round only after a file broke DALI: its graph is dead then and is made anew,
            # from the first batch that was not handed over, without that file.
            run = Run(self, plan, batches[done:])
            try:
                for decoded in run:
                    yield decoded
                    done += 1
            except RuntimeError as error:
                self._find_broken(plan, run.in_flight, error)
            finally:
                run.stop()

    def _read(self, plan: Plan, wanted: int, slot: NDArray[np.uint8]) -> Sample:
        """The file that is wanted, read into its slot, or a substitute where it cannot be read."""
        index, bad = wanted, list[BadImage]()
        while index >= 0:
            try:
                if reason := self._broken.get((plan.epoch, index)):
                    raise DecodeError(reason)
                if index != wanted:
                    slot = np.empty(self.index.n_bytes[index], np.uint8)
                read_into(self.index.place(index), slot)
                if index in self.index.by_pillow:
                    slot = self._as_ppm(index, slot)
                return Sample(index, slot, tuple(bad))
            except DecodeError as error:
                index, record = self._replace(plan, wanted, len(bad), str(error))
                bad.append(record)
        return Sample(-1, slot[:0], tuple(bad))

    def _as_ppm(self, index: int, encoded: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """What Pillow reads in a file, in the one format in which DALI reads the same."""
        height, width = int(self.index.heights[index]), int(self.index.widths[index])
        box = (0, 0, height, width)
        image = decoded(encoded.tobytes(), box, decode_pil, by_pillow=True)
        header = np.frombuffer(b"P6 %d %d 255\n" % (width, height), np.uint8)
        return np.concatenate([header, image.reshape(-1)])

    def submit(self, plan: Plan, share: NDArray[np.int64]) -> Reading:
        """Starts reading the files of one batch: in chunks, each with its first dataset index."""

        # One piece of pooled memory a batch: fresh pages cost more than the read.
        ends = np.cumsum(self.index.n_bytes[share])
        slots = np.split(self._pool.empty((int(ends[-1]),), torch.uint8).numpy(), ends)
        wanted = share.tolist()

        def read(rows: range) -> list[Sample]:
            return [self._read(plan, wanted[row], slots[row]) for row in rows]

        rows = range(len(share))
        return [
            (wanted[at], self._readers.submit(read, rows[at : at + CHUNK]))
            for at in range(0, len(share), CHUNK)
        ]

    def graph(self, source: Callable[[], Any], batch_size: int) -> Any:
        """A fresh graph that asks `source` for what it decodes, a batch at a time."""
        return make_graph(self.settings, self.decodes_on, source, batch_size, whole=self._whole)

    def take_graph(self, feed: Callable[[], Any], batch_size: int) -> Graph:
        """The graph of the epoch before, or a new one, about to run on another feed."""
        graph, self._idle = self._idle, None
        resolution = self.settings.resolution
        if graph is None or graph.resolution != resolution:
            graph = None  # its memory goes before another's comes
            graph = Graph(lambda source: self.graph(source, batch_size), resolution)
        graph.feeds.append(feed)
        graph.dali.reset()
        return graph

    def keep_graph(self, graph: Graph) -> None:
        """Takes back a graph that is drained. One that failed, or was left, is not used again."""
        graph.feeds.clear()
        self._idle = graph

    def staged(self, images: torch.Tensor) -> torch.Tensor:
        """DALI's images where the views' device reads them: for a GPU, not in pageable memory."""
        if self.device.type == "cpu" or images.device.type != "cpu":
            return images
        return self._pool.empty(images.shape, images.dtype).copy_(images)

    def _find_broken(self, plan: Plan, samples: list[Sample], error: RuntimeError) -> None:
        """Finds which of the files in flight do not decode, and remembers them.

        DALI's message names a file only sometimes, and never the right one for bytes.
        """
        # nvImageCodec decodes for DALI, and says of each image alone whether it can.
        broken = [sample for sample in samples if not self._region_decodes(plan, sample)]
        if not broken:
            broken = [sample for sample in samples if not self._graph_decodes(plan, sample)]
            if len(broken) == len(samples):  # not likely the files' fault
                broken = []
        if not broken:
            raise error
        reason = "truncated or corrupt image data"
        self._broken |= {(plan.epoch, sample.index): reason for sample in broken}

    def _region_decodes(self, plan: Plan, sample: Sample) -> bool:
        i, box = sample.index, plan.boxes[sample.index].tolist()
        if self._whole:
            box = [0, 0, int(self.index.heights[i]), int(self.index.widths[i])]
        try:
            of_pipeline(self.name)(sample.encoded.tobytes(), *box)
        except DecodeError:
            return False
        return True

    def _graph_decodes(self, plan: Plan, sample: Sample) -> bool:
        columns = inputs(plan, [sample])
        alone = self.graph(lambda: columns, batch_size=1)
        try:
            alone.build()
            alone.run()
        except RuntimeError:
            return False
        return True


class Run:
    """Some batches through a DALI graph."""

    def __init__(
        self, pipeline: DaliPipeline, plan: Plan, batches: list[NDArray[np.int64]]
    ) -> None:
        self._pipeline, self._plan = pipeline, plan
        self._upcoming = iter(batches)
        self._reading: deque[Reading] = deque()
        settings = pipeline.settings
        self._size = -(-settings.batch_size // settings.world_size)  # of this rank's batches
        on_gpu = pipeline.decodes_on.type == "cuda"
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
        graph = self._pipeline.take_graph(self._feed, self._size * self._together)
        drained = False
        while not drained:
            try:
                (images,) = self._wait(self._pipeline.runner.submit(graph.dali.run))
            except StopIteration:
                break
            if drained := graph.dali.empty():
                self._pipeline.keep_graph(graph)
            yield from self._left_out()
            self._returned = self._inside.popleft()
            # Zero copy: the tensor keeps DALI's buffer alive, and DALI takes a fresh one.
            rest = self._pipeline.staged(torch.from_dlpack(images.as_tensor()))
            for samples in self._returned:
                index, bad = _slots(samples)
                yield Decoded(rest[: len(index)], index, bad)
                rest = rest[len(index) :]
        yield from self._left_out()

    def _wait(self, run: Future[Any]) -> Any:
        timeout = self._pipeline.settings.timeout
        try:
            while True:
                try:
                    return run.result(timeout)
                except TimeoutError:
                    if self._reads:  # `_feed` has a clock of its own
                        continue
                    files = [self._pipeline.index.path(sample.index) for sample in self.in_flight]
                    raise StalledError(
                        f"no batch for {timeout:g} s: DALI decodes or resizes {files[0]} or one of "
                        f"the {len(files) - 1} files after it"
                    ) from None
        finally:
            del run  # it holds its error, whose traceback holds this frame

    def _left_out(self) -> Iterator[Decoded]:
        """Validation batches next in line without one usable image: DALI never saw them."""
        size = self._pipeline.settings.resolution
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
            self._reading.append(self._pipeline.submit(self._plan, share))

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
                return inputs(self._plan, kept)
        raise StopIteration

    def _await_files(self, reading: Reading) -> list[list[Sample]]:
        timeout = self._pipeline.settings.timeout
        deadline, chunks = time.monotonic() + timeout, []
        for index, task in reading:
            try:
                chunks.append(task.result(max(0.0, deadline - time.monotonic())))
            except TimeoutError:
                first = self._pipeline.index.path(index)
                raise StalledError(
                    f"no batch for {timeout:g} s: reading {first} or one of the {CHUNK - 1} files "
                    "after it"
                ) from None
        return chunks


def _slots(samples: list[Sample]) -> tuple[NDArray[np.int64], list[BadImage]]:
    """Dataset indices of the rows that DALI gives back, and the records of what failed."""
    kept = [sample.index for sample in samples if sample.index >= 0]
    return np.array(kept, np.int64), [record for sample in samples for record in sample.bad]
