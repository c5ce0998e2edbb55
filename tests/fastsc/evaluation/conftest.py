"""Networks for calls of the command."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fastsc.evaluation.calls import NETS


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of networks, importable from the current directory, where everything is written."""
    name = f"nets_{tmp_path.name}"  # each test's own: Python keeps a module that it has imported
    (tmp_path / f"{name}.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    return name


@pytest.fixture
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page is left out: its figures take longer than all else, and the test is of that."""
    monkeypatch.setattr("fastsc.evaluation.run.write_report", lambda path, evaluation: None)
