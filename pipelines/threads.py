"""Worker threads that nobody has to wait for.

`concurrent.futures.ThreadPoolExecutor` joins its threads when the interpreter ends. A thread that
hangs in a read from a dead mount would then keep a program alive that has already said what hangs.
All others are ended before the interpreter is: one that drops a tensor while Python shuts down
aborts the process ("terminate called without an active exception").
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from fastsc.pipelines.errors import StalledError

T = TypeVar("T")
R = TypeVar("R")
AHEAD = 8  # items made ahead, a thread
_JOIN_SECONDS = 1.0
_pools: weakref.WeakSet[DaemonPool] = weakref.WeakSet()
_threads: weakref.WeakSet[threading.Thread] = weakref.WeakSet()


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
            _pools.add(self)
            _threads.update(self._threads)
        future: Future[T] = Future()
        self._tasks.put((future, lambda: function(*args)))
        return future

    def close(self) -> None:
        """Ends the threads after what they are doing now; waits a second at most."""
        while self._threads:
            try:
                task = self._tasks.get_nowait()
            except Empty:
                break
            if task is not None:
                task[0].cancel()
        for _ in self._threads:
            self._tasks.put(None)
        _join(self._threads)
        self._threads = []

    def __del__(self) -> None:
        for _ in self._threads:  # a pool that nobody closed
            self._tasks.put(None)


def default_workers(processes: int = 1) -> int:
    """Threads of one of so many processes: its share of the cores that they may use, 1 to 16."""
    return min(16, max(1, len(os.sched_getaffinity(0)) // processes))


def in_order(
    function: Callable[[T], R],
    items: Iterable[T],
    *,
    workers: int,
    name: str,
    timeout: float,
    describe: Callable[[T], str],
) -> Generator[R, None, None]:
    """function(item) of all items, in their order, made by threads a little ahead.

    Raises:
        StalledError: One item took longer than `timeout` seconds; `describe(item)` names it.
    """
    pool, upcoming = DaemonPool(workers, name), iter(items)
    pending: deque[tuple[T, Future[R]]] = deque()
    try:
        while True:
            while len(pending) < AHEAD * workers:
                try:
                    item = next(upcoming)
                except StopIteration:
                    break
                pending.append((item, pool.submit(function, item)))
            if not pending:
                return
            item, task = pending.popleft()
            try:
                yield task.result(timeout)
            except TimeoutError:
                raise StalledError(f"nothing for {timeout:g} s from {describe(item)}") from None
    finally:
        pool.close()


def _join(threads: list[threading.Thread]) -> None:
    deadline = time.monotonic() + _JOIN_SECONDS
    for thread in threads:
        if thread.is_alive():  # one that an interruption kept from starting cannot be joined
            thread.join(max(0.0, deadline - time.monotonic()))


@atexit.register
def _end_all() -> None:
    for pool in list(_pools):
        pool.close()
    _join(list(_threads))  # and those of pools that are gone already


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
