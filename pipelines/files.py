"""Where an image's bytes are, and reading them if they are still those that were indexed."""

from __future__ import annotations

import errno
import io
import os
import resource
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastsc.pipelines.decode import DecodeError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer as Buffer

TRAIN_BETON, VAL_BETON = "train.beton", "val.beton"  # in the folder that --data names
# Shards of an index that stay open: of the files that a process may have, usually 1,024, a quarter.
MAX_OPEN = min(4096, max(256, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4))


class Shard:
    """A file that holds many images. It is opened when first read, by whichever thread, and stays
    open if it is one of the first MAX_OPEN of its index.

    Attributes:
        path: The file.
        n_bytes, time: Its size, and when it last changed, in nanoseconds, at the time of the scan.
    """

    def __init__(self, path: str, n_bytes: int, time: int, *, stays_open: bool = True) -> None:
        self.path, self.n_bytes, self.time = path, n_bytes, time
        self._stays_open = stays_open
        self._held: dict[str, int] = {}

    def read(self, n_bytes: int, offset: int) -> bytes:
        """So many bytes from an offset on.

        Raises:
            OSError: The shard cannot be read, or is another than at the scan.
        """
        buffer = bytearray(n_bytes)
        self.read_into(memoryview(buffer), offset)
        return bytes(buffer)

    def read_into(self, view: memoryview, offset: int) -> None:
        """Fills a writable view of bytes; raises as `read` does."""
        self._check(os.stat(self.path))  # by its name: one that has taken its place is another
        file = self._held.get(self.path, -1)
        opened, kept = file < 0, False
        if opened:
            file = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if opened:
                self._check(os.fstat(file))  # another may have come since it was looked up
            done = 0
            while done < len(view):
                if not (n := os.preadv(file, [view[done:]], offset + done)):
                    raise OSError(errno.EIO, "the shard has been cut", self.path)
                done += n
            # Of two threads that open it at once, the later one closes its own.
            kept = opened and self._stays_open and self._held.setdefault(self.path, file) == file
        finally:
            if opened and not kept:
                os.close(file)

    @property
    def is_there(self) -> bool:
        """Whether its folder still is."""
        return os.path.exists(os.path.dirname(self.path))

    def _check(self, stat: os.stat_result) -> None:
        if (stat.st_size, stat.st_mtime_ns) != (self.n_bytes, self.time):
            raise OSError(errno.ESTALE, "the shard has changed since it was indexed", self.path)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        for file in self._held.values():
            close(file)


class Held:
    """Like a `Shard`, and in memory: images that are files nowhere."""

    def __init__(self, path: str, content: bytes) -> None:
        self.path, self.n_bytes, self.time, self._content = path, len(content), 0, content

    def read(self, n_bytes: int, offset: int) -> bytes:
        """So many bytes from an offset on."""
        return self._content[offset : offset + n_bytes]

    def read_into(self, view: memoryview, offset: int) -> None:
        """Fills a writable view of bytes."""
        view[:] = self._content[offset : offset + len(view)]

    @property
    def is_there(self) -> bool:
        return True


class Place(NamedTuple):
    """Where an image's bytes are: a file of its own, or a part of a shard."""

    path: str  # of the file or the shard
    n_bytes: int
    shard: Shard | Held | None = None
    offset: int = 0

    def open(self) -> BinaryIO:
        """The part of the shard as a file; reading it raises as `Shard.read` does."""
        return io.BufferedReader(_Part(self))


class _Part(io.RawIOBase):
    """A part of a shard, read by `pread` where it is asked for."""

    def __init__(self, place: Place) -> None:
        self._place, self._at = place, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._place.n_bytes}[whence]
        self._at = max(0, start + offset)
        return self._at

    def readinto(self, buffer: Buffer) -> int:
        place, view = self._place, memoryview(buffer).cast("B")
        assert place.shard is not None, "a file is opened by its name"
        n = max(0, min(len(view), place.n_bytes - self._at))
        place.shard.read_into(view[:n], place.offset + self._at)
        self._at += n
        return n


@dataclass(frozen=True, eq=False)
class Members:
    """The places of an index's images in its shards; rows are dataset indices."""

    shards: tuple[Shard | Held, ...]
    shard: NDArray[np.int32]  # (n,) positions in `shards`
    offsets: NDArray[np.int64]  # (n,) bytes from the shard's start

    def place(self, index: int, n_bytes: int) -> Place:
        """The place of an image of so many bytes."""
        shard = self.shards[self.shard[index]]
        return Place(shard.path, n_bytes, shard, int(self.offsets[index]))

    def part(self, rows: NDArray[np.int64]) -> Members:
        """The places of some rows."""
        return Members(self.shards, self.shard[rows], self.offsets[rows])


def read_into(place: Place, slot: NDArray[np.uint8]) -> None:
    """Fills a slot of the image's indexed size with its bytes.

    Raises:
        DecodeError: The file is gone, unreadable, or has changed.
    """
    try:
        if place.shard is not None:
            place.shard.read_into(slot.data, place.offset)
            return
        # Unbuffered: Python's buffer would be one more copy and system call.
        with open(place.path, "rb", buffering=0) as file:
            view, done = slot.data, 0
            while done < len(slot) and (n := file.readinto(view[done:])):
                done += n
            if done < len(slot) or file.read(1):
                raise DecodeError(f"has changed since it was indexed ({len(slot)} bytes then)")
    except OSError as error:
        raise DecodeError(f"cannot be read ({error.strerror})") from None


def read_file(place: Place) -> bytes:
    """An image's bytes; raises as `read_into` does."""
    try:
        if place.shard is not None:
            return place.shard.read(place.n_bytes, place.offset)
        with open(place.path, "rb", buffering=0) as file:
            encoded = file.read(place.n_bytes + 1)  # a device would never end
            while len(encoded) < place.n_bytes and (
                more := file.read(place.n_bytes + 1 - len(encoded))
            ):
                encoded += more  # a network's disk may give fewer at a time
    except OSError as error:
        raise DecodeError(f"cannot be read ({error.strerror})") from None
    if len(encoded) != place.n_bytes:
        raise DecodeError(f"has changed since it was indexed ({place.n_bytes} bytes then)")
    return encoded
