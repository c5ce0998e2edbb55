"""`python -m fastsc.prepare beton`: what it writes, what it refuses, and what it leaves behind."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastsc import prepare
from fastsc.pipelines import open_beton, scan
from fastsc.train import main as train
from tests.fastsc.datasets.test_prepare import ROOT, mistake
from tests.fastsc.runs import SMALL, events
from tests.pipelines.conftest import broken_files, damage, needs_ffcv, odd_files, undecodable

pytestmark = [pytest.mark.usefixtures("forked"), needs_ffcv, pytest.mark.heavy]


@pytest.fixture
def data(image_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(image_folder, tmp_path / "data"))


def beton(data: Path, out: Path, *more: str) -> int:
    return prepare.main(["beton", "--data", str(data), "--out", str(out), *more])


def test_writes_both_files_and_says_what_is_in_them(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "folder"
    assert beton(data, out) == 0
    assert sorted(os.listdir(out)) == ["train.beton", "val.beton"]
    printed, err = capsys.readouterr()
    train_line, val_line = printed.splitlines()
    assert train_line.startswith(f"wrote {out / 'train.beton'}: 32 images, ")
    assert val_line.startswith(f"wrote {out / 'val.beton'}: 12 images, ")
    assert err == ""
    assert open_beton(out / "train.beton").hash == scan(data / "train").hash


def test_options_reach_the_file(data: Path, tmp_path: Path) -> None:
    options = "--resolution 64 --jpeg-share 0 --val none".split()
    assert beton(data, tmp_path / "out", *options) == 0
    assert os.listdir(tmp_path / "out") == ["train.beton"]
    samples = open_beton(tmp_path / "out" / "train.beton").samples
    assert max(samples.heights.max(), samples.widths.max()) == 64
    assert not samples.is_jpeg.any()


def test_refuses_to_overwrite_without_force(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "val.beton").write_bytes(b"mine")
    words = ["beton", "--data", data, "--out", out]
    assert "val.beton: is there already" in mistake(capsys, *words)
    assert "--force" in mistake(capsys, *words)
    assert os.listdir(out) == ["val.beton"]
    assert (out / "val.beton").read_bytes() == b"mine"
    assert beton(data, out, "--force") == 0
    assert len(open_beton(out / "val.beton")) == 12
    capsys.readouterr()
    # Without validation images, those that are there would belong to other data.
    line = mistake(capsys, *words, "--force", "--val", "none")
    assert "val.beton: would be of other data than train.beton; remove it" in line
    assert len(open_beton(out / "val.beton")) == 12


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--quality", "0"], "--quality must be from 1 to 100, not 0"),
        (["--quality", "101"], "--quality must be from 1 to 100, not 101"),
        (["--jpeg-share", "1.5"], "--jpeg-share must be from 0 to 1, not 1.5"),
        (["--jpeg-share", "nan"], "--jpeg-share must be from 0 to 1, not nan"),
        (["--resolution", "-1"], "--resolution must be 0 or from 8 to 65535, not -1"),
        (["--resolution", "70000"], "--resolution must be 0 or from 8 to 65535, not 70000"),
        (["--workers", "0"], "--workers must be from 1 to 1024, not 0"),
        (["--label-key", "x"], "--label-key names a field beside the images of tars"),
        (["--val", "nowhere"], "--val nowhere: no such folder"),
        (["--val", ""], "--val is empty"),
        (["--data", "nowhere"], "--data nowhere: no such folder"),
        (["--out", "a-file"], "--out a-file: is no folder; name another"),
        (["--out", "a-file/below"], "--out a-file/below: cannot be written (Not a directory)"),
    ],
)
def test_mistakes(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a-file").touch()
    assert said in mistake(capsys, "beton", "--data", data, "--out", "new/out", *more)
    assert sorted(os.listdir()) == ["a-file", "data"]


def test_a_broken_image_stops_it_by_name_and_nothing_is_left(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["beton", "--data", data, "--out", tmp_path / "new" / "out"]
    hole = data / "val" / "boat" / "hole.png"  # the training beton is written by then
    hole.write_bytes(undecodable())
    line = mistake(capsys, *words)
    assert str(hole) in line
    assert "--on-bad-image skip" in line
    assert os.listdir(tmp_path) == ["data"]


def test_broken_and_odd_images_are_skipped_and_counted(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, content in (broken_files() | odd_files()).items():
        (data / "train" / "door" / name).write_bytes(content)
    (data / "train" / "door" / "hole.png").write_bytes(undecodable())
    out = tmp_path / "out"
    assert beton(data, out, "--on-bad-image", "skip", "--val", "none") == 0
    n_bad = len(broken_files()) + 1
    printed = capsys.readouterr().out
    assert f": {32 + len(odd_files())} images, " in printed
    assert f"left out {n_bad}: {data / 'train' / 'door'}" in printed
    index = open_beton(out / "train.beton")
    assert {Path(bad.path).name for bad in index.bad_images()} == {*broken_files(), "hole.png"}


def test_a_folder_of_nothing_but_broken_images_is_a_mistake(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data" / "train" / "boat").mkdir(parents=True)
    (tmp_path / "data" / "train" / "boat" / "hole.png").write_bytes(undecodable())
    words = ["beton", "--data", tmp_path / "data", "--out", tmp_path / "out", "--val", "none"]
    line = mistake(capsys, *words, "--on-bad-image", "skip")
    assert "none of its 1 images can be used" in line
    assert os.listdir(tmp_path) == ["data"]


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_nothing_is_left(data: Path, tmp_path: Path) -> None:
    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-m", "fastsc.prepare", "beton", "--data", data, "--out", out,
         "--jpeg-share", "0"],
        cwd=ROOT, capture_output=True, text=True, timeout=100, check=False, preexec_fn=limit,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert "cannot be written (File too large)" in line
    assert not out.exists()


# A pipe that nobody writes to takes the place of an image: reading it never ends.
HANGING = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
import fastsc.datasets.folders
from fastsc import prepare
scan = fastsc.datasets.folders.scan
def swap(root, **options):
    index = scan(root, **options)
    os.unlink(index.path(20))
    os.mkfifo(index.path(20))
    return index
fastsc.datasets.folders.scan = swap
sys.exit(prepare.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM]
)
def test_interrupted_leaves_nothing(data: Path, tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / "out"
    words = ["beton", "--data", data, "--out", out, "--val", "none"]
    process = subprocess.Popen(
        [sys.executable, "-c", HANGING, *words], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not (out.exists() and os.listdir(out)) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert err == "fastsc.prepare: interrupted; nothing was written\n"
    assert not out.exists()


def test_what_does_not_read_back_is_not_kept(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from fastsc.pipelines import beton_writer

    real = beton_writer.write_beton

    def write_and_lose(index: object, path: Path, *rest: object, **more: object) -> object:
        done = real(index, path, *rest, **more)  # type: ignore[arg-type]
        damage(open_beton(path), 20)
        return done

    monkeypatch.setattr(beton_writer, "write_beton", write_and_lose)
    line = mistake(capsys, "beton", "--data", data, "--out", tmp_path / "out")
    assert "does not read back (truncated or corrupt image data)" in line
    assert os.listdir(tmp_path) == ["data"]


def test_a_name_that_cannot_be_given_leaves_no_temporary_file(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    replace = os.replace

    def fail_at_val(source: Path, target: Path) -> None:
        if Path(target).name == "val.beton":
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail_at_val)
    line = mistake(capsys, "beton", "--data", data, "--out", tmp_path / "out")
    assert "val.beton: cannot be written (No space left on device)" in line
    assert os.listdir(tmp_path / "out") == ["train.beton"]


# ---- training on them ----------------------------------------------------------------------------


def train_mistake(capsys: pytest.CaptureFixture[str], data: Path, *more: str) -> str:
    words = ["imagenet", "--data", str(data), "--pipeline", "ffcv", *SMALL, *more]
    assert train(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_training_names_prepare_where_there_is_no_beton(
    data: Path, beton_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    how = "python -m fastsc.prepare beton --data DIR --out DIR2"
    assert f"{data}: an image folder; --pipeline ffcv reads betons: {how}" in train_mistake(
        capsys, data
    )
    (tmp_path / "empty").mkdir()
    assert "has no train.beton" in train_mistake(capsys, tmp_path / "empty")
    only = tmp_path / "only"
    only.mkdir()
    shutil.copy(beton_folder / "train.beton", only)
    assert "val.beton: no such file" in train_mistake(capsys, only)
    assert "--val none" in train_mistake(capsys, only)
    words = ["imagenet", "--data", str(beton_folder), "--pipeline", "dali", *SMALL]
    assert train(words) == 2
    assert "--pipeline ffcv" in capsys.readouterr().err


def test_verify_and_skip(beton_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(beton_folder, tmp_path / "betons"))
    damage(index := open_beton(folder / "train.beton"), 9)
    words = ["imagenet", "--data", str(folder), "--pipeline", "ffcv", *SMALL]
    assert train([*words, "--out", str(tmp_path / "a"), "--verify"]) == 2
    assert not (tmp_path / "a").exists()
    skip = ["--on-bad-image", "skip"]
    assert train([*words, "--out", str(tmp_path / "b"), "--verify", *skip]) == 0
    assert train([*words, "--out", str(tmp_path / "c"), *skip]) == 0
    for out, left_out in (("b", 1), ("c", 0)):
        (bad,) = events(tmp_path / out, "bad_image")
        assert bad["path"] == index.path(9)
        assert events(tmp_path / out, "header")[0]["images_left_out"] == left_out


def test_a_run_may_go_on_with_another_pipeline(
    data: Path, beton_folder: Path, tmp_path: Path
) -> None:
    out = ["--out", str(tmp_path / "run")]
    words = ["imagenet", *SMALL, *out]
    assert train([*words, "--data", str(data), "--pipeline", "cpu", "--max-steps", "3"]) == 0
    more = ["--pipeline", "ffcv", "--resume"]
    assert train([*words, "--data", str(beton_folder), *more]) == 0
    assert [event["step"] for event in events(tmp_path / "run", "step")] == list(range(1, 9))
