"""`python -m fastsc.train RECIPE --data DIR`: the command line of the main job.

Exit status: 0 done; 2 the user's mistake, one line on stderr; 75 stopped by a signal, cut off from
the run's other processes or kept waiting by a disk that hangs: resumable; 1 our own fault, with the
traceback in the run's log.
"""

from __future__ import annotations

import faulthandler
import sys

from fastsc.cli.entry import run_command
from fastsc.distributed.signals import EXIT_RESUMABLE, StopSignal, ignore_signals
from fastsc.training.command import RESUME, run


def main(argv: list[str] | None = None) -> int:
    """Parses the options and trains; returns the exit status."""
    if not faulthandler.is_enabled():
        faulthandler.enable()  # should a library crash the interpreter, its last words say where
    stop = StopSignal()
    return run_command(
        "fastsc.train",
        lambda words: run(words, stop),
        argv,
        interrupted=f"interrupted; {RESUME}",
        status=EXIT_RESUMABLE,
        signals=lambda: stop,
    )


if __name__ == "__main__":
    status = main()
    ignore_signals()  # a second one, while Python shuts down, would change the status
    sys.exit(status)
