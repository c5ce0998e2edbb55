"""`python -m fastsc.replay RUN --step N`: the images of a past step, as a picture and as arrays.

Exit status: 0 done; 2 the user's mistake, one line on stderr and nothing written; 130 interrupted,
nothing written; 75 ended because a disk hangs, whose temporary files the next call removes.
"""

from __future__ import annotations

from fastsc.cli.entry import exit_with, run_command


def main(argv: list[str] | None = None) -> int:
    """Parses the options, rebuilds and writes; returns the exit status."""
    return run_command("fastsc.replay", _run, argv, interrupted="interrupted; nothing was written")


def _run(words: list[str]) -> int:
    from fastsc.replaying.command import run

    return run(words)


if __name__ == "__main__":
    exit_with(main)
