"""`python -m fastsc.demo`: the main job on photographs that packages ship, and a picture of it."""

from __future__ import annotations

import sys
from contextlib import nullcontext

from fastsc.cli.entry import run_command
from fastsc.demos.photographs import run


def main(argv: list[str] | None = None) -> int:
    """The whole demo; returns the exit status: that of the training, if it fails."""
    return run_command("fastsc.demo", run, argv, signals=nullcontext)


if __name__ == "__main__":
    sys.exit(main())
