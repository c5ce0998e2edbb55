"""Validation: accuracy, and how far the representation moves when the image does not change."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from fastsc.distributed.devices import autocast
from fastsc.distributed.ranks import NOTHING, STOP, Ranks
from fastsc.kernels.distance import (
    BATCH_SCALED,
    TINY,
    between_distance,
    of_pairs,
    scale_rows,
    twice_variance,
)
from fastsc.loss import Kind
from fastsc.pipelines import Pipeline, keyed
from fastsc.run.validation import Validation

ValPrecision = Literal["fp32", "tf32", "bf16"]


@torch.no_grad()
def validate(
    model: nn.Module,
    loader: Pipeline,
    kind: Kind,
    *,
    flip: bool = False,
    ranks: Ranks | None = None,
    stop: Callable[[], bool] = lambda: False,
    precision: ValPrecision = "fp32",
    teacher: nn.Module | None = None,
) -> Validation | None:
    """Every image of the split once, with perturbations of a fixed key.

    `model` gives `Outputs`, as `Represented` does; `ds` is of the given kind on its representation.
    `ds_relative` = mean ‖f_i - f'_i‖₂ / mean ‖f_i - f_j‖₂ over the clean pooled
    features f, j from a fixed keyed derangement of the split; it has no scale that training could
    shrink. Both views go through the model in one forward, as in training. With `flip` the logits
    of the mirrored images are added for top1, top5 and top1_perturbed. With a `teacher` its answers
    to the clean views are the labels, so that top1 is the agreement with it.

    Under several ranks each takes its share, and all get the whole split's figures. Leaves the
    model in the mode that it came in. None if `stop()` said so, on any rank, between two batches.
    """
    ranks = ranks or Ranks()
    was_training = model.training
    model.eval()
    hits = torch.zeros(3, dtype=torch.int64)  # top1, top5, top1 of the perturbed
    indices: list[Tensor] = []
    kept: list[list[Tensor]] = []  # of each batch, see _whole
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
        with _computing(precision, both.device):
            features, logits, representation, _ = model(both)
            if flip:
                logits = logits + model(both.flip(3)).logits
            target = batch.target
            if teacher is not None:
                target = _answers(teacher, batch.clean, flip)
        clean, perturbed = (_hits(scores, target) for scores in logits.chunk(2))
        hits += torch.stack([clean[:, 0].sum(), clean.sum(), perturbed[:, 0].sum()]).cpu()
        (f, g), (r, s) = features.chunk(2), representation.chunk(2)
        parts = [f, of_pairs(f, g, "relative"), of_pairs(r, s, kind)]
        scaled = scale_rows(r, s, kind)
        if scaled is not None and scaled is not f:
            parts.append(scaled)
        kept.append([part.cpu() for part in parts])
        indices.append(batch.index.cpu())
    model.train(was_training)
    shares = ranks.gather_values((hits, indices, [torch.cat(part) for part in zip(*kept)]))
    with nullcontext() if shares is None or ranks.single_process else _all_threads():
        return ranks.broadcast(None if shares is None else _whole(shares, kind, len(loader.index)))


def _answers(teacher: nn.Module, images: Tensor, flip: bool) -> Tensor:
    """(N,) the classes that a model gives images, or their two mirror images together."""
    logits: Tensor = teacher(images).logits
    if flip:
        logits = logits + teacher(images.flip(3)).logits
    return logits.argmax(1)


def _whole(
    shares: list[tuple[Tensor, list[Tensor], list[Tensor]]], kind: Kind, n_files: int
) -> Validation:
    """Figures of the split from every rank's hits, dataset indices, and what it kept of its images.

    Kept are the clean features f, ‖f − f'‖, what a pair adds to DS, and what DS takes its scale
    over where it takes one and that is not f. The rest was reduced where it was computed.
    """
    index = torch.cat([torch.empty(0, dtype=torch.int64), *(i for _, ii, _ in shares for i in ii)])
    n = len(index)
    if n == 0:
        nan = float("nan")
        return Validation(nan, nan, nan, nan, nan, 0)
    assert len(index.unique()) == n, "an image was validated twice"
    cycle = torch.from_numpy(keyed.cycle(index.numpy().astype(np.int64), n_files))
    columns = zip(*(parts for _, _, parts in shares if parts), strict=True)
    f, moved, of_kind, *others = (torch.cat(column)[cycle] for column in columns)
    distance = float("nan")
    scaled = others[0] if others else f
    if kind not in BATCH_SCALED:
        distance = float(of_kind.mean())
    elif n > 1 and kind == "sq":
        distance = float(of_kind.mean() / twice_variance(scaled))
    elif n > 1:
        distance = _relative(of_kind, scaled)
    top1, top5, top1_perturbed = sum(hits for hits, _, _ in shares).tolist()  # type: ignore[union-attr]
    return Validation(
        top1 / n,
        top5 / n,
        top1_perturbed / n,
        distance,
        _relative(moved, f) if n > 1 else float("nan"),
        n,
    )


def _relative(moved: Tensor, f: Tensor) -> float:
    return float(moved.mean() / between_distance(f).clamp_min(TINY))


@contextmanager
def _computing(precision: ValPrecision, device: torch.device) -> Iterator[None]:
    """Within the context forward passes run in this precision; TF32 is a GPU's."""
    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = convolutions.allow_tf32, products.allow_tf32
    convolutions.allow_tf32 = products.allow_tf32 = precision == "tf32"
    try:
        with autocast(device, "bf16" if precision == "bf16" else "fp32"):
            yield
    finally:
        convolutions.allow_tf32, products.allow_tf32 = before


@contextmanager
def _all_threads() -> Iterator[None]:
    """Within the context torch has all cores: under torchrun it begins with one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(before, len(os.sched_getaffinity(0))))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _hits(scores: Tensor, target: Tensor) -> Tensor:
    """(N, C) scores, (N,) target -> (N, 5): whether the k-th best class is the right one."""
    hits = scores.topk(min(5, scores.shape[1])).indices == target[:, None]
    return hits & scores.isfinite().all(dim=1, keepdim=True)  # else NaN would sort as the best
