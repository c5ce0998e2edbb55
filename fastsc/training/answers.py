"""A network's own answers in the place of labels."""

from __future__ import annotations

import torch
from torch import Tensor

from fastsc.loss import LossParts

SHORT = 0.1  # of a step's images in the running share of answers that changed


def divergence(parts: LossParts, answers: Tensor, m: int) -> LossParts:
    """The loss of soft targets as a KL divergence from them, which is zero where nothing changed.

    The cross-entropy of probabilities is the divergence plus their own entropy, a constant.

    Args:
        parts: Of `ContinuityLoss` with these targets, over N clean and m perturbed views.
        answers: Probabilities (N, C).
        m: The first so many images whose perturbed view gets cross-entropy, too.
    """
    entropy = -torch.xlogy(answers, answers).sum(1)
    constant = torch.cat([entropy, entropy[:m]]).mean()
    return parts._replace(loss=parts.loss - constant, ce=parts.ce - constant)
