"""`python -m fastsc.prepare`: exit statuses, one line for a mistake, and what is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fastsc import prepare
from fastsc.datasets import colormnist

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An .npz of 12 noisy images a class."""
    rng = np.random.default_rng(7)
    path = tmp_path_factory.mktemp("digits") / "digits.npz"
    images = rng.integers(0, 256, (120, 10, 10), np.uint8)
    np.savez(path, images=images, labels=np.repeat(np.arange(10), 12))
    return path


def mistake(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    """The one line that a command line gets, after checks of what every mistake has in common."""
    assert prepare.main([str(word) for word in words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("fastsc.prepare: ")
    return line


def test_writes_the_folder_and_says_what_is_in_it(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "folder"
    assert prepare.main(["colormnist", "--out", str(out), "--digits", str(digits)]) == 0
    assert os.listdir(out.parent) == ["folder"]  # and no temporary one
    assert sorted(os.listdir(out)) == sorted([*prepare_splits(), "colormnist.json"])
    printed, err = capsys.readouterr()
    assert "train 90, val 10, aligned 20, random 20, reversed 20 images" in printed
    assert err == ""


def prepare_splits() -> list[str]:
    return ["train", "val", "aligned", "random", "reversed"]


def test_an_empty_folder_may_be_there(digits: Path, tmp_path: Path) -> None:
    assert prepare.main(["colormnist", "--out", str(tmp_path), "--digits", str(digits)]) == 0
    assert (tmp_path / "train" / "9").is_dir()


def test_a_mount_point_is_filled(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing else can take its name."""
    beside, mount = tmp_path / "beside", tmp_path / "mount"
    mount.mkdir()
    words = ["colormnist", "--digits", str(digits), "--out"]
    assert prepare.main([*words, str(beside)]) == 0
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == mount)
    inode = mount.stat().st_ino
    assert prepare.main([*words, str(mount)]) == 0
    assert mount.stat().st_ino == inode
    files = [
        {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.*")}
        for root in (beside, mount)
    ]
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("", "WHAT"),
        ("no-such-data --out x", "no-such-data"),
        ("colormnist", "--out"),
        ("colormnist --out x --no-such-option", "--no-such-option"),
        ("colormnist --out x --correlation much", "much"),
        ("colormnist --out x --correlation 1.01", "--correlation must be a number from 0 to 1"),
        ("colormnist --out x --correlation -0.1", "--correlation"),
        ("colormnist --out x --correlation nan", "--correlation"),
        ("colormnist --out x --seed -1", "--seed"),
        ("colormnist --out x --seed 1.5", "--seed"),
        ("colormnist --out x --digits no-such-path", "no-such-path"),
        ("colormnist --out x --corr 0.9", "--corr"),
        ("colormnist --out .", "name a folder in it"),
        ("colormnist --out x/..", "name a folder in it"),
        ("colormnist --out=", "is no folder's name"),
    ],
)
def test_mistakes_in_the_options_are_one_line_and_write_nothing(
    words: str,
    part: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert part in mistake(capsys, *words.split())
    assert os.listdir(tmp_path) == []


def test_an_occupied_out_is_left_alone(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, file = tmp_path / "folder", tmp_path / "file"
    folder.mkdir()
    (folder / "mine").write_text("mine")
    file.write_text("mine")
    assert "not empty" in mistake(capsys, "colormnist", "--out", folder, "--digits", digits)
    assert "no folder" in mistake(capsys, "colormnist", "--out", file, "--digits", digits)
    below = mistake(capsys, "colormnist", "--out", file / "below", "--digits", digits)
    assert "cannot be written" in below
    assert os.listdir(folder) == ["mine"]
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


@pytest.mark.parametrize(
    ("error", "status"), [(OSError(28, "No space left on device"), 2), (KeyboardInterrupt(), 130)]
)
def test_nothing_is_left_half_written(
    error: BaseException,
    status: int,
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    color, calls = colormnist.color_digit, 0

    def fails_later(*args: object) -> object:
        nonlocal calls
        calls += 1
        if calls > 50:
            raise error
        return color(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(colormnist, "color_digit", fails_later)
    out = tmp_path / "out"
    assert prepare.main(["colormnist", "--out", str(out), "--digits", str(digits)]) == status
    assert calls == 51
    assert os.listdir(tmp_path) == []
    (line,) = capsys.readouterr().err.splitlines()
    assert ("No space left" in line) == (status == 2)


def test_sigterm_leaves_nothing_behind(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def terminated(*args: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(colormnist, "color_digit", terminated)
    words = ["colormnist", "--out", str(tmp_path / "out"), "--digits", str(digits)]
    assert prepare.main(words) == 130
    assert os.listdir(tmp_path) == []
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize("words", [[], ["colormnist"]])
def test_help_needs_neither_torch_nor_the_digits(words: list[str]) -> None:
    script = (
        "import sys; from fastsc import prepare\n"
        f"try: prepare.main({[*words, '--help']})\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "heavy = {'torch', 'pandas', 'mlxtend', 'matplotlib', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert ("--correlation P" if words else "colormnist") in done.stdout
