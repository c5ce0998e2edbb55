"""Images in tars: headers as Python's and GNU's tar write them, the folder's index, and damage."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastsc.pipelines import BadImage, UserError, build, cache, scan, shards
from fastsc.pipelines.decode import DecodeError
from fastsc.pipelines.errors import StalledError
from fastsc.pipelines.files import MAX_OPEN, Shard, read_file
from fastsc.pipelines.index import relative
from fastsc.pipelines.sweep import verify
from fastsc.pipelines.tar import Member, TarError, members
from fastsc.pipelines.tar_writer import write_tars
from tests.pipelines.conftest import (
    DALI,
    broken_files,
    encoded,
    odd_files,
    packed,
    photograph,
    undecodable,
)

PHOTO = encoded(photograph())
FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
GNU_TAR = pytest.mark.skipif(shutil.which("tar") is None, reason="there is no tar")


def write(path: Path, files: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> Path:
    """A tar of these files, by Python's tarfile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def walked(path: Path) -> list[Member]:
    with open(path, "rb") as file:
        return list(members(str(path), file.fileno(), path.stat().st_size))


def two_classes(n: int = 3) -> dict[str, bytes]:
    return {f"{name}/{i}.jpg": PHOTO for name in ("cat", "dog") for i in range(n)}


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


@pytest.fixture(scope="module")
def tars(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(image_folder, tmp_path_factory.mktemp("tars"))


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
    real = shards.members

    def counting(path: str, *rest: Any) -> Any:
        opened.append(path)
        return real(path, *rest)

    monkeypatch.setattr(shards, "members", counting)
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


# ---- WebDataset ----------------------------------------------------------------------------------


def test_labels_beside_the_images(tmp_path: Path) -> None:
    files: dict[str, bytes] = {}
    for i in range(6):
        files |= {f"{i:03d}.jpg": PHOTO, f"{i:03d}.cls": f"{i % 3}\n".encode()}
    write(tmp_path / "0.tar", files)
    # A name with dots: its key ends at the first, or it has a label of just that name.
    more = {"a/x.y.JPEG": PHOTO, "a/x.cls": b"2", "b.c.png": PHOTO, "b.c.cls": b"1"}
    write(tmp_path / "1.tar", dict(reversed(more.items())))
    index = scan(tmp_path)
    assert index.classes == ("0", "1", "2")
    names = dict(zip(index.paths, index.targets.tolist(), strict=True))
    wanted = {f"{i:03d}.jpg": i % 3 for i in range(6)} | {"a/x.y.JPEG": 2, "b.c.png": 1}
    assert names == wanted
    assert list(names) == sorted(names, key=lambda name: (names[name], name))
    (tmp_path / "classes.txt").write_text("tench\nshark\nray\nhen\n")
    assert scan(tmp_path).classes == ("tench", "shark", "ray", "hen")
    (tmp_path / "classes.txt").write_text("tench\nshark\n")
    faults = scan(tmp_path).faults
    assert len(faults) == 3
    assert faults[0].reason == "its label is 2, and classes.txt has 2 lines"


def test_labels_in_json(tmp_path: Path) -> None:
    files: dict[str, bytes] = {}
    for i in range(4):
        label = {"label": i % 2, "name": ("tench", "shark")[i % 2], "padding": "x" * 600 * i}
        files |= {f"{i}.json": json.dumps(label).encode(), f"{i}.jpg": PHOTO}
    write(tmp_path / "0.tar", files | {"0.cls": b"7"})  # which comes before the JSON
    assert scan(tmp_path).targets.tolist() == [0, 1, 1, 7]
    index = scan(tmp_path, label_key="name")
    assert index.classes == ("shark", "tench")
    assert [index.classes[t] for t in index.targets] == ["shark"] * 2 + ["tench"] * 2
    with pytest.raises(UserError, match=r"no images in its 1 tars; .*/0.jpg: its JSON has no wnid"):
        scan(tmp_path, label_key="wnid")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("1.txt", b"0", "it has neither KEY.cls nor KEY.json"),
        ("1.cls", b"", "its label is '', and neither"),
        ("1.cls", b"-1", None),  # a name
        ("1.cls", b"99999999", "its label is 99999999, and neither a number from 0 on nor"),
        ("1.cls", b"1" * 2**21, "its label has 2,097,152 bytes"),
        ("1.json", b"[", "its label's file is not JSON"),
        ("1.json", b"{}", "its JSON has no label, but nothing; --label-key names the field"),
        ("1.json", b'{"label": 1.5}', "its label is 1.5, and neither"),
        ("1.json", b'{"label": true}', "its label is True, and neither"),
    ],
)
def test_a_key_without_a_label_is_named(
    tmp_path: Path, name: str, content: bytes, reason: str | None
) -> None:
    write(tmp_path / "0.tar", {"0.jpg": PHOTO, "0.cls": b"0", "1.jpg": PHOTO, name: content})
    if reason is None:
        with pytest.raises(UserError, match=r"labels are numbers \(0\) and names \(-1\)"):
            scan(tmp_path)
        return
    index = scan(tmp_path)
    (bad,) = index.bad_images()
    assert bad.path == f"{tmp_path}/0.tar/1.jpg"
    assert bad.reason.startswith(reason)
    with pytest.raises(UserError, match=r"0\.tar/1\.jpg: .*--on-bad-image skip"):
        index.require("raise")
    index.require("skip")
    assert index.paths == ("0.jpg",)


@pytest.mark.parametrize(("second", "n_kept"), [(b"1", 1), (b"0", 2)])
def test_two_labels_of_a_key_that_differ_are_named(
    tmp_path: Path, second: bytes, n_kept: int
) -> None:
    first = write(
        tmp_path / "0.tar", {"0.jpg": PHOTO, "0.cls": b"0", "1.jpg": PHOTO, "1.cls": b"0"}
    )
    with tarfile.open(first, "a") as tar:
        member = tarfile.TarInfo("0.cls")
        member.size = len(second)
        tar.addfile(member, io.BytesIO(second))
    index = scan(tmp_path)
    assert len(index) == n_kept
    assert [bad.reason for bad in index.faults] == (
        ["there are two 0.cls in its tar, which differ"] * (2 - n_kept)
    )


# ---- damage --------------------------------------------------------------------------------------

N_SHARD = 6  # images of the shard that is damaged
Damage = Callable[[bytearray, list[Member]], object]


def flip(at: Callable[[list[Member]], int]) -> Damage:
    def damage(data: bytearray, held: list[Member]) -> None:
        data[at(held)] ^= 0x10

    return damage


def cut(at: Callable[[list[Member]], int]) -> Damage:
    def damage(data: bytearray, held: list[Member]) -> None:
        del data[at(held) :]

    return damage


def overwrite(at: Callable[[list[Member]], int], content: bytes) -> Damage:
    def damage(data: bytearray, held: list[Member]) -> None:
        data[at(held) : at(held) + len(content)] = content

    return damage


NO_MARK = "truncated: it ends without an end mark, at byte "
DAMAGES: dict[str, tuple[Damage, int, str, str]] = {
    # What is done; images that are left; the name and the reason that are told.
    "cut in a member": (cut(lambda held: held[4].offset + 100), 4, "/cat/4.jpg", "truncated: its"),
    "cut in a header": (cut(lambda held: held[3].offset - 200), 3, "", "truncated: it ends in a"),
    "cut between members": (cut(lambda held: held[3].offset - 512), 3, "", NO_MARK),
    "no end mark": (cut(lambda held: 2 * held[-1].offset - held[-2].offset - 512), 6, "", NO_MARK),
    "another header": (flip(lambda held: held[2].offset - 500), 2, "", "damaged: the checksum"),
    "another first header": (flip(lambda held: 3), 0, "", "not a tar"),
    "a lost page": (
        overwrite(lambda held: held[2].offset - 512, bytes(512)), 2, "", "damaged: zeros at byte "
    ),
    "empty": (cut(lambda held: 0), 0, "", "empty file"),
    "text": (overwrite(lambda held: 0, b"x" * 512), 0, "", "not a tar"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_shards_are_named(tmp_path: Path, kind: str) -> None:
    damage, n_left, name, reason = DAMAGES[kind]
    good = write(tmp_path / "0.tar", {f"dog/{i}.jpg": PHOTO for i in range(3)})
    bad = write(tmp_path / "1.tar", {f"cat/{i}.jpg": PHOTO for i in range(N_SHARD)})
    data = bytearray(bad.read_bytes())
    damage(data, walked(bad))
    bad.write_bytes(data)
    index = scan(tmp_path)
    (fault,) = index.bad_images()
    assert fault.path == f"{bad}{name}"
    assert fault.reason.startswith(reason)
    assert len(index) == 3 + n_left
    with pytest.raises(UserError, match=r"1\.tar.*--on-bad-image skip"):
        index.require("raise")
    loader = build("cpu", index, batch_size=3, resolution=16, on_bad_image="skip", workers=1)
    assert sum(len(batch.index) for batch in loader) == (3 + n_left) // 3 * 3
    assert good.exists()


def test_of_equal_names_the_first_is_taken(tmp_path: Path) -> None:
    write(tmp_path / "0.tar", two_classes())
    write(tmp_path / "1.tar", {"cat/0.jpg": encoded(photograph(3)), "dog/9.jpg": PHOTO})
    index = scan(tmp_path)
    (bad,) = index.faults
    assert bad.path == f"{tmp_path}/1.tar/cat/0.jpg"
    assert bad.reason == "there is another of this name, in 0.tar"
    assert len(index) == 7
    assert read_file(index.place(0)) == PHOTO


@pytest.mark.parametrize("suffix", ["tar.gz", "tgz", "tar.xz"])
def test_compressed_tars_say_how_to_unpack_them(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "train" / f"train-000.{suffix}"
    path.parent.mkdir()
    path.write_bytes(b"\x1f\x8b")
    how = "unxz" if suffix.endswith("xz") else "gunzip"
    for root in (path.parent, path.parent / "train"):
        with pytest.raises(UserError) as caught:
            scan(root)
        assert str(caught.value) == (
            f"{path}: compressed, and images are read in any order; unpack it once: {how} {path}"
        )


@pytest.mark.parametrize("name", [DALI, "cpu"])
@pytest.mark.parametrize("change", ["vanish", "another", "cut"])
def test_a_shard_that_changes_in_mid_epoch(
    tars: Path, tmp_path: Path, name: str, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastsc.pipelines.dali.TOGETHER", 1)
    root = Path(shutil.copytree(tars / "train", tmp_path / "train"))
    index, reports = scan(root), list[BadImage]()
    options = {"batch_size": 2, "resolution": 16, "workers": 1, "timeout": 30}
    loader = build(
        name,
        index,
        **options,
        on_bad_image="skip",
        report=reports.append,  # type: ignore[arg-type]
    )
    assert index.members is not None
    last = int(loader.plan().order[-1])
    victim = Path(index.place(last).path)
    batches = iter(loader)
    next(batches)
    if change == "vanish":
        victim.unlink()
    elif change == "another":
        other = victim.with_suffix(".new")
        other.write_bytes(victim.read_bytes())
        other.replace(victim)
    else:
        os.truncate(victim, 700)
    rest = [int(i) for batch in batches for i in batch.index]
    assert len(rest) == 30
    assert last not in rest
    assert str(victim / index.paths[last]) in {bad.path for bad in reports}
    why = {bad.reason for bad in reports}
    gone = "cannot be read (No such file or directory)"
    other_one = "cannot be read (the shard has changed since it was indexed)"
    assert why == {gone if change == "vanish" else other_one}
    loader.close()
    strict = build(name, index, **options)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=rf"{victim}/.*cannot be read"):
        list(strict)
    shutil.rmtree(root)
    with pytest.raises(UserError, match="has vanished; bring it back"):
        list(strict)
    strict.close()


@pytest.mark.parametrize("name", [DALI, "cpu"])
def test_a_hanging_read_is_named(tars: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = build(name, tars / "train", batch_size=8, resolution=16, timeout=1, workers=1)
    hanging = threading.Event()
    monkeypatch.setattr(Shard, "read_into", lambda *_: hanging.wait(30))
    with pytest.raises(StalledError, match=r"no batch for 1 s: reading .*/train/\d+\.tar/.*\.jpg"):
        list(loader)
    hanging.set()
    loader.close()


def test_one_descriptor_per_shard_and_no_more_than_some(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tar", two_classes())
    stat = path.stat()

    def held() -> int:
        links = (os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd"))
        return sum(link == str(path) for link in links)

    index = scan(tmp_path)
    for i in (0, 3, 5, 0):
        read_file(index.place(i))
    assert held() == 1
    del index
    assert held() == 0
    closing = Shard(str(path), stat.st_size, stat.st_mtime_ns, stays_open=False)
    assert len(closing.read(10, 0)) == 10
    assert held() == 0
    many = shards.opened([path] * (MAX_OPEN + 5))
    for shard in many:
        shard.read(1, 0)
    assert held() == MAX_OPEN


def test_what_does_not_decode_is_found_and_replaced_as_in_a_folder(
    folder: Path, tmp_path: Path
) -> None:
    for hole in ("apple/zz.png", "boat/00.png"):
        (folder / "train" / hole).write_bytes(undecodable())
    theirs, ours = scan(folder / "train"), scan(packed(folder, tmp_path / "tars") / "train")
    assert verify(ours) == verify(theirs)
    options = {"batch_size": 34, "resolution": 16, "on_bad_image": "skip"}
    (one,), (two,) = (
        build("cpu", index, **options)  # type: ignore[arg-type]
        for index in (theirs, ours)
    )
    assert torch.equal(one.index, two.index)
    assert torch.equal(one.clean, two.clean)


def test_parts_of_an_index_keep_their_places(tars: Path) -> None:
    index = scan(tars / "train")
    part = index.part(np.array([3, 30, 7]))
    assert part.paths == tuple(index.paths[i] for i in (3, 30, 7))
    assert [part.place(k) for k in range(3)] == [index.place(i) for i in (3, 30, 7)]


def test_names_in_a_log_are_found_again(tmp_path: Path) -> None:
    root = tmp_path / "train"
    assert relative(f"{root}/cat/0.jpg", root) == "cat/0.jpg"
    assert relative(f"{root}/00000.tar/cat/0.jpg", root) == "cat/0.jpg"
    assert relative(f"{tmp_path}/x-train-00.tar/cat/0.jpg", root) == "cat/0.jpg"
    assert relative(f"{tmp_path}/val-00.tar/cat/0.jpg", root) is None
    assert relative(f"{tmp_path}/val/cat/0.jpg", root) is None


# ---- fuzzing -------------------------------------------------------------------------------------

SEED = 20201109


def fuzzed(seed: int) -> bytes:
    """A tar with bytes flipped, cut off or out, doubled, or numbers put into its headers."""
    rng = np.random.default_rng([SEED, seed])
    form = FORMATS[seed % 3]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for i in range(4):
            length = int(rng.choice([1, 90 if form == tarfile.USTAR_FORMAT else 150]))
            name = f"{'cd'[i % 2]}/{'x' * length}{i}"
            for suffix, content in ((".jpg", PHOTO), (".cls", b"%d" % i)):
                entry = tarfile.TarInfo(name + suffix)
                entry.size = len(content)
                if seed % 4 or suffix == ".jpg":
                    tar.addfile(entry, io.BytesIO(content))
    data = bytearray(buffer.getvalue())
    for _ in range(int(rng.integers(1, 4))):
        at, n = int(rng.integers(len(data))), int(rng.integers(1, 2000))
        block = at // 512 * 512
        match int(rng.integers(7)):
            case 0:
                data[at] ^= 1 << int(rng.integers(8))
            case 1:
                del data[at:]
            case 2:
                del data[at : at + n]
            case 3:
                data[at : at + n] = rng.bytes(n)
            case 4:
                data[block:block] = data[block : block + 512 * 3]
            case 5:
                data[block : block + 512] = bytes(len(data[block : block + 512]))
            case _:
                _renumber(data, block, rng)
        if not data:
            return b""
    return bytes(data)


def _renumber(data: bytearray, block: int, rng: np.random.Generator) -> None:
    """Another size or kind in a header, whose checksum fits again."""
    if len(data) < block + 512:
        return
    numbers = [b"77777777777\0", b"\x80" + b"\xff" * 11, b"\xff" * 12, b"\x80" + bytes(11), b"-1"]
    numbers += [b"%011o\0" % int(rng.integers(10**6)), b"x" * 12, bytes(12)]
    data[block + 124 : block + 136] = numbers[int(rng.integers(len(numbers)))].ljust(12, b"\0")
    if rng.random() < 0.5:
        data[block + 156] = int(rng.choice(list(b"0\x0017LKxgSMVD5")))
    data[block + 148 : block + 156] = b" " * 8
    data[block + 148 : block + 156] = b"%06o\0 " % sum(data[block : block + 512])


def check_damaged(root: Path, seed: int) -> int:
    """A damaged tar beside a good one: named, or of whole members; no other exception."""
    root.mkdir()
    write(root / "0.tar", {"good/0.jpg": PHOTO, "good/0.cls": b"0"} if seed % 4 else two_classes(1))
    (root / "1.tar").write_bytes(fuzzed(seed))
    try:
        index = scan(root, use_cache=False)
    except UserError:  # labels that are names here and numbers there
        return 0
    assert all(bad.path and bad.reason for bad in index.bad_images())
    size = (root / "1.tar").stat().st_size
    for i in range(len(index)):
        place = index.place(i)
        if place.path.endswith("1.tar"):
            assert 0 <= place.offset <= place.offset + place.n_bytes <= size
        try:
            assert len(read_file(place)) == index.n_bytes[i]
        except DecodeError:
            raise AssertionError("a whole member cannot be read") from None
    loader = build("cpu", index, batch_size=1, resolution=8, on_bad_image="skip", workers=1)
    assert all(batch.clean.isfinite().all() for batch in loader)
    loader.close()
    return len(index)


def test_damaged_tars(tmp_path: Path) -> None:
    assert sum(check_damaged(tmp_path / str(seed), seed) for seed in range(50)) > 100


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_many_damaged_tars(tmp_path: Path) -> None:
    for seed in range(50, 1050):
        check_damaged(tmp_path / str(seed), seed)
        shutil.rmtree(tmp_path / str(seed))


def test_a_tar_may_say_anything(tmp_path: Path) -> None:
    """Headers alone, of random fields with a checksum that fits: a member or TarError."""
    rng = np.random.default_rng(SEED)
    path = tmp_path / "x.tar"
    for _ in range(300):
        data = bytearray(rng.bytes(int(rng.integers(1, 6)) * 512))
        for block in range(0, len(data), 512):
            _renumber(data, block, rng)
        path.write_bytes(data)
        with suppress(TarError):
            walked(path)


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


def test_a_shard_that_is_replaced_while_it_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its descriptor would be kept, and give another's pixels for good."""
    path, other = tmp_path / "a.tar", tmp_path / "b.tar"
    path.write_bytes(b"AAAA")
    other.write_bytes(b"BBBB")
    os.utime(other, (1, 1))
    stat, opened = path.stat(), os.open
    shard = Shard(str(path), stat.st_size, stat.st_mtime_ns)
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", lambda name, flags: opened(other, flags))
        with pytest.raises(OSError, match="the shard has changed"):
            shard.read(4, 0)
    assert shard.read(4, 0) == b"AAAA"
