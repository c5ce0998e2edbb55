"""Attacks, and images and models for them to change and to fool."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastsc.cli.packages import installed
from fastsc.evaluation.questions.robustness.attacks import Attack, Target
from tests.fastsc.evaluation import tiny

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
ALL = (
    Attack("fgsm", "linf", (8.0,)),
    Attack("pgd", "linf", (8.0,)),
    Attack("square", "linf", (8.0,)),
    Attack("noise", "linf", (8.0,)),
    Attack("pgd", "l2", (8.0,)),
)
N = 6
needs_library = pytest.mark.skipif(
    not installed("torchattacks"),
    reason="torchattacks is not installed: pip install --no-deps torchattacks",
)


def images(low: float = 0.3, high: float = 0.7, n: int = N) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return low + (high - low) * torch.rand(n, 3, tiny.SIDE, tiny.SIDE, generator=generator)


def target(model: Any) -> Target:
    return Target(model, MEAN, STD)


def curved() -> Any:
    """Smooth and not linear; features (n, 6)."""
    torch.manual_seed(3)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2), nn.Tanh(), nn.AvgPool2d(3), nn.Flatten(), nn.Linear(6, 4)
    )
    with torch.no_grad():
        net[4].weight.mul_(10)  # type: ignore[operator]
    return tiny.classifier(net)
