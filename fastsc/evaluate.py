"""`python -m fastsc.evaluate MODEL… --data DIR --out DIR`: how continuous is any classifier?

Exit status: 0 done; 2 the user's mistake, one line on stderr; 75 interrupted, or ended because
a disk hangs: what was computed is kept, and the same command goes on.
"""

from __future__ import annotations

from fastsc.cli.entry import exit_with, run_command
from fastsc.distributed.signals import EXIT_RESUMABLE


def main(argv: list[str] | None = None) -> int:
    """Parses the options and evaluates; returns the exit status."""
    kept = "interrupted; what was computed is kept, and the same command goes on"
    return run_command("fastsc.evaluate", _run, argv, interrupted=kept, status=EXIT_RESUMABLE)


def _run(words: list[str]) -> int:
    from fastsc.evaluation.command import run

    return run(words)


if __name__ == "__main__":
    exit_with(main)
