"""Large JPEGs at a fraction of their size: the pixels beside a full decode, and when it is done."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from fastsc.pipelines import Pipeline, build, scaled, scan
from fastsc.pipelines.plan import Interpolation
from fastsc.pipelines.resample import place, resized_box
from fastsc.pipelines.scaled import decode_scaled, divisor, divisor_of_crop, shrunk
from tests.pipelines.conftest import encoded, photograph, undecodable

SIZE = 32
HEIGHT, WIDTH = 333, 451
LIBRARIES = ["simplejpeg", "pillow"]


def detailed(seed: int = 0, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Image.Image:
    """A photograph with edges, texture and a little noise."""
    rng = np.random.default_rng(seed)
    pixels = np.asarray(photograph(seed, size)).astype(np.int16)
    blocks = rng.integers(-60, 60, (-(-size[1] // 24), -(-size[0] // 24), 1)).repeat(24, 0)
    blocks = blocks.repeat(24, 1)[: size[1], : size[0]]
    noisy = pixels + blocks + rng.normal(0, 3, pixels.shape).astype(np.int16)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


@pytest.fixture(params=LIBRARIES)
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name: str = request.param
    scaler = scaled._pillow if name == "pillow" else scaled._simplejpeg()
    monkeypatch.setattr(scaled, "_decoder", lambda: scaler)
    return name


# ---- when ----------------------------------------------------------------------------------------


def test_what_is_scaled_is_never_smaller_than_the_output() -> None:
    assert [divisor(h, 9000, 224) for h in (447, 448, 895, 896, 1791, 1792, 9000)] == [
        *(1, 2, 2, 4, 4, 8, 8)
    ]
    assert divisor(9000, 447, 224) == 1


def test_a_small_crop_at_the_end_of_a_large_image_is_decoded_alone() -> None:
    assert divisor_of_crop(4000, (0, 3000, 480, 480), 224) == 1  # 4 · 480² against 4000 · 480
    assert divisor_of_crop(1000, (0, 500, 480, 480), 224) == 2
    assert divisor_of_crop(1000, (520, 500, 480, 480), 224) == 1
    assert divisor_of_crop(4000, (0, 0, 3000, 4000), 224) == 8


@given(
    height=st.integers(2, 5000), width=st.integers(2, 5000), size=st.integers(8, 600),
    data=st.data(),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_a_crop_is_scaled_where_that_is_less_work(
    height: int, width: int, size: int, data: st.DataObject
) -> None:
    h, w = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    top = data.draw(st.integers(0, height - h))
    k = divisor_of_crop(width, (top, 0, h, w), size)
    assert k in (1, 2, 4, 8)
    if k > 1:
        assert min(h, w) // k >= size
        assert -(-width // k) * -(-(top + h) // k) <= 1.1 * h * w + width + height
        assert k == 8 or min(h, w) < 2 * k * size


# ---- which pixels --------------------------------------------------------------------------------


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("k", [2, 4, 8])
def test_a_part_is_that_of_the_whole_scaled_image(library: str, subsampling: int, k: int) -> None:
    """Decoding ends with the crop, and nothing above its end is another pixel for that."""
    data = encoded(detailed(), quality=92, subsampling=subsampling)
    file = Image.open(io.BytesIO(data))
    file.draft("RGB", (WIDTH // k, HEIGHT // k))
    whole = np.asarray(file)
    assert whole.shape == (-(-HEIGHT // k), -(-WIDTH // k), 3)
    for end in (1, 16, 31, 32, 33, 200, HEIGHT - 40, HEIGHT):
        part = decode_scaled(data, HEIGHT, WIDTH, k, end)
        assert part is not None
        assert -(-end // k) <= len(part) <= min(len(whole), -(-(end + 64) // k))
        n = -(-end // k)
        assert np.array_equal(part[:n], whole[:n])


@pytest.mark.parametrize("kind", ["progressive", "grey", "restart", "trailing"])
def test_other_jpegs(library: str, kind: str) -> None:
    image = detailed()
    data = {
        "progressive": encoded(image, progressive=True),
        "grey": encoded(image.convert("L")),
        "restart": encoded(image, restart_marker_blocks=7),
        "trailing": encoded(image) + bytes(1000),
    }[kind]
    file = Image.open(io.BytesIO(data))
    file.draft("RGB", (WIDTH // 2, HEIGHT // 2))
    whole, part = np.asarray(file.convert("RGB")), decode_scaled(data, HEIGHT, WIDTH, 2, 100)
    assert part is not None
    assert np.array_equal(part[:50], whole[:50])


def test_a_scaled_side_of_one_pixel(library: str) -> None:
    data = encoded(Image.new("RGB", (2000, 4), (90, 90, 90)), quality=92)
    part = decode_scaled(data, 4, 2000, 8, 4)
    if library == "pillow":  # whose draft keeps both sides at a pixel or more of a larger scale
        assert part is None
        return
    assert part is not None
    assert part.shape == (1, 250, 3)
    assert (abs(part.astype(int) - 90) < 3).all()


def test_what_cannot_be_scaled_is_left_to_the_other_way(library: str) -> None:
    data = encoded(detailed(), quality=92)
    assert decode_scaled(encoded(detailed(), "PNG"), HEIGHT, WIDTH, 2, HEIGHT) is None
    assert decode_scaled(data[: len(data) // 2], HEIGHT, WIDTH, 2, HEIGHT) is None
    assert decode_scaled(data[:300], HEIGHT, WIDTH, 2, HEIGHT) is None
    assert decode_scaled(data, HEIGHT + 50, WIDTH, 2, HEIGHT) is None  # another than was indexed
    assert decode_scaled(data, HEIGHT, WIDTH - 9, 2, HEIGHT) is None


def test_damage_in_the_part_is_seen_and_below_it_not() -> None:
    data = bytearray(encoded(detailed(), quality=92))
    start = data.index(b"\xff\xda")
    at = start + (len(data) - start) // 2
    data[at : at + 200] = bytes(200)
    scaler = scaled._simplejpeg()
    assert scaler(bytes(data), -(-HEIGHT // 2), -(-WIDTH // 2), False) is None
    assert decode_scaled(bytes(data), HEIGHT, WIDTH, 2, HEIGHT) is None
    assert decode_scaled(bytes(data), HEIGHT, WIDTH, 2, 64) is not None


@given(data=st.binary(max_size=200), at=st.floats(0, 1), end=st.integers(1, HEIGHT))
@settings(max_examples=60, deadline=None)
def test_no_damage_is_more_than_a_none(data: bytes, at: float, end: int) -> None:
    whole = encoded(photograph(0, (WIDTH, HEIGHT)), quality=60)
    start = 3 + int(at * (len(whole) - 3))
    damaged = whole[:start] + data + whole[start + len(data) :]
    for scaler in (scaled._simplejpeg(), scaled._pillow):
        image = scaler(damaged, -(-HEIGHT // 4), -(-WIDTH // 4), True)
        assert image is None or image.dtype == np.uint8
    image = decode_scaled(damaged, HEIGHT, WIDTH, 4, end)
    assert image is None or image.shape[1:] == (-(-WIDTH // 4), 3)


# ---- the resize of a box -------------------------------------------------------------------------


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_box_of_whole_pixels_is_resized_as_torch_does(interpolation: Interpolation) -> None:
    pixels = np.asarray(detailed(3))
    for top, left, h, w in ((0, 0, HEIGHT, WIDTH), (17, 200, 100, 33), (300, 0, 33, 451)):
        region = torch.from_numpy(pixels[top : top + h, left : left + w].astype(np.float32))
        mode = InterpolationMode(interpolation)
        expected = tv.resize(region.permute(2, 0, 1), [SIZE, SIZE], mode, antialias=True)
        found = resized_box(pixels, (top, left, h, w), SIZE, interpolation).astype(np.float32)
        gap = found - expected.permute(1, 2, 0).clamp(0, 255).numpy()
        assert np.abs(gap).max() <= 0.501


def test_a_box_between_pixels_lies_where_it_says() -> None:
    ramp = np.tile(np.arange(200, dtype=np.uint8)[None, :, None], (100, 1, 3))
    for left, width in ((10.5, 64.0), (33.25, 100.5), (0.0, 200.0)):
        found = resized_box(ramp, (3.7, left, 64.2, width), SIZE, "bilinear")
        centers = left + (np.arange(SIZE) + 0.5) * width / SIZE - 0.5
        inner = slice(2, -2)  # at the ends the filter is cut off, as torch's is
        assert np.abs(found[:, inner, 0] - centers[inner]).max() <= 0.51
    slot = np.zeros((SIZE, SIZE, 3), np.uint8)
    place(ramp, slot, (0, 0), True, "bilinear", (3.7, 0.0, 64.2, 200.0))
    assert np.array_equal(slot[:, ::-1], found.reshape(SIZE, SIZE, 3))


# ---- in the pipeline -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    for i in range(8):
        (folder / "ab"[i % 2]).mkdir(exist_ok=True)
        size = (WIDTH, HEIGHT) if i < 4 else (HEIGHT, WIDTH)
        detailed(i, size).save(folder / "ab"[i % 2] / f"{i}.jpg", quality=92)
    return folder


def pixels(folder: Path, pipeline: str = "cpu", **more: Any) -> NDArray[np.float64]:
    """(n, R, R, 3) levels of 255 in the order of dataset indices, of one training epoch."""
    options: dict[str, Any] = {"batch_size": 8, "resolution": SIZE, "workers": 1, "paired": False}
    mean_std = {"mean": (0, 0, 0), "std": (1, 1, 1)}
    loader: Pipeline = build(pipeline, folder, **(options | mean_std | more))
    (batch,) = loader
    order = batch.index.argsort()
    loader.close()
    return (batch.clean[order] * 255).double().permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("more", [{}, {"crop": "pad"}], ids=str)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_bound_on_what_it_changes(
    folder: Path, more: dict[str, Any], interpolation: Interpolation
) -> None:
    """Crops, flips and shifts are the same; what the filter makes of edges is a little another."""
    kind = {"interpolation": interpolation, **more}
    fast, exact = pixels(folder, **kind), pixels(folder, exact_decode=True, **kind)
    gap = np.abs(fast - exact)
    assert gap.max() > 0
    assert gap.mean((1, 2, 3)).max() < 4
    assert np.median(gap.mean((1, 2, 3))) < 2
    assert np.quantile(gap, 0.99) < 16


def test_exact_decode_is_what_the_other_pipelines_do(folder: Path) -> None:
    assert np.array_equal(pixels(folder, exact_decode=True), pixels(folder, "memory"))


def test_validation_is_exact(folder: Path) -> None:
    """So that its figures are another pipeline's, and those of an evaluation."""
    assert np.array_equal(pixels(folder, train=False), pixels(folder, "memory", train=False))


def test_crops_that_are_not_twice_the_output_are_the_same(folder: Path) -> None:
    more = {"resolution": 224}
    assert np.array_equal(pixels(folder, **more), pixels(folder, exact_decode=True, **more))


def test_pngs_and_what_pillow_reads_are_decoded_whole(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for i, (kind, mode) in enumerate((("PNG", "RGB"), ("BMP", "RGB"), ("JPEG", "CMYK"))):
        image = detailed(i).convert(mode)
        (tmp_path / "a" / f"{i}.{kind.lower()}").write_bytes(encoded(image, kind))
    more: dict[str, Any] = {"batch_size": 3}
    assert np.array_equal(pixels(tmp_path, **more), pixels(tmp_path, exact_decode=True, **more))


def test_a_broken_image_is_named_as_ever(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    data = encoded(detailed(1), quality=92)
    (tmp_path / "a" / "0.jpg").write_bytes(data)
    (tmp_path / "a" / "1.png").write_bytes(undecodable())
    index = scan(tmp_path)
    bad = []
    loader = build(
        "cpu", index, batch_size=2, resolution=SIZE, train=False, on_bad_image="skip",
        report=bad.append,
    )  # fmt: skip
    (tmp_path / "a" / "0.jpg").write_bytes(data[: len(data) // 2] + bytes(len(data) // 2 + 1))
    assert sum(len(batch.index) for batch in loader) == 0 or bad
    assert {Path(image.path).name for image in bad} >= {"1.png"}
    loader.close()


def test_sizes_of_what_is_shrunk() -> None:
    assert shrunk(3000, 4000, 512) == (384, 512)
    assert shrunk(512, 100, 512) == (512, 100)
    assert shrunk(5000, 3, 512) == (512, 1)
