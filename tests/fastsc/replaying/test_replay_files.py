"""What a replay writes and leaves alone, and users' mistakes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastsc.pipelines import IMAGENET_MEAN, IMAGENET_STD, keyed
from fastsc.replay import main
from tests.fastsc.replaying.test_replay import trained
from tests.pipelines.conftest import encoded, photograph, undecodable

pytestmark = [pytest.mark.usefixtures("forked"), pytest.mark.heavy]

# --- files ----------------------------------------------------------------------------------------


def test_the_run_is_left_alone_and_a_replay_replaces_only_a_replay(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(image_folder, tmp_path / "run", "--resolution", "130")
    before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in run.rglob("*")}
    capsys.readouterr()
    assert main([str(run), "--step", "2"]) == 0
    out = run / "replay" / "step-00000002"
    said = capsys.readouterr().out.splitlines()
    assert said[-2:] == [f"wrote {out / 'batch.npz'}", f"wrote {out / 'sheet.png'}"]
    assert len(said) == 1 + 8 + 2
    after = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in before}
    assert after == before
    assert {p.name for p in (run / "replay").iterdir()} == {"step-00000002"}

    with np.load(out / "batch.npz") as arrays, Image.open(out / "sheet.png") as sheet:
        picture = np.asarray(sheet)
        rgb = arrays["clean"][0].transpose(1, 2, 0) * IMAGENET_STD + IMAGENET_MEAN
        view = (rgb * 255).round().clip(0, 255).astype(np.uint8)
    places = np.lib.stride_tricks.sliding_window_view(picture[:400, :400], (130, 130, 3))
    near = np.abs(places[:, :, 0, ::40, ::40].astype(int) - view[::40, ::40]).max((2, 3, 4))
    assert (near <= 1).any(), "the first view is on the sheet, pixel for pixel"

    assert main([str(run), "--step", "2"]) == 0, "its own files are replaced"
    (out / "notes.txt").touch()
    assert main([str(run), "--step", "2"]) == 2
    assert "holds other files" in capsys.readouterr().err
    assert (out / "notes.txt").exists()


def test_large_batches_have_several_sheets(image_folder: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(image_folder, tmp_path / "images"))
    for i in range(60):
        (data / "train" / "apple" / f"more{i}.jpg").write_bytes(encoded(photograph(i)))
    run = trained(data, tmp_path / "run", "--batch-size", "80", "--max-steps", "1")
    assert main([str(run), "--step", "1"]) == 0
    names = {path.name for path in (run / "replay" / "step-00000001").iterdir()}
    assert names == {"batch.npz", "sheet-1.png", "sheet-2.png"}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_nothing_is_left_of_a_replay_that_fails(
    finished: Path,
    error: BaseException,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: Any) -> None:
        raise error

    before = sorted(finished.rglob("*"))
    monkeypatch.setattr("fastsc.plotting.contact_sheet.draw_sheets", fail)
    assert main([str(finished), "--step", "1"]) == (2 if isinstance(error, OSError) else 130)
    said = "No space left" if isinstance(error, OSError) else "nothing was written"
    assert_one_line(capsys, said)
    assert sorted(finished.rglob("*")) == before


def test_a_link_and_the_folder_at_hand(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert main([str(finished), "--step", "1", "--out", str(tmp_path / "link")]) == 0
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "batch.npz").is_file()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert main([str(finished), "--step", "1", "--out", "."]) == 0
    assert {p.name for p in tmp_path.iterdir()} == {"real", "link", "here"}
    assert (tmp_path / "here" / "sheet.png").is_file()


def test_the_command_itself(finished: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "fastsc.replay", str(finished), "--step", "2"]
    done = subprocess.run(
        [*words, "--out", str(tmp_path / "out")],
        text=True,
        stdout=subprocess.PIPE,
        env={**os.environ, "WORLD_SIZE": "3", "RANK": "2"},  # torchrun's, of somebody else
        timeout=60,
    )
    assert done.returncode == 0
    assert done.stdout.startswith("step 2, epoch 0, batch 1 of 4, rank 0 of 1: 8 images")


# --- mistakes -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of its own images: ROOT/run and ROOT/images."""
    root = tmp_path_factory.mktemp("finished")
    data = Path(shutil.copytree(image_folder, root / "images"))
    return trained(data, root / "run")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{run}"], "--step N, 1 to 8"),
        (["{run}", "--step", "9"], "the run's last step is 8"),
        (["{run}", "--step", "0"], "steps count from 1"),
        (["{run}", "--step", "x"], "is not a whole number"),
        (["{run}", "--step", "1", "--rank", "1"], "step 1 ran with one rank, 0"),
        (["{run}", "--step", "1", "--rank", "-1"], "step 1 ran with one rank, 0"),
        (["{run}", "--step", "1", "--device", "cuda:7"], "--device cuda:7"),
        (["{run}", "--step", "1", "--device", "gpu"], "--device gpu: must be"),
        (["{run}", "--step", "1", "--data", "/nowhere"], "--data /nowhere: no such folder"),
        (["{run}", "--step", "1", "--pipeline", "fast"], "invalid choice"),
        (["{run}", "--step", "1", "--out", "{run}"], "holds other files"),
        (["{run}", "--step", "1", "--out", "{run}/config.yaml"], "is a file"),
        (["{run}", "--step", "1", "--out", "/proc/x"], "cannot be written"),
        (["{run}/nowhere", "--step", "1"], "no such folder"),
        (["{run}/checkpoints", "--step", "1"], "no config.yaml in it"),
        (["--step", "1"], "RUN"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    finished: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(finished.rglob("*"))
    assert main([word.replace("{run}", str(finished)) for word in words]) == 2
    assert_one_line(capsys, said)
    assert sorted(finished.rglob("*")) == before


def assert_one_line(capsys: pytest.CaptureFixture[str], said: str) -> None:
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("fastsc.replay: ")
    assert said in captured.err


@pytest.mark.parametrize("change", ["missing", "longer", "undecodable", "header"])
def test_changed_data_are_refused(
    image_folder: Path, tmp_path: Path, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = Path(shutil.copytree(image_folder, tmp_path / "images"))
    hole, whole = data / "train" / "boat" / "hole.png", encoded(photograph(7), "PNG")
    hole.write_bytes(whole)
    run = trained(data, tmp_path / "run", "--max-steps", "4")
    said = "not the run's images"
    if change == "missing":
        hole.unlink()
    elif change == "longer":
        hole.write_bytes(whole + b"\0")
    elif change == "header":
        hole.write_bytes(bytes(len(whole)))
    else:  # of the same size
        hole.write_bytes(undecodable())
        said = "hole.png: "
    capsys.readouterr()
    step = next(s for s in range(1, 5) if holds(run, data, s, "boat/hole.png"))
    assert main([str(run), "--step", str(step)]) == 2
    assert_one_line(capsys, said)
    assert not (run / "replay").exists()


def holds(run: Path, data: Path, step: int, name: str) -> bool:
    """Whether a file is planned for a step of the first epoch, by the order alone."""
    names = sorted(str(p.relative_to(data / "train")) for p in (data / "train").glob("*/*"))
    if name not in names:
        return True
    order = keyed.order(0, 0, np.arange(len(names)), len(names))
    return names.index(name) in order[8 * (step - 1) : 8 * step]
