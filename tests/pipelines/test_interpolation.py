"""The resize's interpolation: torchvision's on every backend that has it, and refused elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from fastsc.pipelines import Pipeline, build
from fastsc.pipelines.errors import UserError
from fastsc.pipelines.plan import Interpolation
from tests.pipelines.conftest import DALI, needs_ffcv, opened

SIZE = 48


def loader_of(backend: str, folder: Path, interpolation: Interpolation) -> Pipeline:
    return build(
        backend,
        opened(backend, folder),
        batch_size=5,
        resolution=SIZE,
        train=False,
        paired=False,
        workers=1,
        interpolation=interpolation,
        exact_decode=True,
    )


def pixels(loader: Pipeline) -> dict[int, torch.Tensor]:
    """Dataset index -> (3, R, R) uint8."""
    found = {
        int(i): image.permute(2, 0, 1).clone()
        for batch in loader.decoded(loader.index.usable)
        for i, image in zip(batch.index, batch.images, strict=True)
    }
    loader.close()
    return found


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("backend", [DALI, "cpu", "memory"])
def test_pixels_are_torchvisions(
    backend: str, interpolation: Interpolation, image_folder: Path
) -> None:
    loader = loader_of(backend, image_folder / "val", interpolation)
    boxes = loader.plan().boxes
    mode = InterpolationMode(interpolation)
    worst = 0
    for i, image in pixels(loader).items():
        with Image.open(loader.index.path(i)) as file:
            whole = tv.pil_to_tensor(file.convert("RGB"))
        box = boxes[i].tolist()
        expected = tv.resized_crop(whole, *box, [SIZE, SIZE], interpolation=mode, antialias=True)
        worst = max(worst, int((image.int() - expected.int()).abs().max()))
    # DALI rounds its antialiased resize in its own way; the others are bit-equal where Pillow
    # decodes, and the fast decoders' transform is within 2 of its.
    assert worst <= 2


def test_bicubic_is_bit_equal_to_torchvision(tmp_path: Path) -> None:
    """Of lossless files, so that no decoder differs: enlarged, shrunk, and in one axis each."""
    rng = np.random.default_rng(0)
    (tmp_path / "a").mkdir()
    for i, (height, width) in enumerate(((20, 20), (90, 90), (47, 47), (49, 200))):
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
        image.save(tmp_path / "a" / f"{i}.png")
    for backend in ("cpu", "memory"):
        loader = loader_of(backend, tmp_path, "bicubic")
        boxes = loader.plan().boxes
        for i, image in pixels(loader).items():
            whole = tv.pil_to_tensor(Image.open(loader.index.path(i)))
            expected = tv.resized_crop(
                whole,
                *boxes[i].tolist(),
                [SIZE, SIZE],
                interpolation=InterpolationMode.BICUBIC,
                antialias=True,
            )
            assert torch.equal(image, expected)


def test_the_two_differ(image_folder: Path) -> None:
    folder = image_folder / "val"
    a, b = (pixels(loader_of("cpu", folder, kind)) for kind in ("bilinear", "bicubic"))
    assert any(not torch.equal(a[i], b[i]) for i in a)


@needs_ffcv
def test_ffcv_refuses_bicubic(image_folder: Path, tmp_path: Path) -> None:
    index = opened("ffcv", image_folder / "val", into=tmp_path)
    with pytest.raises(UserError, match=r"ffcv has no bicubic resize.*take --pipeline cpu"):
        build("ffcv", index, batch_size=2, resolution=32, train=False, interpolation="bicubic")


def test_an_unknown_name_is_refused(image_folder: Path) -> None:
    with pytest.raises(UserError, match="interpolation must be one of bilinear, bicubic"):
        build(
            "cpu",
            image_folder / "val",
            batch_size=2,
            resolution=32,
            interpolation="lanczos",  # type: ignore[arg-type]
        )
