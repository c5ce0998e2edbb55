"""Attacks against closed forms of linear models, and against foolbox."""

from __future__ import annotations

import math
import sys
import types
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastsc.evaluation.questions.robustness import attacks as module
from fastsc.evaluation.questions.robustness.attacks import Attack, PixelModel, Target, radius
from tests.fastsc.evaluation import tiny
from tests.fastsc.evaluation.questions.attack_cases import (
    ALL,
    MEAN,
    STD,
    N,
    curved,
    images,
    needs_library,
    target,
)


def margins(model: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """A linear model's lead of the predicted of two classes (n,), and its slope (3·R·R,)."""
    linear = model.net[1]
    weight = (linear.weight[1] - linear.weight[0]).detach().double().reshape(3, -1)
    weight = (weight / torch.tensor(STD, dtype=torch.float64)[:, None]).flatten()
    mean = torch.tensor(MEAN, dtype=torch.float64)[:, None, None]
    bias = (linear.bias[1] - linear.bias[0]).detach().double()
    return ((x.double() - mean).flatten(1) @ weight + bias).abs(), weight


@needs_library
@pytest.mark.parametrize("scale", [1e-11, 1.0, 3000.0])
@pytest.mark.parametrize(
    ("attack", "room"),
    [(ALL[0], 1.001), (ALL[1], 1.001), (ALL[4], 1.05)],
    ids=["fgsm", "pgd-linf", "pgd-l2"],
)
def test_the_least_change_of_a_linear_model(attack: Attack, room: float, scale: float) -> None:
    # Its lead falls by at most ‖w‖₁ · ε in L-inf and ‖w‖₂ · ε in L2: the dual norms.
    model, x = tiny.flat(2, scale), images()
    under_attack = target(model)
    labels = under_attack.logits(x).argmax(1)
    lead, weight = margins(model, x)
    assert scale < 3000 or lead.min() > 150  # float32 has no such odds
    least = lead / weight.norm(p=1 if attack.norm == "linf" else 2)
    assert least.max() < 0.25 or attack.norm == "l2"  # no value is clamped
    for i in range(N):
        for factor, right in ((0.999, True), (room, False)):
            level = float(least[i]) * factor / radius(attack.norm, 1.0, tiny.SIDE)
            changed = under_attack.perturb(attack, x[i : i + 1], labels[i : i + 1], level, seed=i)
            assert changed.min() > 0
            assert changed.max() < 1
            assert (under_attack.logits(changed).argmax(1) == labels[i]).item() is right


def test_radii() -> None:
    assert radius("linf", 2.0, 224) == 2 / 255
    assert radius("linf", 2.0, 32) == 2 / 255
    change = torch.full((3, 224, 224), 2 / 255, dtype=torch.float64)
    assert radius("l2", 2.0, 224) == pytest.approx(change.norm().item(), rel=1e-12)
    assert radius("l2", 2.0, 32) == pytest.approx(2 / 255 * math.sqrt(3 * 32 * 32))


@needs_library
@pytest.mark.parametrize("attack", ALL, ids=lambda attack: attack.key)
def test_changes_stay_in_the_ball_and_on_the_range(attack: Attack) -> None:
    x = images(-0.3, 1.3).clamp(0, 1)  # many values at the ends
    under_attack = target(curved())
    labels = under_attack.logits(x).argmax(1)
    for level in (1.0, 8.0, 64.0):
        changed = under_attack.perturb(attack, x, labels, level, seed=0)
        assert changed.min() >= 0
        assert changed.max() <= 1
        change = (changed - x).double().flatten(1)
        length = change.abs().amax(1) if attack.norm == "linf" else change.norm(dim=1)
        limit = radius(attack.norm, level, tiny.SIDE)
        assert (length <= limit + 2e-7).all()
        assert attack.name == "square" or (length > 0.3 * limit).all()
    assert torch.equal(under_attack.perturb(attack, x, labels, 0.0, seed=0), x)


@needs_library
@pytest.mark.parametrize("attack", ALL, ids=lambda attack: attack.key)
def test_draws_are_those_of_the_key_alone(attack: Attack) -> None:
    x, under_attack = images(), target(curved())
    labels = under_attack.logits(x).argmax(1)
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    first = under_attack.perturb(attack, x, labels, 1.0, seed=5)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(under_attack.perturb(attack, x, labels, 1.0, seed=5), first)
    if attack.name in ("pgd", "noise"):
        assert not torch.equal(under_attack.perturb(attack, x, labels, 1.0, seed=6), first)


def test_the_model_sees_what_it_wants() -> None:
    seen: list[Tensor] = []

    class Seeing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(192, 3)

        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            logits: Tensor = self.linear(x.flatten(1))
            return logits

    model = tiny.classifier(Seeing())
    x = images()
    logits = PixelModel(model, MEAN, STD)(x)
    mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
    torch.testing.assert_close(seen[-1].contiguous(), (x - mean) / std)
    assert seen[-1].is_contiguous(memory_format=torch.channels_last)
    assert seen[-1].dtype == logits.dtype == torch.float32
    softened = PixelModel(model, MEAN, STD, softened=True)(x)
    torch.testing.assert_close(softened, logits.double())  # none of these is sure
    assert not model.training


def test_softening_keeps_the_order() -> None:
    x = images()
    plain = PixelModel(tiny.flat(3, 400.0), MEAN, STD)(x)
    softened = PixelModel(tiny.flat(3, 400.0), MEAN, STD, softened=True)(x)
    assert torch.equal(plain.argsort(1), softened.argsort(1))
    best = softened.topk(2, dim=1).values
    lead = best[:, 0] - best[:, 1]
    assert lead.max() == pytest.approx(module.SUREST)
    before = plain.topk(2, dim=1).values
    torch.testing.assert_close(lead, (before[:, 0] - before[:, 1]).double().clamp(max=12.0))


# --- the walk ------------------------------------------------------------------------------------


class Scripted(Target):
    """Fools image i at a level from `falls[i]` on, at the second try alone."""

    def __init__(self, falls: list[float]) -> None:
        super().__init__(tiny.flat(2), MEAN, STD)
        self.falls = falls
        self.asked: list[tuple[float, list[int]]] = []

    def logits(self, images: Tensor) -> Tensor:
        wrong = images[:, 1, 0, 0] > 0.5
        return torch.stack([(~wrong).float(), wrong.float()], 1)

    def perturb(
        self, attack: Attack, images: Tensor, labels: Tensor, level: float, seed: int
    ) -> Tensor:
        which = [round(float(x)) for x in images[:, 0, 0, 0]]
        second = (level, which) in self.asked
        self.asked.append((level, which))
        changed = images.clone()
        for row, i in enumerate(which):
            changed[row, 1] = float(second and level >= self.falls[i])
        return changed


def test_a_walk_leaves_alone_what_is_wrong() -> None:
    x = torch.zeros(4, 3, 2, 2)
    x[:, 0] = torch.arange(4.0)[:, None, None]
    x[3, 1] = 1  # wrong unchanged
    scripted = Scripted([1.0, 4.0, 9.0, 1.0])
    attack = Attack("pgd", "linf", (1.0, 2.0, 4.0), tries=2)
    found = scripted.walk(attack, x, torch.zeros(4, dtype=torch.int64), key=(0,))
    assert found.least.tolist() == [1, 4, np.inf, 0]
    assert found.predicted.tolist() == [1, 1, 0, 1]
    rows = [[0, 1, 2], [0, 1, 2], [1, 2], [1, 2], [1, 2], [1, 2]]
    levels = [1.0, 1.0, 2.0, 2.0, 4.0, 4.0]
    assert scripted.asked == list(zip(levels, rows, strict=True))
    assert found.images[:, 1, 0, 0].tolist() == [1, 1, 0, 1]
    assert torch.equal(found.images[2:], x[2:])
    assert found.confidence == pytest.approx([math.e / (1 + math.e)] * 4)


@needs_library
def test_a_walk_ends_at_the_first_level_that_fools() -> None:
    model, x = tiny.flat(2), images()
    under_attack = target(model)
    labels = under_attack.logits(x).argmax(1)
    lead, weight = margins(model, x)
    expected = 255 * lead / weight.abs().sum()
    levels = tuple(float(e) * 1.001 for e in sorted(expected))
    attack = Attack("pgd", "linf", levels)
    found = under_attack.walk(attack, x, labels, key=(0,))
    np.testing.assert_allclose(found.least, expected * 1.001, rtol=1e-6)
    assert (under_attack.logits(found.images).argmax(1).numpy() == found.predicted).all()
    assert (found.predicted != labels.numpy()).all()


def test_seeds_differ() -> None:
    keys = [(0,), (1,), (0, 0), (0, 1)]
    seeds = {
        module._seed(key, attack, level, attempt)
        for key in keys
        for attack in ALL
        for level in range(3)
        for attempt in range(2)
    }
    assert len(seeds) == len(keys) * len(ALL) * 6
    assert all(0 <= seed < 2**63 for seed in seeds)


# --- the other library ---------------------------------------------------------------------------


def foolbox(monkeypatch: pytest.MonkeyPatch) -> Any:
    for name, attribute in (("git", "Repo"), ("requests", None)):  # its zoo's, which nobody visits
        stub: Any = types.ModuleType(name)
        if attribute:
            setattr(stub, attribute, object)
        if name not in sys.modules:
            monkeypatch.setitem(sys.modules, name, stub)
    why = "foolbox is not installed: pip install --no-deps foolbox eagerpy"
    pytest.importorskip("eagerpy", reason=why)
    return pytest.importorskip("foolbox", reason=why)


@needs_library
def test_foolbox_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    other = foolbox(monkeypatch)
    under_attack, x = target(curved()), images(n=12)
    labels = under_attack.logits(x).argmax(1)
    model = other.PyTorchModel(under_attack.plain, bounds=(0, 1), device="cpu")
    pairs = {
        "fgsm/linf": other.attacks.FGSM(),
        "pgd/linf": other.attacks.LinfPGD(rel_stepsize=0.25, steps=10),
        "pgd/l2": other.attacks.L2PGD(rel_stepsize=0.25, steps=10),
    }
    mixed = 0
    for attack in ALL:
        if attack.key not in pairs:
            continue
        for level in (2.0, 4.0, 8.0, 16.0, 32.0):
            eps = radius(attack.norm, level, tiny.SIDE)
            ours = under_attack.perturb(attack, x, labels, level, seed=0)
            torch.manual_seed(0)
            _, theirs, fooled = pairs[attack.key](model, x, labels, epsilons=eps)
            if attack.name == "fgsm":
                torch.testing.assert_close(ours, theirs)
            same = (under_attack.logits(ours).argmax(1) != labels) == fooled
            assert same.all(), (attack, level)
            mixed += 0 < fooled.sum() < len(x)
    assert mixed > 3  # or it shows nothing
