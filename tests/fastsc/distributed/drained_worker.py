"""The training command where a process group's end waits for the others, as NCCL's does.

python drained_worker.py STEP WORDS…    rank 1 has an error in front of its update of this step
"""

from __future__ import annotations

import sys
import time
from typing import Any

import torch.distributed as dist

from fastsc.distributed import ranks
from fastsc.train import main
from fastsc.training import command
from fastsc.training.step import Step

clip = Step._clip


def broken(self: Step, *args: Any) -> Any:
    if self.step + 1 == int(sys.argv[1]) and self.ranks.rank == 1:
        raise RuntimeError("out of memory, as a test has it")
    return clip(self, *args)


if __name__ == "__main__":
    Step._clip = broken  # type: ignore[method-assign]
    ranks._waits_at_its_end = lambda device: True
    command._group_on_gpus = dist.is_initialized
    dist.destroy_process_group = lambda: time.sleep(1000)
    sys.exit(main(sys.argv[2:]))
