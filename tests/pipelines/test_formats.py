"""Images other than JPEG and PNG: the same pixels in every pipeline, or a reason by name."""

from __future__ import annotations

import importlib.util
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fastsc.pipelines import UserError, build, decode, formats, scan
from fastsc.pipelines.sweep import verify
from tests.pipelines.conftest import encoded, opened

SIDE = 16
RGB = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
GREY = RGB[..., 0]
IMAGE = Image.fromarray(RGB)


def repeated(grey: NDArray[Any]) -> NDArray[np.uint8]:
    return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)


def pnm(kind: int, pixels: NDArray[Any], maximum: int | None = 255) -> bytes:
    """A portable any-map, ASCII for kinds 1 to 3, of the format's own definition."""
    head = f"P{kind}\n# made by a test\n{SIDE} {SIDE}\n" + (f"{maximum}\n" if maximum else "")
    if kind <= 3:
        return head.encode() + " ".join(map(str, pixels.reshape(-1).tolist())).encode() + b"\n"
    return head.encode() + pixels.astype(">u2" if (maximum or 0) > 255 else "u1").tobytes()


def tiff(
    pixels: NDArray[Any], *, bits: int | None = None, kind: int = 1, tags: Mapping[int, int] = {}
) -> bytes:
    """A little-endian TIFF of one strip; `kind` is SampleFormat's, `tags` adds short integers."""
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    bits = bits or pixels.dtype.itemsize * 8
    if bits == 12:  # two pixels in three bytes
        a, b = pixels[:, ::2].astype(int), pixels[:, 1::2].astype(int)
        strip = np.stack([a >> 4, (a & 15) << 4 | b >> 8, b & 255], -1).astype(np.uint8).tobytes()
    else:
        strip = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    shorts = {
        256: [pixels.shape[1]], 257: [pixels.shape[0]], 258: [bits] * channels, 259: [1],
        262: [2 if channels > 1 else 1], 277: [channels], 278: [pixels.shape[0]],
        339: [kind] * channels, **{tag: [value] for tag, value in tags.items()},
    }  # fmt: skip
    fields = {tag: (3, values) for tag, values in shorts.items()}
    fields |= {273: (4, [0]), 279: (4, [len(strip)])}
    start = 8 + 2 + 12 * len(fields) + 4
    behind = b""
    directory = struct.pack("<H", len(fields))
    for tag in sorted(fields):
        code, values = fields[tag]
        packed = b"".join(struct.pack("<H" if code == 3 else "<I", value) for value in values)
        if len(packed) > 4:
            packed, behind = struct.pack("<I", start + len(behind)), behind + packed
        directory += struct.pack("<HHI", tag, code, len(values)) + packed.ljust(4, b"\0")
    at = struct.pack("<HHII", 273, 4, 1, start + len(behind))
    directory = directory.replace(struct.pack("<HHII", 273, 4, 1, 0), at)
    return b"II*\0" + struct.pack("<I", 8) + directory + bytes(4) + behind + strip


def bare_cmyk() -> bytes:
    """A JPEG of four components without the marker that says which they are."""
    data = encoded(IMAGE.convert("CMYK"), quality=100)
    at = data.index(b"\xff\xee")
    return data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") :]


def bitmap_16() -> bytes:
    """5 bits a channel."""
    packed = (RGB.astype(np.uint16) >> 3) @ np.array([1 << 10, 1 << 5, 1], np.uint16)
    size = packed.size * 2
    head = b"BM" + struct.pack("<IHHI", 54 + size, 0, 0, 54)
    head += struct.pack("<IiiHHIIiiII", 40, SIDE, -SIDE, 1, 16, 0, size, 0, 0, 0, 0)
    return head + packed.astype("<u2").tobytes()


def of_12_bits(values: NDArray[Any]) -> NDArray[np.uint8]:
    """To 8 bits, rounded."""
    return np.rint(values * 255.0 / 4095).astype(np.uint8)


TWELVE = (GREY.astype(np.uint16) << 4) + 9
FIVE = RGB >> 3
# Name -> bytes, and the pixels that its format's definition gives.
READ: dict[str, tuple[bytes, NDArray[np.uint8]]] = {
    "ascii.ppm": (pnm(3, RGB), RGB),
    "ascii.pgm": (pnm(2, GREY), repeated(GREY)),
    "ascii-bits.ppm": (pnm(1, (GREY < 128) * 1, None), repeated((GREY >= 128) * 255)),
    "raw.ppm": (pnm(6, RGB), RGB),
    "12-bits.pgm": (pnm(5, TWELVE, 4095), repeated(of_12_bits(TWELVE))),
    "16-bits.pgm": (pnm(5, GREY.astype(int) * 257, 65535), repeated(GREY)),
    "16-bits.ppm": (pnm(6, RGB.astype(int) * 257, 65535), RGB),
    "7-levels.pgm": (pnm(5, GREY >> 5, 7), repeated(np.rint((GREY >> 5) * 255.0 / 7))),
    "plain.bmp": (encoded(IMAGE, "BMP"), RGB),
    "5-bits.bmp": (bitmap_16(), (FIVE * 255.0 / 31).astype(np.uint8)),
    "plain.tif": (tiff(RGB), RGB),
    "16-bits.tif": (tiff(GREY.astype(np.uint16) * 257), repeated(GREY)),
    "white-is-0.tif": (tiff(GREY, tags={262: 0}), repeated(255 - GREY)),
    "turned.tif": (tiff(RGB, tags={274: 3}), RGB[::-1, ::-1]),
    "on-its-side.tif": (tiff(RGB, tags={274: 6}), np.rot90(RGB, -1)),
    "grey-and-alpha.tif": (
        encoded(Image.fromarray(np.dstack([GREY, 255 - GREY]), "LA"), "TIFF"),
        repeated(GREY),
    ),
    "lossless.webp": (encoded(IMAGE, "WEBP", lossless=True), RGB),
    "16-bits.png": (encoded(Image.fromarray(GREY.astype(np.uint16) * 257), "PNG"), repeated(GREY)),
    "webp.jpg": (encoded(IMAGE, "WEBP", lossless=True), RGB),
}
LEFT_OUT: dict[str, tuple[bytes, str]] = {
    "int32.tif": (tiff(GREY.astype(np.int32), kind=2), "signed"),
    "int16.tif": (tiff(GREY.astype(np.int16), kind=2), "signed"),
    "uint32.tif": (tiff(GREY.astype(np.uint32)), "32 bits a channel"),
    "float.tif": (tiff((GREY / 255).astype(np.float32), kind=3), "floating-point"),
    "double.tif": (tiff(GREY / 255, kind=3), "a TIFF of a kind"),
    "12-bits.tif": (tiff(TWELVE, bits=12), "12 bits a channel"),
    "float.pgm": (
        b"Pf\n%d %d\n-1.0\n" % (SIDE, SIDE) + (GREY / 255).astype("<f4").tobytes(),
        "floating-point",
    ),
    "gif.jpg": (encoded(IMAGE, "GIF"), "a GIF; convert it to JPEG or PNG"),
    "avif.jpg": (b"\0\0\0\x1cftypavif" + bytes(400), "an AVIF; convert"),
    "heic.jpg": (b"\0\0\0\x18ftypheic" + bytes(400), "a HEIC; convert"),
    "msf1.jpg": (b"\0\0\0\x18ftypmsf1" + bytes(400), "a HEIF sequence; convert"),
    "big.tif": (b"II+\0\x08\0\0\0" + bytes(400), "a BigTIFF of a kind"),
    "big-endian.tif": (b"MM\0+\0\x08\0\0" + bytes(400), "a BigTIFF of a kind"),
    "jp2.jpg": (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(400), "JPEG 2000; convert"),
    "jxl.jpg": (b"\xff\x0a" + bytes(400), "JPEG XL; convert"),
    "pam.ppm": (b"P7\nWIDTH 2\nHEIGHT 2\n" + bytes(40), "a PAM; convert"),
    "svg.png": (b'<?xml version="1.0"?>\n<svg width="9" height="9"></svg>', "an SVG; convert"),
    "page.jpg": (b"\n<!DOCTYPE html><html>404</html>", "an HTML page, not an image"),
    "error.jpg": (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "an XML document"),
    "pointer.jpg": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "notes.jpg": (b"\0\5\x16\7\0\2\0\0Mac OS X", "macOS's notes on another file"),
    "text.jpg": (b"a note about a photograph", "not an image"),
}


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """A folder with one class of all of these."""
    (tmp_path / "odd" / "a").mkdir(parents=True)
    for name, (data, _) in {**READ, **LEFT_OUT}.items():
        (tmp_path / "odd" / "a" / name).write_bytes(data)
    return tmp_path / "odd"


def test_every_pipeline_gives_the_pixels_of_the_format_or_a_reason(backend: str, odd: Path) -> None:
    index = opened(backend, odd, jpeg_share=0.0, resolution=None)
    reasons = {Path(bad.path).name: bad.reason for bad in index.bad_images()}
    assert reasons.keys() == LEFT_OUT.keys()
    assert not [name for name, (_, why) in LEFT_OUT.items() if why not in reasons[name]]
    loader = build(
        backend, index, batch_size=4, resolution=SIDE, train=False, val_crop=1.0,
        mean=(0, 0, 0), std=(1, 1, 1), on_bad_image="skip", timeout=60,
    )  # fmt: skip
    found = {
        Path(index.paths[int(i)]).name: (255 * image).round().byte().permute(1, 2, 0).numpy()
        for batch in loader
        for i, image in zip(batch.index, batch.clean, strict=True)
    }
    loader.close()
    assert found.keys() == READ.keys()
    for name, (_, wanted) in READ.items():
        # How 5 bits become 8 no format says.
        assert np.abs(found[name].astype(int) - wanted).max() <= (name == "5-bits.bmp"), name


@pytest.mark.parametrize("name", decode.DECODERS)
def test_the_installed_decoder_makes_no_difference(
    name: str, odd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does one whose parser is not there: equal indices."""
    if not decode._installed(decode.DECODERS[name][0]):
        pytest.skip(f"{name} is not installed")
    (odd / "a" / "cmyk.jpg").write_bytes(bare_cmyk())
    index = scan(odd, use_cache=False)
    monkeypatch.setattr("fastsc.pipelines.index.header_parser", lambda: ("none", None))
    without = scan(odd, use_cache=False)
    assert without.hash == index.hash
    assert without.by_pillow == index.by_pillow == set(index.usable.tolist())
    monkeypatch.setattr("fastsc.pipelines.cpu.pick", lambda: decode.pick(name))
    loader = build(
        "cpu", index, batch_size=len(index), resolution=SIDE, train=False, val_crop=1.0,
        mean=(0, 0, 0), std=(1, 1, 1), on_bad_image="skip",
    )  # fmt: skip
    [batch] = list(loader)
    loader.close()
    row = batch.index.tolist().index(index.paths.index("a/cmyk.jpg"))
    cmyk = np.asarray(Image.open(odd / "a" / "cmyk.jpg").convert("RGB"))
    assert np.array_equal((255 * batch.clean[row]).round().byte().permute(1, 2, 0), cmyk)


def test_a_cached_scan_knows_them_too(odd: Path) -> None:
    assert scan(odd).by_pillow == scan(odd).by_pillow == scan(odd, use_cache=False).by_pillow


def test_jpeg_and_png_are_left_to_the_fast_decoder(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for name, image in {"rgb": IMAGE, "grey": IMAGE.convert("L"), "p": IMAGE.quantize(9)}.items():
        for kind in ("PNG", "JPEG"):
            if (name, kind) != ("p", "JPEG"):
                (tmp_path / "a" / f"{name}.{kind}").write_bytes(encoded(image, kind))
    (tmp_path / "a" / "two.jpg").write_bytes(encoded(IMAGE, "MPO", save_all=True))
    assert scan(tmp_path).by_pillow == frozenset()


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "PPM"])
def test_a_truncated_one_is_found_by_verify_and_named(kind: str, backend: str, odd: Path) -> None:
    if backend == "ffcv":
        pytest.skip("a beton holds what could be decoded")
    for name in (*READ, *LEFT_OUT):
        (odd / "a" / name).unlink()
    (odd / "a" / "whole.png").write_bytes(encoded(IMAGE, "PNG"))
    (odd / "a" / "cut.tif").write_bytes(encoded(IMAGE, kind)[:-200])
    index = scan(odd)
    assert "truncated" in verify(index)[0]
    with pytest.raises(UserError, match=r"cut\.tif: .*truncated"):
        list(build(backend, index, batch_size=2, resolution=SIDE, train=False, timeout=60))
    loader = build(
        backend, index, batch_size=2, resolution=SIDE, train=False, on_bad_image="skip", timeout=60
    )
    assert [batch.index.tolist() for batch in loader] == [[1]]
    loader.close()


def test_verify_asks_the_decoder_that_will_run(odd: Path) -> None:
    """What Pillow takes and it does not is left out, and the other way round."""
    (odd / "a" / "fine.jpg").write_bytes(encoded(IMAGE))
    index = scan(odd)
    fine = index.paths.index("a/fine.jpg")

    def refuses(*_: object) -> decode.RGB8:
        raise decode.DecodeError("not today")

    assert verify(index, decode=refuses) == {fine: "not today"}
    assert verify(index) == {}


def test_dali_decodes_by_its_own_library_whatever_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("nvidia") is None or not decode._installed("nvidia.nvimgcodec"):
        pytest.skip("nvImageCodec is not installed")
    monkeypatch.setenv("FASTSC_DECODER", "pil")
    decode.pick.cache_clear()
    assert decode.of_pipeline("cpu") is decode.decode_pil
    assert decode.of_pipeline("dali") is decode.pick("nvimgcodec")[1]
    decode.pick.cache_clear()


@pytest.mark.parametrize(("data", "wanted"), LEFT_OUT.values(), ids=LEFT_OUT)
def test_the_first_bytes_suffice(data: bytes, wanted: str) -> None:
    if "channel" in wanted or wanted in ("signed", "floating-point"):
        pytest.skip("an image that Pillow opens")
    assert wanted in formats.named(data[: formats.HEAD])
