"""Small models and loaders whose answers can be computed from pixels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from fastsc.evaluation.models.classifier import Classifier
from fastsc.evaluation.results.answers import Arrays
from fastsc.loading.preprocessing import Preprocessing
from fastsc.pipelines import Pipeline, build, scan

SIDE = 8
NO_MEAN, NO_STD = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)

Pixels = Mapping[str, Sequence[NDArray[np.uint8]]]  # class -> (8, 8, 3) images


def loader(root: Path, pixels: Pixels, **options: Any) -> Pipeline:
    """Shows those pixels out of files below root, by default on [0, 1]; options are build's."""
    for name, images in pixels.items():
        (root / name).mkdir(exist_ok=True)
        for i, image in enumerate(images):
            assert image.shape == (SIDE, SIDE, 3)
            Image.fromarray(image).save(root / name / f"{i:02d}.png")
    chosen = {"batch_size": 4, "val_crop": 1.0, "mean": NO_MEAN, "std": NO_STD} | options
    return build("memory", scan(root), resolution=SIDE, train=False, workers=1, **chosen)


def constant(*values: float) -> list[NDArray[np.uint8]]:
    """One grey image a value on [0, 1]."""
    return [np.full((SIDE, SIDE, 3), round(255 * v), np.uint8) for v in values]


def noise(rng: np.random.Generator, n: int, low: int = 0, high: int = 256) -> list[Any]:
    """Images of independent pixels in [low, high)."""
    return list(rng.integers(low, high, (n, SIDE, SIDE, 3)).astype(np.uint8))


def classifier(net: nn.Module, **options: Any) -> Classifier:
    return Classifier(net, "tiny", Preprocessing(resolution=SIDE, resize=SIDE), **options)


def flat(n_classes: int = 3, scale: float = 1.0) -> Classifier:
    """Features are the normalized pixels, channel by channel; the logits are linear in them."""
    torch.manual_seed(0)
    linear = nn.Linear(3 * SIDE * SIDE, n_classes)
    with torch.no_grad():
        linear.weight.mul_(scale)
        linear.bias.mul_(scale)
    return classifier(nn.Sequential(nn.Flatten(), linear))


def decoded(loader: Pipeline) -> NDArray[np.float64]:
    """(n, 3, 8, 8) images of a loader on [0, 1]."""
    images = [batch.images.numpy().copy() for batch in loader.decoded(loader.index.usable)]
    return np.concatenate(images).transpose(0, 3, 1, 2) / 255


class Kept:
    """A cache that remembers, and counts what it had to compute."""

    def __init__(self) -> None:
        self.parts: dict[str, Arrays] = {}
        self.settings: dict[str, Mapping[str, object]] = {}
        self.computed: list[str] = []

    def __call__(
        self, part: str, settings: Mapping[str, object], compute: Callable[[], Arrays]
    ) -> Arrays:
        if part not in self.parts:
            self.parts[part], self.settings[part] = compute(), settings
            self.computed.append(part)
        return self.parts[part]
