"""Walks the headers of a tar: ustar, GNU's and PAX's, by `pread`, without touching what is between.

Python's tarfile makes an object of some forty attributes per member, and wants them in order; a
million of them would take minutes. What a header may say is in POSIX's pax(1) and GNU tar's manual,
"Basic Tar Format".
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

from fastsc.pipelines.disk import doing

BLOCK = 512
_READ = 2 * BLOCK  # a header, and the little that a label's file holds
_ZEROS = bytes(BLOCK)
_MAX_RECORDS = 2**20  # bytes of a long name or of PAX records
_FILE, _SPARSE, _LINKS = b"0\0" + b"7", b"S", b"12"
_WITHOUT_DATA = b"123456"  # links, devices, folders, pipes, whatever size they claim
_LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL = b"L", b"K", b"xX", b"g"


class TarError(Exception):
    """What is wrong with a tar, from some byte on; `name`: the member that it is about, or ""."""

    def __init__(self, reason: str, name: str = "") -> None:
        super().__init__(reason)
        self.name = name


class Member(NamedTuple):
    """A file in a tar."""

    name: str
    offset: int  # of its content, in bytes from the tar's start
    n_bytes: int
    refusal: str | None  # why its content cannot be read from there
    head: bytes  # the first bytes of its content, if not all


def members(path: str, file: int, size: int) -> Iterator[Member]:
    """The files in a tar, links and sparse ones with the reason why they are of no use.

    Args:
        path: What the disk is asked for, if it hangs.
        file: A descriptor of the tar.
        size: Its bytes.

    Raises:
        TarError: It is none, or damaged: behind what was yielded, nothing can be read.
        OSError: It cannot be read.
    """
    start, long_name, pax, everywhere = 0, "", dict[bytes, bytes](), dict[bytes, bytes]()
    while True:
        block = read_at(path, file, _READ, start)
        header = block[:BLOCK]
        if len(header) < BLOCK:
            what = "in a header" if header else "without an end mark"
            raise TarError(f"truncated: it ends {what}, at byte {size}")
        if header == _ZEROS:
            _require_zeros(path, file, start, size)
            return
        _check(header, start)
        kind, n_bytes = header[156:157], _number(header[124:136], start)
        data = start + BLOCK
        if kind in _LONG_NAME + _LONG_LINK + _PAX + _PAX_GLOBAL:
            if n_bytes > _MAX_RECORDS:
                raise TarError(f"the header at byte {start} claims a name of {n_bytes:,} bytes")
            if data + n_bytes > size:
                raise TarError(f"truncated: it ends in the name at byte {start}")
            content = _content(path, file, block, data, n_bytes)
            if kind == _LONG_NAME:
                long_name = os.fsdecode(content.split(b"\0", 1)[0])
            elif kind in _PAX:
                pax = _records(content, start)
            elif kind == _PAX_GLOBAL:
                everywhere |= _records(content, start)
            start = data + -(-n_bytes // BLOCK) * BLOCK
            continue
        records = everywhere | pax
        sparse = kind == _SPARSE or any(key.startswith(b"GNU.sparse.") for key in records)
        name = _name(header, long_name, records)
        if b"size" in records:
            n_bytes = _decimal(records[b"size"], start)
        long_name, pax = "", {}
        if kind in _WITHOUT_DATA:
            n_bytes = 0
        if kind == _SPARSE:
            data = _behind_maps(path, file, header, data)
        if data + n_bytes > size:
            missing = data + n_bytes - size
            raise TarError(f"truncated: its last {missing:,} bytes are missing", name)
        if sparse:
            yield Member(name, data, n_bytes, f"a sparse file; {_AGAIN} without --sparse", b"")
        elif kind in _LINKS:
            what = f"a link to {os.fsdecode(header[157:257].split(bytes(1), 1)[0])}"
            how = "with --dereference --hard-dereference"
            yield Member(name, data, 0, f"{what}; {_AGAIN} {how}", b"")
        elif kind in _FILE and not name.endswith("/"):  # of old, a folder's name ends so
            yield Member(name, data, n_bytes, None, block[BLOCK:])
        start = data + -(-n_bytes // BLOCK) * BLOCK


_AGAIN = "make the tar again"


def _name(header: bytes, long_name: str, records: dict[bytes, bytes]) -> str:
    for key in (b"GNU.sparse.name", b"path"):
        if key in records:
            return os.fsdecode(records[key])
    if long_name:
        return long_name
    name = header[:100].split(b"\0", 1)[0]
    if header[257:263] == b"ustar\0":  # GNU's own has other things there
        prefix = header[345:500].split(b"\0", 1)[0]
        name = prefix + b"/" + name if prefix else name
    return os.fsdecode(name)


def _check(header: bytes, start: int) -> None:
    """Raises TarError where the checksum is another: of bytes, or as some sum them up, signed."""
    field = header[148:156]
    try:
        stored = int(field.split(b"\0", 1)[0].strip() or b"0", 8)
    except ValueError:
        stored = -1
    total = sum(header) - sum(field) + 8 * ord(" ")
    if stored == total:
        return
    signed = total - 256 * sum(byte > 127 for byte in header[:148] + header[156:])
    if stored != signed:
        if start == 0:
            raise TarError("not a tar: its first header has no checksum that fits")
        raise TarError(f"damaged: the checksum of the header at byte {start} does not fit")


def _number(field: bytes, start: int) -> int:
    """A size: octal digits, or behind a set bit a number to the base 256."""
    if field[0] & 0x80:
        number = int.from_bytes(field, "big", signed=True) if field[0] == 0xFF else (
            int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
        )  # fmt: skip
        if number >= 0:
            return number
    else:
        digits = field.split(b"\0", 1)[0].strip()
        if not digits:
            return 0
        if all(0x30 <= digit <= 0x37 for digit in digits):
            return int(digits, 8)
    raise TarError(f"damaged: the header at byte {start} has no size")


def _decimal(text: bytes, start: int) -> int:
    if not text.isdigit() or len(text) > 20:
        raise TarError(f"damaged: the PAX records at byte {start} have no size")
    return int(text)


def _records(content: bytes, start: int) -> dict[bytes, bytes]:
    """PAX's records: "LENGTH KEY=VALUE\\n" each, the length of all of it."""
    records, begin = dict[bytes, bytes](), 0
    while begin < len(content):
        digits, space, _ = content[begin : begin + 20].partition(b" ")
        end = begin + int(digits) if space and digits.isdigit() else 0
        key, equals, value = content[begin + len(digits) + 1 : end - 1].partition(b"=")
        if not begin < end <= len(content) or content[end - 1 : end] != b"\n" or not equals:
            raise TarError(f"damaged: the PAX records at byte {start} cannot be read")
        records[key] = value
        begin = end
    return records


def _behind_maps(path: str, file: int, header: bytes, data: int) -> int:
    """Where the content of an old GNU sparse file begins, behind further maps of its holes."""
    more = header[482]
    while more:
        block = read_at(path, file, BLOCK, data)
        if len(block) < BLOCK:
            raise TarError("truncated: it ends in the map of a sparse file")
        data, more = data + BLOCK, block[504]
    return data


def _require_zeros(path: str, file: int, start: int, size: int) -> None:
    """Raises TarError where the end mark is a page that was lost, or another tar follows it."""
    end = start
    while block := read_at(path, file, 2**20, end):
        if block.count(0) < len(block):
            raise TarError(f"damaged: zeros at byte {start} of {size}, and more behind them")
        end += len(block)


def _content(path: str, file: int, block: bytes, data: int, n_bytes: int) -> bytes:
    head = block[BLOCK : BLOCK + n_bytes]
    return head if len(head) == n_bytes else read_at(path, file, n_bytes, data)


def read_at(path: str, file: int, n_bytes: int, offset: int) -> bytes:
    """That many bytes, or those up to the end: a network's disk may give fewer at a time."""
    with doing(f"reading {path}"):
        content = os.pread(file, n_bytes, offset)
        while len(content) < n_bytes and (
            more := os.pread(file, n_bytes - len(content), offset + len(content))
        ):
            content += more
        return content
