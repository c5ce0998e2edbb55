"""Broken and odd files, made by the tests, and the list of backends that the contract covers."""

from __future__ import annotations

import importlib.util
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastsc.pipelines import (
    BetonIndex,
    Index,
    PairBatch,
    Pipeline,
    build,
    from_dataset,
    open_beton,
    scan,
)
from fastsc.pipelines.files import read_file
from fastsc.pipelines.tar_writer import write_tars
from tests import quick_ffcv  # noqa: F401

needs_dali = pytest.mark.skipif(
    importlib.util.find_spec("nvidia.dali") is None if importlib.util.find_spec("nvidia") else True,
    reason="NVIDIA DALI is not installed: pip install 'fastsc[dali]'",
)
needs_ffcv = pytest.mark.skipif(
    importlib.util.find_spec("ffcv") is None,
    reason="FFCV is not installed: make ffcv, or pip install 'fastsc[ffcv]'",
)
DALI, FFCV = pytest.param("dali", marks=needs_dali), pytest.param("ffcv", marks=needs_ffcv)
BACKENDS = [DALI, "cpu", FFCV, "memory"]


def elsewhere(*marks: pytest.MarkDecorator) -> list[Any]:
    """BACKEND-tars and BACKEND-dataset as parameters: images that lie in tars, and in a Dataset."""
    return [
        pytest.param(f"{backend}-{kind}", marks=[*marks, *more])
        for kind in ("tars", "dataset")
        for backend, more in (("dali", [needs_dali]), ("cpu", []), ("memory", []))
    ]


# For tests of what depends on where the bytes lie; all else is quick for folders and betons alone.
from_everywhere = pytest.mark.parametrize("source", [*BACKENDS, *elsewhere()])


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(autouse=True)
def short_iterations(monkeypatch: pytest.MonkeyPatch) -> None:
    """DALI takes in two of the tests' batches at once, and not all of them."""
    monkeypatch.setattr("fastsc.pipelines.dali.TOGETHER", 10)


def opened(backend: str, folder: Path, into: Path | None = None, **stored: Any) -> Index:
    """The index of a class folder for a backend: for ffcv that of a beton made of it, beside it
    or in another folder.

    Half of the beton's images are JPEGs and half raw, and the larger ones are shrunk, unless
    `stored` says otherwise.
    """
    index = scan(folder)
    if backend != "ffcv":
        return index
    from fastsc.pipelines.beton_writer import BetonOptions, write_beton

    path = (into or folder.parent) / f"{folder.name}.beton"
    options = BetonOptions(**{"resolution": 120, "quality": 95, "jpeg_share": 0.5} | stored)
    write_beton(index, path, options, on_bad_image="skip", workers=2)
    return open_beton(path)


def packed(folder: Path, out: Path, shard_size: int = 50_000) -> Path:
    """OUT/{train,val}/*.tar of a folder's images, some tars of each."""
    for part in ("train", "val"):
        write_tars(scan(folder / part), out / part, shard_size, on_bad_image="skip", workers=2)
    return out


def as_dataset(folder: Path) -> Any:
    """The images of a class folder as a datasets.Dataset, in the order of its index."""
    datasets = pytest.importorskip("datasets", reason="pip install 'fastsc[dev]'")
    index = scan(folder)
    rows = [{"bytes": read_file(index.place(i)), "path": None} for i in range(len(index))]
    names = list(index.classes)
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}
    columns = {"image": rows, "label": index.targets.tolist()}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def photograph(seed: int = 0, size: tuple[int, int] = (90, 70)) -> Image.Image:
    """A smooth color image, (width, height)."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, size=(6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _with_segment(jpeg: bytes, at: int, marker: int, payload: bytes) -> bytes:
    segment = bytes([0xFF, marker]) + (len(payload) + 2).to_bytes(2, "big") + payload
    return jpeg[:at] + segment + jpeg[at:]


def _with_thumbnail(jpeg: bytes) -> bytes:
    """With a whole little JPEG, end marker included, in an application's segment."""
    return _with_segment(jpeg, 2, 0xE1, encoded(photograph(2, (20, 16))))


def broken_files() -> dict[str, bytes]:
    """Name -> bytes of files that the header scan must find."""
    whole = encoded(photograph(), quality=95)
    body = whole.index(b"\xff\xda") + 14
    noise = np.random.default_rng(1).bytes(20_000)
    return {
        "empty.JPEG": b"",
        "text.JPEG": b"this is not a photograph\n" * 20,
        "header.JPEG": whole[: body // 2],
        "random.JPEG": whole[:body] + noise.replace(b"\xff\xd9", b"\xff\xff"),
        "random-with-end.JPEG": whole[:body] + noise + b"\xff\xd9",
        "truncated.JPEG": whole[: len(whole) // 2],
        "truncated-thumbnail.JPEG": _with_thumbnail(whole)[: -len(whole) // 3],
        "dot.JPEG": encoded(photograph(size=(1, 1))),
    }


def odd_files() -> dict[str, bytes]:
    """Name -> bytes of files that are unusual and fine."""
    image = photograph()
    deep = np.asarray(image.convert("L")).astype(np.uint16) * 257
    jpeg = encoded(image, quality=90)
    exif = Image.Exif()
    exif[274] = 6  # rotate by 90 degrees: ignored
    return {
        "cmyk.JPEG": encoded(image.convert("CMYK")),
        "grey.JPEG": encoded(image.convert("L")),
        "progressive.JPEG": encoded(image, progressive=True),
        "long.JPEG": encoded(photograph(size=(3000, 9))),
        "rgba.png": encoded(image.convert("RGBA"), "PNG"),
        "palette.png": encoded(image.convert("P"), "PNG"),
        "grey16.png": encoded(Image.fromarray(deep), "PNG"),
        "png.JPEG": encoded(image, "PNG"),
        "rotated.JPEG": encoded(image, exif=exif),
        "thumbnail.JPEG": _with_thumbnail(jpeg),
        "comment-behind-scan.JPEG": _with_segment(jpeg, len(jpeg) - 2, 0xFE, b"\xff\x01note"),
        "motion-photo.JPEG": jpeg + np.random.default_rng(3).bytes(100_000),
        "png-behind-end.JPEG": jpeg + encoded(image, "PNG"),
        "restart.JPEG": encoded(image, restart_marker_blocks=1),
        "photo.webp": encoded(image, "WEBP"),
        "photo.bmp": encoded(image, "BMP"),
    }


def undecodable() -> bytes:
    """A PNG whose header is right and whose body is not: it shows only while decoding."""
    whole = encoded(photograph(7), "PNG")
    middle = len(whole) // 2
    return whole[:middle] + bytes(300) + whole[middle + 300 :]


@pytest.fixture
def folder(image_folder: Path, tmp_path: Path) -> Path:
    """A copy of the shared folder that a test may change."""
    return Path(shutil.copytree(image_folder, tmp_path / "images"))


def with_holes(backend: str, folder: Path, *holes: str) -> Index:
    """The index of a class folder with images that only decoding shows to be broken.

    In a folder they are PNGs; in a beton, which holds what could be decoded, samples whose bytes
    were lost.
    """
    for hole in holes:
        (folder / hole).write_bytes(
            undecodable() if backend != "ffcv" else encoded(photograph(7), "PNG")
        )
    index = opened(backend, folder, jpeg_share=1.0)
    if isinstance(index, BetonIndex):
        for hole in holes:
            damage(index, index.paths.index(hole))
    return index


def damage(index: BetonIndex, i: int) -> None:
    """Overwrites a sample of a beton with zeros."""
    with open(index.root, "r+b") as file:
        file.seek(index.samples.offsets[i])
        file.write(bytes(index.samples.n_bytes[i]))


@pytest.fixture
def holey_folder(folder: Path) -> Path:
    """The folder with two undecodable images in train and one in val."""
    (folder / "train" / "apple" / "zz.png").write_bytes(undecodable())
    (folder / "train" / "boat" / "00.png").write_bytes(undecodable())
    (folder / "val" / "cloud" / "01.png").write_bytes(undecodable())
    return folder


# ---- the contract's loaders ----------------------------------------------------------------------

SIZE = 48  # output pixels
N, N_VAL, BATCH = 31, 11, 5  # usable images, divisible by nothing: 6 batches, 1 image is dropped
Make = Callable[..., Pipeline]


@pytest.fixture(params=[*BACKENDS, *elsewhere(pytest.mark.slow)])
def source(request: pytest.FixtureRequest) -> str:
    """What the contract's images come from: a backend's folder or beton, tars, or a Dataset."""
    name: str = request.param
    return name


@pytest.fixture
def make(source: str, image_folder: Path, request: pytest.FixtureRequest) -> Make:
    """build(...) of the backend at hand over the shared folder, closed after the test."""
    backend, _, kind = source.partition("-")
    if kind == "tars":
        image_folder = request.getfixturevalue("tars")
    into = request.getfixturevalue("betons") if backend == "ffcv" else None

    def index_of(split: str) -> Index:
        if kind == "dataset":
            return from_dataset(as_dataset(image_folder / split))
        return open_beton(into / f"{split}.beton") if into else scan(image_folder / split)

    indices = {
        split: index_of(split).without({place: "left out by the test"})
        for split, place in (("train", 17), ("val", 4))
    }

    def build_one(**options: Any) -> Pipeline:
        defaults = {"batch_size": BATCH, "resolution": SIZE, "workers": 2, "timeout": 30}
        split = "train" if options.get("train", True) else "val"
        loader = build(backend, indices[split], on_bad_image="skip", **defaults | options)
        request.addfinalizer(loader.close)
        return loader

    return build_one


def epoch(loader: Pipeline, number: int = 0) -> list[PairBatch]:
    """All batches of an epoch."""
    loader.set_epoch(number)
    return list(loader)


@pytest.fixture(scope="module")
def betons(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shared folder's images as train.beton and val.beton."""
    folder = tmp_path_factory.mktemp("betons")
    for split in ("train", "val"):
        opened("ffcv", image_folder / split, folder)
    return folder


@pytest.fixture(scope="module")
def tars(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shared folder's images in tars."""
    return packed(image_folder, tmp_path_factory.mktemp("tars"))
