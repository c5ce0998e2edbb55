"""Validation: accuracy, and how far the representation moves when the image does not change."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from fastsc.distributed.ranks import NOTHING, STOP, Ranks
from fastsc.kernels import ds
from fastsc.loss import Kind
from fastsc.pipelines import Pipeline, keyed
from fastsc.run.validation import Validation


@torch.no_grad()
def validate(
    model: nn.Module,
    loader: Pipeline,
    kind: Kind,
    *,
    flip: bool = False,
    ranks: Ranks | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Validation | None:
    """Every image of the split once, in float32, with perturbations of a fixed key.

    `model` gives `Outputs`, as `Represented` does; `ds` is of the given kind on its representation.
    `ds_relative` = mean ‖f_i - f'_i‖₂ / mean ‖f_i - f_j‖₂ over the clean pooled
    features f, j from a fixed keyed derangement of the split; it has no scale that training could
    shrink. Both views go through the model in one forward, as in training. With `flip` the logits
    of the mirrored images are added for top1, top5 and top1_perturbed.

    Under several ranks each takes its share, and all get the whole split's figures. Leaves the
    model in the mode that it came in. None if `stop()` said so, on any rank, between two batches.
    """
    ranks = ranks or Ranks()
    was_training = model.training
    model.eval()
    hits = torch.zeros(3, dtype=torch.int64)  # top1, top5, top1 of the perturbed
    indices: list[Tensor] = []
    kept: list[list[Tensor]] = []
    n_batches = -(-len(loader.index.usable) // loader.settings.batch_size)
    batches = ranks.batches(iter(loader), lambda: STOP if stop() else NOTHING, n_batches)
    for batch, action in batches:
        if action == STOP:
            model.train(was_training)
            return None
        if batch is None:
            continue
        assert batch.perturbed is not None, "validation needs both views"
        both = torch.cat([batch.clean, batch.perturbed])
        features, logits, representation, _ = model(both)
        if flip:
            logits = logits + model(both.flip(3)).logits
        clean, perturbed = (_hits(scores, batch.target) for scores in logits.chunk(2))
        hits += torch.stack([clean[:, 0].sum(), clean.sum(), perturbed[:, 0].sum()]).cpu()
        both_of = [features] if representation is features else [features, representation]
        kept.append([view for values in both_of for view in values.cpu().chunk(2)])
        indices.append(batch.index.cpu())
    model.train(was_training)
    parts = [torch.cat(part) for part in zip(*kept, strict=True)] if kept else None
    shares = ranks.gather_values((hits, indices, parts))
    return ranks.broadcast(None if shares is None else _whole(shares, kind, len(loader.index)))


def _whole(
    shares: list[tuple[Tensor, list[Tensor], list[Tensor] | None]], kind: Kind, n_files: int
) -> Validation:
    """Figures of the split from every rank's hits, dataset indices and f, f', r, r'.

    r and r' are left out where they are f and f'.
    """
    index = torch.cat([torch.empty(0, dtype=torch.int64), *(i for _, ii, _ in shares for i in ii)])
    n = len(index)
    if n == 0:
        nan = float("nan")
        return Validation(nan, nan, nan, nan, nan, 0)
    assert len(index.unique()) == n, "an image was validated twice"
    cycle = torch.from_numpy(keyed.cycle(index.numpy().astype(np.int64), n_files))
    columns = zip(*(parts for _, _, parts in shares if parts is not None), strict=True)
    representations = [torch.cat(column)[cycle] for column in columns]
    (f, g), (r, s) = representations[:2], representations[-2:]
    top1, top5, top1_perturbed = sum(hits for hits, _, _ in shares).tolist()  # type: ignore[union-attr]
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
