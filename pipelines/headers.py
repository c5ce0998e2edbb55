"""What a file's header and tail tell about it, before any decoder sees its body."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import BinaryIO, NamedTuple

from PIL import Image, UnidentifiedImageError

# What PIL itself refuses as a decompression bomb: twice its warning's size.
MAX_PIXELS = 178_956_970
MIN_SIDE = 2  # pixels; a 1 × 1 image is a tracking pixel or a broken download
JPEG_TAIL = 64 * 1024

_END_OF_IMAGE = b"\xff\xd9"
_START_OF_SCAN = b"\xff\xda"
# In entropy-coded data 0xFF is followed by a stuffed zero, a restart marker or a fill byte.
_ILLEGAL_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


class Header(NamedTuple):
    """Size of an image that looks whole, or why it does not."""

    height: int
    width: int
    reason: str | None = None


# Parses a header as the decoder that will run does; raises RuntimeError where it cannot.
Parser = Callable[[str], tuple[int, int]]


def read_header(path: str, n_bytes: int, parse: Parser | None = None) -> Header:
    """Checks one file without decoding it.

    Args:
        path: The file.
        n_bytes: Its size on disk.
        parse: The decoder's own parser, returning (height, width): what it cannot parse is left
            out, since DALI can crash the interpreter on it.

    Returns:
        Height and width in pixels, EXIF orientation ignored, and None; or zeros and the reason.
    """
    if n_bytes == 0:
        return Header(0, 0, "empty file")
    try:
        with open(path, "rb") as file:
            size, is_jpeg = _pil_size(file)
            reason = _size_reason(*size)
            if reason is None and is_jpeg:
                reason = _jpeg_tail_reason(file, n_bytes)
    except OSError as error:
        return Header(0, 0, _os_reason(error))
    if reason is None and parse is not None:
        try:
            size = parse(path)
        except RuntimeError as error:
            reason = f"its header cannot be parsed ({error})"
    return Header(0, 0, reason) if reason else Header(*size)


def _pil_size(file: BinaryIO) -> tuple[tuple[int, int], bool]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # size is judged here, by one rule for all decoders
        try:
            image = Image.open(file)
        except Image.DecompressionBombError as error:
            raise OSError(f"decompression bomb: {error}") from None
        except (ValueError, SyntaxError, EOFError, TypeError, IndexError) as error:
            # PIL's parsers raise these on headers cut or scrambled in odd places.
            raise OSError(f"broken header: {error}") from None
    width, height = image.size
    return (height, width), image.format in ("JPEG", "MPO")


def _size_reason(height: int, width: int) -> str | None:
    if height * width > MAX_PIXELS:
        return f"{width}×{height} pixels: a decompression bomb"
    if min(height, width) < MIN_SIDE:
        return f"{width}×{height} pixels: too small"
    return None


def _jpeg_tail_reason(file: BinaryIO, n_bytes: int) -> str | None:
    """Looks for the end marker, and for bytes that no entropy coder writes in front of it."""
    file.seek(max(0, n_bytes - JPEG_TAIL))
    tail = file.read(JPEG_TAIL)
    end = tail.rfind(_END_OF_IMAGE)
    if end < 0:
        return "truncated JPEG: no end marker in its last 64 KB"
    scan = tail.rfind(_START_OF_SCAN, 0, end)
    # No scan's start in the tail: it began earlier, and all of the tail is its data.
    body = scan + 2 + int.from_bytes(tail[scan + 2 : scan + 4], "big") if scan >= 0 else 0
    if _ILLEGAL_MARKER.search(tail, body, end):
        return "corrupt JPEG: an illegal marker in its compressed data"
    return None


def _os_reason(error: OSError) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    return error.strerror or str(error)
