"""The figures of a step that is logged: loss, DS and the spread of the features, of all ranks."""

from __future__ import annotations

import torch
from torch import Tensor

from fastsc.distributed.devices import HostCopy, Precision, autocast
from fastsc.distributed.ranks import Ranks
from fastsc.kernels import ds
from fastsc.kernels.distance import scale_rows
from fastsc.loss import Kind
from fastsc.models.features import untouched
from fastsc.models.representation import Represented
from fastsc.pipelines import PairBatch
from fastsc.training.collapse import Figures, spread

Pair = tuple[Tensor, Tensor]  # pooled features of the clean and of the perturbed views


class Measured:
    """The global batch's figures of a step, on their way to the host; every rank makes one.

    Args:
        within: (3,) loss, ce and ds of this rank; a fourth: `Step.disagreement`.
        pairs: Of every part of the batch; none where there are no features to measure.
        norm: Of the gradient, which is the same on all ranks.

    Attributes:
        more: Figures that the host knows by itself, for whoever knows them to add.
    """

    def __init__(self, within: Tensor, pairs: list[Pair], norm: Tensor, ranks: Ranks) -> None:
        self.more: Figures = {}
        self._figures: Figures | None = None
        # Rows were dealt over the parts as they are over the ranks: back to the batch's order.
        rows = [torch.stack(views, 1).flatten(0, 1) for views in zip(*pairs, strict=True)]
        self._copy = HostCopy(ranks.mean(within), norm, *map(ranks.gather, rows))

    def read(self) -> Figures:
        """loss, ce, ds, ds_relative, between, effective_rank, grad_norm, and what was added."""
        if self._figures is None:
            within, norm, *features = self._copy.read()
            loss, ce, distance, *more = within.tolist()
            self._figures = {"loss": loss, "ce": ce, "ds": distance, "ds_relative": float("nan")}
            if more:
                self._figures["disagreement"] = more[0]
            if features:
                f, g = features
                if len(g) > 1:
                    self._figures["ds_relative"] = float(ds(f[: len(g)], g, "relative"))
                between, rank = spread(f)
                self._figures |= {"between": between, "effective_rank": rank}
            self._figures["grad_norm"] = float(norm)
        return self._figures | self.more


@torch.no_grad()
def probe(
    model: Represented,
    batch: PairBatch,
    kind: Kind,
    n_parts: int,
    *,
    precision: Precision,
    ranks: Ranks,
) -> tuple[Tensor, Pair] | None:
    """DS and both views' features, where the loss does without; leaves no trace.

    Of the rows that have two views, which are few. The same joint forward as with the
    constraint, so that the figures compare (the scale of relative and sq is that of all parts,
    where training takes a part's); then the statistics of batch norm and the generators are
    put back as if it had not been.
    """
    if batch.perturbed is None:
        return None
    device, parts = batch.clean.device, []
    for i in range(n_parts):  # no more memory than the training takes
        part = batch.part(i, n_parts)
        assert part.perturbed is not None
        n = len(part.perturbed)
        both = torch.cat([part.clean[:n], part.perturbed])
        with untouched(model), autocast(device, precision):
            clean, perturbed = model(both, n).views(n)
        parts.append(
            (clean.features, perturbed.features, clean.representation, perturbed.representation)
        )
    f, g, r, s = (torch.stack(rows, 1).flatten(0, 1) for rows in zip(*parts, strict=True))
    rows = scale_rows(r, s, kind)
    others = None if rows is None else ranks.gather(rows)
    alone = others is not None and len(others) < 2
    within = torch.full_like(f[0, 0], float("nan")) if alone else ds(r, s, kind, others=others)
    return within, (f, g)
