"""The `ffcv` pipeline: samples of a beton, decoded and resized by FFCV's library.

FFCV's file format, JPEG decoder (libjpeg-turbo) and resize (OpenCV's INTER_AREA), under the threads
of the `cpu` pipeline. FFCV's own loader is not used: it draws crops from numba's global generator,
overwrites batches that are kept, leaves threads behind, ignores what its decoder says about a
damaged image, and waits for ever once a worker has raised.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.metadata import version

import numpy as np
from numpy.typing import NDArray

from fastsc.pipelines.base import Decoded
from fastsc.pipelines.batch import BadImage
from fastsc.pipelines.beton import BetonIndex, Samples, require_ffcv
from fastsc.pipelines.cpu import CpuPipeline, Task, default_workers
from fastsc.pipelines.decode import RGB8, DecodeError
from fastsc.pipelines.index import Index
from fastsc.pipelines.plan import Plan, Settings
from fastsc.pipelines.progress import MIN_FILES, tracked
from fastsc.pipelines.resample import move

_scratch = threading.local()


def _bytes(name: str, n: int) -> NDArray[np.uint8]:
    """n bytes of this thread's own, valid until it asks for the same name again."""
    buffer: NDArray[np.uint8] | None = getattr(_scratch, name, None)
    if buffer is None or buffer.size < n:
        buffer = np.empty(n + n // 4, np.uint8)
        setattr(_scratch, name, buffer)
    return buffer[:n]


def _read(file: int, offset: int, n: int, name: str) -> NDArray[np.uint8]:
    # Read and not mapped: a mapped file that is cut while it is in use kills the interpreter.
    buffer = _bytes(name, n)
    try:
        done = os.preadv(file, [buffer.data], offset)
    except OSError as error:
        raise DecodeError(f"cannot be read ({error.strerror})") from None
    if done < n:
        raise DecodeError("the file has been cut since it was opened")
    return buffer


def decode_sample(
    file: int, samples: Samples, i: int, rows: tuple[int, int] | None = None
) -> tuple[RGB8, int]:
    """Decodes a sample.

    Args:
        file: Descriptor of the beton.
        samples: Its table.
        i: The dataset index.
        rows: First row and number of rows that are wanted; a JPEG is decoded whole all the same.

    Returns:
        (h, W, 3) pixels in this thread's scratch memory, valid until its next call, and the number
        of the image's rows above the first of them.

    Raises:
        DecodeError: The file cannot be read there, or the JPEG is damaged.
    """
    from ffcv.libffcv import imdecode

    height, width = int(samples.heights[i]), int(samples.widths[i])
    offset, n_bytes = int(samples.offsets[i]), int(samples.n_bytes[i])
    if not samples.is_jpeg[i]:
        above, height = rows or (0, height)
        stride = 3 * width
        pixels = _read(file, offset + above * stride, height * stride, "pixels")
        return pixels.reshape(height, width, 3), above
    encoded = _read(file, offset, n_bytes, "encoded")
    pixels = _bytes("pixels", height * width * 3)
    # libjpeg-turbo writes no more than the size that it is given, and its warnings count: FFCV
    # itself ignores both and trains on a black or half grey image.
    if imdecode(encoded, pixels, height, width, height, width):
        raise DecodeError("truncated or corrupt image data")
    return pixels.reshape(height, width, 3), 0


class FfcvPipeline(CpuPipeline):
    """Like `cpu`, with samples out of one file."""

    name = "ffcv"

    def __init__(
        self, index: Index, settings: Settings, report: Callable[[BadImage], None] | None = None
    ) -> None:
        assert isinstance(index, BetonIndex), "`build` makes it from the beton"
        require_ffcv()
        from ffcv.libffcv import resize_crop

        super().__init__(index, settings, report)
        self.decoder = f"ffcv {version('ffcv')}"
        self._samples, self._resize_crop = index.samples, resize_crop
        self.file = os.open(index.root, os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        """Ends the threads and closes the file."""
        super().close()
        if self.file >= 0:
            os.close(self.file)
            self.file = -1

    def _decode(
        self, plan: Plan, batches: list[NDArray[np.int64]]
    ) -> Generator[Decoded, None, None]:
        yield from super()._decode(replace(plan, boxes=self.stored_boxes(plan.boxes)), batches)

    def stored_boxes(self, boxes: NDArray[np.int32]) -> NDArray[np.int32]:
        """Boxes of the originals as boxes of the stored images: the edges scaled and rounded."""
        scaled = np.empty_like(boxes)
        for axis, (original, stored) in enumerate(
            (
                (self.index.heights, self._samples.heights),
                (self.index.widths, self._samples.widths),
            )
        ):
            scale = stored / np.maximum(original, 1)
            start = np.rint(boxes[:, axis] * scale)
            start = np.minimum(start, np.maximum(stored - 1, 0))
            end = np.rint((boxes[:, axis] + boxes[:, axis + 2]) * scale)
            scaled[:, axis] = start
            scaled[:, axis + 2] = np.maximum(end - start, 1)
        return scaled

    def _fill(self, plan: Plan, index: int, slot: NDArray[np.uint8], task: Task) -> None:
        task.stage = "reading and decoding"
        top, left, height, width = plan.boxes[index].tolist()
        image, above = decode_sample(self.file, self._samples, index, (top, height))
        task.stage = "resizing"
        box = top - above, left, height, width
        self.place(image, box, slot, plan.shift(index), bool(plan.flips[index]))

    def place(
        self,
        image: RGB8,
        box: tuple[int, int, int, int],
        slot: NDArray[np.uint8],
        shift: tuple[int, int],
        flip: bool,
    ) -> None:
        """`fastsc.pipelines.resample.place` of a box (top, left, height, width), area-averaged."""
        top, left, height, width = box
        moved = flip or shift != (0, 0)
        target = _bytes("resized", slot.size).reshape(slot.shape) if moved else slot
        self._resize_crop(image, top, top + height, left, left + width, target)
        if moved:
            move(target, slot, *shift, flip)


def verify(
    index: BetonIndex,
    workers: int | None = None,
    only: NDArray[np.int64] | None = None,
    title: str = "Verifying",
) -> dict[int, str]:
    """The samples that do not decode, as `Index.without` takes them: what `--verify` does.

    Raw pixels always do.
    """
    with open(index.root, "rb", buffering=0) as file:

        def one(i: int) -> str | None:
            try:
                decode_sample(file.fileno(), index.samples, i)
            except DecodeError as error:
                return str(error)
            return None

        wanted = (index.usable if only is None else only).tolist()
        with ThreadPoolExecutor(workers or default_workers()) as threads:
            reasons: Iterable[str | None] = threads.map(one, wanted)
            if len(wanted) >= MIN_FILES:
                reasons = tracked(reasons, f"{title} {index.root}", len(wanted))
            return {i: why for i, why in zip(wanted, reasons, strict=True) if why is not None}
