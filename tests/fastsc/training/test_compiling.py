"""--compile: the same training with few graphs, or one line where no compiler works."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fastsc.runs import events
from tests.fastsc.training.test_train_options import TINY, run

pytestmark = pytest.mark.heavy


@pytest.mark.slow
def test_compiled_training_is_the_same_with_one_graph_a_resolution(
    image_folder: Path, tmp_path: Path
) -> None:
    plan = ["--min-resolution", "32", "--resolution", "64", "--resolution-ramp", "0", "1"]
    assert run(image_folder, tmp_path / "eager", *plan) == 0
    assert run(image_folder, tmp_path / "compiled", *plan, "--compile") == 0
    compiled = events(tmp_path / "compiled", "compile")
    assert [(e["step"], e["resolution"], e["graphs"]) for e in compiled] == [(1, 32, 1), (5, 64, 1)]
    pairs = zip(events(tmp_path / "eager", "step"), events(tmp_path / "compiled", "step"))
    for a, b in list(pairs)[:2]:  # then batch norm over 8 images turns rounding into a difference
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-3)


def test_a_compiler_that_does_not_work_is_a_mistake(image_folder: Path, tmp_path: Path) -> None:
    """In a process of its own: torch looks for a compiler once."""
    out, more = tmp_path / "run", {"CXX": str(tmp_path), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    words = [*TINY, "--data", str(image_folder), "--out", str(out), "--compile", "--device", "cpu"]
    command = [sys.executable, "-m", "fastsc.train", *words]
    done = subprocess.run(command, env=os.environ | more, capture_output=True, text=True)
    assert done.returncode == 2
    line = done.stderr.splitlines()[-1]  # torch may warn of its own accord
    assert line.startswith("fastsc.train: --compile: ")
    assert "fastsc.doctor" in line
    assert not out.exists()
