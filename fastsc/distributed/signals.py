"""Stopping on a signal, at a moment when the work can be left."""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
import time
from types import FrameType, TracebackType
from typing import Any, Self

from fastsc.errors import EXIT_RESUMABLE as EXIT_RESUMABLE

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
STOPPING = frozenset(_SIGNALS)
_PASSED_ON = 1.0  # seconds within which a job's processes send the same signal to each other
_RETRY = 0.02  # seconds until a signal that came at a bad moment is sent once more


class Interrupted(KeyboardInterrupt):
    """A signal. Its text is what a person is told; empty: what the command has to say.

    A class of its own also because `python -m` ends by SIGINT, whatever the exit status, once a
    plain KeyboardInterrupt has passed through exec(), which every dataclass calls.
    """


class StopSignal:
    """Within the context SIGTERM, SIGINT, SIGUSR1 and SIGHUP end the work by an exception.

    From `wait_for_loops` on they only raise a flag that loops look at. Only the first signal
    counts, so that a second one does not break off what the first one makes end; but a second
    SIGINT interrupts at once, for a person who does not want to wait, and so does a second SIGTERM
    where there is nothing to save: not the one that a parent passes on at the same time.

    SIGHUP stays ignored where it was (nohup). In another thread than the main one, where Python
    lets nobody handle signals, nothing changes.

    Args:
        message: What the exception says; {} stands for the signal's name.
    """

    def __init__(self, message: str = "") -> None:
        self.number: signal.Signals | None = None
        self._message = message
        self._raises, self._postponed = True, False
        self._came = 0.0
        self._before: dict[signal.Signals, Any] = {}
        self._entered: FrameType | None = None

    def __bool__(self) -> bool:
        return self.number is not None

    def wait_for_loops(self) -> None:
        """From now on there is something to save before the end."""
        self._raises = False

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._entered = sys._getframe(1)
            for number in _SIGNALS:
                if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            if handler is not None:  # None: set by C code, and lost to Python
                signal.signal(number, handler)
        self._before, self._entered = {}, None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self and number != signal.SIGINT and not self._insists(number):
            return
        if not self._raises:
            if self:
                raise Interrupted
            self._first(number)
        elif self._swallows(frame):
            if not self._postponed:
                self._postponed = True
                _thread.start_new_thread(self._send_again, (number,))
        else:
            raise Interrupted(self._message.format(self._first(number).name))

    def _first(self, number: int) -> signal.Signals:
        """Remembers a signal, and when it came."""
        self.number, self._came = signal.Signals(number), time.monotonic()
        return self.number

    def _insists(self, number: int) -> bool:
        """Whether a second signal is a second order, and there is nothing to save."""
        later = time.monotonic() - self._came > _PASSED_ON
        return self._raises and number == signal.SIGTERM and later

    def _swallows(self, frame: FrameType | None) -> bool:
        """Whether what is at work turns an exception into another one, or drops it.

        Modules do while they are imported (numpy's say that a part of it is missing), and Python
        only prints what a finalizer raises. While this context begins or ends, its handlers are
        half set, and nobody expects an exception yet or any more.
        """
        half_set = (StopSignal.__enter__.__code__, StopSignal.__exit__.__code__)
        while frame is not None and frame is not self._entered:
            code = frame.f_code
            if code.co_name == "__del__" or code.co_filename.startswith("<frozen importlib"):
                return True
            if code in half_set:
                return True
            frame = frame.f_back
        return False

    def _send_again(self, number: int) -> None:
        time.sleep(_RETRY)
        self._postponed = False
        if self._before:  # the context may be over, and the handlers the caller's
            os.kill(os.getpid(), number)


def ignore_signals() -> None:
    """For the end of a process whose exit status is decided."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
