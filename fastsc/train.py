"""`python -m fastsc.train RECIPE --data DIR`: the command line of the main job.

Exit status: 0 done; 2 the user's mistake, one line on stderr; 75 stopped by a signal, cut off from
the run's other processes or kept waiting by a disk that hangs: resumable; 1 our own fault, with the
traceback in the run's log.
"""

from __future__ import annotations

from typing import Any

from fastsc.cli.entry import exit_with, run_command
from fastsc.distributed.signals import EXIT_RESUMABLE, StopSignal
from fastsc.training.command import RESUME, run


def conclude(*args: Any) -> None:
    """The page of a repair."""
    from fastsc.repairing.page import write_page  # imported where there is one

    write_page(*args)


def main(argv: list[str] | None = None) -> int:
    """Parses the options and trains; returns the exit status."""
    stop = StopSignal("stopped by {} before the first step")
    return run_command(
        "fastsc.train",
        lambda words: run(words, stop, conclude),
        argv,
        interrupted=f"interrupted; {RESUME}",
        status=EXIT_RESUMABLE,
        stop=stop,
    )


if __name__ == "__main__":
    exit_with(main)
