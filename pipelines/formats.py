"""Which image files are taken, which of these only Pillow reads, and what another file may be."""

from __future__ import annotations

from PIL import Image

# Pillow's readers of what the extensions in `walk.EXTENSIONS` stand for; JPEG's reads MPO, too.
TAKEN = ("JPEG", "PNG", "PPM", "BMP", "DIB", "TIFF", "WEBP")

# Beginnings of files, at offset 0 or behind the length of a box.
_CONVERT = "convert it to JPEG or PNG"
_BEGINNINGS = (
    (b"GIF8", f"a GIF; {_CONVERT}"),
    (b"\0\0\0\x0cjP  ", f"JPEG 2000; {_CONVERT}"),
    (b"\xff\x4f\xff\x51", f"JPEG 2000; {_CONVERT}"),
    (b"\0\0\0\x0cJXL ", f"JPEG XL; {_CONVERT}"),
    (b"\xff\x0a", f"JPEG XL; {_CONVERT}"),
    (b"8BPS", f"a Photoshop file; {_CONVERT}"),
    (b"\0\0\1\0", f"an icon; {_CONVERT}"),
    (b"DDS ", f"a DDS texture; {_CONVERT}"),
    (b"qoif", f"a QOI image; {_CONVERT}"),
    (b"%PDF", f"a PDF; {_CONVERT}"),
    (b"P7\n", f"a PAM; {_CONVERT}"),
    (b"II*\0", f"a TIFF of a kind that Pillow cannot read; {_CONVERT}"),
    (b"MM\0*", f"a TIFF of a kind that Pillow cannot read; {_CONVERT}"),
    (b"II+\0", f"a BigTIFF of a kind that Pillow cannot read; {_CONVERT}"),
    (b"MM\0+", f"a BigTIFF of a kind that Pillow cannot read; {_CONVERT}"),
    (b"\0\5\x16\7", "macOS's notes on another file, not an image; remove it"),
    (b"version https://git-lfs", "a Git LFS pointer, not an image; git lfs pull fetches it"),
    (b"PK\3\4", "a ZIP archive, not an image"),
    (b"\x1f\x8b", "a gzip archive, not an image"),
)
_BOXES = {  # brands of ISO base media files, ISO/IEC 14496-12
    b"avif": f"an AVIF; {_CONVERT}",
    b"avis": f"an AVIF; {_CONVERT}",
    b"heic": f"a HEIC; {_CONVERT}",
    b"heix": f"a HEIC; {_CONVERT}",
    b"mif1": f"a HEIF; {_CONVERT}",
    b"msf1": f"a HEIF sequence; {_CONVERT}",
}
_TEXTS = (  # in small letters, behind white space
    (b"<svg", f"an SVG; {_CONVERT}"),
    (b"<!doctype html", "an HTML page, not an image; download it again"),
    (b"<html", "an HTML page, not an image; download it again"),
    (b"<?xml", "an XML document, not an image; download it again"),
)
HEAD = 512  # bytes that `named` wants to see

_BITS_PER_SAMPLE, _SAMPLE_FORMAT = 258, 339  # TIFF tags
_UNSIGNED = 1


def named(head: bytes) -> str:
    """What a file is that Pillow takes for no image of `TAKEN`, by its first bytes."""
    for beginning, name in _BEGINNINGS:
        if head.startswith(beginning):
            return name
    if head[4:8] == b"ftyp" and head[8:12] in _BOXES:
        return _BOXES[head[8:12]]
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(b"<?xml") and b"<svg" in text:
        return _TEXTS[0][1]
    return next((name for beginning, name in _TEXTS if text.startswith(beginning)), "not an image")


def refusal(image: Image.Image) -> str | None:
    """Why the pixels of an opened image have no one meaning in 8 bits, or None."""
    if image.mode == "F":
        return _save_as("floating-point pixels")
    if image.format != "TIFF":
        return None
    tags = image.tag_v2  # type: ignore[attr-defined]
    bits, kinds = tags.get(_BITS_PER_SAMPLE, (1,)), tags.get(_SAMPLE_FORMAT, (_UNSIGNED,))
    if any(kind != _UNSIGNED for kind in kinds):
        return _save_as("pixels that are signed numbers")
    if any(8 < bit != 16 for bit in bits):
        return _save_as(f"{max(bits)} bits a channel")
    return None


def _save_as(what: str) -> str:
    return f"{what}, whose range is not known; save it with 8 or 16 bits a channel"


def by_pillow(image: Image.Image) -> bool:
    """Whether an opened image is no JPEG or PNG that all decoders read alike."""
    if image.format in ("JPEG", "MPO"):
        return image.mode == "CMYK"  # without a marker of Adobe's its colors are a guess
    return image.format != "PNG" or image.mode.startswith("I")  # rounded to 8 bits in two ways
