"""What the pixels of every backend are: those of torchvision, or of OpenCV, at the planned crop."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as tv

from fastsc.pipelines import IMAGENET_STD, BetonIndex, Pipeline
from fastsc.pipelines.files import read_file
from tests.pipelines.conftest import SIZE, Make, epoch


def test_perturbed_view_is_torchvisions(make: Make) -> None:
    loader = make(mean=(0, 0, 0), std=(1, 1, 1))
    batch = epoch(loader, 3)[1]
    factors = loader.plan(3).factors[batch.index.numpy()]
    assert batch.perturbed is not None
    for clean, perturbed, (b, c, s, h) in zip(
        batch.clean, batch.perturbed, factors.tolist(), strict=True
    ):
        expected = tv.adjust_brightness(clean, b)
        expected = tv.adjust_contrast(expected, c)
        expected = tv.adjust_saturation(expected, s)
        expected = tv.adjust_hue(expected, h)
        assert (perturbed - expected).abs().max() <= 1 / 255


def whole_image(loader: Pipeline, i: int) -> torch.Tensor:
    """What the backend reads for a dataset index, decoded by Pillow: (3, H, W) uint8."""
    if not isinstance(loader.index, BetonIndex):
        with Image.open(io.BytesIO(read_file(loader.index.place(i)))) as file:
            return tv.pil_to_tensor(file.convert("RGB"))
    samples, beton = loader.index.samples, loader.index.root.read_bytes()
    stored = beton[samples.offsets[i] : samples.offsets[i] + samples.n_bytes[i]]
    if samples.is_jpeg[i]:
        return tv.pil_to_tensor(Image.open(io.BytesIO(stored)))
    shape = samples.heights[i], samples.widths[i], 3
    return torch.from_numpy(np.frombuffer(stored, np.uint8).reshape(shape).copy()).permute(2, 0, 1)


def test_pixels_are_the_planned_crop_resized_and_mirrored(make: Make) -> None:
    loader = make(mean=(0, 0, 0), std=(1, 1, 1), resolution=64, exact_decode=True)
    plan = loader.plan(1)
    boxes = loader.stored_boxes(plan.boxes) if loader.name == "ffcv" else plan.boxes  # type: ignore[attr-defined]
    jpegs = loader.index.samples.is_jpeg if isinstance(loader.index, BetonIndex) else None
    for batch in epoch(loader, 1):
        for i, image in zip(batch.index.tolist(), batch.clean, strict=True):
            whole = whole_image(loader, i)
            top, left, height, width = boxes[i].tolist()
            if loader.name == "ffcv":
                import cv2

                region = whole[:, top : top + height, left : left + width].permute(1, 2, 0)
                resized = cv2.resize(region.numpy(), (64, 64), interpolation=cv2.INTER_AREA)
                expected = torch.from_numpy(resized).permute(2, 0, 1)
            else:
                box = top, left, height, width
                expected = tv.resized_crop(whole, *box, [64, 64], antialias=True)
            if plan.flips[i]:
                expected = expected.flip(-1)
            difference = ((image * 255).round() - expected).abs()
            # DALI rounds its antialiased resize in its own way; FFCV takes libjpeg-turbo's fast
            # transform, Pillow the accurate one.
            exact = jpegs is None or not jpegs[i]
            assert difference.max() <= (2 if loader.name == "dali" else 0 if exact else 6)


@pytest.mark.parametrize(("crop", "border"), [("pad", "constant"), ("reflect", "reflect")])
def test_padded_crops(make: Make, crop: str, border: str) -> None:
    batches = epoch(make(crop=crop, flip=False, mean=(0, 0, 0), std=(1, 1, 1)))
    loader = make(crop="none", flip=False, mean=(0, 0, 0), std=(1, 1, 1))
    plain = {
        int(i): image for b in epoch(loader) for i, image in zip(b.index, b.clean, strict=True)
    }
    shifts = make(crop=crop).plan(0).shifts
    assert shifts is not None
    compared = 0
    for batch in batches:
        for i, image in zip(batch.index.tolist(), batch.clean, strict=True):
            if i in plain:
                dy, dx = (int(step) for step in shifts[i])
                expected = tv.crop(
                    tv.pad(plain[i], [4], padding_mode=border), 4 + dy, 4 + dx, SIZE, SIZE
                )
                assert torch.equal(image, expected)
                compared += 1
    assert compared > 20


@pytest.mark.parametrize("crop", ["pad", "reflect"])
def test_flip_mirrors_the_whole_crop(make: Make, crop: str) -> None:
    loader = make(crop=crop)
    flips = loader.plan(0).flips
    flipped, straight = epoch(loader), epoch(make(crop=crop, flip=False))
    for a, b in zip(flipped, straight, strict=True):
        for row, i in enumerate(a.index.tolist()):
            expected = b.clean[row].flip(-1) if flips[i] else b.clean[row]
            # DALI resizes a mirrored image from its other end, and may round the other way.
            tolerance = 1 / (255 * min(IMAGENET_STD)) if loader.name == "dali" else 0
            assert (a.clean[row] - expected).abs().max() <= tolerance * 1.001
