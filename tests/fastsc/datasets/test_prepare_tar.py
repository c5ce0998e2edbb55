"""`python -m fastsc.prepare tar`, and jobs on tars and lists: those of the folder, bit for bit."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from fastsc import evaluate, prepare, replay, train
from fastsc.evaluation.data import open_split
from fastsc.evaluation.subjects import stamp
from fastsc.pipelines import UserError, build, open_beton, scan
from fastsc.pipelines import tar_writer as writer
from fastsc.pipelines.decode import decode_pil
from fastsc.pipelines.files import read_file
from tests.fastsc.datasets.test_prepare import mistake
from tests.fastsc.runs import events, same_weights, start, wait_for_step
from tests.fastsc.runs import run as train_on
from tests.pipelines.conftest import (
    broken_files,
    encoded,
    needs_dali,
    needs_ffcv,
    photograph,
    undecodable,
)

pytestmark = pytest.mark.heavy

SMALL = [
    "cifar100", "--model", "fastsc:resnet8w8", "--resolution", "32", "--batch-size", "8",
    "--epochs", "5", "--precision", "fp32", "--log-every", "1", "--workers", "1", "--crop", "rrc",
    "--device", "cpu",
]  # fmt: skip


def pack(data: Path, out: Path, *more: str) -> int:
    words = ["tar", "--data", str(data), "--out", str(out), "--shard-size", "50kB", *more]
    return prepare.main(words)


@pytest.fixture
def data(image_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(image_folder, tmp_path / "data"))


@pytest.fixture(scope="module")
def tars(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "tars"
    assert pack(image_folder, out) == 0
    return out


def test_writes_both_parts_and_says_what_is_in_them(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "tars"
    assert pack(data, out) == 0
    assert sorted(os.listdir(out)) == ["train", "val"]
    printed, err = capsys.readouterr()
    lines = printed.splitlines()
    assert lines[0].startswith(f"wrote {out / 'train'}: 32 images in 3 tars, 0.1 MB")
    assert lines[1].startswith(f"wrote {out / 'val'}: 12 images in 1 tar, ")
    assert err == ""
    assert scan(out / "train").hash == scan(data / "train").hash
    assert mistake(capsys, "tar", "--data", data, "--out", out).endswith(
        f"--out {out}: is not empty; name another folder"
    )
    again = tmp_path / "again"
    assert pack(out, again, "--val", "none") == 0  # tars into tars
    assert scan(again / "train").hash == scan(data / "train").hash
    assert os.listdir(again) == ["train"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--shard-size", "0"], "'0' is no size; say 500MB or 1GB"),
        (["--shard-size", "1PB"], "'1PB' is no size"),
        (["--shard-size", "-1GB"], "--shard-size"),
        (["--resize", "7"], "--resize must be from 8 to 65535, not 7"),
        (["--resize", "64", "--quality", "101"], "--quality must be from 1 to 100, not 101"),
        (["--quality", "90"], "--quality belongs to --resize: add it"),
        (["--exact-decode"], "--exact-decode belongs to --resize: add it"),
        (["--val", ""], "--val is empty"),
        (["--val", "nowhere"], "--val nowhere: no such folder"),
        (["--data", "nowhere"], "--data nowhere: no such folder"),
        (["--out", "a-file"], "--out a-file: is no folder; name another"),
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
    assert said in mistake(capsys, "tar", "--data", data, "--out", "new/out", *more)
    assert sorted(os.listdir()) == ["a-file", "data"]


def test_what_a_killed_run_left_is_removed(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "tars"
    (out / ".tars.1.tmp" / "train").mkdir(parents=True)
    (out / ".lock").write_text("{}")
    assert pack(data, out) == 0
    assert sorted(os.listdir(out)) == ["train", "val"]


def test_a_class_of_which_nothing_can_be_shrunk_is_named(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (data / "train" / "boat").iterdir():
        path.unlink()
    (data / "train" / "boat" / "hole.png").write_bytes(undecodable())
    words = ["--resize", "16", "--on-bad-image", "skip"]
    said = mistake(capsys, "tar", "--data", data, "--out", tmp_path / "out", *words)
    assert "none of the images of class boat can be written" in said
    assert not (tmp_path / "out").exists()


def test_a_class_that_validation_loses_moves_no_number(data: Path, tmp_path: Path) -> None:
    for path in (data / "val" / "boat").iterdir():
        path.unlink()
    (data / "val" / "boat" / "hole.png").write_bytes(undecodable())
    out = tmp_path / "out"
    assert pack(data, out, "--resize", "16", "--on-bad-image", "skip") == 0
    classes = scan(out / "train").classes
    assert classes == scan(data / "train").classes
    ours, theirs = (scan(folder / "val", classes=classes) for folder in (out, data))
    assert set(ours.targets) == set(theirs.targets) - {classes.index("boat")}


@pytest.mark.parametrize("name", ["boat/../boat/0.jpg", "boat/.0.jpg", "boat/./0.jpg"])
def test_names_that_no_reader_gives_back_are_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    for file in ("0.jpg", ".0.jpg"):
        (data / "train" / "boat" / file).write_bytes(encoded(photograph(1, (16, 16))))
    (data / "train" / "list.csv").write_text(f"path,label\n{name},boat\n")
    listed = data / "train" / "list.csv"
    said = mistake(capsys, "tar", "--data", listed, "--out", tmp_path / "out", "--val", "none")
    assert f"a tar would not give {name} back" in said
    assert not (tmp_path / "out").exists()


def test_broken_images_stop_it_or_are_packed_as_they_are(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, content in broken_files().items():
        (data / "train" / "door" / name).write_bytes(content)
    (data / "train" / "door" / "gone.jpg").symlink_to("nowhere.jpg")
    words = ["tar", "--data", data, "--out", tmp_path / "out"]
    assert "--on-bad-image skip" in mistake(capsys, *words)
    assert os.listdir(tmp_path) == ["data"]
    assert pack(data, tmp_path / "out", "--on-bad-image", "skip") == 0
    said = capsys.readouterr().out
    assert f"; left out 1: {data}/train/door/gone.jpg (cannot be read (No such file" in said
    (data / "train" / "door" / "gone.jpg").unlink()
    ours, theirs = scan(tmp_path / "out" / "train"), scan(data / "train")
    assert ours.hash == theirs.hash
    assert len(ours.left_out) == len(broken_files())


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """Images of which some are shrunk to 64 pixels: by 1, 2, 3 and 5 times, of three formats."""
    files = {"tall.JPEG": (260, 320), "wide.jpg": (200, 150), "same.jpeg": (64, 20)}
    folder = tmp_path / "large" / "train" / "a"
    folder.mkdir(parents=True)
    for name, size in files.items():
        (folder / name).write_bytes(encoded(photograph(0, size), quality=95))
    (folder / "lossless.png").write_bytes(encoded(photograph(1, (130, 140)), "PNG"))
    (folder / "other.bmp").write_bytes(encoded(photograph(2, (65, 70)), "BMP"))
    return tmp_path / "large"


def test_larger_images_are_shrunk(
    large: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (large / "train" / "a" / "broken.png").write_bytes(undecodable())
    words = ["--val", "none", "--resize", "64"]
    assert "broken.png" in mistake(capsys, "tar", "--data", large, "--out", tmp_path / "x", *words)
    words += ["--on-bad-image", "skip"]
    assert pack(large, tmp_path / "fast", *words) == 0
    assert "; left out 1: " in capsys.readouterr().out
    assert pack(large, tmp_path / "exact", *words, "--exact-decode") == 0
    fast, exact = (scan(tmp_path / name / "train") for name in ("fast", "exact"))
    sizes = dict(zip(fast.paths, zip(fast.heights, fast.widths, strict=True), strict=True))
    assert sizes == {
        "a/lossless.png": (64, 59),
        "a/other.bmp.jpg": (64, 59),
        "a/same.jpeg": (20, 64),
        "a/tall.JPEG": (64, 52),
        "a/wide.jpg": (48, 64),
    }
    same = (large / "train" / "a" / "same.jpeg").read_bytes()
    for i, name in enumerate(fast.paths):
        one, other = (read_file(index.place(i)) for index in (fast, exact))
        gap = np.abs(
            decode_pil(one, 0, 0, *sizes[name]).astype(int) - decode_pil(other, 0, 0, *sizes[name])
        )
        assert gap.mean() < 3
        assert (one == other) == (name not in ("a/tall.JPEG", "a/wide.jpg"))
        assert (one == same) == (name == "a/same.jpeg")
        if name == "a/lossless.png":
            assert one.startswith(b"\x89PNG")


@needs_ffcv
def test_a_beton_of_large_images_is_scaled(large: Path, tmp_path: Path) -> None:
    words = ["beton", "--data", str(large), "--val", "none", "--resolution", "64"]
    for name, more in (("fast", []), ("exact", ["--exact-decode"])):
        more = ["--jpeg-share", "0", "--out", str(tmp_path / name), *more]
        assert prepare.main([*words, *more]) == 0
    fast, exact = (open_beton(tmp_path / name / "train.beton") for name in ("fast", "exact"))
    assert fast.hash == exact.hash
    for column in ("heights", "widths"):
        assert (getattr(fast.samples, column) == getattr(exact.samples, column)).all()
    pixels = [np.frombuffer(index.root.read_bytes(), np.uint8) for index in (fast, exact)]
    i = fast.paths.index("a/wide.jpg")
    start = fast.samples.offsets[i]
    one, other = (part[start : start + 3 * 48 * 64].astype(int) for part in pixels)
    assert 0 < np.abs(one - other).mean() < 3


@pytest.mark.parametrize("error", ["full", "unsound", "name", "interrupt"])
def test_nothing_is_left_half_written(
    data: Path,
    tmp_path: Path,
    error: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    real, rename = writer.zlib.crc32, Path.rename
    calls = 0

    def crc32(content: bytes) -> int:
        nonlocal calls
        calls += 1
        if error == "full" and calls == 20:
            raise OSError(28, "No space left on device")
        if error == "interrupt" and calls == 20:
            raise KeyboardInterrupt
        return real(content) + (error == "unsound" and calls == 50)

    def fails_at_train(self: Path, target: Path) -> Path:
        if target.name == "train" and error == "name":
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(writer.zlib, "crc32", crc32)
    monkeypatch.setattr(Path, "rename", fails_at_train)
    if error == "interrupt":
        assert pack(data, tmp_path / "out") == 130
    else:
        line = mistake(capsys, "tar", "--data", data, "--out", tmp_path / "out")
        assert ("does not read back" if error == "unsound" else "No space left on device") in line
    assert os.listdir(tmp_path) == ["data"]


def test_what_is_in_no_class_folder_is_not_packed(data: Path, tmp_path: Path) -> None:
    path = data / "train" / "x.csv"
    path.write_text("boat/00.jpg,apple\n")
    with pytest.raises(UserError, match="does not lie in a folder of its class, apple"):
        writer.write_tars(scan(path), tmp_path / "out", 10**9)


@needs_ffcv
def test_a_beton_of_tars_is_that_of_the_folder(
    tars: Path, beton_folder: Path, tmp_path: Path
) -> None:
    words = ["beton", "--data", str(tars), "--out", str(tmp_path / "out")]
    assert prepare.main(words) == 0
    for name in ("train.beton", "val.beton"):
        assert (tmp_path / "out" / name).read_bytes() == (beton_folder / name).read_bytes()
    assert open_beton(tmp_path / "out" / "train.beton").hash == scan(tars / "train").hash


# ---- the main job --------------------------------------------------------------------------------


def run(data: Path, out: Path, *more: str) -> None:
    assert train.main([*SMALL, "--data", str(data), "--out", str(out), *more]) == 0


@pytest.mark.parametrize(
    "pipeline", [pytest.param("dali", marks=[needs_dali, pytest.mark.slow]), "cpu"]
)
def test_the_job_from_tars_is_that_from_the_folder(
    image_folder: Path, tars: Path, tmp_path: Path, pipeline: str
) -> None:
    more = ["--pipeline", pipeline, "--epochs", "2"]
    run(image_folder, tmp_path / "a", *more)
    run(tars, tmp_path / "b", *more)
    # And begun with the folder, ended after 3 of 8 steps, and gone on with from tars.
    run(image_folder, tmp_path / "c", *more, "--max-steps", "3")
    run(tars, tmp_path / "c", *more, "--resume")
    losses = [[row["loss"] for row in events(tmp_path / name, "step")] for name in "abc"]
    assert len(losses[0]) == 8
    assert losses[0] == losses[1] == losses[2]
    validations = [[row["val"] for row in events(tmp_path / name, "epoch")] for name in "ab"]
    assert validations[0] == validations[1]
    hashes = {events(tmp_path / name, "header")[0]["index_hash"] for name in "abc"}
    assert len(hashes) == 1
    assert same_weights(tmp_path / "a", tmp_path / "b")
    assert same_weights(tmp_path / "a", tmp_path / "c")


@pytest.mark.slow
def test_a_killed_job_goes_on_from_the_folder(
    image_folder: Path, tars: Path, tmp_path: Path
) -> None:
    more = ["--checkpoint-steps", "1", "--epochs", "40"]
    process = start(tars, tmp_path / "a", "cpu", *more)
    wait_for_step(process, tmp_path / "a", 6)
    process.kill()
    process.communicate()
    assert train_on(image_folder, tmp_path / "a", *more, "--resume", "--max-steps", "30") == 0
    assert train_on(tars, tmp_path / "b", *more, "--max-steps", "30") == 0
    assert same_weights(tmp_path / "a", tmp_path / "b")


def test_a_step_is_replayed_from_tars_with_its_substitutes(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "train" / "boat" / "hole.png").write_bytes(undecodable())
    assert pack(data, tmp_path / "tars", "--on-bad-image", "skip") == 0
    skip = ["--on-bad-image", "skip", "--pipeline", "cpu", "--val", "none"]
    run(tmp_path / "tars", tmp_path / "run", *skip, "--epochs", "1")
    (bad,) = events(tmp_path / "run", "bad_image")
    assert bad["path"].endswith(".tar/boat/hole.png")
    index = scan(data / "train")
    order = build("cpu", index, batch_size=8, resolution=32, seed=0).plan(0).order
    step = 1 + order.tolist().index(index.paths.index("boat/hole.png")) // 8
    capsys.readouterr()
    shown = []
    for place in (tmp_path / "tars", data):
        out = str(tmp_path / f"of-{place.name}")
        words = [str(tmp_path / "run"), "--step", str(step), "--data", str(place), "--out", out]
        assert replay.main(words) == 0
        shown.append(capsys.readouterr().out.split("\nwrote")[0])
        assert "in place of boat/hole.png, which is broken" in shown[-1]
    assert shown[0] == shown[1]


@pytest.fixture
def species(tmp_path: Path) -> Path:
    """WebDataset's tars whose labels are in a field of another name."""
    for part in ("train", "val"):
        (tmp_path / "wds").mkdir(exist_ok=True)
        with tarfile.open(tmp_path / "wds" / f"photos-{part}-000.tar", "w") as tar:
            for i in range(8):
                label = json.dumps({"species": "cat" if i % 2 else "dog"}).encode()
                image = encoded(photograph(i))
                for name, content in ((f"{i}.jpg", image), (f"{i}.json", label)):
                    entry = tarfile.TarInfo(name)
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
    return tmp_path / "wds"


def test_label_key_reaches_the_shards(species: Path, tmp_path: Path) -> None:
    words = ["--pipeline", "cpu", "--label-key", "species", "--epochs", "1"]
    run(species, tmp_path / "run", *words)
    (header,) = events(tmp_path / "run", "header")
    assert (header["classes"], header["images"], header["val_images"]) == (2, 8, 8)


@needs_ffcv
def test_a_beton_of_tars_with_a_label_key(species: Path, tmp_path: Path) -> None:
    words = ["beton", "--data", species, "--out", tmp_path / "ffcv"]
    assert prepare.main([*map(str, words), "--label-key", "species"]) == 0
    assert open_beton(tmp_path / "ffcv" / "train.beton").classes == ("cat", "dog")


# ---- lists ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("undrawn")
def test_a_list_trains_and_is_evaluated(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = []
    for part, n in (("train", 16), ("val", 4)):
        index = scan(image_folder / part)
        rows += [
            [index.path(i), index.classes[index.targets[i]], part]
            for i in range(0, len(index), len(index) // n)
        ][:n]
    assert len(rows) == 20
    path = tmp_path / "LIST.csv"
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(rows)
    run(path, tmp_path / "run", "--pipeline", "cpu", "--epochs", "1")
    (header,) = events(tmp_path / "run", "header")
    assert (header["images"], header["val_images"], header["classes"]) == (16, 4, 4)
    words = [str(tmp_path / "run"), "--data", str(path), "--out", str(tmp_path / "e"), "--only"]
    more = ["continuity", "--workers", "1", "--device", "cpu", "--images", "4"]
    assert evaluate.main([*words, *more]) == 0
    results = json.loads((tmp_path / "e" / "results.json").read_text())
    assert results["metadata"]["index_hash"] == header["val_index_hash"]
    capsys.readouterr()
    assert evaluate.main([*words, *more, "--split", "dev"]) == 2
    assert "--split dev: " in capsys.readouterr().err

    path.write_text("".join(f"{row[0]},{row[1]}\n" for row in rows))
    words = [*SMALL, "--data", str(path), "--out", str(tmp_path / "run2"), "--pipeline", "cpu"]
    assert train.main(words) == 2
    assert "has no split val or test; name one with --val LIST2.csv" in capsys.readouterr().err
    assert train.main([*words, "--val", str(path), "--epochs", "1"]) == 0


def test_tars_are_evaluated_as_their_folder(image_folder: Path, tars: Path) -> None:
    for part in (None, "train"):
        theirs, ours = (open_split(folder, part) for folder in (image_folder, tars))
        assert ours.labelled
        assert ours.index.hash == theirs.index.hash
        assert len(stamp([ours.index])) == 64
