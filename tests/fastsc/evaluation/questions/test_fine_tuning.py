"""A fine-tuned copy: what it learns, its seed, and SGD by hand."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fastsc.evaluation.questions.transfer import fine_tuning
from fastsc.evaluation.questions.transfer.fine_tuning import Tuned, epochs_of
from fastsc.evaluation.questions.transfer.question import transfer
from fastsc.evaluation.views import Viewer
from fastsc.pipelines import keyed
from tests.fastsc.evaluation import tiny
from tests.fastsc.evaluation.questions.test_transfer import parts, tinted

pytestmark = pytest.mark.heavy


def convolutional() -> Any:
    """With batch norm and dropout; features (n, 6)."""
    torch.manual_seed(3)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Dropout(0.5), nn.Linear(6, 4),
    )  # fmt: skip
    return tiny.classifier(net)


def test_a_fine_tuned_copy_learns_and_the_model_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    pixels = {name: tinted(rng, 9, i, 150) for i, name in enumerate("abc")}
    loaders = parts(tmp_path, pixels, pixels, strengths=(0.0,) * 4)
    monkeypatch.setattr(fine_tuning, "EPOCHS", 40)
    brave = fine_tuning.replace(fine_tuning.OPTIMIZER, lr=4.0)
    monkeypatch.setattr(fine_tuning, "OPTIMIZER", brave)
    model = convolutional()
    before, draw = model.hash, torch.random.get_rng_state()
    cache = tiny.Kept()
    found = transfer(model, *loaders, fine_tune=True, cache=cache)
    assert torch.equal(torch.random.get_rng_state(), draw)
    del model.hash
    assert model.hash == before
    assert not any(p.requires_grad for p in model.parameters())
    assert not model.training
    assert cache.settings["fine-tuned"]["epochs"] == 40
    assert found["fine_tuned/accuracy"].value > 0.9
    columns = found.tables["test"].columns
    assert np.array_equal(
        columns["predicted/fine_tuned"], columns["predicted/fine_tuned_perturbed"]
    )
    assert "fine_tuned/accuracy" not in transfer(model, *loaders).estimates


def test_fine_tuning_is_a_function_of_its_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    pixels = {name: tiny.noise(rng, 12) for name in "abc"}
    loaders = parts(tmp_path, pixels, pixels)
    monkeypatch.setattr(fine_tuning, "EPOCHS", 1)
    index, targets = np.arange(36), loaders[0].index.targets
    model = convolutional()

    def answers(seed: int) -> list[int]:
        found = fine_tuning.fine_tuned(
            model, *loaders, index, targets, index, dim=6, seed=seed
        )  # fmt: skip
        return [*found["tuned"].tolist(), *found["tuned_perturbed"].tolist()]

    torch.manual_seed(1)
    first = answers(0)
    torch.manual_seed(2)
    assert answers(0) == first
    assert answers(1) != first


@pytest.mark.parametrize("size", [4, 16])
def test_the_loop_is_sgd_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    rng = np.random.default_rng(0)
    pixels = {name: tiny.noise(rng, 5) for name in "ab"}
    train, _ = parts(tmp_path, pixels, pixels, batch_size=size)
    monkeypatch.setattr(fine_tuning, "EPOCHS", 3)
    torch.manual_seed(0)
    model = tiny.classifier(nn.Sequential(nn.Conv2d(3, 4, 5), nn.Flatten(), nn.Linear(64, 2)))
    found = Tuned(model, 64, 2)
    expected = copy.deepcopy(found)
    index = np.array([0, 1, 2, 4, 5, 7, 8, 9, 3])  # one is not learned from
    targets = train.index.targets[index]
    finite = fine_tuning._learn(found, Viewer(model, train), index, targets, seed=6)
    assert finite

    x = torch.from_numpy(tiny.decoded(train)).float()
    net: Any = expected.train()
    named = [(k, p) for k, p in net.named_parameters() if not k.startswith("body.model.net.2")]
    velocity: dict[str, Any] = {k: torch.zeros_like(p) for k, p in named}
    for epoch in range(3):
        order = keyed.order(6, epoch, index, 10)
        flips = keyed.flips(6, epoch, 10)
        steps = -(-9 // size)
        for step in range(steps):
            rows = order[size * step : size * (step + 1)]
            if len(rows) == 1:
                continue
            views = torch.stack([x[i].flip(2) if flips[i] else x[i] for i in rows])
            done = steps * epoch + step
            lr = 0.04 * min(size, 9) / 256
            if done < steps:
                lr *= (done + 1) / steps
            else:
                lr *= 0.5 * (1 + math.cos(math.pi * (done - steps) / (2 * steps)))
            features = net.body.model.net[:2](views)
            label = torch.from_numpy(train.index.targets[rows])
            loss = nn.functional.cross_entropy(net.head(features), label)
            grads = torch.autograd.grad(loss, [p for _, p in named])
            with torch.no_grad():
                for (k, p), g in zip(named, grads, strict=True):
                    g = g + (1e-4 * p if p.ndim > 1 else 0)
                    velocity[k] = 0.9 * velocity[k] + g
                    p -= lr * (g + 0.9 * velocity[k])
    moved = 0.0
    for (k, p), (_, q) in zip(expected.named_parameters(), found.named_parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6, msg=k)
    moved = (found.head.weight - Tuned(model, 64, 2).head.weight).abs().max().item()
    assert moved > 1e-4


def test_what_fine_tuning_costs_is_bounded() -> None:
    assert [epochs_of(n) for n in (1, 400, 500, 1000, 4999, 5000, 10**6)] == [
        10, 10, 10, 5, 1, 1, 1,
    ]  # fmt: skip


def test_a_loss_that_explodes_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    pixels = {name: tinted(rng, 9, i) for i, name in enumerate("abc")}
    wild = fine_tuning.replace(fine_tuning.OPTIMIZER, lr=1e30)
    monkeypatch.setattr(fine_tuning, "OPTIMIZER", wild)
    found = transfer(tiny.flat(), *parts(tmp_path, pixels, pixels), fine_tune=True)
    assert found.left_out[-1].startswith("fine_tuned: its loss left the finite numbers")
