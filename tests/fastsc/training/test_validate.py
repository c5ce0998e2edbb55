"""Validation against a plain numpy computation over all images at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fastsc.models.representation import Outputs
from fastsc.pipelines import build, keyed, scan
from fastsc.training.validate import validate


class Toy(nn.Module):
    """Features are the mean colors and their squares, logits a fixed linear map of them."""

    def __init__(self, n_classes: int, at: str = "features") -> None:
        super().__init__()
        self.at = at
        torch.manual_seed(0)
        self.register_buffer("weight", torch.randn(n_classes, 6))
        self.modes: list[bool] = []

    def forward(self, x: torch.Tensor) -> Outputs:
        self.modes.append(self.training)
        mean = x.float().mean(dim=(2, 3))
        features = torch.cat([mean, mean**2], dim=1)
        logits = features @ self.weight.T  # type: ignore[operator]
        return Outputs(features, logits, features if self.at == "features" else logits)


@pytest.fixture
def loader(image_folder: Path) -> Any:
    # 12 images in batches of 5: the last is short.
    return build("cpu", scan(image_folder / "val"), batch_size=5, resolution=32, train=False)


@pytest.mark.parametrize("kind", ["l2", "relative", "cosine", "mse"])
def test_equals_one_computation_over_the_split(loader: Any, kind: Any) -> None:
    model: Any = Toy(7).train()
    found = validate(model, loader, kind)
    assert found is not None
    assert model.training
    assert not any(model.modes)

    batches = list(loader)
    target = torch.cat([b.target for b in batches]).numpy()
    index = torch.cat([b.index for b in batches]).numpy()
    (f, z), (g, y) = (
        [
            np.concatenate(x)
            for x in zip(*[[t.numpy() for t in model(v)[:2]] for v in views], strict=True)
        ]
        for views in ([b.clean for b in batches], [b.perturbed for b in batches])
    )
    ranking = np.argsort(-z, axis=1)
    assert found.n == 12
    assert found.top1 == np.mean(ranking[:, 0] == target)
    assert found.top5 == np.mean((ranking[:, :5] == target[:, None]).any(axis=1))
    assert found.top1 < found.top5
    assert found.top1_perturbed == np.mean(y.argmax(axis=1) == target)

    cycle = keyed.cycle(index, 12)
    partner = np.empty(12, int)
    partner[cycle] = np.roll(cycle, -1)
    assert sorted(partner) == list(range(12))
    assert (partner != np.arange(12)).all()
    moved = np.linalg.norm(f - g, axis=1)
    apart = np.linalg.norm(f - f[partner], axis=1)
    relative = moved.mean() / apart.mean()
    assert found.ds_relative == pytest.approx(relative, rel=1e-5)
    cosine = 1 - (f * g).sum(1) / np.linalg.norm(f, axis=1) / np.linalg.norm(g, axis=1)
    mse = ((f - g) ** 2).mean()
    expected = {"l2": moved.mean(), "relative": relative, "cosine": cosine.mean(), "mse": mse}
    assert found.ds == pytest.approx(expected[kind], rel=1e-3)


def test_logits_are_compared_where_asked(loader: Any) -> None:
    at_logits = validate(Toy(7, "logits"), loader, "l2")
    at_features = validate(Toy(7), loader, "l2")
    assert at_logits is not None
    assert at_features is not None
    assert at_logits.ds != at_features.ds
    assert at_logits.ds_relative == at_features.ds_relative


def test_scores_that_are_not_finite_are_wrong(loader: Any) -> None:
    model: Any = Toy(7)
    model.weight.fill_(float("nan"))
    found = validate(model, loader, "cosine")
    assert found is not None
    assert (found.top1, found.top5) == (0, 0)


def test_stops_between_batches_when_told(loader: Any) -> None:
    model: Any = Toy(7).train()
    assert validate(model, loader, "cosine", stop=lambda: len(model.modes) == 1) is None
    assert model.training
    assert len(model.modes) == 1
