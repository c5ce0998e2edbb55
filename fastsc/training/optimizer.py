"""The optimizers, and the learning rate as a pure function of the step, with nothing to save."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fastsc.cli.packages import needed
from fastsc.config import OptimConfig


def param_groups(
    model: nn.Module, weight_decay: float, scales: Mapping[nn.Parameter, float] | None = None
) -> list[dict[str, Any]]:
    """Two groups of the trainable parameters: weights, which decay, and the rest, which do not.

    Two for each of the `scales`, multiples of the learning rate, where there are any.

    The rest is all that has at most one dimension: biases, and scales of every kind of norm
    (He et al., arXiv 1812.01187, section 3.1, "no bias decay").
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = []
    scales = scales or {}
    for scale in sorted({scales.get(p, 1.0) for p in trainable}):
        scaled = [p for p in trainable if scales.get(p, 1.0) == scale]
        more = {"lr_scale": scale} if scales else {}
        decayed, others = [p for p in scaled if p.ndim > 1], [p for p in scaled if p.ndim <= 1]
        groups.append({"params": decayed, "weight_decay": weight_decay, **more})
        groups.append({"params": others, "weight_decay": 0.0, **more})
    return [group for group in groups if group["params"]]


def make_optimizer(
    model: nn.Module,
    config: OptimConfig,
    *,
    fused: bool = True,
    scales: Mapping[nn.Parameter, float] | None = None,
) -> torch.optim.Optimizer:
    """The optimizer over `param_groups`, `fused` where every parameter's device has the kernel.

    Its learning rate is the peak; `set_lr` gives each step its own.
    """
    devices = {p.device.type for p in model.parameters()}
    groups = param_groups(model, config.weight_decay, scales)
    fused = fused and devices <= {"cpu", "cuda"}
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=peak_lr(config), fused=fused)
    if config.optimizer == "lamb":
        needed("timm", "--optimizer lamb")
        from timm.optim import Lamb  # timm takes seconds to import

        # --clip-grad is what clips.
        return Lamb(groups, lr=peak_lr(config), max_grad_norm=None)
    optimizer = torch.optim.SGD(
        groups,
        lr=peak_lr(config),
        momentum=config.momentum,
        nesterov=config.nesterov,
        fused=fused,
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
    """Give every parameter group this learning rate, or its multiple of it."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
