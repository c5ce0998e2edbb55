"""Every decoder gives Pillow's pixels, of a region as of the whole, or a reason."""

from __future__ import annotations

import importlib.util
import io

import numpy as np
import pytest
from PIL import Image

from fastsc.pipelines import UserError, decode
from tests.pipelines.conftest import broken_files, encoded, odd_files, photograph, undecodable


def installed(name: str) -> bool:
    module = decode.DECODERS[name][0]
    if "." in module and importlib.util.find_spec(module.split(".", maxsplit=1)[0]) is None:
        return False
    return importlib.util.find_spec(module) is not None


@pytest.fixture(
    params=[
        pytest.param(n, marks=pytest.mark.skipif(not installed(n), reason=f"{n} is not installed"))
        for n in decode.DECODERS
    ]
)
def decoder(request: pytest.FixtureRequest) -> decode.Decoder:
    return decode.pick(request.param)[1]


def by_pillow(data: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(data))
    if image.mode.startswith("I"):  # Pillow saturates 16 bits instead of scaling them
        grey = np.rint(np.asarray(image) / 257).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    return np.asarray(image.convert("RGB"))


def test_whole_image_and_region(decoder: decode.Decoder) -> None:
    data = encoded(photograph(size=(93, 71)), quality=92)
    whole = by_pillow(data)
    assert np.array_equal(decoder(data, 0, 0, 71, 93), whole)
    assert np.array_equal(decoder(data, 5, 9, 33, 40), whole[5:38, 9:49])
    assert np.array_equal(decoder(data, 70, 92, 1, 1), whole[70:, 92:])


@pytest.mark.parametrize("name", sorted(odd_files()))
def test_odd_files(decoder: decode.Decoder, name: str) -> None:
    data = odd_files()[name]
    expected = by_pillow(data)
    height, width = expected.shape[:2]
    found = decoder(data, 0, 0, height, width)
    assert found.dtype == np.uint8
    assert found.shape == expected.shape
    # CMYK has no one conversion to RGB, and WebP's upsampling is the library's choice.
    tolerance = {"cmyk.JPEG": 24, "photo.webp": 6, "grey16.png": 1}.get(name, 0)
    assert np.abs(found.astype(int) - expected).max() <= tolerance


@pytest.mark.parametrize("name", ["empty.JPEG", "text.JPEG", "header.JPEG", "truncated.JPEG"])
def test_broken_files_have_a_reason(decoder: decode.Decoder, name: str) -> None:
    with pytest.raises(decode.DecodeError, match=r"."):
        decoder(broken_files()[name], 0, 0, 70, 90)


def test_broken_body_has_a_reason(decoder: decode.Decoder) -> None:
    with pytest.raises(decode.DecodeError, match=r"."):
        decoder(undecodable(), 0, 0, 70, 90)


def test_pick(monkeypatch: pytest.MonkeyPatch) -> None:
    decode.pick.cache_clear()
    monkeypatch.setenv("FASTSC_DECODER", "pil")
    assert decode.pick()[0] == "pil"
    decode.pick.cache_clear()
    monkeypatch.delenv("FASTSC_DECODER")
    monkeypatch.setattr(decode, "_installed", lambda module: module in ("torchvision", "PIL"))
    assert decode.pick()[0] == "torchvision"
    with pytest.raises(UserError, match="no decoder named jpegx"):
        decode.pick("jpegx")
    with pytest.raises(UserError, match="simplejpeg is not installed"):
        decode.pick("simplejpeg")
    decode.pick.cache_clear()
