"""What a validation finds: the figures of one epoch's line of the log."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Validation:
    """Means over the n images of a split that could be decoded.

    `top1` and `top5` are of the clean views, `top1_perturbed` of the perturbed ones.
    """

    top1: float
    top5: float
    top1_perturbed: float
    ds: float
    ds_relative: float
    n: int
