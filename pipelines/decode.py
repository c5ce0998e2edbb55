"""Decoders that return one region of an image file as RGB bytes, and which of them runs here.

All give the same pixels for a PNG, and for a JPEG that they decode whole (libjpeg-turbo's); they
differ in speed and in how strict they are. All else is Pillow's, whichever is installed, since no
two libraries read it alike: `Index.by_pillow`.
"""

from __future__ import annotations

import importlib.util
import io
import os
import threading
from collections.abc import Callable
from functools import cache
from typing import Protocol

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from fastsc.pipelines import formats
from fastsc.pipelines.errors import UserError, first_line
from fastsc.pipelines.headers import Parser

RGB8 = NDArray[np.uint8]  # (H, W, 3)


class DecodeError(Exception):
    """A file whose body cannot be decoded; the message is the reason."""


class Decoder(Protocol):
    """Decodes rows top … top + height and columns left … left + width of an encoded image.

    Raises:
        DecodeError: It cannot.
    """

    def __call__(self, encoded: bytes, top: int, left: int, height: int, width: int) -> RGB8: ...


# Pillow converts these to RGB by way of another mode alone.
_PREMULTIPLIED = {"RGBa": "RGBA", "La": "LA"}


def _is_jpeg(encoded: bytes) -> bool:
    return encoded[:3] == b"\xff\xd8\xff"


def decode_pil(encoded: bytes, top: int, left: int, height: int, width: int) -> RGB8:
    """Pillow: all of `formats.TAKEN`, strict on truncation, no region decode."""
    try:
        image: Image.Image = Image.open(io.BytesIO(encoded), formats=formats.TAKEN)
        box = (left, top, left + width, top + height)
        if box[2] > image.width or box[3] > image.height:  # PIL would fill up with black
            raise DecodeError("its size differs from its header's")
        if image.mode.startswith("I;16") or image.mode == "I":
            # Pillow's own conversion saturates 16-bit grey; scale it to 8 bits instead.
            grey = (np.asarray(image.crop(box)).astype(np.int64) * 255 + 32767) // 65535
            return np.repeat(grey.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)
        if image.mode in _PREMULTIPLIED:
            image = image.convert(_PREMULTIPLIED[image.mode])
        # RGBA's and palettes' transparency is dropped, as the other decoders do.
        return np.array(image.convert("RGB").crop(box))  # writable, as torch likes it
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError) as error:
        raise DecodeError(str(error)) from None


def decoded(
    encoded: bytes, box: tuple[int, int, int, int], decode: Decoder, *, by_pillow: bool
) -> RGB8:
    """The pixels of a box (top, left, height, width) of an encoded image: (height, width, 3).

    Args:
        encoded: The file's bytes.
        box: A part of the image, as large as its header says it is.
        decode: For JPEGs and PNGs.
        by_pillow: Whether the file is none that it and all others read alike (`Index.by_pillow`).

    Raises:
        DecodeError: They cannot be had.
    """
    region = (decode_pil if by_pillow else decode)(encoded, *box)
    if region.shape != (*box[2:], 3):
        raise DecodeError("its size differs from its header's")
    return region


def _nvimgcodec() -> Decoder:
    """nvImageCodec: decodes only the region; the fastest."""
    from nvidia import nvimgcodec

    params = nvimgcodec.DecodeParams(
        apply_exif_orientation=False, color_spec=nvimgcodec.ColorSpec.SRGB
    )
    backends = [nvimgcodec.Backend(nvimgcodec.CPU_ONLY)]
    local = threading.local()  # a decoder serves one caller at a time

    def decode(encoded: bytes, top: int, left: int, height: int, width: int) -> RGB8:
        if not hasattr(local, "decoder"):
            local.decoder = nvimgcodec.Decoder(
                device_id=nvimgcodec.NVIMGCODEC_DEVICE_CPU_ONLY,
                max_num_cpu_threads=1,
                backends=backends,
            )
        try:
            stream = nvimgcodec.CodeStream(encoded)
            whole = stream.height, stream.width  # parses the header
        except RuntimeError as error:
            raise DecodeError(str(error)) from None
        if (height, width) != whole:
            region = nvimgcodec.Region(top, left, top + height, left + width)
            stream = stream.get_sub_code_stream(region=region)
        image = local.decoder.decode(stream, params=params)
        if image is None:
            raise DecodeError("truncated or corrupt image data")
        return np.asarray(image)

    return decode


def _whole_jpegs(decode_jpeg: Callable[[bytes], RGB8], failure: type[Exception]) -> Decoder:
    """A decoder of whole JPEGs only; all else is Pillow's. failure: what it raises."""

    def decode(encoded: bytes, top: int, left: int, height: int, width: int) -> RGB8:
        if not _is_jpeg(encoded):
            return decode_pil(encoded, top, left, height, width)
        try:
            image = decode_jpeg(encoded)
        except failure as error:
            raise DecodeError(first_line(error)) from None
        return image[top : top + height, left : left + width]

    return decode


def _simplejpeg() -> Decoder:
    """simplejpeg: libjpeg-turbo with its strictest errors."""
    import simplejpeg

    return _whole_jpegs(lambda encoded: simplejpeg.decode_jpeg(encoded, "RGB"), ValueError)


def _torchvision() -> Decoder:
    """torchvision.io."""
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    def decode(encoded: bytes) -> RGB8:
        data = torch.frombuffer(bytearray(encoded), dtype=torch.uint8)
        pixels: RGB8 = decode_jpeg(data, mode=ImageReadMode.RGB).permute(1, 2, 0).numpy()
        return pixels

    return _whole_jpegs(decode, RuntimeError)


# Fastest first; module that must be there, and the maker.
DECODERS: dict[str, tuple[str, Callable[[], Decoder]]] = {
    "nvimgcodec": ("nvidia.nvimgcodec", _nvimgcodec),
    "simplejpeg": ("simplejpeg", _simplejpeg),
    "torchvision": ("torchvision", _torchvision),
    "pil": ("PIL", lambda: decode_pil),
}


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


@cache
def pick(name: str | None = None) -> tuple[str, Decoder]:
    """The decoder of that name, or the fastest that is installed, with its name.

    The environment variable FASTSC_DECODER names one where the caller does not.

    Raises:
        UserError: An unknown or missing decoder was asked for.
    """
    name = name or os.environ.get("FASTSC_DECODER") or None
    if name is None:
        name = next(n for n, (module, _) in DECODERS.items() if _installed(module))
    if name not in DECODERS:
        raise UserError(f"no decoder named {name}; there are {', '.join(DECODERS)}")
    module, make = DECODERS[name]
    if not _installed(module):
        raise UserError(f"decoder {name} is not installed; there are {', '.join(DECODERS)}")
    return name, make()


def of_pipeline(name: str) -> Decoder:
    """The decoder behind a pipeline: DALI's is nvImageCodec, whatever FASTSC_DECODER names."""
    is_dali = name == "dali" and _installed("nvidia.nvimgcodec")
    return pick("nvimgcodec" if is_dali else None)[1]


def header_parser() -> tuple[str, Parser | None]:
    """Name and version of the library that will decode, and a parser by it: (height, width).

    nvImageCodec where it is installed, since DALI decodes with it and may crash on a header that it
    cannot parse; else None: Pillow's own reading of the header is all there is.
    """
    if not _installed("nvidia.nvimgcodec"):
        return f"pil {PIL.__version__}", None
    from nvidia import nvimgcodec

    def parse(source: str | bytes) -> tuple[int, int]:
        stream = nvimgcodec.CodeStream(source)
        return stream.height, stream.width

    return f"nvimgcodec {nvimgcodec.__version__} pil {PIL.__version__}", parse
