"""Commands in processes of their own, forked from one that has imported what is slow to import."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import sys
from collections.abc import Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path

PRELOADED = [
    "fastsc.datasets.beton", "fastsc.evaluation.run", "fastsc.pipelines.beton_writer",
    "fastsc.pipelines.cpu", "fastsc.replaying.export", "fastsc.reproduction.session",
]  # fmt: skip


def start(command: str, words: Sequence[str], said: Path) -> ForkServerProcess:
    """Starts fastsc.COMMAND; its stdout goes to said.out and its stderr to said.err."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    job = (command, list(words), str(said), dict(os.environ))
    process = context.Process(target=_main, args=job)
    process.start()
    return process


def _main(command: str, words: list[str], said: str, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    for number, suffix in ((1, ".out"), (2, ".err")):
        file = os.open(said + suffix, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
        os.close(file)
    sys.exit(importlib.import_module(f"fastsc.{command}").main(words))
