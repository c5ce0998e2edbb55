"""`python -m fastsc.reproduce STUDY --data DIR --out DIR`: the paper's experiments, and their page.

A study is a sweep of trainings that may be broken off and gone on with: a finished run is not run
again, nor one whose record is committed. Exit status: 0 done; 2 the user's mistake, one line on
stderr; 75 interrupted, the same command goes on; else that of the training that failed.
"""

from __future__ import annotations

from fastsc.cli.entry import exit_with, run_command
from fastsc.distributed.signals import EXIT_RESUMABLE


def main(argv: list[str] | None = None) -> int:
    """Parses the options and runs the study; returns the exit status."""
    again = "interrupted; the same command goes on"
    return run_command("fastsc.reproduce", _run, argv, interrupted=again, status=EXIT_RESUMABLE)


def _run(words: list[str]) -> int:
    from fastsc.reproduction.command import run

    return run(words)


if __name__ == "__main__":
    exit_with(main)
