"""The `dali` pipeline: one DALI graph, decoding on the GPU where there is one, on the CPU else.

DALI gets encoded bytes, boxes and flips from us, because its own reader shuffles and its own crops
are drawn by generators that nobody can ask ahead. Its colour operators are not used at all: they
are up to 29/255 from torchvision's.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastsc.pipelines.base import Decoded, Pipeline
from fastsc.pipelines.batch import BadImage
from fastsc.pipelines.dali_run import CHUNK, Reading, Run, Sample
from fastsc.pipelines.decode import DecodeError, decode_pil, decoded, of_pipeline
from fastsc.pipelines.errors import UserError
from fastsc.pipelines.files import read_into
from fastsc.pipelines.index import Index
from fastsc.pipelines.plan import Plan, Settings
from fastsc.pipelines.threads import DaemonPool

PREFETCH = 2  # iterations that DALI works ahead
READERS = 4  # threads; reading releases the interpreter's lock


class DaliPipeline(Pipeline):
    """Region decode, resize and flip in one DALI graph, built anew for every epoch (6 ms)."""

    name = "dali"

    def __init__(
        self, index: Index, settings: Settings, report: Callable[[BadImage], None] | None = None
    ) -> None:
        super().__init__(index, settings, report)
        try:
            import nvidia.dali
        except ImportError:
            raise UserError(
                "--pipeline dali: NVIDIA DALI is not installed; pip install 'fastsc[dali]' "
                "(dali-cu12 for CUDA 12), or take --pipeline cpu"
            ) from None
        device = "mixed" if settings.decodes_on_gpu else "cpu"
        self.decoder = f"dali {nvidia.dali.__version__} ({device})"
        self._shifted = settings.train and settings.crop == "pad"
        self._readers = DaemonPool(READERS, "fastsc-read")
        # DALI's `run` has no time-out: it is waited for from outside.
        self.runner = DaemonPool(1, "fastsc-dali")
        # Found while decoding, by (epoch, dataset index): not given to DALI again. By epoch, since
        # a region may decode where another of the same file does not.
        self._broken: dict[tuple[int, int], str] = {}

    def close(self) -> None:
        """Ends the threads."""
        self._readers.close()
        self.runner.close()

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
                read_into(self.index.path(index), slot)
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

    def graph(self, source: Callable[[], Any] | None, batch_size: int) -> Any:
        """The DALI pipeline: what `inputs` returns -> (N, R, R, 3) uint8.

        `source` is asked for a batch of these at a time.
        """
        from nvidia.dali import fn, pipeline_def, types

        s, shifted = self.settings, self._shifted
        on_gpu = s.decodes_on_gpu
        device_id = s.device.index if on_gpu else None
        cubic = s.interpolation == "bicubic"

        @pipeline_def(
            batch_size=batch_size,
            # On a CPU an operator ends with its last image: one thread more fills the others' wait.
            num_threads=s.workers + (not on_gpu),
            device_id=device_id,
            prefetch_queue_depth=PREFETCH,
        )
        def decode() -> Any:
            encoded, anchor, shape, roi_start, roi_end, *shift = fn.external_source(
                source=source,
                num_outputs=6 if shifted else 5,
                dtype=[types.UINT8, types.INT32, types.INT32, types.FLOAT, types.FLOAT]
                + [types.INT32] * shifted,
                ndim=1,
                no_copy=True,  # Run keeps the bytes until DALI has given the batch back
            )
            images = fn.decoders.image_slice(
                encoded,
                anchor,
                shape,
                axis_names="HW",
                output_type=types.RGB,
                adjust_orientation=False,
                device="mixed" if on_gpu else "cpu",
            )
            images = fn.resize(
                images,
                size=[s.resolution, s.resolution],
                antialias=True,
                interp_type=types.INTERP_CUBIC if cubic else types.INTERP_LINEAR,
                # The whole region, from right to left where it is mirrored: a flip that costs
                # nothing, where fn.flip would be another pass.
                roi_start=roi_start,
                roi_end=roi_end,
            )
            if shifted:
                images = fn.slice(
                    images,
                    start=shift[0],
                    shape=[s.resolution, s.resolution],
                    axis_names="HW",
                    out_of_bounds_policy="pad",
                    fill_values=0,
                )
            return images

        return decode()

    def inputs(self, plan: Plan, samples: list[Sample]) -> tuple[Any, ...]:
        """What the graph's source returns for these samples."""
        index = [sample.index for sample in samples]
        boxes = plan.boxes[index]
        flips = plan.flips[index]
        end = boxes[:, 2:].astype(np.float32)  # the region's height and width
        start = np.zeros_like(end)
        start[flips, 1], end[flips, 1] = end[flips, 1], 0
        columns = [boxes[:, :2], boxes[:, 2:], start, end]
        if plan.shifts is not None:
            # A mirrored image is shifted the other way.
            columns.append(
                plan.shifts[index] * np.where(flips[:, None], (1, -1), 1).astype(np.int32)
            )
        encoded = [sample.encoded for sample in samples]
        return (encoded, *(np.ascontiguousarray(column) for column in columns))

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
        try:
            of_pipeline(self.name)(sample.encoded.tobytes(), *plan.boxes[sample.index].tolist())
        except DecodeError:
            return False
        return True

    def _graph_decodes(self, plan: Plan, sample: Sample) -> bool:
        inputs = self.inputs(plan, [sample])
        alone = self.graph(lambda: inputs, batch_size=1)
        try:
            alone.build()
            alone.run()
        except RuntimeError:
            return False
        return True
