"""`python -m fastsc.prepare WHAT --out DIR`: makes data in the form that training takes.

Exit status: 0 done; 2 the user's mistake, one line on stderr and nothing written; 130 interrupted,
nothing written.
"""

from __future__ import annotations

import sys

from fastsc.cli.entry import run_command
from fastsc.datasets.command import run


def main(argv: list[str] | None = None) -> int:
    """Parses the options and does the work; returns the exit status."""
    return run_command("fastsc.prepare", run, argv, interrupted="interrupted; nothing was written")


if __name__ == "__main__":
    sys.exit(main())
