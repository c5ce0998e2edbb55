"""SGD, and the learning rate as a pure function of the step: nothing to save and restore."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from fastsc.config import OptimConfig


def param_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups of the trainable parameters: weights, which decay, and the rest, which do not.

    The rest is all that has at most one dimension: biases, and scales of every kind of norm
    (He et al., arXiv 1812.01187, section 3.1, "no bias decay").
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in trainable if p.ndim > 1]
    others = [p for p in trainable if p.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(model: nn.Module, config: OptimConfig, *, fused: bool = True) -> torch.optim.SGD:
    """SGD over `param_groups`, `fused` where every parameter's device has the fused kernel.

    Its learning rate is the peak; `set_lr` gives each step its own.
    """
    devices = {p.device.type for p in model.parameters()}
    optimizer = torch.optim.SGD(
        param_groups(model, config.weight_decay),
        lr=peak_lr(config),
        momentum=config.momentum,
        nesterov=config.nesterov,
        fused=fused and devices <= {"cpu", "cuda"},
    )
    if config.momentum:
        # The fused kernel takes fresh memory for these, and leaves it as it is when a scaled
        # gradient overflows in the very first step. From zero the first update is the same.
        for group in optimizer.param_groups:
            for p in group["params"]:
                optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
    return optimizer


def peak_lr(config: OptimConfig) -> float:
    """Base rate * global batch / 256: the linear rule of Goyal et al., arXiv 1706.02677."""
    return config.lr * config.batch_size / 256


def lr_at(step: int, config: OptimConfig, steps_per_epoch: int) -> float:
    """Learning rate of step 0, 1, … of `epochs * steps_per_epoch`; the last one's is above zero.

    Warm-up rises linearly and reaches the peak with its last step; it takes at most half of the
    run, so that short trials of long recipes see the peak too.
    """
    peak, total = peak_lr(config), max(config.epochs * steps_per_epoch, 1)
    warmup = min(round(config.warmup_epochs * steps_per_epoch), total // 2)
    if step < warmup:
        return peak * (step + 1) / warmup
    done = min((step - warmup) / (total - warmup), 1.0)  # of the part after the warm-up, 0 to 1
    match config.schedule:
        case "cosine":
            return peak * 0.5 * (1 + math.cos(math.pi * done))
        case "linear":
            return peak * (1 - done)
        case "step":
            # Goyal's 30, 60, 80 of 90 epochs, counted from the start of the run.
            return peak * 0.1 ** sum(9 * step >= part * total for part in (3, 6, 8))
        case "constant":
            return peak


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every parameter group this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr
