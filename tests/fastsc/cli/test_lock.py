"""Two runs in one folder."""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fastsc.cli.leftovers import LOCK
from fastsc.cli.lock import locked
from fastsc.errors import UserError
from fastsc.run.folder import RunFolder
from tests.fastsc.runs import run, start, wait_for_step

pytestmark = [pytest.mark.usefixtures("forked"), pytest.mark.heavy]

NAME_OF_THIS = Path(sys.argv[0]).stem  # pytest


def held_by_another(folder: Path) -> subprocess.Popen[bytes]:
    code = (
        "import pathlib, sys, time; from fastsc.cli.lock import locked\n"
        "with locked(pathlib.Path(sys.argv[1])):\n"
        "    print(flush=True)\n"
        "    time.sleep(100)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_a_second_run_is_refused_and_the_first_goes_on(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    first = start(image_folder, out, "cpu", "--epochs", "4000", "--val", "none")
    try:
        wait_for_step(first, out, 2)
        before = (out / "config.yaml").read_bytes()
        assert run(image_folder, out, "--resume", "--epochs", "4000", "--val", "none") == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert f"another run is at work there (train, process {first.pid} on " in said
        assert (out / "config.yaml").read_bytes() == before
        wait_for_step(first, out, 5)
        first.send_signal(signal.SIGTERM)
        assert first.wait(60) == 75
    finally:
        first.kill()


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    process = held_by_another(tmp_path)
    with pytest.raises(UserError, match="another run is at work"), locked(tmp_path):
        pass
    process.kill()
    process.wait()
    with locked(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_it_leaves_no_folder_that_it_made_and_nobody_filled(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    with locked(folder):
        assert [path.name for path in folder.iterdir()] == [LOCK]
    assert list(tmp_path.iterdir()) == []
    with locked(folder):
        (folder / "result").touch()
    assert [path.name for path in folder.iterdir()] == ["result"]
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file/c: cannot be written"), locked(tmp_path / "file/c"):
        pass


def test_patience_waits_for_one_on_its_way_out(tmp_path: Path) -> None:
    process = held_by_another(tmp_path)
    ended = subprocess.Popen(["sh", "-c", f"sleep 1; kill -9 {process.pid}"])
    began = time.monotonic()
    with locked(tmp_path, patience=30):
        assert time.monotonic() - began > 0.5
    assert ended.wait() == 0
    process.wait()


def test_a_refused_lock_leaves_the_others_files(
    image_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Both found the folder empty, and the other was faster."""
    out = tmp_path / "run"
    monkeypatch.setattr("fastsc.training.loop.RunFolder.choose", lambda config: RunFolder(out))
    out.mkdir()
    process = held_by_another(out)
    try:
        assert run(image_folder, out) == 2
        assert "another run is at work" in capsys.readouterr().err
        assert [path.name for path in out.iterdir()] == [LOCK]
    finally:
        process.kill()
        process.wait()
    # And it was over already.
    create = RunFolder.create

    def slow(self: RunFolder, *args: Any, **kwargs: Any) -> Any:
        (self.root / "config.yaml").write_text("recipe: imagenet\n")
        return create(self, *args, **kwargs)

    monkeypatch.setattr(RunFolder, "create", slow)
    assert run(image_folder, out, "--resume") == 2
    assert "another run has begun there" in capsys.readouterr().err
    assert {path.name for path in out.iterdir()} == {"config.yaml"}


def test_a_resume_reads_nothing_before_it_has_the_lock(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else it would go on from what the other has left behind by then."""
    out = tmp_path / "run"
    assert run(image_folder, out, "--max-steps", "1", "--val", "none") == 0
    for path in (out / "checkpoints").iterdir():
        path.write_bytes(b"nothing that could be read")
    process = held_by_another(out)
    try:
        assert run(image_folder, out, "--resume", "--val", "none") == 2
        assert "another run is at work" in capsys.readouterr().err
    finally:
        process.kill()
        process.wait()


def test_a_lock_whose_file_was_taken_away_is_none(tmp_path: Path) -> None:
    """A run that could not begin removes its files, and another waits for its lock."""
    process = held_by_another(tmp_path)
    (tmp_path / LOCK).unlink()
    with locked(tmp_path):  # of the new file
        with pytest.raises(UserError, match="another run is at work"), locked(tmp_path):
            pass
        process.kill()
        process.wait()
        with pytest.raises(UserError, match="another run is at work"), locked(tmp_path):
            pass


def test_a_log_that_is_moved_away_lifts_no_lock(image_folder: Path, tmp_path: Path) -> None:
    """As an editor or logrotate does it."""
    out = tmp_path / "run"
    first = start(image_folder, out, "cpu", "--epochs", "4000", "--val", "none")
    try:
        wait_for_step(first, out, 2)
        (out / "log.jsonl").rename(out / "log.old")
        (out / "log.jsonl").touch()
        assert run(image_folder, out, "--resume", "--epochs", "4000", "--val", "none") == 2
        first.send_signal(signal.SIGTERM)
        assert first.wait(60) == 75
    finally:
        first.kill()
    assert not (out / LOCK).exists()


@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_a_run_that_was_killed_as_it_began(
    image_folder: Path, tmp_path: Path, resume: list[str]
) -> None:
    """With the lock, and before config.yaml."""
    out = tmp_path / "run"
    out.mkdir()
    (out / "log.jsonl").touch()
    (out / LOCK).write_text("{}")
    (out / "config.part").write_text("recipe: im")
    assert run(image_folder, out, "--max-steps", "1", "--val", "none", *resume) == 0


def test_a_disk_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*args: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fastsc.cli.lock.fcntl.flock", none)
    with locked(tmp_path):
        pass


def test_a_folder_that_is_removed_during_its_run_is_no_success(
    image_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    process = start(image_folder, out, "cpu", "--epochs", "4000", "--val", "none")
    try:
        wait_for_step(process, out, 2)
        while out.exists():  # a checkpoint may be on its way into it
            shutil.rmtree(out, ignore_errors=True)
        assert process.wait(60) == 2
    finally:
        process.kill()
    assert process.stderr is not None
    [line] = process.stderr.read().decode().splitlines()
    assert f"--out {out} has been removed while the run was at work in it" in line


@pytest.mark.parametrize("command", ["evaluate", "reproduce", "prepare", "demo"])
def test_every_command_that_writes_a_folder_holds_it(
    command: str, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = {
        "evaluate": ["torchvision:resnet18", "--no-pretrained", "--resolution", "32", "--only",
                     "gradients"],
        "reproduce": ["cifar100", "--limit-images", "8", "--max-steps", "1"],
        "prepare": ["beton"],
        "demo": [],
    }[command]  # fmt: skip
    if command == "prepare":
        pytest.importorskip("ffcv")
    data = [] if command == "demo" else ["--data", str(image_folder)]
    main = importlib.import_module(f"fastsc.{command}").main
    with locked(out):
        assert main([*words, *data, "--out", str(out)]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert f"another run is at work there ({NAME_OF_THIS}, process {os.getpid()} on " in said
        assert [path.name for path in out.iterdir()] == [LOCK]
