"""Parameter groups, the optimizer's update, and the schedules' values."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from fastsc.config import OptimConfig
from fastsc.training.optimizer import lr_at, make_optimizer, param_groups, peak_lr, set_lr


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.ln = nn.LayerNorm(4)
        self.fc = nn.Linear(4, 2)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.fc(self.ln(self.bn(self.conv(x)).mean((2, 3))))
        return out


def test_norms_and_biases_do_not_decay() -> None:
    net = Net()
    groups = param_groups(net, 0.5)
    names = {id(p): name for name, p in net.named_parameters()}
    by_decay = {g["weight_decay"]: {names[id(p)] for p in g["params"]} for g in groups}
    assert by_decay == {
        0.5: {"conv.weight", "fc.weight"},
        0.0: {"conv.bias", "bn.weight", "bn.bias", "ln.weight", "ln.bias", "fc.bias"},
    }


@pytest.mark.parametrize("nesterov", [False, True])
def test_the_update_is_sgd(nesterov: bool) -> None:
    """Against the formula written out: fused or not must not matter."""
    torch.manual_seed(0)
    net = Net()
    config = OptimConfig(lr=0.8, batch_size=64, momentum=0.9, weight_decay=0.1, nesterov=nesterov)
    optimizer = make_optimizer(net, config)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.8 * 64 / 256)
    names = [name for name, p in net.named_parameters() if p.requires_grad]
    weights = {name: net.get_parameter(name).detach().double() for name in names}
    velocity: dict[str, torch.Tensor] = {}
    for step in range(3):
        set_lr(optimizer, lr := 0.1 / (step + 1))
        optimizer.zero_grad()
        net(torch.randn(2, 3, 8, 8)).square().sum().backward()
        for name in names:
            gradient = net.get_parameter(name).grad
            assert gradient is not None
            g = gradient.double() + (0.1 * weights[name] if weights[name].ndim > 1 else 0)
            velocity[name] = 0.9 * velocity[name] + g if name in velocity else g
            weights[name] = weights[name] - lr * (
                g + 0.9 * velocity[name] if nesterov else velocity[name]
            )
        optimizer.step()
        for name in names:
            torch.testing.assert_close(
                net.get_parameter(name).detach().double(), weights[name], rtol=1e-5, atol=1e-6
            )


def test_fused_state_survives_a_reload() -> None:
    torch.manual_seed(0)
    nets = [Net(), Net()]
    nets[1].load_state_dict(nets[0].state_dict())
    config = OptimConfig(batch_size=4)
    optimizers = [make_optimizer(net, config) for net in nets]
    x = torch.randn(2, 3, 8, 8)

    def step(i: int) -> None:
        optimizers[i].zero_grad()
        nets[i](x).square().sum().backward()
        optimizers[i].step()

    step(0), step(1)
    optimizers[1] = make_optimizer(nets[1], config)
    # load_state_dict shares its tensors with the state it is given.
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    step(0), step(1)
    assert all(torch.equal(p, q) for p, q in zip(nets[0].parameters(), nets[1].parameters()))


def rates(schedule: str, epochs: int = 90, warmup: float = 5.0, per_epoch: int = 10) -> list[float]:
    config = OptimConfig(
        schedule=schedule,  # type: ignore[arg-type]
        epochs=epochs,
        warmup_epochs=warmup,
        lr=0.1,
        batch_size=512,
    )
    assert peak_lr(config) == pytest.approx(0.2)
    return [lr_at(step, config, per_epoch) for step in range(epochs * per_epoch)]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "step", "constant"])
def test_warmup_then_schedule(schedule: str) -> None:
    lr = rates(schedule)
    assert lr[:50] == pytest.approx([0.2 * (i + 1) / 50 for i in range(50)])
    assert max(lr) == pytest.approx(0.2)
    assert all(rate > 0 for rate in lr)
    after = lr[50:]
    assert after == sorted(after, reverse=True)


def test_cosine_and_linear_meet_at_the_middle_and_end_at_zero() -> None:
    cosine, linear = rates("cosine"), rates("linear")
    middle = 50 + 850 // 2
    assert cosine[middle] == pytest.approx(0.1)
    assert linear[middle] == pytest.approx(0.1)
    quarter = 50 + 850 * 2 // 10
    assert cosine[quarter] == pytest.approx(0.1 * (1 + math.cos(0.2 * math.pi)))
    assert linear[quarter] == pytest.approx(0.2 * 0.8)
    assert cosine[-1] < 1e-6
    assert linear[-1] == pytest.approx(0.2 / 850)


def test_steps_at_30_60_80_of_90() -> None:
    lr = rates("step", warmup=0)
    edges = [i for i in range(1, 900) if lr[i] != lr[i - 1]]
    assert edges == [300, 600, 800]
    assert [lr[0], *(lr[e] for e in edges)] == pytest.approx([0.2, 0.02, 0.002, 0.0002])


def test_a_short_trial_of_a_long_recipe_sees_the_peak() -> None:
    lr = rates("cosine", epochs=1)
    assert lr[:5] == pytest.approx([0.04, 0.08, 0.12, 0.16, 0.2])
    assert lr[5] == pytest.approx(0.2)
    assert rates("cosine", epochs=1, per_epoch=1) == [pytest.approx(0.2)]
    assert rates("constant", warmup=0) == pytest.approx([0.2] * 900)


def test_past_the_end_it_stays_defined() -> None:
    assert lr_at(10**6, OptimConfig(), 10) == pytest.approx(0.0, abs=1e-12)


def test_an_overflow_in_the_first_step_changes_nothing() -> None:
    """fp16's scaler skips such a step; the next one is then a first step."""
    torch.manual_seed(0)
    net, twin = Net(), Net()
    twin.load_state_dict(net.state_dict())
    scaler = torch.amp.GradScaler("cpu")
    optimizers = [make_optimizer(n, OptimConfig()) for n in (net, twin)]
    x = torch.randn(2, 3, 8, 8)

    scaler.scale(net(x).sum() * float("inf")).backward()
    scaler.unscale_(optimizers[0])
    scaler.step(optimizers[0])
    scaler.update()
    optimizers[0].zero_grad()
    for key, value in net.state_dict().items():
        assert "running" in key or "num_batches" in key or value.equal(twin.state_dict()[key])

    scaler.scale(net(x).sum()).backward()
    scaler.unscale_(optimizers[0])
    scaler.step(optimizers[0])
    twin(x).sum().backward()
    optimizers[1].step()
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q)
