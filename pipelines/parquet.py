"""A part of a Hugging Face data set on disk: its Parquet files, their rows, and the rows' names."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastsc.pipelines.arrow import (
    ROWS,
    Columns,
    Row,
    columns_of,
    ending_of,
    feature,
    number_or_name,
    rows_of,
)
from fastsc.pipelines.disk import doing
from fastsc.pipelines.errors import UserError, first_line
from fastsc.pipelines.fields import shown
from fastsc.pipelines.walk import EXTENSIONS, is_system

# A part's files begin with one of these, the first that is there.
PARTS = {"train": ("train",), "val": ("validation", "valid", "val", "dev", "test")}


def files_of(root: Path, part: str) -> list[Path]:
    """The Parquet files of a part of a snapshot, sorted; none where it has no such part.

    They are data/SPLIT-*.parquet or data/SPLIT/*.parquet, or so below one other folder, which the
    hub names by the data set's configuration.

    Raises:
        UserError: A folder cannot be read, or several have such a part.
    """
    folder = root / "data" if (root / "data").is_dir() else root
    if files := _of_part(folder, part):
        return files
    found = {f: files for f in _folders(root) if f.name != "data" and (files := _of_part(f, part))}
    if len(found) > 1:
        names = ", ".join(f.name for f in found)
        raise UserError(f"{root}: {names} each have Parquet files; name one of these folders")
    return next(iter(found.values()), [])


def _of_part(folder: Path, part: str) -> list[Path]:
    names = [name for name in _listed(folder) if not is_system(name)]
    for split in PARTS[part]:
        pattern = re.compile(rf"{split}[-.].*parquet$")
        if files := [folder / name for name in names if pattern.match(name)]:
            _require_whole(files)
            return files
        below = folder / split
        if split in names and below.is_dir():
            named = [name for name in _listed(below) if not is_system(name)]
            files = [below / name for name in named if name.endswith(".parquet")]
            _require_whole(files)
            return files
    return []


def _require_whole(files: list[Path]) -> None:
    """Raises UserError where one of NAME-00000-of-00005.parquet and so on is not there.

    Before .parquet each may have a fingerprint of its own.
    """
    there: dict[tuple[str, str], set[int]] = {}
    for path in files:
        if match := re.fullmatch(r"(.*-)(\d{1,9})-of-(\d{1,9})\D.*", path.name):
            there.setdefault((match[1], match[3]), set()).add(int(match[2]))
    for (name, n), numbers in there.items():
        missing = next((i for i in range(min(int(n), len(numbers) + 1)) if i not in numbers), None)
        if missing is not None:
            raise UserError(
                f"{files[0].parent}: {name}{missing:0{len(n)}}-of-{n}*.parquet is missing, of "
                f"{int(n)} files; download the data set again"
            )


def _folders(root: Path) -> list[Path]:
    return [root / name for name in _listed(root) if (root / name).is_dir()]


def _listed(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror})") from None


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
                batches = _parquet(path).iter_batches(ROWS, columns=wanted)
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
        return feature(text["info"]["features"])
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
        ending = ending_of(row.content or b"")
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
