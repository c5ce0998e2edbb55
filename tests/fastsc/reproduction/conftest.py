"""Trainings of a sweep without a process each."""

from __future__ import annotations

import importlib
import io
import subprocess
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

import pytest


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep's commands are called here, one at a time: for what is not about its processes."""

    def run(self: object, words: Sequence[str], **_: Any) -> subprocess.CompletedProcess[str]:
        _, _, module, *more = words
        with redirect_stderr(io.StringIO()) as err, redirect_stdout(io.StringIO()):
            status = importlib.import_module(module).main(more)
        return subprocess.CompletedProcess(words, status, "", err.getvalue())

    monkeypatch.setattr("fastsc.cli.children.Children.run", run)
