"""Networks for calls of the command."""

from __future__ import annotations

import shutil
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
def few_images(image_folder: Path, tmp_path: Path) -> Path:
    """The shared folder's validation images but for one of each class: eight."""
    folder = tmp_path / "few"
    for path in (image_folder / "val").glob("*/0[01].jpg"):
        copy = folder / "val" / path.parent.name / path.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy)
    return folder
