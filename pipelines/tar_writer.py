"""Writes an image folder into tars of class folders, and reads them back."""

from __future__ import annotations

import io
import os
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from fastsc.pipelines.arrow import Row, RowError, checked
from fastsc.pipelines.decode import DecodeError, Decoder, pick
from fastsc.pipelines.disk import doing
from fastsc.pipelines.errors import StalledError, UserError
from fastsc.pipelines.files import read_file
from fastsc.pipelines.headers import Header
from fastsc.pipelines.index import Index
from fastsc.pipelines.parquet import Keys, Table
from fastsc.pipelines.plan import OnBadImage
from fastsc.pipelines.progress import tracked
from fastsc.pipelines.scaled import decode_to_shrink, shrunk
from fastsc.pipelines.shards import contents, opened, shards_of
from fastsc.pipelines.tar import BLOCK
from fastsc.pipelines.threads import default_workers, in_order
from fastsc.pipelines.walk import is_system

TIMEOUT = 120.0  # seconds for one image
_END = bytes(2 * BLOCK)


File = tuple[str, bytes]  # a member's name and content


@dataclass(frozen=True)
class Shrink:
    """How images are shrunk that are larger; the others stay as they are.

    Attributes:
        side: Longer side at most, in pixels (area-averaged).
        quality: Of the JPEGs that they become, 1 to 100; what was a PNG stays one.
        exact_decode: Decode every pixel, also of JPEGs that are shrunk to a half or less.
    """

    side: int
    quality: int = 90
    exact_decode: bool = False

    def __call__(self, name: str, encoded: bytes, header: Header, decode: Decoder) -> File:
        """Name and content of a file that is shrunk.

        Raises:
            DecodeError: It cannot be decoded.
        """
        height, width = header.height, header.width
        if (size := shrunk(height, width, self.side)) == (height, width):
            return name, encoded
        side = None if self.exact_decode else self.side
        pixels, k = decode_to_shrink(encoded, header, decode, side)
        image = Image.fromarray(pixels).resize(
            size[::-1], Image.Resampling.BOX, box=(0, 0, width / k, height / k)
        )
        is_png = encoded.startswith(b"\x89PNG")
        buffer = io.BytesIO()
        image.save(buffer, "PNG" if is_png else "JPEG", quality=self.quality)
        is_same = is_png or encoded.startswith(b"\xff\xd8\xff")
        return name if is_same else f"{name}.jpg", buffer.getvalue()


def write_tars(
    index: Index,
    folder: Path,
    shard_size: int,
    *,
    shrink: Shrink | None = None,
    on_bad_image: OnBadImage = "raise",
    workers: int | None = None,
    title: str | None = None,
) -> dict[int, str]:
    """Writes every file of an index into FOLDER/00000.tar, 00001.tar, …, and reads them back.

    Files whose header is broken are among them, so that the tars' index is the folder's; but not
    where images are shrunk.

    Args:
        index: Of a folder of class folders, or of tars of them.
        folder: Where to; made here.
        shard_size: Bytes of a tar at most, unless a single image is larger.
        shrink: How larger images are shrunk; None: none are.
        on_bad_image: "raise" a UserError at a file that cannot be read, or be shrunk; or "skip" it.
        workers: Threads that read. Default: the cores that this process may use, at most 16.
        title: Of a progress bar, shown on a terminal.

    Returns:
        Dataset index -> reason, of the files that could not be read, or not be shrunk.

    Raises:
        UserError: A file cannot be read and on_bad_image is "raise", takes longer than TIMEOUT, or
            lies in no class folder; the tars cannot be written, or do not read back.
    """
    index.require(on_bad_image)
    for name, target in zip(index.paths, index.targets.tolist(), strict=True):
        if not name.startswith(f"{index.classes[target]}/"):
            raise UserError(
                f"{index.root}: {name} does not lie in a folder of its class, "
                f"{index.classes[target]}, and a tar could not tell it"
            )
        if any(part in ("", ".", "..") or is_system(part) for part in name.split("/")):
            raise UserError(
                f"{index.root}: a tar would not give {name} back, since who reads it passes over "
                "such names; rename it"
            )
    decode, skipped = pick()[1], dict[int, str]()

    def read(i: int) -> File | str:
        try:
            if shrink is not None and i in index.left_out:
                return index.left_out[i]
            name, content = index.paths[i], read_file(index.place(i))
            if shrink is None:
                return name, content
            height, width = int(index.heights[i]), int(index.widths[i])
            header = Header(height, width, by_pillow=i in index.by_pillow)
            return shrink(name, content, header, decode)
        except DecodeError as error:
            return str(error)

    def skip(i: int, reason: str) -> None:
        skipped[i] = reason
        index.without(skipped).require(on_bad_image)

    files = in_order(
        read,
        range(len(index)),
        workers=workers or default_workers(),
        name="fastsc-read",
        timeout=TIMEOUT,
        describe=index.path,
    )
    made = tracked(files, title, len(index)) if title else files
    with closing(files):
        _pack(folder, shard_size, made, skip)
    return skipped


def write_table(
    table: Table,
    folder: Path,
    shard_size: int,
    *,
    shrink: Shrink | None = None,
    on_bad_image: OnBadImage = "raise",
    every_class: bool = False,
    workers: int | None = None,
    title: str | None = None,
) -> tuple[int, list[str]]:
    """Writes the images of Parquet files into tars as `write_tars` does, a few rows at a time.

    Args:
        table: What to write.
        folder: Where to; made here.
        shard_size, shrink, on_bad_image, workers, title: As there.
        every_class: Refuse to leave out all rows of a class: training numbers the classes by what
            is in its tars, and those behind it would get other numbers.

    Returns:
        How many there are; and of each row that is no image of a class, which it is and why.

    Raises:
        UserError: There is such a row and on_bad_image is "raise", or no other; a file is damaged;
            a class would be lost; the tars cannot be written, or do not read back.
    """
    decode, skipped = pick()[1], list[str]()
    keys = Keys(table.columns, str(table.files[0]))
    there, kept = set[str](), set[str]()  # class folders

    def keyed() -> Iterator[tuple[Path, Row, str | RowError]]:
        for path, row in table.rows():
            try:
                key = keys(row)
                there.add(key.split("/")[0])
                yield path, row, key
            except RowError as error:
                yield path, row, error

    def read(named: tuple[Path, Row, str | RowError]) -> File | str:
        path, row, key = named
        try:
            if isinstance(key, RowError):
                raise key
            content, header = checked(row)
            return (key, content) if shrink is None else shrink(key, content, header, decode)
        except (DecodeError, RowError) as error:
            return f"{path}: row {row.number}: {error}"

    def skip(_: int, reason: str) -> None:
        skipped.append(reason)
        if on_bad_image == "raise":
            raise UserError(
                f"{reason}; mend or remove it, or leave such rows out with --on-bad-image skip"
            )

    def noted(files: Iterable[File | str]) -> Iterator[File | str]:
        for file in files:
            if not isinstance(file, str):
                kept.add(file[0].split("/")[0])
            yield file

    files = in_order(
        read,
        keyed(),
        workers=workers or default_workers(),
        name="fastsc-read",
        timeout=TIMEOUT,
        describe=lambda named: f"{named[0]}: row {named[1].number}",
    )
    made = tracked(files, title, table.n) if title else files
    with closing(files):
        n = _pack(folder, shard_size, noted(made), skip)
    if not n:
        raise UserError(f"{table.files[0]}: none of its {table.n} rows can be used")
    if every_class and (lost := sorted(there - kept)):
        raise UserError(
            f"{table.files[0].parent}: none of the rows of class {lost[0]} can be written; mend "
            "them, or remove them"
        )
    return n, skipped


def _pack(
    folder: Path, shard_size: int, files: Iterable[File | str], skip: Callable[[int, str], None]
) -> int:
    """Writes files, skips the reasons for which others are none, and reads back what it wrote.

    Returns:
        How many there are.
    """
    sums = dict[str, int]()
    try:
        folder.mkdir(parents=True)
        tars = _Tars(folder, shard_size)
        for i, file in enumerate(files):
            if isinstance(file, str):
                skip(i, file)
                continue
            if file[0] in sums:  # x.bmp, which --resize makes x.bmp.jpg, and one called so before
                skip(i, f"there is another {file[0]} among what is written")
                continue
            with doing(f"writing {folder}"):
                tars.add(*file)
            sums[file[0]] = zlib.crc32(file[1])
        tars.finish()
        n = len(sums)
        if n:
            _verify(folder, sums)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror})") from None
    except StalledError as stalled:
        raise UserError(f"{stalled}; is its disk there?") from None
    return n


class _Tars:
    """The tar at hand, and the next one where it is full."""

    def __init__(self, folder: Path, size: int) -> None:
        self._folder, self._size, self._n = folder, size, 0
        self._file: BinaryIO | None = None

    def add(self, name: str, content: bytes) -> None:
        """Appends a file. The same files give the same bytes: dates and owners are nobody's."""
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        header = entry.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
        n_bytes = len(header) + len(content) + -len(content) % BLOCK
        if self._file is not None and self._file.tell() + n_bytes + len(_END) > self._size:
            self.finish()
        if self._file is None:
            self._file = open(self._folder / f"{self._n:05d}.tar", "xb")  # noqa: SIM115, finish()
            self._n += 1
        for part in (header, content, bytes(-len(content) % BLOCK)):
            self._file.write(part)

    def finish(self) -> None:
        """Ends the tar at hand, if there is one."""
        if self._file is not None:
            with doing(f"writing {self._file.name}"), self._file as file:
                file.write(_END)
                file.flush()
                os.fsync(file.fileno())
                # What is read back comes from the disk.
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            self._file = None


def _verify(folder: Path, sums: dict[str, int]) -> None:
    """Raises UserError where the tars do not hold exactly these files: name -> CRC-32."""
    for path, name, total in _read_back(folder):
        if sums.pop(name, None) != total:
            raise UserError(f"{path}/{name}: does not read back; is the disk sound?")
    if sums:
        raise UserError(f"{folder}: {next(iter(sums))} does not read back; is the disk sound?")


def _read_back(folder: Path) -> Iterator[tuple[str, str, int]]:
    shards = opened(shards_of(folder))
    held = contents(folder, shards, None, use_cache=False, progress=False)
    for fault in held.faults:
        raise UserError(f"{fault.path}: does not read back ({fault.reason}); is the disk sound?")
    columns = (held.shard.tolist(), held.offsets.tolist(), held.n_bytes.tolist())
    for name, shard, offset, n_bytes in zip(held.names, *columns, strict=True):
        with doing(f"reading {shards[shard].path}"):
            content = shards[shard].read(n_bytes, offset)
        yield shards[shard].path, name, zlib.crc32(content)
