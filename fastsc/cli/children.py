"""Processes that threads of a command run, and that end with it."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Sequence
from typing import Any


class Children:
    """`run` is subprocess.run; `end` terminates what runs, and lets nothing more begin."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[Any]] = set()
        self._lock = threading.Lock()
        self._ended = False

    def run(
        self, words: Sequence[str], *, timeout: float | None = None, **options: Any
    ) -> subprocess.CompletedProcess[Any]:
        """Runs a command to its end; options are Popen's.

        Raises:
            subprocess.TimeoutExpired: It took longer than `timeout` seconds, and was killed.
            InterruptedError: `end` was called before it began.
        """
        with self._lock:
            if self._ended:
                raise InterruptedError("the command is being ended")
            process = subprocess.Popen(words, **options)
            self._running.add(process)
        try:
            with process:
                try:
                    out, err = process.communicate(timeout=timeout)
                except BaseException:
                    process.kill()
                    raise
        finally:
            with self._lock:
                self._running.discard(process)
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def end(self, *, grace: float | None = None) -> None:
        """Sends SIGTERM to all that run; kills those that still do after `grace` seconds."""
        with self._lock:
            self._ended = True
            running = list(self._running)
            for process in running:
                process.terminate()
        until = time.monotonic() + (grace or 0)
        for process in running if grace is not None else ():
            try:
                process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
