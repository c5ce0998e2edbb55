"""Processes that end with their command."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time

import pytest

from fastsc.cli.children import Children

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


def test_what_runs_is_ended_and_nothing_more_begins() -> None:
    children, found = Children(), list[int]()
    thread = threading.Thread(target=lambda: found.append(children.run(SLEEP).returncode))
    thread.start()
    time.sleep(0.3)
    children.end()
    thread.join(10)
    assert found == [-signal.SIGTERM]
    with pytest.raises(InterruptedError):
        children.run(SLEEP)


def test_output_and_time_limit() -> None:
    children = Children()
    words = [sys.executable, "-c", "print('said')"]
    done = children.run(words, stdout=subprocess.PIPE, text=True)
    assert (done.returncode, done.stdout) == (0, "said\n")
    with pytest.raises(subprocess.TimeoutExpired):
        children.run(SLEEP, timeout=0.2)
