"""In a thread of somebody's process, and in folders that runs must keep out of."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from fastsc import evaluate
from fastsc.recipe import configure
from fastsc.trainer import train
from tests.fastsc.runs import events, run

pytestmark = [pytest.mark.usefixtures("forked"), pytest.mark.heavy]

SMALL = {
    "pipeline": "cpu", "model": "fastsc:resnet8w4", "resolution": 32, "batch_size": 8,
    "max_steps": 2, "precision": "fp32", "device": "cpu", "workers": 1,
}  # fmt: skip
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


def in_a_thread(work: Callable[[], object]) -> object:
    found: list[object] = []

    def target() -> None:
        try:
            found.append(work())
        except BaseException as error:  # noqa: BLE001, the assertion shows it
            found.append(error)

    thread = threading.Thread(target=target)
    thread.start()
    thread.join(100)
    return found[0]


@pytest.mark.usefixtures("undrawn")
def test_a_thread_trains_and_evaluates(image_folder: Path, tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    out = tmp_path / "run"
    config = configure("imagenet", data=str(image_folder), out=str(out), **SMALL)
    assert in_a_thread(lambda: train(config)) == 0
    assert events(out, "end")[0]["reason"] == "done"
    words = [str(out), "--data", str(image_folder), "--out", str(tmp_path / "evaluation")]
    words += ["--only", "neighbours"]
    assert in_a_thread(lambda: evaluate.main(words)) == 0
    assert [signal.getsignal(number) for number in SIGNALS] == before


@pytest.mark.parametrize("place", ["train", "train/new", "val/a/b", "train/apple/run", "link/x"])
def test_a_run_among_the_images_is_refused(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    data = Path(shutil.copytree(image_folder, tmp_path / "data"))
    os.symlink(data / "train", data / "link")
    files = sorted(data.rglob("*"))
    assert run(data, data / place) == 2
    (line,) = capsys.readouterr().err.splitlines()
    if place != "train":  # which is not empty, and says that
        assert "among the images" in line
    assert sorted(data.rglob("*")) == files


def test_a_run_beside_the_images_is_not(image_folder: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(image_folder, tmp_path / "data"))
    for out in ("runs/a", "trained", "test/a"):  # DIR/val is there: DIR/test is nobody's
        assert run(data, data / out, "--max-steps", "1", "--model", "fastsc:resnet8w4") == 0


def test_a_class_that_skip_leaves_empty_is_refused(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = Path(shutil.copytree(image_folder, tmp_path / "data"))
    for file in (data / "train" / "boat").iterdir():
        file.write_bytes(b"no image")
    assert run(data, tmp_path / "run", "--on-bad-image", "skip") == 2
    assert "class boat has no image that can be used" in capsys.readouterr().err


def test_hidden_folders_are_passed_over_and_named(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = Path(shutil.copytree(image_folder, tmp_path / "data"))
    shutil.copytree(data / "train" / "boat", data / "train" / ".ipynb_checkpoints")
    assert run(data, tmp_path / "run", "--max-steps", "1", "--val", "none") == 0
    assert "train: passed over .ipynb_checkpoints" in capsys.readouterr().out
    assert events(tmp_path / "run", "header")[0]["classes"] == 4


def test_a_relative_data_folder_that_is_not_here(
    image_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(image_folder.parent)
    data = Path(image_folder.name)
    assert run(data, tmp_path / "run", "--max-steps", "1", "--val", "none") == 0
    monkeypatch.chdir(tmp_path)
    assert run(data, tmp_path / "run", "--val", "none", "--resume") == 2
    line = capsys.readouterr().err
    assert "no such folder here; give its whole path, or start where the run was begun" in line
