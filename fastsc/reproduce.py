"""`python -m fastsc.reproduce STUDY --data DIR --out DIR`: the paper's experiments, and their page.

A study is a sweep of trainings that may be broken off and gone on with: a finished run is not run
again, nor one whose record is committed. Exit status: 0 done; 2 the user's mistake, one line on
stderr; 75 interrupted, the same command goes on; else that of the training that failed.
"""

from __future__ import annotations

import sys

from fastsc.cli.entry import run_command
from fastsc.distributed.signals import EXIT_RESUMABLE
from fastsc.reproduction.command import run


def main(argv: list[str] | None = None) -> int:
    """Parses the options and runs the study; returns the exit status."""
    again = "interrupted; the same command goes on"
    return run_command("fastsc.reproduce", run, argv, interrupted=again, status=EXIT_RESUMABLE)


if __name__ == "__main__":
    sys.exit(main())
