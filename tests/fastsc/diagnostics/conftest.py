"""Modules in the place of others, in the processes of probes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def shadow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Writes a module that the probes' processes find before any other of its name."""
    folder = tmp_path / "shadows"
    folder.mkdir()
    others = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), *([others] if others else [])]))
    return lambda name, code: (folder / f"{name}.py").write_text(code) and None
