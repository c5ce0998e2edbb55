"""`python -m fastsc.demo`: the main job on photographs that packages ship, and a picture of it."""

from __future__ import annotations

from fastsc.cli.entry import exit_with, run_command


def main(argv: list[str] | None = None) -> int:
    """The whole demo; returns the exit status: that of the training, if it fails."""
    return run_command("fastsc.demo", _run, argv)


def _run(words: list[str]) -> int:
    from fastsc.demos.photographs import run

    return run(words)


if __name__ == "__main__":
    exit_with(main)
