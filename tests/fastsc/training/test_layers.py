"""Which parameters train, at which rate, and the optimizers besides SGD."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fastsc.config import OptimConfig
from fastsc.errors import UserError
from fastsc.models.build import build_model
from fastsc.models.features import FeatureModel
from fastsc.models.representation import Represented
from fastsc.training.layers import freeze, lr_scales
from fastsc.training.optimizer import make_optimizer, param_groups, set_lr


@pytest.fixture
def model() -> FeatureModel:
    torch.manual_seed(0)
    return build_model("fastsc:resnet8w8", 4, "cifar", 32)


def trained_names(model: FeatureModel) -> set[str]:
    return {name for name, p in model.net.named_parameters() if p.requires_grad}


def test_what_is_frozen(model: FeatureModel) -> None:
    every = trained_names(model)
    freeze(model, ["conv1", "layer1.*", "*.bias"], None)
    kept = every - trained_names(model)
    assert "conv1.weight" in kept
    assert all(n in kept for n in every if n.startswith("layer1.") or n.endswith("bias"))
    assert "fc.weight" not in kept
    groups = param_groups(model, 0.1)
    assert sum(p.numel() for g in groups for p in g["params"]) == sum(
        p.numel() for p in model.parameters() if p.requires_grad
    )


@pytest.mark.parametrize(
    ("patterns", "head", "said"),
    [(["cnv1"], None, "nothing like it"), (["f*"], "fc", "fc is new"), (["*"], None, "nothing is")],
)
def test_what_cannot_be_frozen(
    model: FeatureModel, patterns: list[str], head: str | None, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        freeze(model, patterns, head)


def test_a_network_that_came_frozen(model: FeatureModel) -> None:
    model.requires_grad_(False)
    with pytest.raises(UserError, match="resnet8w8: no parameter of it requires a gradient"):
        freeze(model, [], None)


@pytest.mark.parametrize(
    ("name", "first", "last", "n_layers", "nearest"),
    [
        ("fastsc:resnet8w8", "conv1.weight", "fc.weight", 5, 1),
        ("resnet18", "conv1.weight", "fc.weight", 9, 1),  # the stem and eight blocks
        ("timm:test_vit", "cls_token", "head.weight", 7, 1),
        ("timm:test_convnext", "stem.0.weight", "head.fc.weight", 11, 0),  # with the head's norm
    ],
)
def test_the_rate_falls_from_the_head_back(
    name: str, first: str, last: str, n_layers: int, nearest: int
) -> None:
    model = build_model(name, 4, "imagenet", 64)
    config = OptimConfig(lr_layer_decay=0.5, lr_head=3.0)
    scales = lr_scales(model, config)
    named = dict(model.net.named_parameters())
    assert set(scales) == set(named.values())
    assert scales[named[last]] == 3.0
    powers = sorted({scale for scale in scales.values() if scale != 3.0})
    assert powers == [0.5**i for i in range(len(powers) + nearest - 1, nearest - 1, -1)]
    assert scales[named[first]] == powers[0]
    assert n_layers == len(powers)
    in_order = [scale for p in named.values() if (scale := scales[p]) != 3.0 and p.ndim > 1]
    assert in_order == sorted(in_order)
    groups = param_groups(model, 0.1, scales)
    assert all(g["weight_decay"] == 0.1 * (g["params"][0].ndim > 1) for g in groups)
    optimizer = make_optimizer(model, config, scales=scales)
    set_lr(optimizer, 0.25)
    for group in optimizer.param_groups:
        assert {scales[p] for p in group["params"]} == {group["lr"] / 0.25}


def test_no_multiples_are_the_groups_of_before(model: FeatureModel) -> None:
    assert lr_scales(model, OptimConfig()) == {}
    assert all(g.keys() == {"params", "weight_decay"} for g in param_groups(model, 0.1))


@pytest.mark.parametrize("kind", ["adamw", "lamb"])
def test_an_optimizer_learns_and_goes_on_from_its_state(kind: str, model: FeatureModel) -> None:
    config = OptimConfig(optimizer=kind, lr=0.02, batch_size=256)  # type: ignore[arg-type]
    models = [model, copy.deepcopy(model)]
    optimizers = [make_optimizer(m, config) for m in models]
    assert {type(o).__name__.lower() for o in optimizers} == {kind}
    x, y = torch.randn(8, 3, 32, 32), torch.arange(8) % 4

    def step(i: int) -> float:
        optimizers[i].zero_grad()
        loss = nn.functional.cross_entropy(models[i](x)[1], y)
        loss.backward()
        optimizers[i].step()
        return loss.item()

    losses = [step(0) for _ in range(4)]
    assert losses[-1] < losses[0]
    models[1].load_state_dict(copy.deepcopy(models[0].state_dict()))
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    assert [step(0), step(0)] == [step(1), step(1)]


def test_adamw_is_torchs(model: FeatureModel) -> None:
    """And its weights alone decay."""
    config = OptimConfig(optimizer="adamw", weight_decay=0.3)
    optimizer = make_optimizer(model, config)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.3, 0.0]
    assert optimizer.param_groups[0]["fused"]


def test_frozen_statistics_are_used_and_kept(model: FeatureModel) -> None:
    represented = Represented(model, "features")
    norms = [m for m in model.net.modules() if isinstance(m, nn.BatchNorm2d)]
    represented.frozen = tuple(norms)
    twin = copy.deepcopy(represented)
    for one in (represented, twin):
        before = [b.clone() for b in one.buffers()]
        x = torch.randn(4, 3, 32, 32)
        assert torch.equal(one.train()(x).logits, one.eval()(x).logits)
        assert all(torch.equal(a, b) for a, b in zip(before, one.buffers(), strict=True))
        one.train()
        assert one.training
    assert all(a is not b for a, b in zip(represented.frozen, twin.frozen, strict=True))
