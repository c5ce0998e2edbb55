"""Watching for collapse: features that DS has pulled to a point or onto a line."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastsc.kernels.distance import between_distance

Figures = dict[str, float]  # of a step, by their names in the log
SHARE = 0.1  # of the running maximum; under it training warns
MAX_ROWS = 128  # for the effective rank, which is then at most 127; 512 rows took 75 ms


class Spread(NamedTuple):
    """How far apart and how manifold a batch's clean features are."""

    between: float
    """mean ‖f_i − f_(i+1)‖₂, i + 1 cyclic."""
    effective_rank: float
    """exp of the entropy of the singular values' shares (Roy and Vetterli, EUSIPCO 2007)."""

    @classmethod
    def of(cls, figures: Figures) -> Spread:
        """That of a step's figures; NaN where they have none."""
        nan = float("nan")
        return cls(figures.get("between", nan), figures.get("effective_rank", nan))


@torch.no_grad()
def spread(features: Tensor) -> Spread:
    """features (N, D) of different images; NaN for fewer than two, or where they are not finite."""
    if len(features) < 2 or not features.isfinite().all():
        return Spread(float("nan"), float("nan"))
    return Spread(float(between_distance(features)), effective_rank(features[:MAX_ROWS]))


def effective_rank(features: Tensor) -> float:
    """Of the centred (N, D) features: from 1, all on a line (or at a point), to min(N − 1, D)."""
    centred = (features - features.mean(0)).double()
    gram = centred @ centred.T if len(centred) <= centred.shape[1] else centred.T @ centred
    values = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    total = values.sum()
    if total == 0:
        return 1.0
    shares = values / total
    return float(torch.special.entr(shares).sum().exp())


class CollapseWatch:
    """Compares each logged step with the largest spread of the run so far."""

    def __init__(self) -> None:
        self._most = Spread(0.0, 0.0)
        self._warned = False

    def observe(self, figures: Figures) -> str | None:
        """A warning when a figure falls under a tenth of its maximum; once until both are back.

        figures: Of a step. One whose loss is not finite is `LossWatch`'s.
        """
        if not math.isfinite(figures["loss"]):
            return None
        now = Spread.of(figures)
        self._most = Spread(
            *(max(old, new) if new == new else old for old, new in zip(self._most, now))
        )
        names = ("distance between images", "effective rank of the features")
        fallen = [
            f"the {name} is {new:.3g}, {most:.3g} at its best"
            for name, new, most in zip(names, now, self._most)
            if new < SHARE * most
        ]
        warn = bool(fallen) and not self._warned
        self._warned = bool(fallen)
        if not warn:
            return None
        return f"the features collapse: {' and '.join(fallen)}; try a smaller --alpha"

    def state_dict(self) -> dict[str, Any]:
        return {"most": list(self._most), "warned": self._warned}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._most, self._warned = Spread(*state["most"]), bool(state["warned"])
