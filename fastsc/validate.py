"""Validation: accuracy, and how far the representation moves when the image does not change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastsc.kernels import ds
from fastsc.loss import Kind
from fastsc.models import FeatureModel
from fastsc.pipelines import Pipeline, keyed


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


@torch.no_grad()
def validate(
    model: FeatureModel,
    loader: Pipeline,
    kind: Kind,
    at: str,
    stop: Callable[[], bool] = lambda: False,
) -> Validation | None:
    """Every image of the split once, in float32, with perturbations of a fixed key.

    `ds` is of the given kind at "features" or "logits". `ds_relative` = mean ‖f_i - f'_i‖₂ /
    mean ‖f_i - f_j‖₂ over the clean pooled features f, j from a fixed keyed derangement of the
    split; it has no scale that training could shrink. Both views go through the model in one
    forward, as in training.

    Leaves the model in the mode that it came in. None if `stop()` said so between two batches.
    """
    was_training = model.training
    model.eval()
    top1 = top5 = top1_perturbed = 0
    indices: list[Tensor] = []
    kept: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    for clean, perturbed, target, index in loader:
        assert perturbed is not None, "validation needs both views"
        if stop():
            model.train(was_training)
            return None
        features, logits = model(torch.cat([clean, perturbed]))
        hits, hits_perturbed = (_hits(scores, target) for scores in logits.chunk(2))
        top1 += int(hits[:, 0].sum())
        top5 += int(hits.sum())
        top1_perturbed += int(hits_perturbed[:, 0].sum())
        compared = features if at == "features" else logits.float()
        kept.append((*features.cpu().chunk(2), *compared.cpu().chunk(2)))
        indices.append(index.cpu())
    model.train(was_training)
    n = sum(len(index) for index in indices)
    if n == 0:
        nan = float("nan")
        return Validation(nan, nan, nan, nan, nan, 0)
    cycle = keyed.cycle(torch.cat(indices).numpy().astype(np.int64), len(loader.index))
    f, g, r, s = (torch.cat(parts)[torch.from_numpy(cycle)] for parts in zip(*kept, strict=True))
    return Validation(
        top1 / n,
        top5 / n,
        top1_perturbed / n,
        float(ds(r, s, kind)) if n > 1 or kind != "relative" else float("nan"),
        float(ds(f, g, "relative")) if n > 1 else float("nan"),
        n,
    )


def _hits(scores: Tensor, target: Tensor) -> Tensor:
    """(N, C) scores, (N,) target -> (N, 5): whether the k-th best class is the right one."""
    hits = scores.topk(min(5, scores.shape[1])).indices == target[:, None]
    return hits & scores.isfinite().all(dim=1, keepdim=True)  # else NaN would sort as the best
