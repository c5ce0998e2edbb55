"""What test_replay starts under torchrun: the training command, and every batch that a rank saw.

python replay_worker.py DUMP WORDS…    DUMP/rankR.pt: step -> (clean, perturbed, target, index)
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from fastsc.distributed.ranks import Ranks
from fastsc.pipelines import PairBatch
from fastsc.train import main
from fastsc.training.step import Step


def record(seen: dict[int, Any]) -> None:
    """From now on every training step of this process leaves a copy of its batch in `seen`."""
    step = Step.train_step

    def observed(self: Step, batch: PairBatch, **options: Any) -> Any:
        seen[self.step + 1] = tuple(None if x is None else x.clone() for x in batch)
        return step(self, batch, **options)

    Step.train_step = observed  # type: ignore[method-assign]


if __name__ == "__main__":
    dump, batches = Path(sys.argv[1]), dict[int, Any]()
    record(batches)
    status = main(sys.argv[2:])
    torch.save(batches, part := dump / f"{Ranks().rank}.part")
    part.rename(dump / f"rank{Ranks().rank}.pt")  # torchrun may end this process at any moment
    sys.exit(status)
