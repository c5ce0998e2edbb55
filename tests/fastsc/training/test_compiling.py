"""--compile: the same training with few graphs, or one line where no compiler works."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fastsc.config import TrainConfig
from fastsc.config.options import parse
from fastsc.config.recipes import dump, load_recipe
from fastsc.distributed.ranks import Ranks
from fastsc.errors import UserError
from fastsc.training.compiling import repays
from fastsc.training.setup import prepare
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


@pytest.mark.parametrize(
    ("changes", "steps", "expected"),
    [
        ({}, 5004, True),
        ({}, 100, False),
        ({"min_resolution": 160, "resolution": 224, "resolution_ramp": (2, 6)}, 250, False),
        ({"deterministic": True}, 5004, False),
        ({"model": "timm:ghostnet_050"}, 5004, False),
    ],
    ids=["long", "short", "several graphs", "deterministic", "draws that are shared"],
)
def test_auto_compiles_what_repays_it(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], steps: int, expected: bool
) -> None:
    monkeypatch.setattr("fastsc.training.compiling.check_compiler", lambda device: None)
    base = {"model": "fastsc:resnet8w1", "resolution": 64, "batch_size": 8, "precision": "fp32"}
    config = TrainConfig().replace(**{**base, **changes})
    cpu = torch.device("cpu")
    model = prepare(config, 5, cpu, "fp32", Ranks())
    assert repays(config, model, torch.device("cuda"), steps) is expected
    assert not repays(config, model, cpu, steps)


def test_a_compiler_that_does_not_work_leaves_auto_off(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(device: torch.device) -> None:
        raise UserError("no compiler")

    monkeypatch.setattr("fastsc.training.compiling.check_compiler", broken)
    config = TrainConfig().replace(model="fastsc:resnet8w1", resolution=32, batch_size=8)
    model = prepare(config, 5, torch.device("cpu"), "fp32", Ranks())
    assert not repays(config, model, torch.device("cuda"), 5004)


def test_auto_is_decided_once(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, out = list[int](), tmp_path / "run"

    def counted(config: TrainConfig, model: Any, device: torch.device, steps: int) -> bool:
        asked.append(config.optim.epochs * steps)
        return False

    monkeypatch.setattr("fastsc.training.state.repays", counted)
    assert run(image_folder, out, "--max-steps", "3") == 0
    assert asked == [8], "of the whole schedule, of which a trial is a part"
    assert load_recipe(str(out / "config.yaml")).run.compile is False
    assert run(image_folder, out, "--resume") == 0
    assert len(asked) == 1
    assert [event["compile"] for event in events(out, "header")] == [False]
    assert load_recipe(str(out / "config.yaml")).run.compile is False


@pytest.mark.parametrize(
    ("value", "expected"), [("true", True), ("false", False), ("auto", "auto"), ("on", True)]
)
def test_what_a_recipe_says_of_it(tmp_path: Path, value: str, expected: object) -> None:
    (path := tmp_path / "mine.yaml").write_text(f"base: cifar100\ncompile: {value}\n")
    config = load_recipe(str(path))
    assert config.run.compile == expected
    path.write_text(dump(config))
    assert load_recipe(str(path)).run.compile == expected
    path.write_text("compile: perhaps\n")
    with pytest.raises(UserError, match="compile must be auto, true or false, not 'perhaps'"):
        load_recipe(str(path))


@pytest.mark.parametrize(
    ("words", "expected"),
    [("", "auto"), ("--compile", True), ("--compile --flip", True), ("--no-compile", False)],
)
def test_what_a_command_line_says_of_it(words: str, expected: object) -> None:
    assert parse([*words.split(), "imagenet", "--data", "DIR"]).run.compile == expected


@pytest.mark.slow
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
