"""A deadline for the disk: what it is asked for may never return, and no exception ends that.

A call that hangs in the kernel takes its thread with it, the main one too: Python's handlers of
signals do not run there. A thread of its own looks after such calls, and ends the process.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from fastsc.pipelines.errors import EXIT_RESUMABLE

AFTER_A_SIGNAL = 30.0  # seconds for what is under way; schedulers and torchrun kill after as many
AFTER_TWO = 2.0
_LAST_WORDS = 2.0  # seconds; what hangs may be stderr's disk
_LOOK = 0.25


@dataclass(eq=False)
class _Call:
    what: str
    began: float = field(default_factory=time.monotonic)


class Watch:
    """Ends the process by status 75 where a call of `doing` does not return in time.

    In time is `timeout` seconds; 30 s once one of `signals` has come, and 2 s once two have: they
    are the last that a scheduler gives.
    """

    def __init__(self, timeout: float, program: str, signals: frozenset[int]) -> None:
        self.timeout, self.program, self.signals = timeout, program, signals
        self._calls: set[_Call] = set()
        self._came: list[float] = []
        self._closed = threading.Event()
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._thread = threading.Thread(target=self._look, name="fastsc-disk", daemon=True)

    def start(self) -> None:
        """Begins to look."""
        self._before: int | None = None
        if threading.current_thread() is threading.main_thread():
            self._before = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._thread.start()

    def close(self) -> None:
        """Looks no more."""
        if self._before is not None:
            signal.set_wakeup_fd(self._before)
        self._closed.set()
        os.write(self._writer, b"\0")  # no signal's number: it need not look to the end
        self._thread.join()
        os.close(self._reader)
        os.close(self._writer)

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Within the context the disk is asked for something, named for a person."""
        call = _Call(what)
        self._calls.add(call)
        try:
            yield
        finally:
            self._calls.discard(call)

    def _look(self) -> None:
        while not self._closed.is_set():
            if select.select([self._reader], [], [], _LOOK)[0]:
                came = [n for n in os.read(self._reader, 512) if n in self.signals]
                self._came += [time.monotonic()] * len(came)
            for call in tuple(self._calls):
                if (waited := self._overdue(call)) is not None:
                    self._leave(call, waited)

    def _overdue(self, call: _Call) -> float | None:
        """Seconds for which it has been waited for, if that is too long."""
        now = time.monotonic()
        until = call.began + self.timeout
        for n, patience in ((1, AFTER_A_SIGNAL), (2, AFTER_TWO)):
            if len(self._came) >= n:
                until = min(until, max(call.began, self._came[n - 1]) + patience)
        return now - call.began if now > until else None

    def _leave(self, call: _Call, waited: float) -> None:
        line = f"{self.program}: {call.what}: the disk has not answered for {waited:.0f} s\n"

        def say() -> None:
            with suppress(OSError, ValueError, AttributeError):
                os.write(sys.stderr.fileno(), line.encode(errors="replace"))

        speaker = threading.Thread(target=say, daemon=True)
        speaker.start()
        speaker.join(_LAST_WORDS)
        os._exit(EXIT_RESUMABLE)


_watch: Watch | None = None


@contextmanager
def watched(timeout: float, program: str, signals: frozenset[int]) -> Iterator[None]:
    """Within the context, `doing` has a deadline, and this process ends where that passes.

    Nested, only the timeout changes: program and signals stay those of the outer context.

    Args:
        timeout: Seconds that the disk has for one call.
        program: In front of the last words.
        signals: Numbers of those that tell the process to stop.
    """
    global _watch
    if _watch is not None:
        outer, _watch.timeout = _watch.timeout, timeout
        try:
            yield
        finally:
            _watch.timeout = outer
        return
    _watch = Watch(timeout, program, signals)
    _watch.start()
    try:
        yield
    finally:
        watch, _watch = _watch, None
        watch.close()


@contextmanager
def doing(what: str) -> Iterator[None]:
    """Within the context the disk is asked for something, which `watched` gives a deadline."""
    if _watch is None:
        yield
        return
    with _watch.doing(what):
        yield


def without_waiting(path: str, flags: int) -> int:
    """An opener for `open`, for which a pipe without a writer is empty."""
    return os.open(path, flags | os.O_NONBLOCK)
