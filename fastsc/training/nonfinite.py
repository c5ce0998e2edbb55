"""Losses that are not finite: which step it was, and which images were in it.

A loss is looked at when the figures of a step are fetched anyway, so that a GPU is not waited for:
at most `log_every` steps late, and always before a checkpoint is written.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastsc.distributed.ranks import Ranks
from fastsc.errors import PeerError, UserError
from fastsc.run.writer import NonFiniteError

MOST_SKIPPED = 100  # in a row: then it is the weights, not the images


@dataclass(frozen=True)
class NonFinite:
    """A step whose loss was not finite on some rank."""

    number: int
    index: list[list[int]] | None
    """Dataset indices, by rank, as that rank had them; on the main rank alone."""


class LossWatch:
    """The losses since the last look, still on their device."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._unseen: list[tuple[int, Tensor, Tensor]] = []
        self._skipped = 0

    def note(self, step: int, loss: Tensor, index: Tensor) -> None:
        """loss: this rank's, a scalar. index: (N,) its dataset indices."""
        self._unseen.append((step, loss, index))

    def look(self) -> NonFinite | None:
        """The first step since the last look that was not finite; all ranks must look at once."""
        if not self._unseen:
            return None
        unseen, self._unseen = self._unseen, []
        # A mean over the ranks is finite where all of them are.
        losses = self._ranks.mean(torch.stack([loss for _, loss, _ in unseen]).float())
        bad = (~losses.isfinite()).nonzero().flatten().tolist()
        if not bad:
            self._skipped = 0
            return None
        step, _, index = unseen[bad[0]]
        return NonFinite(step, self._ranks.gather_values(index.tolist()))

    def stop(self, step: int, *, skipping: bool) -> UserError:
        """What ends the run on this rank."""
        if not self._ranks.is_main:
            return PeerError(f"the loss of step {step} is not finite")
        if skipping:
            return NonFiniteError(
                f"the losses of {MOST_SKIPPED} steps in a row, to step {step}, are not "
                "finite: it is the weights and not the images; begin again with a smaller --lr"
            )
        return NonFiniteError(
            f"the loss of step {step} is not finite: python -m fastsc.replay shows its "
            "images; go on from before it with --resume --on-nan skip, or begin again with a "
            "smaller --lr"
        )

    def count_skipped(self) -> bool:
        """Counts one more skipped step in a row; True where that is too many."""
        self._skipped += 1
        return self._skipped >= MOST_SKIPPED
