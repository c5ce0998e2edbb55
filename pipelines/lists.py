"""A list of image files: a CSV or Parquet with the columns path, label and, if in parts, split."""

from __future__ import annotations

import csv
import importlib.util
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from fastsc.pipelines.errors import UserError, first_line
from fastsc.pipelines.fields import shown
from fastsc.pipelines.reading import blamed, read_text

COLUMNS = ("path", "label", "split")
MAX_BYTES = 2**30
MAX_LABEL = 1_000_000  # as a number; above, a name
_SPLITS = {"validation": "val", "valid": "val", "dev": "val", "training": "train"}


@dataclass(frozen=True)
class Listed:
    """The rows of a list, or of one of its splits, in its order: columns, a row each.

    Attributes:
        paths: As the list has them: absolute, or relative to its folder.
        labels: Class names, or numbers without leading zeros.
        splits: "train", "val", "test" or what else it says; None where it has no such column.
        lines: Numbers of the rows' lines, from 1.
        is_numeric: Whether all labels of the whole list are numbers, not filled up with zeros.
    """

    paths: Sequence[str]
    labels: Sequence[str]
    splits: Sequence[str] | None
    lines: Sequence[int]
    is_numeric: bool

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes' names, sorted; of numbers those from 0 on, without a gap."""
        if not self.is_numeric:
            return tuple(sorted(set(self.labels)))
        return tuple(str(number) for number in range(max(map(int, self.labels)) + 1))

    def of(self, split: str) -> Listed:
        """The rows of one split."""
        rows = [i for i, name in enumerate(self.splits or ()) if name == split]
        paths, labels = ([column[i] for i in rows] for column in (self.paths, self.labels))
        return Listed(paths, labels, None, [self.lines[i] for i in rows], self.is_numeric)


def list_of(root: Path) -> tuple[Path, str | None] | None:
    """The list, and which of its splits, that LIST.csv or LIST.csv/SPLIT names; None if neither."""
    for path, split in ((root, None), (root.parent, root.name)):
        if path.suffix.lower() in (".csv", ".parquet") and not path.is_dir():
            return path, split
    return None


def is_number(label: str) -> bool:
    """Whether a label is a number from 0 to a million."""
    return label.isascii() and label.isdecimal() and len(label) < 8 and int(label) <= MAX_LABEL


def read_list(path: Path) -> Listed:
    """The rows of a CSV, whose first may name the columns, or of a Parquet file.

    Raises:
        UserError: It cannot be read, or a row has no path or no label.
    """
    try:
        stat = os.stat(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    return _read(path, (stat.st_size, stat.st_mtime_ns))


@lru_cache(maxsize=2)  # a data set's training and validation list
def _read(path: Path, state: tuple[int, int]) -> Listed:  # noqa: ARG001, another is read again
    paths, labels, splits, lines = list[str](), list[str](), list[str](), list[int]()
    order: list[int] | None = None
    with blamed(str(path)):
        rows = _of_parquet(path) if path.suffix.lower() == ".parquet" else _of_csv(path)
        for line, row in rows:
            if not any(cell.strip() for cell in row):
                continue
            cells = [cell.strip() for cell in row]
            if order is None:
                order, is_heading = _order(cells, path)
                if is_heading:
                    continue
            place = f"{path}: line {line}"
            if len(cells) <= max(order) or not all(cells[i] for i in order):
                raise UserError(f"{place}: {shown(row)} has no {', '.join(COLUMNS[: len(order)])}")
            values = [cells[i] for i in order]
            if "\0" in values[0]:
                raise UserError(f"{place}: {shown(values[0])} is no file's name")
            paths.append(values[0])
            labels.append(values[1])
            lines.append(line)
            if len(order) > 2:
                name = values[2].lower()
                splits.append(_SPLITS.get(name, name))
    if not paths:
        raise UserError(f"{path}: no row in it; columns {', '.join(COLUMNS)} are expected")
    is_numeric = all(map(is_number, labels)) and not _is_padded(labels)
    if is_numeric:
        labels = [str(int(label)) for label in labels]
    return Listed(paths, labels, splits or None, lines, is_numeric)


def _is_padded(labels: Sequence[str]) -> bool:
    """Whether they are filled up with zeros to one length, as names of folders are: 001, 010."""
    length = len(labels[0])
    return length > 1 and all(len(x) == length for x in labels) and any(x[0] == "0" for x in labels)


def _of_csv(path: Path) -> Iterator[tuple[int, list[str]]]:
    text = read_text(path, str(path), MAX_BYTES).removeprefix("\ufeff")
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    for row in rows:
        yield rows.line_num, row


def _of_parquet(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The columns' names as line 1, then the rows, as a CSV of them would have them."""
    if importlib.util.find_spec("pyarrow") is None:
        raise UserError(f"{path}: a list in Parquet needs pyarrow; pip install 'fastsc[hf]'")
    import pyarrow as pa
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path, page_checksum_verification=True)
        names = [name for name in file.schema_arrow.names if name.lower() in COLUMNS]
        columns = [file.read(columns=[name])[name].to_pylist() for name in names]
    except (pa.lib.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path}: no whole Parquet file ({first_line(error)})") from None
    yield 1, names
    for i, row in enumerate(zip(*columns, strict=True), 2):
        yield i, ["" if value is None else str(value) for value in row]


def _order(cells: list[str], path: Path) -> tuple[list[int], bool]:
    """Where the columns are, and whether the first row says so."""
    names = [cell.lower() for cell in cells]
    if "path" in names and "label" in names:
        return [names.index(name) for name in COLUMNS if name in names], True
    if len(cells) not in (2, 3):
        raise UserError(
            f"{path}: line 1 has {len(cells)} columns, and not {', '.join(COLUMNS[:2])} and, if "
            "it has parts, split; or name them in the first line"
        )
    return list(range(len(cells))), False
