"""Where a repair has changed too many answers: back on the line to the weights of before.

Between weights before and after a fine-tuning that began with them lies a line of networks that
are whole, and that give up what was changed little by little (Wortsman et al., "Robust fine-tuning
of zero-shot models", arXiv 2109.01903). A bound that the last point breaks by little is held a
little before it, at nearly the whole of the gain.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

State = Mapping[str, Any]  # a module's

HALVINGS = 5  # to 1/32 of the way


def farthest(holds: Callable[[float], bool]) -> float:
    """The share of the way that holds, 1 if that does, else by halving; 0 if none.

    The farthest, if what holds at a share holds at all smaller ones.
    """
    if holds(1.0):
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def between(before: State, after: State, share: float) -> dict[str, Any]:
    """The weights at a share of the way from `before` to `after`.

    At 0 and at 1 they are one's and the other's, whatever the other's are. Counts are the latter's,
    and what is equal in both stays, as a mask of infinities does.
    """
    if share in (0, 1):
        return dict(after if share else before)

    def interpolated(old: Tensor, new: Tensor) -> Tensor:
        wide = torch.promote_types(new.dtype, torch.float64)
        line = old.to(wide) + share * (new.to(wide) - old.to(wide))
        return torch.where(old == new, new, line.to(new.dtype))

    return {
        name: interpolated(before[name], new) if _is_fractional(new) else new
        for name, new in after.items()
    }


def _is_fractional(value: Any) -> bool:
    """Not so: integers, and a module's extra state, which need be no tensor."""
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def keeps(agreement: float, ds_relative: float, keep: float) -> bool:
    """Whether a point keeps enough answers, with features that are not at one point."""
    return agreement >= keep and math.isfinite(ds_relative)
