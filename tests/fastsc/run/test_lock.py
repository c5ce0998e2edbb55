"""Two runs in one folder."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fastsc.errors import UserError
from fastsc.run.folder import RunFolder
from fastsc.run.lock import locked
from tests.fastsc.runs import run, start, wait_for_step


def held_by_another(log: Path) -> subprocess.Popen[bytes]:
    code = (
        "import pathlib, sys, time; from fastsc.run.lock import locked\n"
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
    monkeypatch.setattr("fastsc.training.loop.RunFolder.choose", lambda config: RunFolder(out))
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
    make = RunFolder.make

    def slow(self: RunFolder) -> Any:
        (self.root / "config.yaml").write_text("recipe: imagenet\n")
        return make(self)

    monkeypatch.setattr(RunFolder, "make", slow)
    assert run(image_folder, out, "--resume") == 2
    assert "another run has begun there" in capsys.readouterr().err
    assert {path.name for path in out.iterdir()} == {"config.yaml", "log.jsonl"}


def test_a_resume_reads_nothing_before_it_has_the_lock(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else it would go on from what the other has left behind by then."""
    out = tmp_path / "run"
    assert run(image_folder, out, "--max-steps", "1", "--val", "none") == 0
    for path in (out / "checkpoints").iterdir():
        path.write_bytes(b"nothing that could be read")
    process = held_by_another(out / "log.jsonl")
    try:
        assert run(image_folder, out, "--resume", "--val", "none") == 2
        assert "another run is at work" in capsys.readouterr().err
    finally:
        process.kill()
        process.wait()


def test_a_lock_on_a_log_that_was_taken_away_is_none(tmp_path: Path) -> None:
    """A run that could not begin removes its files, and another waits for its lock."""
    log = tmp_path / "log.jsonl"
    process = held_by_another(log)
    log.unlink()
    with locked(log):  # of the new file
        with pytest.raises(UserError, match="another run is at work"), locked(log):
            pass
        process.kill()
        process.wait()
        with pytest.raises(UserError, match="another run is at work"), locked(log):
            pass


@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_a_run_that_was_killed_as_it_began(
    image_folder: Path, tmp_path: Path, resume: list[str]
) -> None:
    """With the lock, and before config.yaml."""
    out = tmp_path / "run"
    out.mkdir()
    (out / "log.jsonl").touch()
    (out / "config.part").write_text("recipe: im")
    assert run(image_folder, out, "--max-steps", "1", "--val", "none", *resume) == 0


def test_a_disk_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*args: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fastsc.run.lock.fcntl.flock", none)
    with locked(tmp_path / "log.jsonl"):
        pass
