"""JPEGs at a half, a quarter or an eighth of their size, for crops much larger than the output.

libjpeg-turbo scales in the DCT domain: of each block of 8 × 8 pixels it makes 4 × 4, 2 × 2 or 1.
What is left of a large photograph's decoding is the reading of its Huffman codes, and that ends
where the crop does.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable
from functools import cache

import numpy as np
from PIL import Image

from fastsc.pipelines import formats
from fastsc.pipelines.decode import RGB8, Decoder, decoded
from fastsc.pipelines.headers import Header

Box = tuple[int, int, int, int]  # top, left, height, width
DIVISORS = (8, 4, 2)
_MCU = 32  # rows of a JPEG's units of coding at most: 8, times a sampling factor of up to 4
_BASELINE = (0xC0, 0xC1)  # frames of Huffman codes, one scan after the other from top to bottom


def divisor(height: int, width: int, size: int) -> int:
    """By how much an image may be scaled down that is then resized to size × size: 8, 4, 2 or 1."""
    return next((k for k in DIVISORS if min(height, width) >= k * size), 1)


def divisor_of_crop(image_width: int, box: Box, size: int) -> int:
    """`divisor` of a box that is cut out of an image; 1 where that would be no less work.

    What is scaled is all of the image down to the box's end; what is decoded otherwise is the box.
    """
    top, _, height, width = box
    k = divisor(height, width, size)
    return k if k * k * height * width >= image_width * (top + height) else 1


def decode_scaled(encoded: bytes, height: int, width: int, k: int, end: int) -> RGB8 | None:
    """The rows of a JPEG down to `end`, scaled down.

    All decoders are the same libjpeg-turbo, and give the same pixels.

    Args:
        encoded: The file.
        height, width: Of the image.
        k: 2, 4 or 8.
        end: Rows that are wanted, of the image.

    Returns:
        (h, ⌈width / k⌉, 3) with h ≥ ⌈end / k⌉: each pixel stands for k × k. None where the file is
        no such JPEG, or the decoder refuses it; damage that it can read over is read over.
    """
    if encoded[:3] != b"\xff\xd8\xff":
        return None
    rows = (-(-end // _MCU) + 1) * _MCU  # one unit more, out of which chroma is interpolated
    is_cut = False
    if rows < height and (at := _height_field(encoded, height)) is not None:
        encoded = encoded[:at] + rows.to_bytes(2, "big") + encoded[at + 2 :]
        height, is_cut = rows, True
    image = _decoder()(encoded, -(-height // k), -(-width // k), is_cut)
    return None if image is None or image.shape != (-(-height // k), -(-width // k), 3) else image


def _height_field(encoded: bytes, height: int) -> int | None:
    """Where a JPEG's frame has its height, if all of its data is in one scan (ITU T.81, B.2)."""
    at, field, n_components = 2, None, 0
    while (head := encoded[at : at + 4])[:1] == b"\xff" and len(head) == 4:
        marker = head[1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker in _BASELINE and encoded[at + 5 : at + 7] == height.to_bytes(2, "big"):
            field, n_components = at + 5, encoded[at + 9]
        if marker == 0xDA:
            return field if encoded[at + 4] == n_components else None
        at += 2 + int.from_bytes(head[2:], "big")
    return None


def decode_to_shrink(
    encoded: bytes, header: Header, decode: Decoder, side: int | None
) -> tuple[RGB8, int]:
    """All of an image whose longer side is then shrunk to `side`, and by how much it is so already.

    Args:
        encoded, header: Its file.
        decode: Of images that are not scaled.
        side: None: every pixel.

    Raises:
        DecodeError: It cannot be decoded.
    """
    height, width, longest = header.height, header.width, max(header.height, header.width)
    if side is not None and not header.by_pillow and (k := divisor(longest, longest, side)) > 1:
        image = decode_scaled(encoded, height, width, k, height)
        if image is not None:
            return image, k
    return decoded(encoded, (0, 0, height, width), decode, by_pillow=header.by_pillow), 1


def shrunk(height: int, width: int, side: int) -> tuple[int, int]:
    """Height and width with the longer one at most `side`, as FFCV's `max_resolution` has them."""
    longest = max(height, width)
    if longest <= side:
        return height, width
    return max(1, height * side // longest), max(1, width * side // longest)


# Encoded, height, width, whether the file goes on behind the image -> its pixels.
_Scaler = Callable[[bytes, int, int, bool], "RGB8 | None"]


@cache
def _decoder() -> _Scaler:
    return _simplejpeg() if importlib.util.find_spec("simplejpeg") else _pillow


def _simplejpeg() -> _Scaler:
    from simplejpeg import decode_jpeg, decode_jpeg_header

    def decode(encoded: bytes, height: int, width: int, is_cut: bool) -> RGB8 | None:
        least = {"min_height": height, "min_width": width}
        image = np.empty((height, width, 3), np.uint8)
        try:
            if decode_jpeg_header(encoded, **least)[:2] != (height, width):
                return None
            decode_jpeg(encoded, "RGB", buffer=image, **least)
        except ValueError as error:
            # libjpeg's first complaint, when all is decoded: of what follows a cut image.
            if not (is_cut and "extraneous bytes before marker" in str(error)):
                return None
        return image

    return decode


def _pillow(encoded: bytes, height: int, width: int, is_cut: bool) -> RGB8 | None:  # noqa: ARG001
    try:
        image: Image.Image = Image.open(io.BytesIO(encoded), formats=formats.TAKEN)
        image.draft("RGB", (max(width - 1, 1), max(height - 1, 1)))
        return np.array(image.convert("RGB"))  # writable: compiled code is made for one kind
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError):
        return None
