"""Images in tars: headers as Python's and GNU's tar write them, the folder's index, and damage."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastsc.pipelines import BadImage, cache, scan, tar_walk
from fastsc.pipelines.files import read_file
from fastsc.pipelines.tar_writer import write_tars
from tests.pipelines.conftest import (
    broken_files,
    odd_files,
    packed,
)
from tests.pipelines.tar_files import FORMATS, GNU_TAR, PHOTO, two_classes, walked, write

# ---- headers -------------------------------------------------------------------------------------

LONG = "n" * 90 + "/" + "o" * 90 + "/" + "p" * 120 + ".jpg"
NAMES = ["a/b.jpg", "a/b.c.d.jpg", "a/" + "x" * 98, "y" * 99 + "/z.jpg", "k" * 60 + "/" + "l" * 90]


@pytest.mark.parametrize("form", FORMATS)
def test_members_are_those_of_pythons_tarfile(tmp_path: Path, form: int) -> None:
    names = [*NAMES, "ü/é \N{GREEN APPLE}.jpg"]
    if form != tarfile.USTAR_FORMAT:
        names += [LONG, os.fsdecode(b"caf\xe9/\xff.jpg")]
    files = {name: os.urandom(size) for name, size in zip(names, (0, 1, 511, 512, 513, 9, 5000, 7))}
    path = write(tmp_path / "x.tar", files, form)
    with tarfile.open(path, errors="surrogateescape") as tar:
        theirs = [(entry.name, entry.offset_data, entry.size) for entry in tar]
    ours = walked(path)
    assert [member[:3] for member in ours] == theirs
    assert [member.name for member in ours] == list(files)
    whole = path.read_bytes()
    for member in ours:
        content = whole[member.offset : member.offset + member.n_bytes]
        assert content == files[member.name]
        assert content.startswith(member.head[: member.n_bytes])


@GNU_TAR
@pytest.mark.parametrize("form", ["v7", "oldgnu", "gnu", "ustar", "posix"])
def test_members_are_those_of_gnu_tar(tmp_path: Path, form: str) -> None:
    root = tmp_path / "root"
    names = NAMES[:2] if form == "v7" else [*NAMES, *([] if form == "ustar" else [LONG])]
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(os.urandom(700))
    path = tmp_path / "x.tar"
    subprocess.run(["tar", f"--format={form}", "-C", root, "-cf", path, "."], check=True)
    ours = walked(path)
    assert sorted(member.name for member in ours) == sorted(f"./{name}" for name in names)
    for member in ours:
        content = path.read_bytes()[member.offset : member.offset + member.n_bytes]
        assert content == (root / member.name).read_bytes()


@GNU_TAR
@pytest.mark.parametrize("version", ["oldgnu", "0.0", "0.1", "1.0"])
def test_sparse_files_and_links_are_named(tmp_path: Path, version: str) -> None:
    root = tmp_path / "train" / "cat"
    root.mkdir(parents=True)
    with open(root / "hole.jpg", "wb") as file:
        for at in range(0, 2**23, 2**20):  # more maps than fit into one header
            file.seek(at)
            file.write(PHOTO)
        file.truncate(2**24)
    (root / "a.jpg").write_bytes(PHOTO)
    os.link(root / "a.jpg", root / "b.jpg")
    os.symlink("a.jpg", root / "c.jpg")
    (root / "z.jpg").write_bytes(PHOTO)
    form = ["--format=oldgnu"] if version == "oldgnu" else ["--format=posix"]
    form += [f"--sparse-version={version}"] if version != "oldgnu" else []
    tar = ["tar", *form, "--sort=name", "-C", root.parent, "-Scf", root.parent / "x.tar", "cat"]
    subprocess.run(tar, check=True)
    shutil.rmtree(root)
    index = scan(root.parent)
    assert index.paths == ("cat/a.jpg", "cat/z.jpg")
    reasons = {Path(bad.path).name: bad.reason for bad in index.faults}
    assert reasons.keys() == {"hole.jpg", "b.jpg", "c.jpg"}
    assert reasons["hole.jpg"] == "a sparse file; make the tar again without --sparse"
    assert reasons["b.jpg"].startswith("a link to cat/a.jpg; make the tar again with --deref")
    assert read_file(index.place(1)) == PHOTO


def test_offsets_beyond_10_gb(tmp_path: Path) -> None:
    """A file with a hole, whose size is written to the base 256 or in PAX records."""
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = tmp_path / str(form) / "x.tar"
        path.parent.mkdir()
        large = tarfile.TarInfo("cat/notes.bin")
        large.size = 10 * 2**30
        small = tarfile.TarInfo("cat/a.jpg")
        small.size = len(PHOTO)
        with open(path, "wb") as file:
            file.write(large.tobuf(form))
            file.seek(large.size, os.SEEK_CUR)
            file.write(small.tobuf(form) + PHOTO + bytes(-len(PHOTO) % 512 + 1024))
        index = scan(path.parent)
        assert index.members is not None
        assert index.members.offsets[0] > 10 * 2**30
        assert read_file(index.place(0)) == PHOTO
        path.unlink()


# ---- the folder's index --------------------------------------------------------------------------


def test_index_is_that_of_the_folder(image_folder: Path, tars: Path) -> None:
    theirs, ours = scan(image_folder / "train"), scan(tars / "train")
    assert ours.hash == theirs.hash
    assert (ours.classes, ours.paths) == (theirs.classes, theirs.paths)
    assert ours.members is not None
    assert len(ours.members.shards) > 2
    assert ours.path(9) == str(tars / "train" / "00000.tar" / ours.paths[9])
    classes = ours.classes
    assert scan(tars / "val", classes=classes).hash == scan(image_folder / "val").hash
    for i in range(len(ours)):
        assert read_file(ours.place(i)) == Path(theirs.path(i)).read_bytes()


def test_odd_names_and_broken_images_keep_their_place(folder: Path, tmp_path: Path) -> None:
    train = folder / "train"
    names = ["boat/a.b.c.JPG", "boat/.jpg.jpg", "boat/below/x.jpeg", "boat/" + "l" * 200 + ".jpg"]
    names += ["boat/a-.jpg", "boat/a0.jpg", "boat/a/1.jpg", os.fsdecode(b"caf\xe9/\xff.jpg")]
    for name in names:
        (train / name).parent.mkdir(exist_ok=True)
        (train / name).write_bytes(PHOTO)
    for name, data in (broken_files() | odd_files()).items():
        (train / "cloud" / name).write_bytes(data)
    theirs = scan(train)
    ours = scan(packed(folder, tmp_path / "tars") / "train")
    assert ours.hash == theirs.hash
    assert ours.paths == theirs.paths
    assert ours.left_out.keys() == theirs.left_out.keys()
    assert ours.by_pillow == theirs.by_pillow
    assert ours.left_out[theirs.paths.index("cloud/empty.JPEG")] == "empty file"


def test_any_order_in_the_tars_gives_the_same(image_folder: Path, tmp_path: Path) -> None:
    index = scan(image_folder / "train")
    shuffled = np.random.default_rng(1).permutation(len(index))
    for k in range(3):
        files = {
            f"./{index.paths[i]}": Path(index.path(i)).read_bytes() for i in shuffled[k::3].tolist()
        }
        write(tmp_path / f"train-{k}.tar", files, FORMATS[k])
    write(tmp_path / "other-0.tar", two_classes())  # of another data set
    beside = scan(tmp_path / "train")
    assert beside.hash == index.hash
    assert beside.path(0).startswith(f"{tmp_path}/train-")
    (tmp_path / "moved" / "train").mkdir(parents=True)
    for path in tmp_path.glob("train-*.tar"):
        path.rename(tmp_path / "moved" / "train" / path.name)
    assert scan(tmp_path / "moved" / "train").hash == index.hash


def test_the_cache_is_used_until_a_shard_changes(
    tars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(shutil.copytree(tars / "train", tmp_path / "train"))
    (root / "00000.tar").write_bytes((root / "00000.tar").read_bytes()[:-700])  # a fault
    first, opened = scan(root), list[str]()
    real = tar_walk.members

    def counting(path: str, *rest: Any) -> Any:
        opened.append(path)
        return real(path, *rest)

    monkeypatch.setattr(tar_walk, "members", counting)
    again = scan(root)
    assert not opened
    assert again.hash == first.hash
    assert again.faults == first.faults
    assert len(first.faults) == 1
    assert again.members is not None
    assert first.members is not None
    assert np.array_equal(again.members.offsets, first.members.offsets)
    os.utime(root / "00001.tar", ns=(1, 1))
    assert scan(root).hash == first.hash
    assert len(opened) == len(first.members.shards)
    for file in cache.folder().glob("tars-*.npz"):
        data = bytearray(file.read_bytes())
        data[30::40] = bytes(byte ^ 0x55 for byte in data[30::40])
        file.write_bytes(data)
    assert scan(root).hash == first.hash


def test_class_folders_come_before_tars_beside_them(folder: Path) -> None:
    before = scan(folder / "train")
    write(folder / "train" / "original.tar", two_classes())
    assert scan(folder / "train").hash == before.hash


def test_imagenets_own_tars(tmp_path: Path) -> None:
    for wnid in ("n01440764", "n01443537"):
        write(tmp_path / f"{wnid}.tar", {f"{wnid}_{i}.JPEG": PHOTO for i in range(3)})
    index = scan(tmp_path)
    assert index.classes == ("n01440764", "n01443537")
    assert index.targets.tolist() == [0] * 3 + [1] * 3
    write(tmp_path / "n01443537.tar", {"stray.JPEG": PHOTO})
    (bad,) = scan(tmp_path).faults
    assert bad == BadImage(f"{tmp_path}/n01443537.tar/stray.JPEG", "in no class folder")


def test_hidden_files_are_passed_over(tmp_path: Path) -> None:
    files = two_classes() | {"cat/._0.jpg": b"notes", "__MACOSX/cat/1.jpg": b"notes"}
    index = scan(write(tmp_path / "t" / "x.tar", files | {"cat/readme.txt": b"hi"}).parent)
    assert len(index) == 6
    assert index.passed_over == ("__MACOSX/cat/1.jpg", "cat/._0.jpg")


# ---- what lies beside them -----------------------------------------------------------------------


def test_notes_of_macos_beside_shards_are_no_shards(tmp_path: Path) -> None:
    write(tmp_path / "train-000.tar", {"0.jpg": PHOTO, "0.cls": b"0"})
    (tmp_path / "._train-000.tar").write_bytes(b"Mac OS X")
    index = scan(tmp_path / "train")
    assert (index.paths, index.faults) == (("0.jpg",), ())


# ---- writing -------------------------------------------------------------------------------------


def test_shards_are_of_the_size_that_was_asked_for(image_folder: Path, tmp_path: Path) -> None:
    index = scan(image_folder / "train")
    write_tars(index, tmp_path / "a", 20_000, workers=2)
    write_tars(index, tmp_path / "b", 20_000, workers=1)
    tars = sorted((tmp_path / "a").iterdir())
    assert len(tars) > 3
    assert all(path.stat().st_size <= 20_000 for path in tars)
    # The same bytes, and a tar as everybody reads it.
    assert [path.read_bytes() for path in tars] == [
        path.read_bytes() for path in sorted((tmp_path / "b").iterdir())
    ]
    for path in tars:
        with tarfile.open(path) as tar:
            tar.extractall(tmp_path / "c", filter="data")
    assert scan(tmp_path / "c").hash == index.hash
    write_tars(index, tmp_path / "d", 1)
    assert len(list((tmp_path / "d").iterdir())) == len(index)
