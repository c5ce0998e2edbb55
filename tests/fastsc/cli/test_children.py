"""Processes that end with their command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from fastsc.cli.children import Children

pytestmark = pytest.mark.heavy

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


def test_what_does_not_end_in_its_grace_is_killed() -> None:
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    deaf += "print('deaf', flush=True); time.sleep(60)"
    children, found = Children(), list[int]()
    reader, writer = os.pipe()

    def run() -> None:
        found.append(children.run([sys.executable, "-c", deaf], stdout=writer).returncode)

    thread = threading.Thread(target=run)
    thread.start()
    assert os.read(reader, 4) == b"deaf"
    children.end(grace=0.2)
    thread.join(30)
    assert found == [-signal.SIGKILL]
    os.close(reader)
    os.close(writer)
