"""Color MNIST of drawn digits, and models that read the color or the shape alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from fastsc.datasets.colormnist import COLORS, FOLDERS, prepare
from fastsc.evaluation.models.classifier import Classifier
from fastsc.evaluation.questions.bias.question import bias
from fastsc.loading.preprocessing import Preprocessing
from fastsc.pipelines import Pipeline, build
from tests.fastsc.evaluation import tiny

SIDE, PER_CLASS = 12, 60


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Color MNIST of drawn digits: class k has 10 + 12 k pixels of a bright grey, at random."""
    rng = np.random.default_rng(11)
    labels = rng.permutation(np.arange(10 * PER_CLASS) % 10)
    images = np.zeros((len(labels), SIDE * SIDE), np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[: 10 + 12 * label] = rng.integers(150, 256)
    images = rng.permuted(images, axis=1).reshape(-1, SIDE, SIDE)
    root = tmp_path_factory.mktemp("colormnist")
    np.savez(root / "digits.npz", images=images, labels=labels)
    prepare(root / "data", 0.9, root / "digits.npz")
    return root / "data"


def shown_by(data: Path, folder: str, **options: Any) -> Pipeline:
    chosen: dict[str, Any] = {
        "resolution": SIDE, "val_crop": 1.0, "mean": tiny.NO_MEAN, "std": tiny.NO_STD,
    }  # fmt: skip
    return build(
        "memory", data / folder, batch_size=50, train=False, workers=1, **(chosen | options)
    )


def splits_of(data: Path, **options: Any) -> dict[str, Pipeline]:
    return {name: shown_by(data, name, **options) for name in FOLDERS}


class Reader(nn.Module):
    """Outputs the class that `read` finds in an image; features: ten zeros and ones."""

    def __init__(self, read: Any, order: NDArray[np.int64] | None = None) -> None:
        super().__init__()
        self.read = read
        self.linear = nn.Linear(10, 10)
        with torch.no_grad():
            eye = torch.eye(10)
            self.linear.weight.copy_(eye if order is None else eye[torch.from_numpy(order)])
            self.linear.bias.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.linear(nn.functional.one_hot(self.read(x), 10).float())
        return logits


def color(x: torch.Tensor) -> torch.Tensor:
    unit = nn.functional.normalize(torch.tensor(COLORS, dtype=torch.float32), dim=1)
    return (x.sum((2, 3)) @ unit.T).argmax(1)


def shape(x: torch.Tensor) -> torch.Tensor:
    """The grey image's share of bright pixels, whatever the color."""
    bright = (x.amax(1) > 0.1).float().sum((1, 2))
    return ((bright - 10) / 12).round().long().clamp(0, 9)


def classifier(net: nn.Module) -> Classifier:
    return Classifier(net, "tiny", Preprocessing(resolution=SIDE, resize=SIDE))


def ask(net: nn.Module, data: Path, **options: Any) -> Any:
    loader = shown_by(data, "val", strengths=(0, 0, 0, 0))  # no axes
    chosen = {"labels": loader.index.targets, "splits": splits_of(data)} | options
    return bias(classifier(net), loader, **chosen)
