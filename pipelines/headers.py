"""What a file's header and tail tell about it, before any decoder sees its body."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import takewhile
from typing import BinaryIO, NamedTuple

from PIL import Image, UnidentifiedImageError

from fastsc.pipelines import formats
from fastsc.pipelines.reading import open_file

# What PIL itself refuses as a decompression bomb: twice its warning's size.
MAX_PIXELS = 178_956_970
MIN_SIDE = 2  # pixels; a 1 × 1 image is a tracking pixel or a broken download
JPEG_TAIL = 64 * 1024
MAX_SCANS = 100  # of a JPEG; each is decoded over the whole image, and encoders write about ten

_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_SEQUENTIAL = (0xC0, 0xC1, 0xC3, 0xC9, 0xCB)  # frames that are not progressive
# In entropy-coded data 0xFF is followed by a stuffed zero, a restart marker or a fill byte.
# Anything else is a marker.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
# What may stand there: scans, tables, DNL, DRI, applications' segments, comments.
_BETWEEN_SCANS = {_START_OF_SCAN, 0xC4, 0xDB, 0xDC, 0xDD, 0xFE, *range(0xE0, 0xF0)}


class Header(NamedTuple):
    """Size of an image that looks whole, or why it does not."""

    height: int
    width: int
    reason: str | None = None
    passing: bool = False  # the disk's fault or a permission, not the file's: look again next time
    by_pillow: bool = False  # no JPEG or PNG that all decoders read alike


class HeaderError(Exception):
    """A header that cannot be read; the message is the reason."""


# Parses the header of a file, or of its bytes, as the decoder that will run does; raises
# RuntimeError where it cannot.
Parser = Callable[[str | bytes], tuple[int, int]]


def read_header(source: str | BinaryIO, n_bytes: int, parse: Parser | None = None) -> Header:
    """Checks one image without decoding it.

    Args:
        source: Its file's name, or the opened file.
        n_bytes: Its size.
        parse: The decoder's own parser, returning (height, width): of the files that it will
            decode, what it cannot parse is left out, since DALI can crash the interpreter on it.

    Returns:
        Height and width in pixels, EXIF orientation ignored, and None; or zeros and the reason.
    """
    if n_bytes == 0:
        return Header(0, 0, "empty file")
    try:
        with open_file(source) if isinstance(source, str) else source as file:
            image = _opened(file)
            width, height = image.size
            by_pillow = formats.by_pillow(image)
            reason = _size_reason(height, width) or formats.refusal(image)
            if reason is None and image.format in ("JPEG", "MPO"):
                reason = _jpeg_reason(file, n_bytes)
            if reason is None and parse is not None and not by_pillow:
                head = source if isinstance(source, str) else _head(file, image.format)
                height, width = parse(head)
    except HeaderError as error:
        return Header(0, 0, str(error))
    except OSError as error:
        return Header(0, 0, error.strerror or str(error), passing=True)
    except RuntimeError as error:
        reason = f"its header cannot be parsed ({error})"
    return Header(0, 0, reason) if reason else Header(height, width, by_pillow=by_pillow)


def _head(file: BinaryIO, kind: str | None) -> bytes:
    """What a parser of headers wants of an image: of a JPEG the segments before its first scan."""
    scan = _first_scan(file)[0] if kind in ("JPEG", "MPO") else None
    file.seek(0)
    return file.read() if scan is None else file.read(scan + JPEG_TAIL)


def _opened(file: BinaryIO) -> Image.Image:
    try:
        return Image.open(file, formats=formats.TAKEN)
    except Image.DecompressionBombError as error:
        raise HeaderError(f"decompression bomb: {error}") from None
    except UnidentifiedImageError:
        file.seek(0)
        raise HeaderError(formats.named(file.read(formats.HEAD))) from None
    except (ValueError, SyntaxError, EOFError, TypeError, IndexError, OverflowError) as error:
        # PIL's parsers raise these on headers cut or scrambled in odd places.
        raise HeaderError(f"broken header: {error}") from None
    except OSError as error:
        if error.errno is not None:
            raise
        raise HeaderError(f"broken header: {error}") from None


def _size_reason(height: int, width: int) -> str | None:
    if height * width > MAX_PIXELS:
        return f"{width}×{height} pixels: a decompression bomb"
    if min(height, width) < MIN_SIDE:
        return f"{width}×{height} pixels: too small"
    return None


def _jpeg_reason(file: BinaryIO, n_bytes: int) -> str | None:
    """Looks for the end marker in the last 64 KB, and before it for bytes that no coder writes.

    What looks wrong is then read whole, and only that decides: behind the end of a whole image may
    lie a phone's video.
    """
    file.seek(0)
    scan, n_components = _first_scan(file)
    if scan is None:
        return "truncated JPEG: no image data"
    if _has_many_scans(file, scan, n_components):
        return f"a JPEG of more than {MAX_SCANS} scans, which takes minutes to decode"
    file.seek(max(scan, n_bytes - JPEG_TAIL))  # not before: a thumbnail has an end marker, too
    tail = file.read(JPEG_TAIL)
    end = tail.rfind(b"\xff\xd9")
    last = tail.rfind(b"\xff\xda", 0, max(end, 0))
    # No scan's start in the tail: it began earlier, and all of the tail is its data.
    body = last + 2 + int.from_bytes(tail[last + 2 : last + 4], "big") if last >= 0 else 0
    if end >= 0 and not _MARKER.search(tail, body, end):
        return None
    file.seek(scan)
    return _scans_reason(file.read())


def _first_scan(file: BinaryIO) -> tuple[int | None, int]:
    """Where the first scan's marker is, from segment to segment (ITU T.81, B.1.1).

    Returns:
        The offset, None where there is no scan; and the components of a frame that needs no other
        scan if its first has them all, 0 of a progressive one.
    """
    at, n_components = 2, 0
    while True:
        file.seek(at)
        head = file.read(4)
        if len(head) < 4 or head[0] != 0xFF:
            return None, 0
        if head[1] == _START_OF_SCAN:
            return at, n_components
        if head[1] in _SEQUENTIAL:
            n_components = int.from_bytes(file.read(6)[5:6], "big")
        at += 1 if head[1] == 0xFF else 2 + int.from_bytes(head[2:], "big")


def _has_many_scans(file: BinaryIO, scan: int, n_components: int) -> bool:
    """Whether a JPEG has more than MAX_SCANS; one of a single scan is not read for that."""
    file.seek(scan + 4)
    in_first = file.read(1)
    if n_components and in_first == bytes([n_components]):
        return False
    file.seek(scan)
    scans = file.read()
    if scans.count(b"\xff\xda") <= MAX_SCANS:
        return False
    markers = takewhile(lambda marker: marker != _END_OF_IMAGE, _markers(scans))
    return sum(marker == _START_OF_SCAN for marker in markers) > MAX_SCANS


def _scans_reason(scans: bytes) -> str | None:
    """Walks from the first scan's marker to the end of the image; what follows is ignored."""
    for marker in _markers(scans):
        if marker == _END_OF_IMAGE:
            return None
        if marker not in _BETWEEN_SCANS:
            return "corrupt JPEG: an illegal marker in its compressed data"
    return "truncated JPEG: no end marker"


def _markers(scans: bytes) -> Iterator[int]:
    """The markers from the first scan's on, each segment's data passed over."""
    at = 0
    while match := _MARKER.search(scans, at):
        at = match.start()
        yield scans[at + 1]
        at += 2 + int.from_bytes(scans[at + 2 : at + 4], "big")
