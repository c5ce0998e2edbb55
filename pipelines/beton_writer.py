"""Writes a beton from an image folder: FFCV's format and field encoders, our own scheduling.

FFCV's own writer waits for ever once a sample raises, draws the share of JPEGs from generators that
nobody seeds, and lays samples down in the order in which its processes finish. Here samples are
made by threads (decoding, shrinking and encoding release the interpreter's lock) and written in the
index's order, so that the same images give the same file.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsc.pipelines import keyed
from fastsc.pipelines.beton import block_of, open_beton, require_ffcv
from fastsc.pipelines.decode import RGB8, DecodeError, pick
from fastsc.pipelines.disk import doing
from fastsc.pipelines.errors import StalledError, UserError
from fastsc.pipelines.ffcv import verify
from fastsc.pipelines.files import read_file
from fastsc.pipelines.headers import Header
from fastsc.pipelines.index import Index
from fastsc.pipelines.plan import OnBadImage
from fastsc.pipelines.progress import tracked
from fastsc.pipelines.scaled import decode_to_shrink, shrunk
from fastsc.pipelines.threads import default_workers, in_order

MAX_SIDE = 65_535  # 16 bits
MIN_PAGE = 1 << 23  # bytes; FFCV's default
TIMEOUT = 120.0  # seconds for one image
SYNC_EVERY = 2**30  # bytes: the disk has a deadline for one call, whatever memory it is behind


@dataclass(frozen=True)
class BetonOptions:
    """How images are stored.

    Attributes:
        resolution: Longer side at most, in pixels (area-averaged); None keeps the size.
        quality: Of JPEGs, 1 to 100.
        jpeg_share: Part of the images stored as JPEGs, in [0, 1]; the rest are raw pixels. Which
            ones is keyed by the dataset index.
        exact_decode: Decode every pixel, also of JPEGs that are shrunk to a half or less.
    """

    resolution: int | None = 400
    quality: int = 90
    jpeg_share: float = 1.0
    exact_decode: bool = False


class _Layout:
    """FFCV's file: allocations lie in pages of a power of two, and none crosses a page's edge."""

    def __init__(self, file: Any, n: int, page: int) -> None:
        from ffcv.fields import IntField, RGBImageField
        from ffcv.types import ALLOC_TABLE_TYPE, FieldDescType, HeaderType, get_metadata_type

        self._file, self._page = file, page
        self._header_type, self._table_type = HeaderType, ALLOC_TABLE_TYPE
        self._fields = {"image": RGBImageField(), "label": IntField()}
        self.metadata = np.zeros(n, get_metadata_type(list(self._fields.values())))
        self._table: list[tuple[int, int, int]] = []
        self._descriptors = np.zeros(len(self._fields), FieldDescType)
        type_ids = {"image": 2, "label": 1}  # ffcv.types.TYPE_ID_HANDLER
        for row, (name, handler) in enumerate(self._fields.items()):
            self._descriptors[row]["type_id"] = type_ids[name]
            self._descriptors[row]["name"][: len(name)] = np.frombuffer(name.encode(), np.uint8)
            self._descriptors[row]["arguments"] = handler.to_binary()[0]
        start = HeaderType.itemsize + self._descriptors.nbytes + self.metadata.nbytes
        self._end = 0
        self._pad_to(-(-start // page) * page)

    def _pad_to(self, offset: int) -> None:
        self._file.seek(offset)  # a hole in the file reads as zeros
        self._end = offset

    def add(self, sample: _Sample, label: int) -> None:
        """Appends one sample; rows follow each other."""
        row, size = len(self._table), len(sample.data)
        if self._end % self._page + size > self._page:
            self._pad_to(-(-self._end // self._page) * self._page)
        image, target = (self.metadata[name] for name in self.metadata.dtype.names or ())
        image[row] = sample.metadata
        image["data_ptr"][row] = self._end
        target[row] = label
        self._table.append((row, self._end, size))
        self._file.write(sample.data)
        self._end += size

    def finish(self, block: bytes) -> None:
        """Writes the block, the table, and what stands in front."""
        from ffcv.types import CURRENT_VERSION

        n = len(self._table)
        self._pad_to(-(-self._end // self._page) * self._page)
        self._file.write(block)
        header = np.zeros((), self._header_type)
        header["version"], header["num_fields"] = CURRENT_VERSION, len(self._fields)
        header["page_size"], header["num_samples"] = self._page, n
        header["alloc_table_ptr"] = self._end + len(block)
        self._file.write(np.array(self._table, self._table_type).tobytes())
        self._file.seek(0)
        for part in (header, self._descriptors, self.metadata[:n]):
            self._file.write(part.tobytes())


@dataclass(frozen=True)
class _Sample:
    """An image as it is stored: FFCV's metadata of it but for the pointer, and its bytes."""

    metadata: Any
    data: NDArray[np.uint8]


class _Encoder:
    """From a file of the index to what is stored of it; called from several threads."""

    def __init__(self, index: Index, options: BetonOptions) -> None:
        from ffcv.fields import RGBImageField

        self._index, self._options = index, options
        self._decode = pick()[1]
        draws = keyed.uniforms(0, 0, keyed.Stream.JPEG, len(index))
        self._as_jpeg = draws < options.jpeg_share
        self._fields = {
            as_jpeg: RGBImageField(
                write_mode="jpg" if as_jpeg else "raw",
                jpeg_quality=options.quality,
            )
            for as_jpeg in (False, True)
        }

    def __call__(self, i: int) -> _Sample | str:
        """What is stored of a dataset index, or why it does not decode."""
        try:
            return self._encode(i)
        except DecodeError as error:
            return str(error)

    def _encode(self, i: int) -> _Sample:
        height, width = int(self._index.heights[i]), int(self._index.widths[i])
        encoded = read_file(self._index.place(i))
        side = None if self._options.exact_decode else self._options.resolution
        header = Header(height, width, by_pillow=i in self._index.by_pillow)
        image, _ = decode_to_shrink(encoded, header, self._decode, side)
        image = _shrink(image, height, width, self._options.resolution)
        if max(image.shape) > MAX_SIDE:
            raise DecodeError(f"more than the {MAX_SIDE} pixels a side that a beton can hold")
        field = self._fields[bool(self._as_jpeg[i])]
        metadata, stored = np.zeros(1, field.metadata_type), list[NDArray[np.uint8]]()

        def allocate(size: int) -> tuple[int, NDArray[np.uint8]]:
            stored.append(np.empty(size, np.uint8))
            return 0, stored[0]

        try:
            field.encode(metadata, image, allocate)
        except ValueError as error:  # more than libjpeg's 65,500 pixels a side, say
            raise DecodeError(f"cannot be stored ({error})") from None
        return _Sample(metadata[0], stored[0])


def _shrink(image: RGB8, height: int, width: int, side: int | None) -> RGB8:
    """FFCV's `max_resolution`, which fails where the shorter side would be less than a pixel."""
    import cv2

    if side is None or (height, width) == (size := shrunk(height, width, side)):
        return image
    return np.asarray(cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA), np.uint8)


def write_beton(
    index: Index,
    path: Path,
    options: BetonOptions,
    *,
    on_bad_image: OnBadImage = "raise",
    workers: int | None = None,
    title: str | None = None,
) -> dict[int, str]:
    """Writes every usable image of an index into a beton; `verify_beton` reads it back.

    Args:
        index: What to write; the beton keeps its dataset indices, names and original sizes.
        path: The file; overwritten. It is whole only when this returns: write to another name, and
            rename.
        on_bad_image: "raise" a UserError at a file that does not decode, or "skip" it.
        workers: Threads. Default: the cores that this process may use, at most 16.
        title: Of a progress bar, shown on a terminal.

    Returns:
        Dataset index -> reason, of the images that turned out not to decode.

    Raises:
        UserError: An image does not decode and on_bad_image is "raise", none is left, one
            takes longer than TIMEOUT, or the file cannot be written.
    """
    require_ffcv()
    index.require(on_bad_image)
    broken: dict[int, str] = {}
    kept: list[int] = []
    usable = index.usable.tolist()
    samples = in_order(
        _Encoder(index, options),
        usable,
        workers=workers or default_workers(),
        name="fastsc-encode",
        timeout=TIMEOUT,
        describe=index.path,
    )
    made = zip(usable, samples, strict=True)
    progress = tracked(made, title, len(usable)) if title else made
    synced = 0
    try:
        with open(path, "wb") as file:
            layout = _Layout(file, len(usable), _page_size(index, options))
            for i, sample in progress:
                if isinstance(sample, str):
                    broken[i] = sample
                    index.without(broken).require(on_bad_image)
                else:
                    kept.append(i)
                    with doing(f"writing {path}"):
                        layout.add(sample, int(index.targets[i]))
                if file.tell() - synced > SYNC_EVERY:
                    with doing(f"writing {path}"):
                        file.flush()
                        os.fdatasync(file.fileno())
                    synced = file.tell()
            with doing(f"writing {path}"):
                layout.finish(block_of(index.without(broken), np.array(kept, np.int64)))
                file.flush()
            with doing(f"writing {path}"):
                os.fsync(file.fileno())
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None
    except StalledError as stalled:
        raise UserError(f"{stalled}; is its disk there?") from None
    finally:
        samples.close()
    return broken


def _page_size(index: Index, options: BetonOptions) -> int:
    """A power of two that holds the largest sample, JPEGs of noise included."""
    sides = np.stack([index.heights, index.widths]).astype(np.float64)
    if options.resolution is not None:
        sides *= np.minimum(1, options.resolution / np.maximum(sides.max(axis=0), 1))
    largest = 2 * 3 * float(np.ceil(sides).prod(axis=0).max()) + 4096
    return max(MIN_PAGE, 1 << int(np.ceil(np.log2(largest))))


def verify_beton(path: Path, index: Index) -> None:
    """Reads a beton back: counts, labels and indices are the index's, and every sample decodes.

    Raises:
        UserError: It is not so.
    """
    written = open_beton(path)
    usable = written.usable
    if written.hash != index.hash or (usable != index.usable).any():
        raise UserError(f"{path}: does not read back as it was written; is the disk sound?")
    try:
        damaged = verify(written)
    except StalledError as stalled:
        raise UserError(f"{stalled}; is its disk there?") from None
    for i, why in damaged.items():
        raise UserError(f"{written.path(i)}: does not read back ({why}); is the disk sound?")
