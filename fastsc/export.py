"""`python -m fastsc.export RUN --to TARGET`: a run's weights for timm and the hub, ONNX, .pt2.

Exit status: 0 done; 2 the user's mistake, one line on stderr and nothing written; 130 interrupted,
nothing written; 75 a disk that hangs.
"""

from __future__ import annotations

from fastsc.cli.entry import exit_with, run_command


def main(argv: list[str] | None = None) -> int:
    """Parses the options, converts, checks and writes; returns the exit status."""
    return run_command("fastsc.export", _run, argv, interrupted="interrupted; nothing was written")


def _run(words: list[str]) -> int:
    from fastsc.exporting.command import run

    return run(words)


if __name__ == "__main__":
    exit_with(main)
