"""The one way into every command: what a mistake and an interruption come to."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager

from fastsc.distributed.signals import interrupted_by_sigterm
from fastsc.errors import PeerError, UserError

MISTAKE, INTERRUPTED = 2, 130


def run_command(
    name: str,
    work: Callable[[list[str]], int],
    argv: list[str] | None,
    *,
    interrupted: str = "interrupted",
    status: int = INTERRUPTED,
    signals: Callable[[], AbstractContextManager[object]] = interrupted_by_sigterm,
) -> int:
    """Runs `work` on the words of the command line.

    Args:
        name: Of the command, in front of what is said of a mistake: fastsc.train.
        work: The command. It imports what is slow by itself, so that --help waits for nothing.
        argv: The words; None: this process's.
        interrupted: What is said of an interruption that says nothing itself.
        status: The exit status of one.
        signals: Opens the context in which signals interrupt.

    Returns:
        The exit status: what `work` returned; 2 for a UserError, which is one line on stderr.
    """
    try:
        with signals():
            return work(sys.argv[1:] if argv is None else argv)
    except PeerError:
        return MISTAKE  # the rank whose mistake it is says so
    except UserError as mistake:
        say(name, str(mistake))
        return MISTAKE
    except KeyboardInterrupt as stopped:
        say(name, str(stopped) or interrupted)
        return status


def say(name: str, line: str) -> None:
    """One line on stderr, from the command of this name."""
    sys.stderr.write(f"{name}: {' '.join(line.split())}\n")
