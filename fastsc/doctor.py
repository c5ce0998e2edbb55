"""`python -m fastsc.doctor`: what works on this machine, and what to install where something fails.

Exit status: 0 what fastsc cannot do without works; 1 it does not; 2 the user's mistake, or an
output that cannot be written, one line on stderr; 130 interrupted.
"""

from __future__ import annotations

from fastsc.cli.entry import exit_with, run_command


def main(argv: list[str] | None = None) -> int:
    """Tries everything and tells; returns the exit status."""
    return run_command("fastsc.doctor", _run, argv)


def _run(words: list[str]) -> int:
    from fastsc.diagnostics.command import run

    return run(words)


if __name__ == "__main__":
    exit_with(main)
