"""`python -m fastsc.replay RUN --step N`: the images of a past step, as a picture and as arrays.

Exit status: 0 done; 2 the user's mistake, one line on stderr and nothing written; 130 interrupted,
nothing written.
"""

from __future__ import annotations

import sys

from fastsc.cli.entry import run_command
from fastsc.replaying.command import run


def main(argv: list[str] | None = None) -> int:
    """Parses the options, rebuilds and writes; returns the exit status."""
    return run_command("fastsc.replay", run, argv, interrupted="interrupted; nothing was written")


if __name__ == "__main__":
    sys.exit(main())
