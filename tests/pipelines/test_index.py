"""The index: torchvision's order, PIL's sizes, a cache that notices changes, broken files named."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from fastsc.pipelines import UserError, cache, scan, walk
from fastsc.pipelines import index as index_module
from fastsc.pipelines.decode import header_parser
from fastsc.pipelines.headers import Header
from tests.pipelines.conftest import broken_files, encoded, odd_files, photograph


def test_files_and_classes_are_those_of_torchvision(image_folder: Path) -> None:
    ours, theirs = scan(image_folder / "train"), ImageFolder(image_folder / "train")
    assert list(ours.classes) == theirs.classes
    pairs = [(ours.path(i), int(ours.targets[i])) for i in range(len(ours))]
    assert pairs == theirs.samples


def test_sizes_are_those_of_the_files(image_folder: Path) -> None:
    index = scan(image_folder / "train")
    for i in range(len(index)):
        with Image.open(index.path(i)) as image:
            assert (index.widths[i], index.heights[i]) == image.size
        assert index.n_bytes[i] == os.path.getsize(index.path(i))


def test_broken_files_are_named_and_keep_their_place(folder: Path) -> None:
    before = scan(folder / "train")
    for name, data in broken_files().items():
        (folder / "train" / "boat" / name).write_bytes(data)
    for name, data in odd_files().items():
        (folder / "train" / "boat" / name).write_bytes(data)
    index = scan(folder / "train")
    named = {Path(bad.path).name for bad in index.bad_images()}
    assert named == set(broken_files())
    assert len(index) == len(before) + len(broken_files()) + len(odd_files())
    assert [p for p in index.paths if p in before.paths] == list(before.paths)
    assert len(index.usable) == len(before) + len(odd_files())
    assert all(index.heights[i] == 0 for i in index.left_out)
    reasons = {Path(bad.path).name: bad.reason for bad in index.bad_images()}
    assert reasons["empty.JPEG"] == "empty file"
    assert reasons["text.JPEG"] == "not an image"
    assert "truncated" in reasons["truncated.JPEG"]
    assert "too small" in reasons["dot.JPEG"]
    with pytest.raises(UserError, match=r"boat.*\(and 7 more\).*--on-bad-image skip"):
        index.require("raise")
    index.require("skip")


def test_exif_rotation_is_ignored(folder: Path) -> None:
    (folder / "train" / "boat" / "rotated.JPEG").write_bytes(odd_files()["rotated.JPEG"])
    index = scan(folder / "train")
    i = index.paths.index("boat/rotated.JPEG")
    assert (index.widths[i], index.heights[i]) == (90, 70)


def test_decompression_bomb_is_left_out(folder: Path) -> None:
    Image.new("1", (20_000, 20_000)).save(folder / "train" / "boat" / "bomb.png")
    index = scan(folder / "train")
    (bad,) = index.bad_images()
    assert bad.path.endswith("bomb.png")
    assert "bomb" in bad.reason


def test_dangling_link_is_left_out(folder: Path) -> None:
    (folder / "train" / "boat" / "gone.jpg").symlink_to(folder / "nowhere.jpg")
    (bad,) = scan(folder / "train").bad_images()
    assert "gone.jpg" in bad.path


def test_cache_is_used_until_the_folder_changes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "train" / "boat" / "empty.JPEG").write_bytes(b"")
    first = scan(folder / "train")
    reads: list[str] = []
    real = index_module.read_header

    def counting(path: str, n_bytes: int, parse: object) -> object:
        reads.append(path)
        return real(path, n_bytes, parse)  # type: ignore[arg-type]

    monkeypatch.setattr(index_module, "read_header", counting)
    again = scan(folder / "train")
    assert reads == []
    assert again.hash == first.hash
    assert again.left_out == first.left_out
    assert len(first.left_out) == 1
    assert np.array_equal(again.heights, first.heights)

    (folder / "train" / "boat" / "new.jpg").write_bytes(encoded(photograph()))
    renewed = scan(folder / "train")
    assert len(reads) == len(renewed) == len(first) + 1
    assert renewed.hash != first.hash

    target = Path(renewed.path(0))  # same name and size, other time
    os.utime(target, ns=(1, 1))
    reads.clear()
    scan(folder / "train")
    assert len(reads) == len(renewed)


def test_the_cache_key_is_made_of_decoder_names_sizes_and_times(folder: Path) -> None:
    # Spelt out, since another key would make every user scan again.
    index = scan(folder / "train")
    stats = [os.stat(index.path(i)) for i in range(len(index))]
    key = hashlib.sha256("\0".join((header_parser()[0], *index.paths)).encode())
    key.update(np.array([stat.st_size for stat in stats], np.int64).tobytes())
    key.update(np.array([stat.st_mtime_ns for stat in stats], np.int64).tobytes())
    assert cache.load(folder / "train", key.hexdigest(), len(index)) is not None


@pytest.mark.parametrize("damage", ["empty", "cut", "zeroed", "flipped"])
def test_damaged_cache_is_made_again(folder: Path, damage: str) -> None:
    first = scan(folder / "train")
    for file in cache.folder().glob("index-*.npz"):
        data = bytearray(file.read_bytes())
        if damage == "empty":
            data = bytearray()
        elif damage == "cut":
            del data[50:]
        elif damage == "zeroed":
            data[20:120] = bytes(100)
        else:
            data[30::40] = bytes(byte ^ 0x55 for byte in data[30::40])
        file.write_bytes(data)
    assert scan(folder / "train").hash == first.hash


def test_passing_error_is_not_remembered(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = index_module.read_header

    def failing(path: str, n_bytes: int, parse: object) -> object:
        if path.endswith("boat/00.jpg"):
            return Header(0, 0, "Input/output error", passing=True)
        return real(path, n_bytes, parse)  # type: ignore[arg-type]

    monkeypatch.setattr(index_module, "read_header", failing)
    assert len(scan(folder / "train").left_out) == 1
    monkeypatch.undo()
    assert not scan(folder / "train").left_out


def test_scan_leaves_the_warning_filters_alone(folder: Path) -> None:
    before = list(warnings.filters)
    scan(folder / "train", use_cache=False)
    assert list(warnings.filters) == before


def test_names_that_are_not_unicode_and_circular_links(folder: Path) -> None:
    name = os.fsencode(folder / "train" / "boat") + b"/caf\xe9.jpg"
    with open(name, "wb") as file:
        file.write(encoded(photograph()))
    (folder / "train" / "boat" / "loop.jpg").symlink_to("loop.jpg")
    index = scan(folder / "train")
    assert [bad.path for bad in index.bad_images()] == [str(folder / "train/boat/loop.jpg")]
    assert any(os.fsencode(path).endswith(b"caf\xe9.jpg") for path in index.paths)
    assert len(index.hash) == 16


def test_hash_names_the_data_and_not_the_place(folder: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(folder, tmp_path / "elsewhere"))
    assert scan(folder / "train").hash == scan(moved / "train").hash
    (moved / "train" / "boat" / "00.jpg").write_bytes(encoded(photograph(3)))
    assert scan(folder / "train").hash != scan(moved / "train").hash


def test_validation_takes_the_training_classes(folder: Path) -> None:
    shutil.rmtree(folder / "val" / "apple")
    classes = scan(folder / "train").classes
    index = scan(folder / "val", classes=classes)
    assert index.classes == classes
    assert {classes[t] for t in index.targets} == {"boat", "cloud", "door"}
    (folder / "val" / "zebra").mkdir()
    shutil.copy(folder / "val" / "boat" / "00.jpg", folder / "val" / "zebra")
    with pytest.raises(UserError, match="zebra is not among the training classes"):
        scan(folder / "val", classes=classes)


def test_mistakes_have_one_line_each(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        scan(tmp_path / "missing")
    with pytest.raises(UserError, match="no class folders"):
        scan(tmp_path)
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match="no images"):
        scan(tmp_path)
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog" / "a.jpg").write_bytes(encoded(photograph()))
    with pytest.raises(UserError, match="cat: a class folder without an image"):
        scan(tmp_path)


def test_unusable_folder_is_a_mistake_even_when_skipping(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "a.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="none of its 1 images"):
        scan(tmp_path).require("skip")


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """The processes that list files: all of a folder's, two at a time, on any machine."""
    monkeypatch.setattr(walk, "FILES_ALONE", 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    started: list[subprocess.Popen[bytes]] = []
    real = walk._start

    def start() -> subprocess.Popen[bytes]:
        started.append(real())
        return started[-1]

    monkeypatch.setattr(walk, "_start", start)
    return started


@pytest.mark.parametrize("alone", [0, 9, 20])
def test_other_processes_list_the_same_files(
    folder: Path,
    alone: int,
    processes: list[subprocess.Popen[bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train, image = folder / "train", encoded(photograph())
    (train / "cloud" / "a" / "b").mkdir(parents=True)
    (train / "cloud" / "gone.jpg").symlink_to("nowhere.jpg")
    (train / "cloud" / "loop.PNG").symlink_to("loop.PNG")
    (train / "door" / "below").symlink_to(train / "boat")
    latin = os.fsdecode(b"\xe9t\xe9")
    (train / latin).mkdir()
    # In the order of whole names, "a-" comes before "a/" and that before "a0".
    names = ["cloud/a/b/1.JPG", "cloud/a/2.Jpeg", "cloud/a-.jpg", "cloud/a0.jpg", "cloud/a.txt"]
    for name in [*names, f"{latin}/1.jpg", f"{latin}/\U0001f34e.jpg", f"{latin}/{latin}.jpg"]:
        (train / name).write_bytes(image)
        os.utime(train / name, ns=(1, 1_600_000_000_123_456_789))
    folders = [str(path) for path in sorted(train.iterdir())]

    monkeypatch.setattr(walk, "FILES_ALONE", 1000)
    here, index = walk.list_files(folders), scan(train)
    assert not processes
    monkeypatch.setattr(walk, "FILES_ALONE", alone)
    apart = walk.list_files(folders)
    assert len(processes) == 2
    assert vars(apart) == vars(here)
    assert scan(train).hash == index.hash
    assert [name for name in apart.names if name.startswith("cloud/a")] == [
        "cloud/a-.jpg",
        "cloud/a/2.Jpeg",
        "cloud/a/b/1.JPG",
        "cloud/a0.jpg",
    ]
    assert [process.returncode for process in processes] == [0] * 4


def test_a_folder_that_another_process_cannot_read_is_named(
    folder: Path, processes: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = walk._start

    def start() -> subprocess.Popen[bytes]:
        shutil.rmtree(folder / "train" / "cloud", ignore_errors=True)
        return real()

    monkeypatch.setattr(walk, "_start", start)
    with pytest.raises(UserError) as caught:
        scan(folder / "train")
    assert str(caught.value) == f"{folder}/train/cloud: cannot be read (No such file or directory)"
    assert len(processes) == 2


@pytest.mark.parametrize("death", ["sys.exit(3)", "os.kill(os.getpid(), 9)"])
def test_the_death_of_another_process_is_an_error(
    folder: Path,
    tmp_path: Path,
    death: str,
    processes: list[subprocess.Popen[bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "dies.py").write_text(f"import os, sys\n{death}")
    monkeypatch.setattr(walk, "__file__", str(tmp_path / "dies.py"))
    with pytest.raises(RuntimeError, match=r"ended with status (3|-9)"):
        scan(folder / "train")
    assert all(process.returncode is not None for process in processes)


def test_a_process_that_cannot_be_started_is_no_mistake_of_the_user(
    folder: Path, processes: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", str(folder / "python"))
    with pytest.raises(RuntimeError, match="cannot be started: No such file"):
        scan(folder / "train")


def test_no_process_outlives_an_interrupt(
    folder: Path,
    tmp_path: Path,
    processes: list[subprocess.Popen[bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "hangs.py").write_text("import time\ntime.sleep(100)")
    monkeypatch.setattr(walk, "__file__", str(tmp_path / "hangs.py"))

    def interrupted(*_: object) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(walk, "_answer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        scan(folder / "train")
    assert [process.returncode for process in processes] == [-signal.SIGKILL] * 2
