"""Attacks on models that have no gradients, and those that are left without them or the library."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastsc.evaluation.questions.robustness.attacks import Attack, Target, possible
from tests.fastsc.evaluation import tiny
from tests.fastsc.evaluation.questions.attack_cases import (
    ALL,
    curved,
    images,
    needs_library,
    target,
)


class Cut(nn.Module):
    """Logits that depend on the image through no gradient; in eighths where it is kept."""

    def __init__(self, eighths: bool) -> None:
        super().__init__()
        self.linear, self.eighths = nn.Linear(192, 2), eighths

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        logits: Tensor = self.linear((x * 8).round() / 8 if self.eighths else x.detach())
        return logits


@needs_library
@pytest.mark.parametrize("eighths", [True, False])
def test_a_model_without_gradients(eighths: bool) -> None:
    torch.manual_seed(0)
    x, under_attack = images(), target(tiny.classifier(Cut(eighths)))
    labels = under_attack.logits(x).argmax(1)
    assert not under_attack.has_gradient(x, labels).any()
    pgd, noise = (
        under_attack.perturb(Attack(name, "linf", (4.0,)), x, labels, 4.0, seed=0)
        for name in ("pgd", "noise")
    )
    torch.testing.assert_close(pgd, noise)  # where it starts
    l2 = under_attack.perturb(Attack("pgd", "l2", (4.0,)), x, labels, 4.0, seed=0)
    assert l2.isfinite().all()
    square = Attack("square", "linf", (16.0, 64.0))
    assert np.isfinite(under_attack.walk(square, x, labels, key=(0,)).least).all()


def test_gradients_that_are_there() -> None:
    for model in (tiny.flat(2, 3000.0), curved()):
        under_attack = target(model)
        x = images()
        assert under_attack.has_gradient(x, under_attack.logits(x).argmax(1)).all()


@needs_library
def test_a_net_that_begins_in_place() -> None:
    net = nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(192, 2))
    x, under_attack = images(), target(tiny.classifier(net))
    before = x.clone()
    labels = under_attack.logits(x).argmax(1)
    for attack in ALL:
        under_attack.perturb(attack, x, labels, 4.0, seed=0)
    assert torch.equal(x, before)


ASKED = tuple(Attack(name, "linf", (1.0,)) for name in ("fgsm", "pgd", "square", "noise"))


def at_eight_pixels(net: nn.Module) -> Target:
    return Target(tiny.classifier(net), tiny.NO_MEAN, tiny.NO_STD)


def test_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    found, why = possible(at_eight_pixels(net), ASKED, tiny.SIDE)
    assert found == ()
    assert why is not None
    assert "pip install --no-deps torchattacks" in why


class Outside(nn.Sequential):
    """Computes elsewhere: nothing can be derived, as of a network in another runtime."""

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = super().forward(torch.from_numpy(x.numpy()))
        return logits


class Inferred(nn.Sequential):
    @torch.inference_mode()
    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = super().forward(x)
        return logits


class Broken(nn.Sequential):
    """Answers with a gradient that is NaN everywhere."""

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = super().forward(x) + (x - x.detach()).abs().sum((1, 2, 3)).sqrt()[:, None]
        return logits


def test_models_that_cannot_be_derived_meet_the_attacks_that_need_no_gradient() -> None:
    layers = nn.Flatten(), nn.Linear(192, 3)
    found, why = possible(at_eight_pixels(Outside(*layers)), ASKED, tiny.SIDE)
    assert [attack.name for attack in found] == ["square", "noise"]
    assert why is not None
    assert "cannot be derived" in why
    for net in (nn.Sequential(*layers), Inferred(*layers), Broken(*layers)):
        assert possible(at_eight_pixels(net), ASKED, tiny.SIDE) == (ASKED, None)


@needs_library
@pytest.mark.parametrize("kind", [Outside, Inferred, Broken])
@pytest.mark.parametrize("attack", ASKED, ids=lambda attack: attack.name)
def test_strange_models_are_attacked_within_the_ball(
    kind: type[nn.Sequential], attack: Attack
) -> None:
    torch.manual_seed(0)
    target = at_eight_pixels(kind(nn.Flatten(), nn.Linear(192, 3)))
    asked, _ = possible(target, (attack,), tiny.SIDE)
    if kind is Outside and attack.name in ("fgsm", "pgd"):
        assert asked == ()
        return
    assert asked == (attack,)
    images = torch.rand(4, 3, tiny.SIDE, tiny.SIDE)
    labels = target.logits(images).argmax(1)
    assert not target.has_gradient(images, labels).any()
    found = target.perturb(attack, images, labels, 8.0, seed=0)
    assert ((found - images).abs() <= 8 / 255 * (1 + 1e-4)).all()
