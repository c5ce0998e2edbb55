"""Evaluations with made-up grids for the sliders' page."""

from __future__ import annotations

import numpy as np
import torch
import torchvision.transforms.v2.functional as tv
from numpy.typing import NDArray

from fastsc.evaluation.results.evaluated import Evaluated, Evaluation
from fastsc.evaluation.sliders import QUICK, Grid, Positions, combinations, unchanged

NASTY = "<script>alert(1)</script>"
NAMES = ("tabby", NASTY, "</script><b>lynx</b>", "déjà “vu” & Co", "truck", "yawl", "zebra")


def smooth(rng: np.random.Generator, side: int) -> NDArray[np.uint8]:
    """(side, side, 3): coarse noise, upsampled."""
    coarse = torch.from_numpy(rng.integers(0, 256, (1, 3, 5, 5)).astype(np.float32))
    size = (side, side)
    fine = torch.nn.functional.interpolate(coarse, size, mode="bicubic", align_corners=True)
    return fine.clamp(0, 255).to(torch.uint8)[0].permute(1, 2, 0).numpy()


def made_up_grid(
    rng: np.random.Generator, index: int, side: int, positions: Positions = QUICK, n: int = 7
) -> Grid:
    """Random answers of n classes; DS is 0 where nothing changes."""
    p = len(combinations(positions))
    logits = rng.normal(size=(p, n)) * 2
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    top = np.argsort(-probabilities, axis=1)[:, :3]
    relative = rng.uniform(0.01, 1.7, p).astype(np.float32)
    relative[unchanged(positions)] = 0
    return Grid(
        index=index,
        pixels=smooth(rng, side),
        positions=positions,
        top=top.astype(np.int64),
        confidence=np.take_along_axis(probabilities, top, 1).astype(np.float32),
        ds_relative=relative,
        names={number: NAMES[number] for number in np.unique(top).tolist()},
    )


def evaluated(name: str, grids: tuple[Grid, ...]) -> Evaluated:
    def picture(index: int, factors: tuple[float, float, float, float] | None) -> NDArray[np.uint8]:
        (grid,) = (grid for grid in grids if grid.index == index)
        return grid.pixels if factors is None else by_torchvision(grid.pixels, factors)

    return Evaluated(name, {}, {}, picture, {}, grids)


def evaluation(*models: Evaluated) -> Evaluation:
    return Evaluation(
        models=models,
        comparisons=(),
        metadata={},
        image_name=lambda index: f"{NASTY}/{index:03d}.jpg",
        class_name=lambda index: NASTY,
    )


def two_models(side: int = 40) -> Evaluation:
    """Two models over the same two images."""
    rng = np.random.default_rng(8)
    a = tuple(made_up_grid(rng, index, side) for index in (3, 11))
    b = tuple(made_up_grid(rng, index, side) for index in (3, 11))
    return evaluation(evaluated("plain", a), evaluated(f"continuous {NASTY}", b))


def by_torchvision(pixels: NDArray[np.uint8], factors: tuple[float, ...]) -> NDArray[np.uint8]:
    """(R, R, 3) uint8 in other colors: torchvision's functions on floats, rounded at the end."""
    image = torch.from_numpy(pixels).permute(2, 0, 1).double() / 255
    image = tv.adjust_brightness(image, factors[0])
    image = tv.adjust_contrast(image, factors[1])
    image = tv.adjust_saturation(image, factors[2])
    image = tv.adjust_hue(image, factors[3])
    return (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
