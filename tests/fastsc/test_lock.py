"""Two runs in one folder."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastsc.folder import RunFolder
from fastsc.lock import locked
from fastsc.pipelines.errors import UserError
from tests.fastsc.test_train import run, start, wait_for_step


def held_by_another(log: Path) -> subprocess.Popen[bytes]:
    code = (
        "import pathlib, sys, time; from fastsc.lock import locked\n"
        "with locked(pathlib.Path(sys.argv[1])):\n"
        "    print(flush=True)\n"
        "    time.sleep(100)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(log)], stdout=subprocess.PIPE)
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
        assert f"another run is at work there (process {first.pid} on " in said
        assert (out / "config.yaml").read_bytes() == before
        wait_for_step(first, out, 5)
        first.send_signal(signal.SIGTERM)
        assert first.wait(60) == 75
    finally:
        first.kill()


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    process = held_by_another(log)
    with pytest.raises(UserError, match="another run is at work"), locked(log):
        pass
    process.kill()
    process.wait()
    with locked(log):
        pass


def test_patience_waits_for_one_on_its_way_out(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    process = held_by_another(log)
    ended = subprocess.Popen(["sh", "-c", f"sleep 1; kill -9 {process.pid}"])
    began = time.monotonic()
    with locked(log, patience=30):
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
    monkeypatch.setattr("fastsc.trainer.RunFolder.choose", lambda config: RunFolder(out))
    out.mkdir()
    process = held_by_another(out / "log.jsonl")
    try:
        assert run(image_folder, out) == 2
        assert "another run is at work" in capsys.readouterr().err
        assert [path.name for path in out.iterdir()] == ["log.jsonl"]
    finally:
        process.kill()
        process.wait()
    # And it was over already.
    (out / "config.yaml").write_text("recipe: imagenet\n")
    assert run(image_folder, out) == 2
    assert "another run has begun there" in capsys.readouterr().err
    assert {path.name for path in out.iterdir()} == {"config.yaml", "log.jsonl"}


def test_a_disk_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*args: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fastsc.lock.fcntl.flock", none)
    with locked(tmp_path / "log.jsonl"):
        pass
