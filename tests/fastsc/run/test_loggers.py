"""CSV, TensorBoard and Weights & Biases: the log's figures, or one line and nothing left behind."""

from __future__ import annotations

import csv
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from tests.fastsc.runs import events
from tests.fastsc.training.test_train_options import run


def test_csv_has_the_logs_figures_and_survives_a_resume(image_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert run(image_folder, out, "--csv", "--max-steps", "6") == 0
    with open(out / "steps.csv", "a", encoding="utf-8") as file:
        file.write("7,1,0.5")  # what a kill leaves
    (out / "epochs.csv").write_text("epo")
    assert run(image_folder, out, "--csv", "--resume") == 0
    with open(out / "steps.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    steps = events(out, "step")
    assert [int(row["step"]) for row in rows] == [e["step"] for e in steps]
    assert [float(row["loss"]) for row in rows] == [e["loss"] for e in steps]
    with open(out / "epochs.csv", newline="", encoding="utf-8") as file:
        assert (
            float(list(csv.DictReader(file))[-1]["top1"]) == events(out, "epoch")[-1]["val"]["top1"]
        )


@pytest.mark.skipif(not importlib.util.find_spec("tensorboard"), reason="pip install tensorboard")
def test_tensorboard_has_the_logs_figures(image_folder: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert run(image_folder, tmp_path / "run", "--tensorboard") == 0
    found = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    losses = {e.step: e.value for e in found.Scalars("train/loss")}
    expected = {e["step"]: e["loss"] for e in events(tmp_path / "run", "step")}
    assert losses == pytest.approx(expected)
    assert len(found.Scalars("val/ds_relative")) == 2


@pytest.mark.skipif(not importlib.util.find_spec("wandb"), reason="pip install wandb")
def test_wandb_runs_offline(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    assert run(image_folder, tmp_path / "run", "--wandb") == 0
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*"))


@pytest.mark.parametrize("sink", ["tensorboard", "wandb"])
def test_a_sink_that_is_not_installed_is_a_mistake(
    image_folder: Path,
    tmp_path: Path,
    sink: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    module = "torch.utils.tensorboard" if sink == "tensorboard" else "wandb"
    monkeypatch.setitem(sys.modules, module, None)
    assert run(image_folder, tmp_path / "run", f"--{sink}") == 2
    assert f"pip install {sink}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_sink_that_fails_leaves_nothing(
    image_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def init(**options: Any) -> None:
        raise RuntimeError("no API key configured\nsecond line")

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    assert run(image_folder, tmp_path / "run", "--wandb") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no API key configured; `wandb login`" in line
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()  # an empty folder of the user's stays
    assert run(image_folder, tmp_path / "run", "--wandb", "--csv") == 2
    assert list((tmp_path / "run").iterdir()) == []
    assert run(image_folder, tmp_path / "run", "--max-steps", "1") == 0
    before = {p: p.is_file() and p.read_bytes() for p in (tmp_path / "run").rglob("*")}
    assert run(image_folder, tmp_path / "run", "--wandb", "--resume", "--epochs", "9") == 2
    assert {p: p.is_file() and p.read_bytes() for p in (tmp_path / "run").rglob("*")} == before
    (tmp_path / "scratch").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "scratch")
    assert run(image_folder, tmp_path / "link", "--wandb") == 2
    assert (tmp_path / "link").is_symlink()
    assert list((tmp_path / "scratch").iterdir()) == []
    assert run(image_folder, tmp_path / "new" / "run", "--wandb") == 2
    assert not (tmp_path / "new").exists()
