"""Worker threads that nobody has to wait for.

`concurrent.futures.ThreadPoolExecutor` joins its threads when the interpreter ends. A thread that
hangs in a read from a dead mount would then keep a program alive that has already said what hangs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
_JOIN_SECONDS = 1.0


class StalledError(Exception):
    """Nothing came for as long as the user is willing to wait; the message says what from."""


class DaemonPool:
    """`submit` like an executor's; the threads are daemons and start with the first task."""

    def __init__(self, n_threads: int, name: str) -> None:
        self._tasks: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._n_threads, self._name = n_threads, name
        self._threads: list[threading.Thread] = []

    def submit(self, function: Callable[..., T], *args: Any) -> Future[T]:
        """Calls function(*args) in a thread."""
        if not self._threads:
            self._threads = [
                threading.Thread(
                    target=_work, args=(self._tasks,), name=f"{self._name}-{i}", daemon=True
                )
                for i in range(self._n_threads)
            ]
            for thread in self._threads:
                thread.start()
        future: Future[T] = Future()
        self._tasks.put((future, lambda: function(*args)))
        return future

    def close(self) -> None:
        """Lets the threads end after the tasks at hand; waits a second at most."""
        for _ in self._threads:
            self._tasks.put(None)
        deadline = time.monotonic() + _JOIN_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._threads = []

    def __del__(self) -> None:
        for _ in self._threads:  # a pool that nobody closed
            self._tasks.put(None)


def _work(tasks: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]) -> None:
    # A function and not a method: a thread must not keep its pool alive.
    while (task := tasks.get()) is not None:
        future, call = task
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(call())
            except BaseException as error:  # noqa: BLE001, it is the caller's to handle
                future.set_exception(error)
        del task, future, call  # nothing of a finished batch is kept while waiting for the next
