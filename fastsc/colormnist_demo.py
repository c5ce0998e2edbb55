"""`python -m fastsc.colormnist_demo`: is a network less fooled by colours that lie?"""

from __future__ import annotations

import sys
from contextlib import nullcontext

from fastsc.cli.entry import run_command
from fastsc.demos.colormnist import run


def main(argv: list[str] | None = None) -> int:
    """The whole demo; returns the exit status: that of a training, if it fails."""
    return run_command("fastsc.colormnist_demo", run, argv, signals=nullcontext)


if __name__ == "__main__":
    sys.exit(main())
