"""Images in Arrow tables as Hugging Face's datasets have them: in Parquet files, or in memory.

A column of images is a struct of `bytes` and `path`; a column of labels has class names in the
table's features, which a Parquet file carries in its schema's metadata.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastsc.pipelines.decode import header_parser
from fastsc.pipelines.disk import doing
from fastsc.pipelines.errors import UserError, first_line
from fastsc.pipelines.fields import is_text, shown
from fastsc.pipelines.files import Held, Members
from fastsc.pipelines.headers import Header, read_header
from fastsc.pipelines.index import Index
from fastsc.pipelines.lists import MAX_LABEL

IMAGE_NAMES, LABEL_NAMES = ("image", "img"), ("label", "labels")
ROWS = 64  # read at once: Parquet's groups of rows hold 100 images and more
_KINDS = {
    b"\xff\xd8\xff": ".jpg", b"\x89PNG": ".png", b"BM": ".bmp", b"RIFF": ".webp", b"II": ".tif",
    b"MM": ".tif",
}  # fmt: skip
_PNM = re.compile(rb"P[1-6]\s")


class RowError(Exception):
    """A row that is no image of a class; the message is the reason."""


class Columns(NamedTuple):
    """Which columns of a table are read; `classes`: their names by number, None without names."""

    image: str
    label: str
    classes: tuple[str, ...] | None


class Row(NamedTuple):
    """An image of a table, as it is there."""

    number: int  # from 0
    content: bytes | None
    path: str | None
    label: Any


def columns_of(features: Mapping[str, Any], schema: Any, label: str | None, place: str) -> Columns:
    """Which columns hold images and labels.

    Args:
        features: Name -> {"_type": "Image" or "ClassLabel", "names": …}, of those that have one.
        schema: The table's pyarrow.Schema.
        label: The column of labels; None: `label`, `labels`, or the only one with class names.
        place: What an error calls the table.

    Raises:
        UserError: There is none, or no telling which.
    """
    kinds = {name: feature(features.get(name)).get("_type") for name in schema.names}
    images = [name for name, kind in kinds.items() if kind == "Image"]
    images = images or [name for name in schema.names if _is_struct(schema.field(name).type)]
    image = _one(images, IMAGE_NAMES)
    if image is None:
        what = f"columns of images: {', '.join(images)}; keep one" if images else (
            f"no column of images, structs of bytes and path, but {', '.join(schema.names)}"
        )  # fmt: skip
        raise UserError(f"{place}: {what}")
    named = [name for name, kind in kinds.items() if kind == "ClassLabel"]
    labels = named or [name for name in LABEL_NAMES if name in schema.names]
    column = label or _one(labels, LABEL_NAMES)
    if column is None or column not in schema.names:
        there = ", ".join(labels or [name for name in schema.names if name != image]) or "none"
        said = f"no column {label}" if label else "no telling which column is the label"
        raise UserError(f"{place}: {said}; --label-column names one of: {there}")
    names = feature(features.get(column)).get("names")
    if names is not None:
        is_list = isinstance(names, list) and all(
            isinstance(name, str) and is_text(name) for name in names
        )
        if not is_list or len(set(names)) < len(names):
            raise UserError(f"{place}: the class names of its column {column} are {shown(names)}")
    return Columns(image, column, None if names is None else tuple(names))


def feature(feature: Any) -> Mapping[str, Any]:
    return feature if isinstance(feature, Mapping) else {}


def _is_struct(kind: Any) -> bool:
    fields = {kind.field(i).name for i in range(kind.num_fields)} if kind.num_fields else set()
    return {"bytes", "path"} <= fields


def _one(names: Sequence[str], usual: Sequence[str]) -> str | None:
    """The only name, or the one of a usual name."""
    if len(names) == 1:
        return names[0]
    return next((name for name in usual if name in names), None)


def rows_of(table: Any, columns: Columns, start: int = 0) -> Iterator[Row]:
    """The rows of a pyarrow.Table or RecordBatch, numbered from `start` on."""
    images = table.column(columns.image).to_pylist()
    labels = table.column(columns.label).to_pylist()
    for number, (image, label) in enumerate(zip(images, labels, strict=True), start):
        image = image if isinstance(image, dict) else {}
        yield Row(number, image.get("bytes"), image.get("path"), label)


def number_or_name(row: Row, columns: Columns) -> int | str:
    """A row's label.

    Raises:
        RowError: It is none.
    """
    label = row.label
    if isinstance(label, str) and label:
        return label
    if label is None or isinstance(label, bool) or not isinstance(label, int):
        raise RowError(f"its label is {shown(label)}, and neither a number from 0 on nor a name")
    n = MAX_LABEL + 1 if columns.classes is None else len(columns.classes)
    if not 0 <= label < n:
        hint = "; a test split has no labels" if label == -1 else ""
        raise RowError(f"its label is {label}, and there are classes 0 to {n - 1}{hint}")
    return label


def checked(row: Row) -> tuple[bytes, Header]:
    """A row's image, and what its header says.

    Raises:
        RowError: It is none.
    """
    content = row.content
    if content is None:
        if row.path is None:
            raise RowError("its image is null")
        raise RowError(f"its image has no bytes, but a path, {shown(row.path)}; embed the files")
    if not isinstance(content, bytes):
        raise RowError(f"its image is {shown(content)}")
    header = read_header(io.BytesIO(content), len(content), header_parser()[1])
    if header.reason is not None:
        raise RowError(header.reason)
    return content, header


def ending_of(content: bytes) -> str:
    """The extension of an image's format; .jpg of what is none, whose row is left out."""
    if _PNM.match(content):
        return ".ppm"
    return next((ending for start, ending in _KINDS.items() if content.startswith(start)), ".jpg")


def from_dataset(dataset: Any, *, label_column: str | None = None) -> Index:
    """The index of a `datasets.Dataset`, for `build`; its images' files are held in memory.

    Dataset indices are its rows, and targets its labels. For small data sets: of others,
    `python -m fastsc.prepare tar --data hf:DIR` makes tars.

    Args:
        dataset: With a column of images (`datasets.Image`) and one of labels.
        label_column: Its name; default: `label`, `labels`, or the only one with class names.

    Raises:
        UserError: It has no such columns, or no rows. A row without an image or a label is left
            out, which `build` takes for a mistake unless on_bad_image is "skip".
    """
    place = "the data set"
    if not all(hasattr(dataset, name) for name in ("features", "with_format", "num_rows")):
        raise UserError(
            f"{place} is a {type(dataset).__name__}; it wants a datasets.Dataset, one of its splits"
        )
    table = dataset.with_format("arrow")
    features = dataset.features.to_dict()
    if not dataset.num_rows:
        raise UserError(f"{place} has no rows")
    columns = columns_of(features, table[:1].schema, label_column, place)
    contents, headers, left_out = list[bytes](), list[Header](), dict[int, str]()
    labels = list[int | str | None]()
    names = list[str]()
    for start in range(0, dataset.num_rows, ROWS):
        for row in rows_of(table[start : start + ROWS], columns, start):
            label: int | str | None = None
            content, header = row.content or b"", Header(0, 0)
            try:
                label = number_or_name(row, columns)
                content, header = checked(row._replace(content=row.content or _file_of(row)))
            except RowError as error:
                left_out[row.number] = str(error)
            contents.append(content)
            headers.append(header)
            labels.append(label)
            ending = os.path.basename(row.path) if isinstance(row.path, str) else ending_of(content)
            names.append(f"{row.number:09d}{'' if ending.startswith('.') else '-'}{ending}")
    classes, targets = _targets(labels, columns)
    sizes = np.array([len(content) for content in contents], np.int64)
    offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
    held = Held("dataset", b"".join(contents))
    return Index(
        Path("dataset"),
        classes,
        tuple(names),
        targets,
        np.array([header.height for header in headers], np.int32),
        np.array([header.width for header in headers], np.int32),
        sizes,
        left_out=left_out,
        by_pillow=frozenset(i for i, header in enumerate(headers) if header.by_pillow),
        members=Members((held,), np.zeros(len(sizes), np.int32), offsets),
    )


def _file_of(row: Row) -> bytes | None:
    """The file that a row names in the place of bytes, as a data set of a folder's files does."""
    if not isinstance(row.path, str) or row.content is not None:
        return None
    try:
        with doing(f"reading {row.path}"):
            return Path(row.path).read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise RowError(f"{row.path} cannot be read ({reason})") from None


def _targets(labels: list[int | str | None], columns: Columns) -> tuple[tuple[str, ...], Any]:
    """Class names, and (n,) int64 positions among them; 0 of a row without a label."""
    known = {label for label in labels if label is not None}
    classes = columns.classes
    if any(isinstance(label, str) for label in known):
        classes = tuple(sorted(map(str, known)))
        position: dict[Any, int] = {name: i for i, name in enumerate(classes)}
        return classes, np.array([position.get(label, 0) for label in labels], np.int64)
    if classes is None:
        classes = tuple(map(str, range(max(map(int, known), default=-1) + 1)))
    return classes, np.array([label or 0 for label in labels], np.int64)
