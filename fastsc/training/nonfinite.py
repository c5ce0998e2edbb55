"""Losses that are not finite: which step it was, and which images were in it.

Losses are copied to the host when the figures of a step are, and looked at with these, so that a
GPU is not waited for: at most eleven steps late, and always before a checkpoint is written.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastsc.distributed.devices import HostCopy
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


Noted = tuple[int, Tensor, Tensor]  # step, loss, dataset indices


class LossWatch:
    """The losses since the last look."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._here: list[Noted] = []  # still on their device
        self._sent: list[tuple[list[Noted], HostCopy]] = []
        self._skipped = 0

    def note(self, step: int, loss: Tensor, index: Tensor) -> None:
        """loss: this rank's, a scalar. index: (N,) its dataset indices."""
        self._here.append((step, loss, index))

    def send(self) -> None:
        """Has the noted losses copied to the host; all ranks must send at once."""
        if noted := self._here:
            self._here = []
            # A mean over the ranks is finite where all of them are.
            losses = self._ranks.mean(torch.stack([loss for _, loss, _ in noted]).float())
            self._sent.append((noted, HostCopy(losses)))

    def look(self) -> NonFinite | None:
        """The first step of those sent that was not finite; all ranks must look at once."""
        sent, self._sent = self._sent, []
        for noted, copy in sent:
            bad = (~copy.read()[0].isfinite()).nonzero().flatten().tolist()
            if bad:
                step, _, index = noted[bad[0]]
                return NonFinite(step, self._ranks.gather_values(index.tolist()))
            self._skipped = 0
        return None

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
