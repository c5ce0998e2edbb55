"""From a beton's bytes to slots, compiled: FFCV's decoder and resize, called without Python's lock.

The calls are those of FFCV's own decoder operators; what differs is whose crops they cut, that
samples are read and not mapped (a mapped file that is cut while it is in use kills the process),
and that what the decoder says of a damaged JPEG is not ignored.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import llvmlite.binding
import numpy as np
from numba import types
from numpy.typing import NDArray

from fastsc.kernels.jit import jit
from fastsc.pipelines.errors import UserError
from fastsc.pipelines.resample import move

OK, UNREADABLE, CUT, DAMAGED = range(4)
REASONS = {
    UNREADABLE: "cannot be read",
    CUT: "the file has been cut since it was opened",
    DAMAGED: "truncated or corrupt image data",
}

# Symbols and not ctypes' functions, which would keep numba from caching what it compiles.
_pread: Any = types.ExternalFunction(
    "pread", types.int64(types.int32, types.uintp, types.uint64, types.int64)
)
_imdecode: Any = types.ExternalFunction(
    "fastsc_ffcv_imdecode",
    types.int32(
        *(types.uintp, types.uint64, types.uint32, types.uint32),  # the JPEG, and its size
        *(types.uintp, types.uint32, types.uint32),  # the pixels, and theirs
        *([types.uint32] * 4 + [types.boolean] * 2),
    ),
)
_resize: Any = types.ExternalFunction("fastsc_ffcv_resize", types.void(*[types.int64] * 11))


def link(library: ctypes.CDLL) -> None:
    """Tells the compiled code where FFCV's functions are, before it runs for the first time."""
    if len(library.resize.argtypes) != 11 or len(library.imdecode.argtypes) != 13:
        raise UserError("this FFCV's functions are not those of 1.0.2; pip install 'ffcv==1.0.2'")
    for name in ("imdecode", "resize"):
        address = ctypes.cast(getattr(library, name), ctypes.c_void_p).value
        llvmlite.binding.add_symbol(f"fastsc_ffcv_{name}", address)


@dataclass(frozen=True, eq=False)
class Samples:
    """Where each dataset index lies in a beton and how: (n,) each, zeros for one left out."""

    heights: NDArray[np.int32]  # as stored: at most the original's
    widths: NDArray[np.int32]
    offsets: NDArray[np.int64]  # bytes from the file's start
    n_bytes: NDArray[np.int64]
    is_jpeg: NDArray[np.bool_]  # else raw pixels

    def scratch(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Memory of one thread that holds any sample: encoded, and decoded."""
        pixels = 3 * self.heights.astype(np.int64) * self.widths
        encoded = self.n_bytes[self.is_jpeg].max(initial=1)
        return np.empty(encoded, np.uint8), np.empty(pixels.max(initial=1), np.uint8)

    @property
    def columns(self) -> tuple[NDArray[Any], ...]:
        """What the compiled functions take."""
        return self.heights, self.widths, self.offsets, self.n_bytes, self.is_jpeg


@jit()
def _read(file: int, offset: int, buffer: Any) -> int:
    done = 0
    while done < buffer.size:
        n = _pread(file, buffer.ctypes.data + done, buffer.size - done, offset + done)
        if n < 0:
            return UNREADABLE
        if n == 0:
            return CUT
        done += n
    return OK


@jit()
def _jpeg_size(data: Any) -> Any:
    """Height and width in a JPEG's frame header (ITU T.81, B.2.2); zeros where there is none."""
    at = np.int64(2)
    while at + 9 < data.size and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += np.int64(1)
        elif 0xC0 <= marker <= 0xCF and marker != 0xC4 and marker != 0xC8 and marker != 0xCC:
            height = (np.int64(data[at + 5]) << 8) | np.int64(data[at + 6])
            return height, (np.int64(data[at + 7]) << 8) | np.int64(data[at + 8])
        else:
            at += np.int64(2) + ((np.int64(data[at + 2]) << 8) | np.int64(data[at + 3]))
    return np.int64(0), np.int64(0)


@jit()
def decode(file: int, columns: Any, i: int, top: int, rows: int, encoded: Any, pixels: Any) -> Any:
    """Reads and decodes the sample of dataset index i, at least its `rows` rows from `top` on.

    Returns:
        A status; and the number of rows above those that `pixels` begins with: a JPEG is decoded
        whole, and of raw pixels no more is read than is wanted.
    """
    heights, widths, offsets, n_bytes, is_jpeg = columns
    height, width = heights[i], widths[i]
    if not is_jpeg[i]:
        stride = 3 * np.int64(width)
        return _read(file, offsets[i] + top * stride, pixels[: rows * stride]), top
    whole = encoded[: n_bytes[i]]
    status = _read(file, offsets[i], whole)
    if status != OK:
        return status, 0
    # libjpeg-turbo scales a JPEG of another size to what it is asked for, or fills a part. And its
    # warnings count, which FFCV ignores: it trains on images that are black or grey in part.
    if _jpeg_size(whole) != (height, width) or _imdecode(
        whole.ctypes.data, whole.size, height, width, pixels.ctypes.data,
        height, width, 0, 0, 1, 1, False, False,
    ):  # fmt: skip
        status = DAMAGED
    return status, 0


@jit()
def resize(image: Any, height: int, width: int, box: Any, slot: Any) -> None:
    """OpenCV's INTER_AREA of a box (top, left, height, width) of the pixels, into a slot."""
    _resize(
        0, image.ctypes.data, height, width, box[0], box[0] + box[2], box[1], box[1] + box[3],
        slot.ctypes.data, slot.shape[0], slot.shape[1],
    )  # fmt: skip


@jit()
def fill(
    file: int,
    columns: Any,
    index: Any,  # (k,) dataset indices
    boxes: Any,  # (n, 4) int32, of the stored images
    shifts: Any,  # (n, 2) int32, or (0, 2) where nothing is shifted
    flips: Any,  # (n,) bool
    reflect: bool,  # what is shifted is mirrored at its edges, not black beyond them
    encoded: Any,
    pixels: Any,
    resized: Any,  # (R, R, 3) uint8
    slots: Any,  # (k, R, R, 3) uint8, written
    status: Any,  # (k,) uint8, written
) -> None:
    """Decodes, crops, resizes and flips some images, each into its slot."""
    for k in range(len(index)):
        i = index[k]
        box, height, width = boxes[i].copy(), columns[0][i], columns[1][i]
        # Whatever a beton's tables say, OpenCV is not asked for pixels outside of the image.
        if (
            min(box[0], box[1]) < 0 or min(box[2], box[3]) < 1
            or box[0] + box[2] > height or box[1] + box[3] > width
        ):  # fmt: skip
            status[k] = DAMAGED
            continue
        status[k], above = decode(file, columns, i, box[0], box[2], encoded, pixels)
        if status[k] != OK:
            continue
        box[0] -= above
        rows = height if columns[4][i] else box[2]
        dy = shifts[i, 0] if len(shifts) else 0
        dx = shifts[i, 1] if len(shifts) else 0
        if flips[i] or dy != 0 or dx != 0:
            resize(pixels, rows, width, box, resized)
            move(resized, slots[k], dy, dx, flips[i], reflect)
        else:
            resize(pixels, rows, width, box, slots[k])
