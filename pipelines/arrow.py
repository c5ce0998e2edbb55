"""Images in Arrow tables as Hugging Face's datasets have them: in Parquet files, or in memory.

A column of images is a struct of `bytes` and `path`; a column of labels has class names in the
table's features, which a Parquet file carries in its schema's metadata.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastsc.pipelines.decode import header_parser
from fastsc.pipelines.disk import doing
from fastsc.pipelines.errors import UserError, first_line
from fastsc.pipelines.fields import shown
from fastsc.pipelines.files import Held, Members
from fastsc.pipelines.headers import Header, read_header
from fastsc.pipelines.index import Index
from fastsc.pipelines.lists import MAX_LABEL
from fastsc.pipelines.walk import EXTENSIONS, is_system

IMAGE_NAMES, LABEL_NAMES = ("image", "img"), ("label", "labels")
# A part's files begin with one of these, the first that is there.
PARTS = {"train": ("train",), "val": ("validation", "valid", "val", "dev", "test")}
_ROWS = 64  # read at once: Parquet's groups of rows hold 100 images and more
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
    kinds = {name: _feature(features.get(name)).get("_type") for name in schema.names}
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
    names = _feature(features.get(column)).get("names")
    if names is not None:
        is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
        if not is_list or len(set(names)) < len(names):
            raise UserError(f"{place}: the class names of its column {column} are {shown(names)}")
    return Columns(image, column, None if names is None else tuple(names))


def _feature(feature: Any) -> Mapping[str, Any]:
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


# --- Parquet --------------------------------------------------------------------------------------


def files_of(root: Path, part: str) -> list[Path]:
    """The Parquet files of a part of a snapshot, sorted; none where it has no such part.

    Raises:
        UserError: The folder cannot be read.
    """
    folder = root / "data" if (root / "data").is_dir() else root
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith(".parquet"))
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror})") from None
    for split in PARTS[part]:
        pattern = re.compile(rf"{split}[-.]")
        if files := [folder / name for name in names if pattern.match(name)]:
            return files
    return []


@contextmanager
def _damaged(path: Path) -> Iterator[None]:
    """Within the context, what pyarrow says of a file is a UserError that names it."""
    import pyarrow as pa

    try:
        with doing(f"reading {path}"):
            yield
    except (pa.lib.ArrowException, OSError, ValueError, KeyError, OverflowError) as error:
        raise UserError(f"{path}: no whole Parquet file ({first_line(error)})") from None


class Table:
    """A part's Parquet files, one after the other, as one table.

    Attributes:
        files: They.
        n: Its rows.
        columns: Those that are read, the same in every file.
    """

    def __init__(self, files: list[Path], label: str | None) -> None:
        """Raises UserError where a file is damaged, or is of other columns than the first."""
        self.n, self.files = 0, files
        self.columns = Columns("", "", None)
        for i, path in enumerate(files):
            with _damaged(path):
                file = _parquet(path)
                schema, n = file.schema_arrow, file.metadata.num_rows
            columns = columns_of(_features(schema), schema, label, str(path))
            if i and columns != self.columns:
                raise UserError(f"{path}: other columns or class names than {files[0]}")
            self.columns, self.n = columns, self.n + n

    def rows(self) -> Iterator[tuple[Path, Row]]:
        """All rows and their files, numbered through; a few of them are in memory.

        Raises:
            UserError: A file is damaged.
        """
        number = 0
        for path in self.files:
            with _damaged(path):
                wanted = [self.columns.image, self.columns.label]
                batches = _parquet(path).iter_batches(_ROWS, columns=wanted)
            while True:
                with _damaged(path):
                    batch = next(batches, None)
                    rows = [] if batch is None else list(rows_of(batch, self.columns, number))
                if batch is None:
                    break
                for row in rows:
                    yield path, row
                number += len(rows)


def _parquet(path: Path) -> Any:
    from pyarrow import parquet

    return parquet.ParquetFile(path, page_checksum_verification=True)


def _features(schema: Any) -> Mapping[str, Any]:
    """What the schema's metadata say of the columns; nothing where they say nothing."""
    try:
        text = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        return _feature(text["info"]["features"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}


class Keys:
    """The names of rows in a tar of class folders: CLASS/NAME, each once.

    NAME is the end of the row's path. A row without one, or with one that was there before, is
    called by its number.
    """

    def __init__(self, columns: Columns, place: str) -> None:
        """Raises UserError where a class's name is no folder's."""
        self._columns, self._place = columns, place
        self._digests = set[bytes]()  # 16 bytes a name: the names themselves would be 100
        self._folders = dict[int | str, str]()
        for number, name in enumerate(columns.classes or ()):
            self._folders[number] = self._folder(name)
        if len(set(self._folders.values())) < len(self._folders):
            raise UserError(f"{place}: two classes have the same name, but for slashes")

    def __call__(self, row: Row) -> str:
        """The row's key.

        Raises:
            RowError: It has no label, or no image.
        """
        label = number_or_name(row, self._columns)
        folder = self._folders.get(label)
        if folder is None:
            folder = self._folders[label] = self._folder(str(label))
        ending = _ending(row.content or b"")
        name = re.split(r"[/\\]", row.path)[-1] if isinstance(row.path, str) else ""
        if name.lower().endswith(EXTENSIONS):
            stem, ending = os.path.splitext(name)
        else:
            stem = name
        if not stem or is_system(stem) or "\0" in stem:
            stem = f"{row.number:09d}"
        key = f"{folder}/{stem}{ending}"
        while not self._is_new(key):
            stem = f"{row.number:09d}" if f"{row.number:09d}" not in stem else f"{stem}_"
            key = f"{folder}/{stem}{ending}"
        return key

    def _is_new(self, key: str) -> bool:
        digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        n = len(self._digests)
        self._digests.add(digest)
        return len(self._digests) > n

    def _folder(self, name: str) -> str:
        folder = name.replace("/", "∕")  # a division slash, which a folder's name may have
        if not folder or is_system(folder) or "\0" in folder:
            raise UserError(f"{self._place}: class {shown(name)} cannot be a folder's name")
        return folder


def _ending(content: bytes) -> str:
    """The extension of an image's format; .jpg of what is none, whose row is left out."""
    if _PNM.match(content):
        return ".ppm"
    return next((ending for start, ending in _KINDS.items() if content.startswith(start)), ".jpg")


# --- a Dataset ------------------------------------------------------------------------------------


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
    for start in range(0, dataset.num_rows, _ROWS):
        for row in rows_of(table[start : start + _ROWS], columns, start):
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
            ending = os.path.basename(row.path) if isinstance(row.path, str) else _ending(content)
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
