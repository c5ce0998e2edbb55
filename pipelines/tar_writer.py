"""Writes an image folder into tars of class folders, and reads them back."""

from __future__ import annotations

import io
import os
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from fastsc.pipelines.decode import DecodeError, Decoder, pick
from fastsc.pipelines.disk import doing
from fastsc.pipelines.errors import StalledError, UserError
from fastsc.pipelines.files import read_file
from fastsc.pipelines.index import Index
from fastsc.pipelines.plan import OnBadImage
from fastsc.pipelines.progress import tracked
from fastsc.pipelines.scaled import decode_to_shrink, shrunk
from fastsc.pipelines.shards import contents, opened, shards_of
from fastsc.pipelines.tar import BLOCK
from fastsc.pipelines.threads import default_workers, in_order

TIMEOUT = 120.0  # seconds for one image
_END = bytes(2 * BLOCK)


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

    def __call__(self, index: Index, i: int, encoded: bytes, decode: Decoder) -> tuple[str, bytes]:
        """Name and content of a dataset index's file.

        Raises:
            DecodeError: It cannot be decoded.
        """
        name, height, width = index.paths[i], int(index.heights[i]), int(index.widths[i])
        if (size := shrunk(height, width, self.side)) == (height, width):
            return name, encoded
        side = None if self.exact_decode else self.side
        pixels, k = decode_to_shrink(index, i, encoded, decode, side)
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
        Dataset index -> reason, of the files that could not be read.

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

    decode = pick()[1]

    def read(i: int) -> tuple[str, bytes] | str:
        try:
            if shrink is not None and i in index.left_out:
                return index.left_out[i]
            content = read_file(index.place(i))
            if shrink is not None:
                return shrink(index, i, content, decode)
            return index.paths[i], content
        except DecodeError as error:
            return str(error)

    contents_of = in_order(
        read,
        range(len(index)),
        workers=workers or default_workers(),
        name="fastsc-read",
        timeout=TIMEOUT,
        describe=index.path,
    )
    made = enumerate(contents_of)
    skipped, sums = dict[int, str](), dict[str, int]()
    try:
        folder.mkdir(parents=True)
        tars = _Tars(folder, shard_size)
        for i, file in tracked(made, title, len(index)) if title else made:
            if isinstance(file, str):
                skipped[i] = file
                index.without(skipped).require(on_bad_image)
                continue
            with doing(f"writing {folder}"):
                tars.add(*file)
            sums[file[0]] = zlib.crc32(file[1])
        tars.finish()
        _verify(folder, sums)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror})") from None
    except StalledError as stalled:
        raise UserError(f"{stalled}; is its disk there?") from None
    finally:
        contents_of.close()
    return skipped


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
