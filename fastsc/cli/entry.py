"""The one way into every command: what a mistake and an interruption come to."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn

from fastsc.cli.console import require_output, tolerant_streams
from fastsc.distributed.signals import STOPPING, StopSignal, ignore_signals
from fastsc.errors import PeerError, UserError
from fastsc.pipelines.disk import watched

MISTAKE, INTERRUPTED = 2, 130
DISK_TIMEOUT = 120.0  # seconds that a disk has for one call; of a training --disk-timeout
LONGEST = 8000  # letters of a line; a path has 4096 at most


def run_command(
    name: str,
    work: Callable[[list[str]], int],
    argv: list[str] | None,
    *,
    interrupted: str = "interrupted",
    status: int = INTERRUPTED,
    stop: StopSignal | None = None,
) -> int:
    """Runs `work` on the words of the command line.

    Args:
        name: Of the command, before every error message: fastsc.train.
        work: The command. It imports what is slow by itself: --help waits for nothing, and signals
            are handled before.
        argv: The words; None: this process's.
        interrupted: The message of an interruption that has none itself.
        status: The exit status of one.
        stop: What handles signals; None: a new one, which interrupts.

    Returns:
        The exit status: what `work` returned; 2 for a UserError, which is one line on stderr. Where
        a disk hangs, the process ends by 75.

    Raises:
        SystemExit: Of --help and the like. Their output is all that was asked for, so that where it
            cannot be written, the status is 2.
    """
    words = sys.argv[1:] if argv is None else argv
    stop = StopSignal() if stop is None else stop
    # Signals are handled last and let go first: what one raises must not come in between.
    with tolerant_streams(), watched(DISK_TIMEOUT, name, STOPPING), stop:
        try:
            try:
                return _finished(work, words)
            except PeerError:
                return MISTAKE  # the rank whose mistake it is says so
            except UserError as mistake:
                say(name, str(mistake))
                return MISTAKE
            except OSError as error:
                if error.filename is None or error.errno is None:
                    raise  # a fault of ours, with its traceback
                say(name, f"{error.filename}: {error.strerror}")
                return MISTAKE
        except KeyboardInterrupt as stopped:
            say(name, str(stopped) or interrupted)
            return status


def _finished(work: Callable[[list[str]], int], words: list[str]) -> int:
    try:
        return work(words)
    except SystemExit:
        require_output()
        raise


def exit_with(main: Callable[[], int]) -> NoReturn:
    """Ends this process by the command's exit status."""
    status = main()
    ignore_signals()  # a second one, while Python shuts down, would change the status
    sys.exit(status)


def say(name: str, line: str) -> None:
    """One line on stderr, from the command of this name; no longer than a few screens."""
    words = " ".join(line.split())
    words = words if len(words) <= LONGEST else f"{words[:LONGEST]} …"
    sys.stderr.write(f"{name}: {words}\n")
