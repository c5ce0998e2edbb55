"""`python -m fastsc.doctor`: what works on this machine, and what to install where something fails.

Exit status: 0 what fastsc cannot do without works; 1 it does not; 2 the user's mistake, one line on
stderr; 130 interrupted.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext

from fastsc.cli.entry import run_command
from fastsc.diagnostics.command import run


def main(argv: list[str] | None = None) -> int:
    """Tries everything and tells; returns the exit status."""
    return run_command("fastsc.doctor", run, argv, signals=nullcontext)


if __name__ == "__main__":
    sys.exit(main())
