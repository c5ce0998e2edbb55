"""Robustness asked of a few noisy images and of models that are linear in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from fastsc.evaluation.questions.robustness import question as module
from fastsc.evaluation.questions.robustness.attacks import Attack
from fastsc.evaluation.questions.robustness.question import Robustness, robustness
from fastsc.evaluation.views import KINDS, Viewer
from fastsc.pipelines import Pipeline
from tests.fastsc.evaluation import tiny
from tests.fastsc.evaluation.questions.attack_cases import MEAN, STD

N = 9
FEW = (
    Attack("fgsm", "linf", (1.0, 4.0, 64.0)),
    Attack("pgd", "linf", (1.0, 4.0, 64.0), tries=2),
    Attack("square", "linf", (4.0,)),
    Attack("noise", "linf", (1.0, 4.0, 64.0), tries=2),
    Attack("pgd", "l2", (1.0, 4.0)),
)


@pytest.fixture(autouse=True)
def no_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests look at the search for the worst colors."""

    def photometric(viewer: Any, index: Any, labels: Any, **options: Any) -> Any:
        n = len(index)
        worst = np.array([(1.4, 0.6, 1.2, 0.1)] * n)
        return {
            "photometric_random": np.linspace(0, 1, n),
            "photometric_worst": (np.arange(n) % 2).astype(float),
            **{f"worst/{kind}": worst[:, at] for at, kind in enumerate(KINDS)},
            "margin": np.where(np.arange(n) % 2, 1.5, -1.0 - np.arange(n)),
        }

    monkeypatch.setattr(module, "photometric", photometric)


@pytest.fixture
def noisy(tmp_path: Path) -> Pipeline:
    return loader(tmp_path)


def loader(path: Path, **options: Any) -> Pipeline:
    pixels = {"a": tiny.noise(np.random.default_rng(1), N, 60, 200)}
    return tiny.loader(path, pixels, mean=MEAN, std=STD, **options)


def linear(scale: float = 1.0) -> Any:
    """Two classes, predicted about as often, near to each other."""
    model = tiny.flat(2, scale)
    with torch.no_grad():
        model.net[1].bias.zero_()  # type: ignore[index]
    return model


class Quantized(nn.Module):
    """Rounds its input: the gradient is zero everywhere, the boundary where it was."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.net((x * 32).round() / 32)
        return logits


def predicted(model: Any, pipeline: Pipeline) -> NDArray[np.int64]:
    (first, *rest) = Viewer(model, pipeline).images(pipeline.index.usable, "")
    pixels = torch.cat([one.pixels for one in (first, *rest)])
    found: NDArray[np.int64] = Viewer(model, pipeline).respond(pixels).predicted.numpy()
    return found


def asked(model: Any, pipeline: Pipeline, **options: Any) -> Robustness:
    """All labels are what is predicted, but for the first image's."""
    labels = predicted(model, pipeline)
    labels[0] = 1 - labels[0]
    return robustness(model, pipeline, **{"labels": labels, "attacks": FEW, "n": None, **options})
