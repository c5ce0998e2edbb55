"""Validation against a plain numpy computation over all images at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fastsc.kernels import ds
from fastsc.kernels.distance import between_distance, of_pairs
from fastsc.models.representation import Outputs
from fastsc.pipelines import build, keyed, scan
from fastsc.training.validate import validate


class Toy(nn.Module):
    """Features are the mean colors and their squares, logits a fixed linear map of them."""

    def __init__(self, n_classes: int, at: str = "features") -> None:
        super().__init__()
        self.at = at
        torch.manual_seed(1)
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


@pytest.mark.parametrize("kind", ["l2", "relative", "cosine", "mse", "sq"])
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
    order = np.argsort(-y, axis=1)
    assert found.top1_perturbed == np.mean(order[:, 0] == target)
    assert found.top1_perturbed != np.mean(order[:, 1] == target)  # so that the two are told apart

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
    sq = (moved**2).mean() / (2 * ((f + g) / 2).var(0).sum())
    expected = {"l2": moved.mean(), "relative": relative, "cosine": cosine.mean(), "mse": mse}
    expected["sq"] = sq
    assert found.ds == pytest.approx(expected[kind], rel=1e-3)


def test_logits_are_compared_where_asked(loader: Any) -> None:
    at_logits = validate(Toy(7, "logits"), loader, "l2")
    at_features = validate(Toy(7), loader, "l2")
    assert at_logits is not None
    assert at_features is not None
    assert at_logits.ds != at_features.ds
    assert at_logits.ds_relative == at_features.ds_relative


@pytest.mark.parametrize("kind", ["l2", "relative", "cosine", "js", "mse"])
def test_pairs_are_reduced_where_they_are_computed(kind: str) -> None:
    """To the bit as all at once, but for mse, which is a mean of means."""
    f, g = torch.randn(2, 9, 5)
    whole = ds(f, g, kind)
    parts = torch.cat([of_pairs(*views, kind) for views in zip(f.split(4), g.split(4))])
    assert parts.shape == (9,)
    found = parts.mean() / (between_distance(f) if kind == "relative" else 1)
    assert found.equal(whole) or (kind == "mse" and found == pytest.approx(float(whole), rel=1e-6))


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_another_precision_and_back(loader: Any, precision: Any) -> None:
    model: Any = Toy(7)
    model.linear = nn.Linear(6, 7)
    seen, plain = list[bool](), validate(model, loader, "cosine")

    def forward(x: torch.Tensor) -> Outputs:
        seen.append(torch.backends.cudnn.allow_tf32 and torch.backends.cuda.matmul.allow_tf32)
        outputs = Toy.forward(model, x)
        logits = model.linear(outputs.features)
        assert logits.dtype == (torch.bfloat16 if precision == "bf16" else torch.float32)
        return outputs

    model.forward = forward
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    found = validate(model, loader, "cosine", precision=precision)
    assert seen == [precision == "tf32"] * 3
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == before
    assert found is not None
    assert plain is not None
    assert found.ds_relative == pytest.approx(plain.ds_relative, rel=1e-2)


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
