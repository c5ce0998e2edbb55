"""`prepare tar --data hf:DIR`: the tars are those of the folder with the images."""

from __future__ import annotations

import builtins
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from fastsc.cli import packages
from fastsc.pipelines import scan
from fastsc.pipelines.files import read_file
from tests.fastsc.datasets.test_prepare import mistake
from tests.fastsc.datasets.test_prepare_tar import pack
from tests.fastsc.datasets.test_prepare_tar import run as train_on
from tests.fastsc.runs import events, same_weights
from tests.pipelines.conftest import encoded, photograph
from tests.pipelines.test_arrow import image, table, write

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def snapshot(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shared folder's images as Hugging Face's `imagefolder` is pushed: two files of train."""
    root = tmp_path_factory.mktemp("snapshot")
    for part, split, n_files in (("train", "train", 2), ("val", "validation", 1)):
        index = scan(image_folder / part)
        for k in range(n_files):
            rows = range(k, len(index), n_files)
            images = [
                {"bytes": read_file(index.place(i)), "path": Path(index.paths[i]).name}
                for i in rows
            ]
            content = table(images, index.targets[list(rows)].tolist(), list(index.classes))
            write(root / "data" / f"{split}-{k:05d}-of-{n_files:05d}.parquet", content, group=5)
    return root


def test_the_tars_are_those_of_the_folder(
    image_folder: Path, snapshot: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same index, and so the same job, bit for bit."""
    assert pack(Path(f"hf:{snapshot}"), tmp_path / "ours") == 0
    printed, err = capsys.readouterr()
    assert [line.partition(": ")[2].partition(" in")[0] for line in printed.splitlines()] == [
        *("32 images", "12 images"),
    ]
    assert err == ""
    assert pack(image_folder, tmp_path / "theirs") == 0
    for part in ("train", "val"):
        ours, theirs = (scan(tmp_path / name / part) for name in ("ours", "theirs"))
        assert ours.hash == theirs.hash
        assert [read_file(ours.place(i)) for i in range(len(ours))] == [
            read_file(theirs.place(i)) for i in range(len(theirs))
        ]
    for name in ("ours", "theirs"):
        train_on(tmp_path / name, tmp_path / f"run-{name}", "--pipeline", "cpu", "--epochs", "2")
    runs = [tmp_path / f"run-{name}" for name in ("ours", "theirs")]
    losses = [[row["loss"] for row in events(run, "step")] for run in runs]
    assert len(losses[0]) == 8
    assert losses[0] == losses[1]
    assert same_weights(*runs)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A snapshot of two images of training and one of validation."""
    names = ["a", "b"]
    content = table([image(0, "0.jpg"), image(1, "1.jpg")], [0, 1], names)
    write(tmp_path / "hf" / "data" / "train-0.parquet", content)
    write(tmp_path / "hf" / "data" / "validation-0.parquet", table([image(2)], [1], names))
    return tmp_path / "hf"


def test_a_snapshot_of_which_a_file_is_missing(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = small / "data"
    (data / "train-0.parquet").rename(data / "train-00000-of-00003-b4aa.parquet")
    (data / "validation-0.parquet").rename(data / "validation-00000-of-00001-0a1b.parquet")
    first = data / "train-00000-of-00003-b4aa.parquet"
    shutil.copy(first, data / "train-00002-of-00003-7dbb.parquet")
    words = ["tar", "--data", f"hf:{small}", "--out", tmp_path / "out"]
    assert "train-00001-of-00003*.parquet is missing, of 3 files" in mistake(capsys, *words)
    shutil.copy(first, data / "train-00001-of-00003-19cc.parquet")
    (data / "._train-00000-of-00009.parquet").write_bytes(b"Mac OS X")
    assert pack(Path(f"hf:{small}"), tmp_path / "out") == 0


ROWS: dict[str, tuple[Any, Any, str]] = {
    "unlabelled": (image(), -1, "row 2: its label is -1, and there are classes 0 to 1; a test spl"),
    "beyond": (image(), 2, "row 2: its label is 2, and there are classes 0 to 1"),
    "no-label": (image(), None, "row 2: its label is None, and neither a number"),
    "null": (None, 0, "row 2: its image is null"),
    "path": ({"bytes": None, "path": "x/y.jpg"}, 0, "row 2: its image has no bytes, but a path"),
    "gif": (image(kind="GIF"), 0, "row 2: a GIF; convert it to JPEG or PNG"),
    "empty": ({"bytes": b"", "path": None}, 0, "row 2: empty file"),
    "cut": ({"bytes": encoded(photograph())[:900], "path": None}, 0, "row 2: truncated JPEG"),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_row_that_is_no_image_of_a_class(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    content, label, said = ROWS[name]
    path = small / "data" / "train-0.parquet"
    images = [image(0, "0.jpg"), image(1, kind="WEBP"), content, image(3)]
    write(path, table(images, [0, 1, label, 0], ["a", "b"]))
    words = ["tar", "--data", f"hf:{small}", "--out", tmp_path / "out"]
    line = mistake(capsys, *words)
    assert f"{path}: {said}" in line
    assert "--on-bad-image skip" in line
    assert sorted(os.listdir(tmp_path)) == ["hf"]
    assert pack(Path(f"hf:{small}"), tmp_path / "out", "--on-bad-image", "skip") == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert f"3 images in 1 tar, 0.0 MB; left out 1: {path}: {said}" in first
    index = scan(tmp_path / "out" / "train")
    assert index.paths == ("a/0.jpg", "a/000000003.jpg", "b/000000001.webp")
    assert not index.bad_images()


def test_a_class_of_which_no_row_is_an_image_is_named(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the tars the next class would have its number."""
    content = table([image(0), {"bytes": b"", "path": None}, image(2)], [0, 1, 2], ["a", "b", "c"])
    write(small / "data" / "train-0.parquet", content)
    write(small / "data" / "validation-0.parquet", table([image(2)], [2], ["a", "b", "c"]))
    words = ["tar", "--data", f"hf:{small}", "--out", tmp_path / "out", "--on-bad-image", "skip"]
    assert "data: none of the rows of class b can be written" in mistake(capsys, *words)
    assert not (tmp_path / "out").exists()


def test_shrunk_while_packed(small: Path, tmp_path: Path) -> None:
    assert pack(Path(f"hf:{small}"), tmp_path / "out", "--resize", "32", "--val", "none") == 0
    index = scan(tmp_path / "out" / "train")
    assert set(zip(index.heights, index.widths, strict=True)) == {(24, 32)}
    assert os.listdir(tmp_path / "out") == ["train"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--data", "hf:nowhere"], "--data hf:nowhere: no such folder; it wants a snapshot"),
        (["--data", "hf:"], "--data hf:: has no data/train-*.parquet"),
        (["--data", "hf:none"], "--data hf:none: has no data/train-*.parquet"),
        (["--data", "hf:notest"], "has no data/validation-*.parquet, -val or -test; --val none p"),
        (["--val", "hf"], "--val hf: of --data hf:DIR it is auto or none"),
        (["--label-column", "x"], "train-0.parquet: no column x; --label-column names one of: la"),
        (["--data", "damaged"], "no whole Parquet file"),
        (["--data", "other"], "class b has images of validation, and none to train on"),
        (["--data", "unlabelled"], "none of its 1 rows can be used"),
        (["--data", "folder", "--label-column", "x"], "--label-column belongs to --data hf:DIR"),
    ],
)
def test_mistakes(
    small: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    train, val = (small / "data" / f"{part}-0.parquet" for part in ("train", "validation"))
    skip = []
    if more[1] == "damaged":
        val.write_bytes(val.read_bytes()[:-9])
    elif more[1] == "other":
        write(train, table([image()], [0], ["a", "b"]))
    elif more[1] == "unlabelled":
        write(val, table([image()], [-1], ["a", "b"]))
        skip = ["--on-bad-image", "skip"]
    for name in ("none", "notest/data"):
        Path(name).mkdir(parents=True)
    os.link(train, "notest/data/train-0.parquet")
    before = sorted(os.listdir())
    given = more if more[0] == "--data" and (":" in more[1] or more[1] == "folder") else [
        "--data", "hf:hf", *(more if more[0] != "--data" else []),
    ]  # fmt: skip
    assert said in mistake(capsys, "tar", "--out", "new/out", *given, *skip)
    assert sorted(os.listdir()) == before


def test_without_pyarrow(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **more: Any) -> Any:
        if name.split(".")[0] == "pyarrow":
            raise ImportError(name)
        return real(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.setattr(packages, "installed", lambda module: module != "pyarrow")
    line = mistake(capsys, "tar", "--data", f"hf:{small}", "--out", tmp_path / "out")
    assert line.endswith("--data hf:DIR needs pyarrow: pip install -e '.[hf]'")


def test_a_folder_needs_no_pyarrow(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    assert pack(image_folder, tmp_path / "out", "--val", "none") == 0
