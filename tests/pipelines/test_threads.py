"""Worker threads: their errors, and how they end."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError

import pytest

from fastsc.pipelines.threads import DaemonPool, default_workers

pytestmark = pytest.mark.heavy


@pytest.mark.parametrize(
    ("cores", "processes", "threads"),
    [(2, 1, 2), (224, 1, 16), (224, 8, 16), (64, 8, 8), (4, 8, 1)],
)
def test_threads_are_a_share_of_the_cores(
    monkeypatch: pytest.MonkeyPatch, cores: int, processes: int, threads: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)))
    assert default_workers(processes) == threads


def test_results_and_errors_are_the_callers() -> None:
    pool = DaemonPool(2, "test")
    assert pool.submit(divmod, 7, 2).result(10) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        pool.submit(divmod, 7, 0).result(10)
    assert pool.submit(divmod, 9, 2).result(10) == (4, 1)  # and the thread goes on
    pool.close()


def test_closing_ends_the_threads_and_cancels_what_waits() -> None:
    pool, going, go = DaemonPool(1, "test-close"), threading.Event(), threading.Event()

    def first() -> str:
        going.set()
        go.wait(10)
        return "done"

    running, waiting = pool.submit(first), pool.submit(divmod, 1, 1)
    going.wait(10)
    threading.Timer(0.2, go.set).start()
    pool.close()
    assert running.result(0) == "done"
    with pytest.raises(CancelledError):
        waiting.result(0)
    assert not [t for t in threading.enumerate() if t.name.startswith("test-close")]


def test_closing_does_not_wait_for_a_thread_that_hangs() -> None:
    pool, go = DaemonPool(1, "test-hang"), threading.Event()
    pool.submit(go.wait, 30)
    began = time.monotonic()
    pool.close()
    assert time.monotonic() - began < 10
    go.set()


# What is registered first runs last: after the pools' threads have been ended.
PROGRAM = """
import atexit, threading, time
atexit.register(lambda: print(sorted(t.name for t in threading.enumerate())))
import torch
from fastsc.pipelines.threads import DaemonPool

def work(tensor):
    time.sleep(0.3)  # the interpreter wants to end while the tensor is the thread's alone

def abandoned():
    DaemonPool(2, "gone").submit(work, torch.zeros(9))

abandoned()
pool = DaemonPool(2, "open")
for _ in range(50):
    pool.submit(work, torch.zeros(9))
"""


def test_no_thread_outlives_the_interpreter() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "['MainThread']\n"


def test_closing_behind_an_interruption_while_threads_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ctrl-C may fall between the making of threads and their start."""
    started: list[threading.Thread] = []
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        if started:
            raise KeyboardInterrupt
        started.append(thread)
        start(thread)

    pool = DaemonPool(3, "test-interrupted")
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pool.submit(divmod, 7, 2)
    pool.close()
    assert not started[0].is_alive()
