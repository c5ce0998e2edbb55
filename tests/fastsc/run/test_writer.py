"""Checkpoints that are written beside the steps."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from fastsc.errors import UserError
from fastsc.run import checkpoint
from fastsc.run.log import RunLog, read_log
from fastsc.run.writer import CheckpointWriter, NonFiniteError
from tests.fastsc.runs import events, run
from tests.fastsc.training.test_train_options import training


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Writes wait until it is set."""
    event, save = threading.Event(), checkpoint.save

    def waiting(*args: Any, **options: Any) -> Any:
        assert event.wait(60)
        return save(*args, **options)

    monkeypatch.setattr(checkpoint, "save", waiting)
    return event


def test_what_is_written_is_the_state_of_the_call(
    image_folder: Path, tmp_path: Path, gate: threading.Event
) -> None:
    """Training goes on in the meantime, in place, in every tensor that there is."""
    trained = training(image_folder, "--ema", "0.9", "--lr", "0.1")
    batches = iter(trained.loader)
    trained.train_step(next(batches), measured=False)
    checkpoint_now = tmp_path / "now.pt"
    torch.save(trained.state_dict(), checkpoint_now)
    writer = CheckpointWriter(tmp_path / "checkpoints", keep=2)
    writer.save(trained.state_dict(), trained.step)
    trained.train_step(next(batches), measured=False)
    gate.set()
    writer.wait()
    found = checkpoint.load_newest(tmp_path / "checkpoints")
    assert found is not None
    expected = torch.load(checkpoint_now)
    assert same(found.state, expected)
    assert not same(trained.state_dict(), expected)
    writer.close()
    trained.close()


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


@pytest.mark.parametrize("unchecked", [(), ("mask",)])
def test_weights_must_be_finite_and_masks_need_not(
    unchecked: tuple[str, ...], tmp_path: Path
) -> None:
    writer = CheckpointWriter(tmp_path / "checkpoints", keep=2, unchecked=unchecked)
    writer.save({"model": {"mask": torch.tensor([0, -torch.inf])}, "ema": None}, 1)
    with nullcontext() if unchecked else pytest.raises(NonFiniteError, match="mask"):
        writer.wait()


def test_a_failed_write_is_raised_by_the_next_call(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    writer = CheckpointWriter(tmp_path / "file" / "checkpoints", keep=2)
    writer.check()
    writer.save({"step": 1}, 1)
    with pytest.raises(UserError, match="cannot be written"):
        writer.wait()
    writer.check()  # said once
    writer.save({"step": 2}, 2)
    with pytest.raises(UserError, match="cannot be written"):
        writer.save({"step": 3}, 3)
    writer.close()


def test_the_best_stays_and_so_do_the_newest(image_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    more = ["--epochs", "6", "--keep-checkpoints", "3", "--lr", "0.5", "--checkpoint-steps", "2"]
    assert run(image_folder, out, "--model", "fastsc:resnet8w4", *more) == 0
    top1 = [event["val"]["top1"] for event in events(out, "epoch")]
    best = 4 * (1 + top1.index(max(top1)))
    kept = {int(path.stem.removeprefix("step-")) for path in (out / "checkpoints").iterdir()}
    assert kept == {24, 22, 20, best}
    newest = checkpoint.load_newest(out / "checkpoints")
    assert newest is not None
    assert newest.state["best"] == [max(top1), best]


def test_a_log_that_cannot_be_written_keeps_no_half_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log.jsonl"
    with RunLog(path) as log:
        log.event("step", step=1)
        whole = log._file

        class Full:
            """A disk with room for ten bytes more."""

            def __getattr__(self, name: str) -> Any:
                return getattr(whole, name)

            def write(self, data: bytes) -> int:
                return whole.write(data[:10])

        monkeypatch.setattr(log, "_file", Full())
        with pytest.raises(UserError, match="the disk is full"):
            log.event("step", step=2, text="x" * 100)
        monkeypatch.undo()
        log.event("step", step=3)
    assert [event["step"] for event in read_log(path)] == [1, 3]


def test_a_log_on_a_full_disk_ends_the_run_in_one_line(
    image_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    event, steps = RunLog.event, []

    def full(self: RunLog, name: str, /, **fields: Any) -> None:
        steps.append(fields.get("step"))
        if fields.get("step") == 3:
            raise UserError(f"{self.path} cannot be written: No space left on device")
        event(self, name, **fields)

    monkeypatch.setattr(RunLog, "event", full)
    out = tmp_path / "run"
    assert run(image_folder, out, "--model", "fastsc:resnet8w4", "--val", "none") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "log.jsonl cannot be written: No space left" in error
    found = checkpoint.load_newest(out / "checkpoints")
    assert found is not None
    assert found.state["step"] == 3


def test_a_last_line_that_fails_is_said_too(
    image_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    event = RunLog.event

    def full(self: RunLog, name: str, /, **fields: Any) -> None:
        if name == "epoch" and fields["epoch"] == 1:
            raise UserError(f"{self.path} cannot be written: No space left on device")
        event(self, name, **fields)

    out, more = tmp_path / "run", ["--model", "fastsc:resnet8w4"]
    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "event", full)
        assert run(image_folder, out, *more) == 2
    assert "No space left" in capsys.readouterr().err
    assert not (out / "weights.safetensors").exists()
    assert run(image_folder, out, *more, "--resume") == 0
    assert [e["epoch"] for e in events(out, "epoch")] == [0, 1]
