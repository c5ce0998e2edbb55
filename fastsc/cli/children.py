"""Processes that threads of a command run, and that end with it."""

from __future__ import annotations

import subprocess
import threading
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
                    out, said = process.communicate(timeout=timeout)
                except BaseException:
                    process.kill()
                    raise
        finally:
            with self._lock:
                self._running.discard(process)
        return subprocess.CompletedProcess(words, process.returncode, out, said)

    def end(self) -> None:
        """Sends SIGTERM to all that run."""
        with self._lock:
            self._ended = True
            for process in self._running:
                process.terminate()
