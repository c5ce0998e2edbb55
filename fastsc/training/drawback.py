"""Where a repair has changed too many answers: back on the line to the weights of before.

Between weights before and after a fine-tuning that began with them lies a line of networks that
are whole, and that give up what was changed little by little (Wortsman et al., "Robust fine-tuning
of zero-shot models", arXiv 2109.01903). A bound that the last point breaks by little is held a
little before it, at nearly the whole of the gain.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

HALVINGS = 5  # to 1/32 of the way


def farthest(holds: Callable[[float], bool]) -> float:
    """The farthest share of the way that holds, 1 if that does, else by halving; 0 if none."""
    if holds(1.0):
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def between(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], share: float
) -> dict[str, Tensor]:
    """The weights at a share of the way from `before` to `after`; whole numbers are the latter's.

    At 0 and at 1 they are one's and the other's, whatever the other's are.
    """
    if share in (0, 1):
        return dict(after if share else before)

    def at(old: Tensor, new: Tensor) -> Tensor:
        if not new.is_floating_point():
            return new
        return torch.lerp(old.double(), new.double(), share).to(new.dtype)

    return {name: at(before[name], new) for name, new in after.items()}


def keeps(agreement: float, ds_relative: float, keep: float) -> bool:
    """Whether a point keeps enough answers, with features that are not at one point."""
    return agreement >= keep and math.isfinite(ds_relative)
