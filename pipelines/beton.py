"""Betons: FFCV's files, and the index of the folder that one was made from.

A beton of ours is an ordinary one with the fields `image` and `label`, which any FFCV loader reads.
What FFCV has no place for (class names, file names, original sizes, dataset indices, what was left
out) lies in a block in front of FFCV's allocation table, where nothing of FFCV's looks:

    header · fields' descriptors · metadata · pages of samples · block · its length · MAGIC · table

A beton without the block, written by FFCV's own writer, is its own index: row = dataset index.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numba
import numpy as np
import torch
from numpy.typing import NDArray

from fastsc.pipelines.errors import UserError
from fastsc.pipelines.fields import Fields
from fastsc.pipelines.headers import MAX_PIXELS, MIN_SIDE
from fastsc.pipelines.index import Index, known_targets
from fastsc.pipelines.reading import load_arrays, parse_json, reason
from fastsc.pipelines.samples import Samples, link

MAGIC = b"fastsc-index-01\n"
MAX_LABEL = 1_000_000  # of a beton without class names
MAX_BLOCK = 2**32  # bytes of the index, unpacked: some 200 per image
_COLUMNS = {"rows": "i8", "targets": "i8", "heights": "i4", "widths": "i4", "n_bytes": "i8"}
_LENGTH = np.dtype("<u8")
_INT64 = NDArray[np.int64]
_HOW = "python -m fastsc.prepare beton --data DIR --out DIR2"
INSTALL = (
    "FFCV is not installed; pip install 'fastsc[ffcv]' (it compiles against libopencv-dev and "
    "libturbojpeg0-dev), or take --pipeline dali or cpu on an ImageFolder"
)


@dataclass(frozen=True, eq=False, kw_only=True)
class BetonIndex(Index):
    """The index of the folder that a beton was made from; `root` is the beton, no folder.

    Heights and widths are the originals', so that crops are those of every other pipeline.
    """

    samples: Samples = field(repr=False)


def require_ffcv() -> None:
    """Imports FFCV, whose import sets torch's and numba's threads to one, without that.

    Raises:
        UserError: It cannot be imported; the message says what to do.
    """
    if "ffcv.libffcv" in sys.modules:
        link(sys.modules["ffcv.libffcv"].lib)
        return
    threads = torch.get_num_threads(), numba.get_num_threads()
    try:
        from ffcv.libffcv import lib
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == "ffcv"
        raise UserError(INSTALL if missing else f"FFCV cannot be imported ({error})") from None
    finally:
        torch.set_num_threads(threads[0])
        numba.set_num_threads(threads[1])
    link(lib)


def open_beton(path: str | os.PathLike[str], *, classes: Sequence[str] | None = None) -> BetonIndex:
    """Reads a beton's tables; images are not touched.

    Args:
        path: The file.
        classes: Class names that set the targets (training's, for a validation file). Default: the
            file's own; the label's number where it has no names.

    Raises:
        UserError: No such file, no beton, one that was cut, or a class that is not in `classes`.
    """
    path = Path(path)
    if not os.path.isfile(path):  # unlike Path's, no error where a folder may not be entered
        what = "a folder, not a beton" if os.path.isdir(path) else "no such file"
        raise UserError(f"{path}: {what}; make one with {_HOW}")
    require_ffcv()
    try:
        index = _read(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except Exception as error:  # noqa: BLE001, damaged tables raise whatever their bytes lead to
        what = reason(error)
        raise UserError(f"{path}: not a whole beton ({what}); make it again with {_HOW}") from None
    if classes is None:
        return index
    return _with_classes(index, tuple(classes))


def _read(path: Path) -> BetonIndex:
    from ffcv.fields import IntField, RGBImageField
    from ffcv.reader import Reader
    from ffcv.types import CURRENT_VERSION, HeaderType

    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(HeaderType.itemsize)
        if len(head) < HeaderType.itemsize:
            raise ValueError("its header is cut")
        header = np.frombuffer(head, HeaderType)[0]
        table = int(header["alloc_table_ptr"])
        # Before FFCV's reader believes them and allocates for them.
        if header["version"] != CURRENT_VERSION or not 0 < header["num_fields"] < 256:
            raise ValueError("no FFCV header")
        if not HeaderType.itemsize < table <= size or int(header["num_samples"]) > table:
            raise ValueError("cut: its last table lies behind its end")
        block = _read_block(file, table)
    reader = Reader(str(path))
    if len(reader.metadata) != reader.num_samples:
        raise ValueError("its metadata are cut")
    column = _column(reader, RGBImageField, "image")
    labels = reader.metadata[_column(reader, IntField, "label")].astype(np.int64).reshape(-1)
    image = reader.metadata[column]
    stored = _stored(image, reader.alloc_table, table)
    if block is None:
        return _own_index(path, labels, stored)
    return _indexed(path, labels, stored, block)


def _column(reader: Any, kind: type, preferred: str) -> str:
    """Name in the metadata's dtype of the field of a kind: of the preferred name, or the only."""
    names = [name for name, handler in reader.handlers.items() if isinstance(handler, kind)]
    if preferred not in names and len(names) != 1:
        raise ValueError(f"it has no field {preferred!r}")
    wanted = preferred if preferred in names else names[0]
    column: str = reader.metadata.dtype.names[reader.field_names.index(wanted)]
    return column


def _stored(image: Any, table: Any, end: int) -> Samples:
    """The rows' places: FFCV keeps an allocation's size apart from the pointer to it."""
    table = table[table["size"] > 0]  # an empty one shares its place with the next
    order = np.argsort(table["ptr"])
    pointers = table["ptr"][order]
    at = np.searchsorted(pointers, image["data_ptr"])
    if len(image) and (at.max() >= len(pointers) or (pointers[at] != image["data_ptr"]).any()):
        raise ValueError("a sample without a place in its table")
    n_bytes = table["size"][order][at].astype(np.int64)
    offsets = image["data_ptr"].astype(np.int64)
    if len(image) and (min(offsets.min(), n_bytes.min()) < 0 or (offsets + n_bytes).max() > end):
        raise ValueError("a sample lies behind its end")  # beyond 2**63, numbers are negative
    heights, widths = image["height"].astype(np.int32), image["width"].astype(np.int32)
    is_jpeg = image["mode"] == 0
    pixels = 3 * heights.astype(np.int64) * widths
    if (~is_jpeg & (pixels != n_bytes)).any() or (pixels == 0).any() or n_bytes.min(initial=1) < 1:
        raise ValueError("a sample whose size is not that of its pixels")
    if pixels.max(initial=0) > 3 * MAX_PIXELS:
        raise ValueError("a sample is a decompression bomb")
    return Samples(heights, widths, offsets, n_bytes, is_jpeg)


def _own_index(path: Path, labels: _INT64, stored: Samples) -> BetonIndex:
    n = len(labels)
    if n == 0:
        raise ValueError("it holds no image")
    if labels.min() < 0 or labels.max() > MAX_LABEL:
        raise ValueError(f"labels from {labels.min()} to {labels.max()}, and not from 0 on")
    return BetonIndex(
        root=path,
        classes=tuple(str(label) for label in range(int(labels.max()) + 1)),
        paths=tuple(f"sample {row}" for row in range(n)),
        targets=labels,
        heights=stored.heights,
        widths=stored.widths,
        n_bytes=stored.n_bytes,
        samples=stored,
    )


def _indexed(path: Path, labels: _INT64, stored: Samples, block: dict[str, Any]) -> BetonIndex:
    """The block's index, with the rows spread over the dataset indices that they hold."""
    rows, targets = block["rows"], block["targets"]
    n = len(targets)
    text = Fields(parse_json(block["text"].tobytes(), "its index"), "its index")
    classes, paths, reasons = text.texts("classes"), text.texts("paths"), text.inner("left_out")
    left_out = {int(i): reasons.text(i) for i in reasons.values}
    for name, kind in _COLUMNS.items():
        column = block[name]
        if column.dtype != kind or column.shape != (len(rows) if name == "rows" else n,):
            raise ValueError(f"its index has {name} of {column.dtype} in the shape {column.shape}")
    if n == 0 or len(paths) != n or not all(0 <= i < n for i in left_out):
        raise ValueError("its index is of other files")
    held = np.ones(n, np.bool_)
    held[list(left_out)] = False
    if (
        not np.array_equal(rows, np.flatnonzero(held))
        or not np.array_equal(labels, targets[rows])
        or not 0 <= targets.min() <= targets.max() < len(classes)
        or not _sizes_are_sound(block, held)
    ):
        raise ValueError("its samples are not those of its index")

    def spread(column: NDArray[Any]) -> NDArray[Any]:
        whole = np.zeros(n, column.dtype)
        whole[rows] = column
        return whole

    return BetonIndex(
        root=path,
        classes=classes,
        paths=paths,
        targets=targets,
        heights=block["heights"],
        widths=block["widths"],
        n_bytes=block["n_bytes"],
        left_out=left_out,
        samples=Samples(*map(spread, stored.columns)),
    )


def _sizes_are_sound(block: dict[str, Any], held: NDArray[np.bool_]) -> bool:
    """Whether crops can be made of the originals' sizes: what a scan would have left out is not."""
    heights, widths = block["heights"][held].astype(np.int64), block["widths"][held]
    sides_are = not len(heights) or min(heights.min(), widths.min()) >= MIN_SIDE
    return sides_are and bool((heights * widths <= MAX_PIXELS).all())


def _with_classes(index: BetonIndex, classes: tuple[str, ...]) -> BetonIndex:
    targets = known_targets(index.root, index.classes, index.targets, classes)
    return replace(index, classes=classes, targets=targets)


# --- the block -----------------------------------------------------------------------------------


def block_of(index: Index, rows: _INT64) -> bytes:
    """The block of a beton whose row k is the dataset index rows[k]."""
    text = {
        "classes": index.classes,
        "paths": index.paths,
        "left_out": {str(i): why for i, why in index.left_out.items()},
    }
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        text=np.frombuffer(json.dumps(text).encode(), np.uint8),
        rows=rows,
        targets=index.targets,
        heights=index.heights,
        widths=index.widths,
        n_bytes=index.n_bytes,
    )
    data = buffer.getvalue()
    return data + np.array(len(data), _LENGTH).tobytes() + MAGIC


def _read_block(file: BinaryIO, table: int) -> dict[str, Any] | None:
    """The block in front of the allocation table; None where there is none."""
    tail = _LENGTH.itemsize + len(MAGIC)
    if table < tail:
        return None
    file.seek(table - tail)
    end = file.read(tail)
    if end[_LENGTH.itemsize :] != MAGIC:
        return None
    length = int(np.frombuffer(end, _LENGTH, count=1)[0])
    if length > table - tail:
        raise ValueError("its index is cut")
    file.seek(table - tail - length)
    return load_arrays(io.BytesIO(file.read(length)), "its index", MAX_BLOCK)
