"""`python -m fastsc.colormnist_demo`: is a network less fooled by colors that lie?"""

from __future__ import annotations

from fastsc.cli.entry import exit_with, run_command


def main(argv: list[str] | None = None) -> int:
    """The whole demo; returns the exit status: that of a training, if it fails."""
    return run_command("fastsc.colormnist_demo", _run, argv)


def _run(words: list[str]) -> int:
    from fastsc.demos.colormnist import run

    return run(words)


if __name__ == "__main__":
    exit_with(main)
