"""`fastsc.repair`: a module and batches of bytes in, the same module with other weights out."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastsc
from fastsc.errors import UserError
from fastsc.models.build import build_net


@pytest.fixture
def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 256, (24, 3, 4, 4), generator=generator).float()
    images = nn.functional.interpolate(coarse, size=32, mode="bilinear").byte()
    return list(images.split(8))


def model() -> nn.Module:
    torch.manual_seed(0)
    return build_net("fastsc:resnet8w4", 5, "cifar", 32)


def test_it_repairs_in_place(batches: list[Tensor]) -> None:
    net, names = model(), list(model().state_dict())
    before = copy.deepcopy(net.state_dict())
    result = fastsc.repair(net, batches[:2], held_out=batches[2:], keep=0.5, lr=3e-3, epochs=3)
    assert result.holds
    assert result.agreement >= 0.5
    assert result.after < result.before
    assert list(net.state_dict()) == names
    changed = {k for k, v in net.state_dict().items() if not torch.equal(v, before[k])}
    assert "conv1.weight" in changed
    assert not any("running" in k or "num_batches" in k for k in changed)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_batches_of_any_form_give_the_same(batches: list[Tensor]) -> None:
    nets = [model() for _ in range(2)]
    labelled = [
        (batch.permute(0, 2, 3, 1).contiguous(), torch.zeros(len(batch))) for batch in batches
    ]
    results = [
        fastsc.repair(net, images, epochs=1, seed=3)
        for net, images in zip(nets, (batches, labelled), strict=True)
    ]
    assert results[0] == results[1]
    for key, value in nets[0].state_dict().items():
        assert torch.equal(value, nets[1].state_dict()[key])


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_trains_where_gradients_are_off(batches: list[Tensor], mode: Any) -> None:
    one, two = model(), model()
    expected = fastsc.repair(one, batches, keep=0.5, epochs=1)
    with mode():
        assert fastsc.repair(two, batches, keep=0.5, epochs=1) == expected
    for p, q in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(p, q)


def test_what_cannot_be_held_is_told(batches: list[Tensor]) -> None:
    net = model()
    before = copy.deepcopy(net.state_dict())
    result = fastsc.repair(net, batches, keep=0.99, lr=100.0, epochs=1)
    assert not result.holds
    assert (result.agreement, result.after) == (1, result.before), "it is what it was"
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_what_breaks_the_bound_is_drawn_back(batches: list[Tensor]) -> None:
    nets = [model(), model()]
    loose, bound = (
        fastsc.repair(net, batches, keep=keep, lr=1e-2, epochs=3)
        for net, keep in zip(nets, (0.01, 0.95), strict=True)
    )
    assert loose.agreement < 0.95 <= bound.agreement
    assert bound.holds
    assert loose.after < bound.after < bound.before


def test_weights_that_are_not_finite_are_not_taken(batches: list[Tensor]) -> None:
    net = model()
    before = copy.deepcopy(net.state_dict())
    with torch.no_grad():  # as around an evaluation
        result = fastsc.repair(net, batches, lr=1e6, epochs=1)
    assert (result.holds, result.after) == (False, result.before)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_mistakes(batches: list[Tensor]) -> None:
    with pytest.raises(ValueError, match="iterator"):
        fastsc.repair(model(), iter(batches))
    with pytest.raises(UserError, match="less than two are held out"):
        fastsc.repair(model(), batches, held_out=[batches[0][:1]])
    with pytest.raises(UserError, match="no batch has two"):
        fastsc.repair(model(), [batch[:1] for batch in batches])
    with pytest.raises(UserError, match="requires a gradient"):
        fastsc.repair(model().requires_grad_(False), batches)
    with pytest.raises(UserError, match="no images"):
        fastsc.repair(model(), [])
    with pytest.raises(ValueError, match="uint8"):
        fastsc.repair(model(), [batches[0].float()])
    with pytest.raises(ValueError, match="keep must"):
        fastsc.repair(model(), batches, keep=1.5)
    with pytest.raises(ValueError, match=r"alpha in \[0\.001, 10000\]"):
        fastsc.repair(model(), batches, alpha=1e6)
    with pytest.raises(UserError, match="no linear classifier"):
        fastsc.repair(nn.Sequential(nn.Conv2d(3, 4, 32), nn.Flatten()), batches)
