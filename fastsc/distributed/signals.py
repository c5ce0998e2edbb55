"""Stopping on a signal, at a moment that the training loop chooses."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

from fastsc.errors import EXIT_RESUMABLE as EXIT_RESUMABLE

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
STOPPING = frozenset(_SIGNALS)


class StoppedEarly(KeyboardInterrupt):
    """A signal before there was anything to save."""


class StopSignal:
    """Within the context, SIGTERM, SIGINT and SIGUSR1 end the process by an exit status of ours.

    Until `wait_for_loops`, by an exception; from then on they only raise a flag that loops look at.
    A second SIGINT interrupts at once, for a person who does not want to wait for the checkpoint.
    In another thread than the main one, where Python lets nobody handle signals, nothing changes.
    """

    def __init__(self) -> None:
        self.number: signal.Signals | None = None
        self._at_once = True
        self._before: dict[signal.Signals, Any] = {}

    def __bool__(self) -> bool:
        return self.number is not None

    def wait_for_loops(self) -> None:
        """From now on there is something to save before the end."""
        self._at_once = False

    def __enter__(self) -> Self:
        if _handles_signals():
            self._before = {n: signal.signal(n, self._raise_flag) for n in _SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _raise_flag(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self._at_once:
            raise StoppedEarly(f"stopped by {signal.Signals(number).name} before the first step")
        if self and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = signal.Signals(number)


def _handles_signals() -> bool:
    return threading.current_thread() is threading.main_thread()


def ignore_signals() -> None:
    """For the end of a process whose exit status is decided."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """Within the context SIGTERM is a KeyboardInterrupt too: what is half-written gets removed.

    So are SIGUSR1, by which schedulers warn, and SIGHUP, of a terminal that is closed. In another
    thread than the main one nothing changes.
    """
    if not _handles_signals():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise KeyboardInterrupt

    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
    before = [signal.signal(number, interrupt) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
