"""The training command in a process that a fault strikes at the n-th moment of a kind.

python fault_worker.py MOMENT N FAULT WORDS…

MOMENT: load, an image is decoded; step, a gradient is there and no weight changed; write, bytes of
a checkpoint; validate, a batch of a validation. FAULT: kill (SIGKILL), segfault, or the name of
another signal, which the process sends itself; or an exception's name, raised there.
Under torchrun $FAULT_RANK alone is struck, in its first life.
"""

from __future__ import annotations

import builtins
import ctypes
import io
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import fastsc.run.checkpoint
import fastsc.training.loop
import fastsc.training.validate
from fastsc.distributed.ranks import Ranks
from fastsc.pipelines.cpu import CpuPipeline
from fastsc.train import main
from fastsc.training.step import Step


def struck(fault: str) -> None:
    """This process, by the fault."""
    if fault == "segfault":
        ctypes.string_at(0)
    elif fault.startswith("SIG"):
        os.kill(os.getpid(), getattr(signal, fault))
    else:
        raise getattr(builtins, fault)("a fault that a test made")


def before(owner: Any, name: str, n: int, fault: str) -> None:
    """The fault strikes in front of the n-th call of owner.name, counted from 1."""
    original: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def counted(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == n:
            struck(fault)
        return original(*args, **options)

    setattr(owner, name, counted)


def while_writing(n: int, fault: str) -> None:
    """The n-th checkpoint gets a part of its bytes, and no more."""
    writes = 0
    original = fastsc.run.checkpoint._torch_save

    def torn(state: Any, path: str) -> None:
        nonlocal writes
        writes += 1
        if writes == n:
            memory = io.BytesIO()
            torch.save(state, memory)
            data = memory.getvalue()
            Path(path).write_bytes(data[: 1 + 9973 * n % len(data)])
            struck(fault)
        original(state, path)  # of a signal that leaves it alive the thread does not even hear

    fastsc.run.checkpoint._torch_save = torn


if __name__ == "__main__":
    moment, number, fault_name, *words = sys.argv[1:]
    ranks = Ranks()
    if ranks.restarts or ranks.rank != int(os.environ.get("FAULT_RANK", "0")):
        pass
    elif moment == "write":
        while_writing(int(number), fault_name)
    else:
        owner, function = {
            "load": (CpuPipeline, "_fill"),
            "step": (Step, "_clip"),
            "validate": (fastsc.training.validate, "_hits"),
        }[moment]
        before(owner, function, int(number), fault_name)
    sys.exit(main(words))
