"""A JPEG of thousands of scans is left out by name, before a decoder works on it for minutes."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastsc.pipelines.headers import MAX_SCANS, _first_scan, read_header


def jpeg(*, progressive: bool, channels: int = 3) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 30, channels), np.uint8).squeeze()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", progressive=progressive, quality=80)
    return buffer.getvalue()


def repeated(content: bytes, times: int) -> bytes:
    """With the last scan, and the tables before it, once more and once more."""
    last = content.rindex(b"\xff\xda")
    return content[:-2] + content[last:-2] * times + b"\xff\xd9"


@pytest.mark.parametrize(("progressive", "channels"), [(False, 3), (False, 1), (True, 3)])
def test_components_of_a_frame_that_one_scan_may_have(progressive: bool, channels: int) -> None:
    """Where the first scan has them all, the rest of the file is not read."""
    content = jpeg(progressive=progressive, channels=channels)
    expected = content.index(b"\xff\xda"), 0 if progressive else channels
    assert _first_scan(io.BytesIO(content)) == expected


@pytest.mark.parametrize("times", [0, 50, 4000])
def test_scans_are_counted(times: int, tmp_path: Path) -> None:
    content = repeated(jpeg(progressive=True), times)
    path = tmp_path / "x.jpg"
    path.write_bytes(content)
    found = read_header(str(path), len(content))
    if times < MAX_SCANS:
        assert (found.height, found.width, found.reason) == (40, 30, None)
    else:
        assert found.reason == "a JPEG of more than 100 scans, which takes minutes to decode"


def test_bytes_that_look_like_scans_do_not_count(tmp_path: Path) -> None:
    """A thumbnail, say: in a comment between the scans, and behind the image."""
    content = jpeg(progressive=True)
    last = content.rindex(b"\xff\xda")
    comment = b"\xff\xfe" + (2 + 2 * 200).to_bytes(2, "big") + b"\xff\xda" * 200
    path = tmp_path / "x.jpg"
    for whole in (content[:last] + comment + content[last:], jpeg(progressive=False)):
        path.write_bytes(whole)
        assert read_header(str(path), len(whole)).reason is None


@pytest.mark.parametrize("kept", [4, 12, 160, 180, 400])
def test_a_cut_header_raises_nothing(kept: int, tmp_path: Path) -> None:
    content = jpeg(progressive=True)[:kept]
    (tmp_path / "x.jpg").write_bytes(content)
    assert read_header(str(tmp_path / "x.jpg"), len(content)).reason is not None
