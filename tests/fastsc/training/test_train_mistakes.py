"""A user's mistakes from the command line: one line, exit status 2, nothing half-written."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fastsc.train import main
from fastsc.training.step import Step
from tests.fastsc.runs import SMALL, events, run


def mistake(capsys: pytest.CaptureFixture[str], words: list[str]) -> str:
    """Runs a command that must fail with status 2, and returns its one line."""
    assert main(words) == 2
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == 1, lines
    assert "Traceback" not in captured.err
    return lines[0]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--alhpa", "3"], "--alpha"),
        (["--pipeline", "dalli"], "dali"),
        (["--model", "resnet19"], "resnet18"),
        (["--batch-size", "0"], "--batch-size must be at least 1"),
        (["--batch-size", "1000"], "smaller --batch-size"),
        (["--alpha", "nan"], "--alpha must be a finite number"),
        (["--resolution", "7.5"], "--resolution"),
        (["--val", "nowhere"], "--val none"),
        (["--num-classes", "3"], "--num-classes 3"),
        (["--label-key", "species"], "--label-key names a field beside the images of tars"),
        (["--resume"], "--out"),
    ],
)
def test_mistakes(
    image_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["imagenet", "--pipeline", "cpu", "--data", str(image_folder), *SMALL, *more]
    assert said in mistake(capsys, words)
    assert list(tmp_path.iterdir()) == []  # nothing half-written


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_where_there_is_none(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["imagenet", "--data", str(image_folder), "--out", str(tmp_path / "run"), *SMALL]
    assert "--device cpu" in mistake(capsys, [*words, "--device", "cuda"])
    assert not (tmp_path / "run").exists()


def test_folders_that_are_wrong(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(data: Path, *more: str) -> str:
        words = ["imagenet", "--pipeline", "cpu", "--data", str(data)]
        return mistake(capsys, [*words, "--out", str(tmp_path / "run"), *SMALL, *more])

    assert "no such folder" in said(tmp_path / "missing")
    assert "a file, not a folder" in said(Path(__file__))
    (tmp_path / "empty").mkdir()
    assert "no folder train" in said(tmp_path / "empty")
    (tmp_path / "text" / "train" / "cat").mkdir(parents=True)
    (tmp_path / "text" / "train" / "cat" / "a.txt").write_text("hello")
    assert "no images" in said(tmp_path / "text", "--val", "none")
    (tmp_path / "noval").mkdir()
    (tmp_path / "noval" / "train").symlink_to(image_folder / "train")
    assert "--val none" in said(tmp_path / "noval")
    assert not (tmp_path / "run").exists()


def test_out_that_is_occupied_or_cannot_be_written(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["imagenet", "--pipeline", "cpu", "--data", str(image_folder), *SMALL]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("do not touch")
    assert "--resume" in mistake(capsys, [*words, "--out", str(tmp_path / "full")])
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["thesis.txt"]
    resume = [*words, "--resume", "--out", str(tmp_path / "full")]
    assert "no run there" in mistake(capsys, resume)
    assert "File name too long" in mistake(capsys, [*words, "--out", "x" * 300])
    assert "is a file" in mistake(capsys, [*words, "--out", str(tmp_path / "full/thesis.txt")])
    under = str(tmp_path / "full/thesis.txt/run")
    assert "cannot be written" in mistake(capsys, [*words, "--out", under])
    if Path("/proc").is_dir():  # where even root makes no folder
        assert "cannot be written" in mistake(capsys, [*words, "--out", "/proc/run"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_out_without_permission(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tmp_path.chmod(0o500)
    words = ["imagenet", "--pipeline", "cpu", "--data", str(image_folder), *SMALL]
    assert "cannot be written" in mistake(capsys, [*words, "--out", str(tmp_path / "run")])


def test_checkpoint_that_does_not_fit(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert run(image_folder, out, "--max-steps", "1") == 0
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    capsys.readouterr()
    words = ["imagenet", "--pipeline", "cpu", "--data", str(image_folder), "--out", str(out)]
    words += [*SMALL, "--resume"]
    assert "--model has changed" in mistake(capsys, [*words, "--model", "fastsc:resnet8w4"])
    assert "--batch-size" in mistake(capsys, [*words, "--batch-size", "4"])
    assert "--seed" in mistake(capsys, [*words, "--seed", "1"])
    assert before == {p: p.stat().st_mtime_ns for p in out.rglob("*")}


def test_backend_that_is_not_installed(
    image_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)  # import raises ImportError
    words = ["imagenet", "--pipeline", "dali", "--data", str(image_folder)]
    line = mistake(capsys, [*words, "--out", str(tmp_path / "run"), *SMALL])
    assert "pip install" in line
    assert "--pipeline cpu" in line
    assert not (tmp_path / "run").exists()


def test_our_own_fault_is_in_the_log(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object, **options: object) -> None:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr("fastsc.training.fit.validate", broken)
    with pytest.raises(ZeroDivisionError):
        run(image_folder, tmp_path / "run")
    reason = events(tmp_path / "run", "end")[-1]["reason"]
    assert "Traceback" in reason
    assert "planted" in reason


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"RANK": "x"}, "the environment has RANK=x, which is no number: start by torchrun"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "MASTER_ADDR expected, but not set: start by torchrun"),
    ],
)
def test_an_environment_that_is_no_launchers(
    image_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    environment: dict[str, str],
    said: str,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    words = ["imagenet", "--pipeline", "cpu", "--data", str(image_folder)]
    assert said in mistake(capsys, [*words, "--out", str(tmp_path / "run"), *SMALL])
    assert not (tmp_path / "run").exists()


def test_a_step_that_does_not_fit_into_memory(
    image_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("fastsc.training.step.Step.train_step", full)
    assert run(image_folder, tmp_path / "run") == 2
    said = "the first step does not fit into memory (CUDA out of memory); take a smaller --batch"
    assert capsys.readouterr().err.startswith(f"fastsc.train: {said}")
    (end,) = events(tmp_path / "run", "end")
    assert end["status"] == 2
    assert "Traceback" in end["reason"]


def test_a_later_step_that_does_not_fit_is_no_mistake(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where another process takes the memory: a launcher starts the run anew."""
    step = Step.train_step

    def full(self: Step, *words: Any, **more: Any) -> Any:
        if self.step == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return step(self, *words, **more)

    monkeypatch.setattr(Step, "train_step", full)
    with pytest.raises(torch.OutOfMemoryError):
        run(image_folder, tmp_path / "run")
    (end,) = events(tmp_path / "run", "end")
    assert end["status"] == 1
