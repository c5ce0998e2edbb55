"""Tars that are damaged, that change, or that nobody would make: named, and never a crash."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from fastsc.pipelines import BadImage, UserError, build, scan, shards
from fastsc.pipelines.decode import DecodeError
from fastsc.pipelines.errors import StalledError
from fastsc.pipelines.files import MAX_OPEN, Shard, read_file
from fastsc.pipelines.index import relative
from fastsc.pipelines.sweep import verify
from fastsc.pipelines.tar import Member, TarError
from tests.pipelines.conftest import (
    DALI,
    encoded,
    packed,
    photograph,
    undecodable,
)
from tests.pipelines.tar_files import FORMATS, PHOTO, two_classes, walked, write

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


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_cut_in_a_long_name(tmp_path: Path, form: int) -> None:
    name = "cat/" + "x" * 150 + ".jpg"
    with tarfile.open(tmp_path / "0.tar", "w", format=form) as tar:
        for i in range(2):
            entry = tarfile.TarInfo(f"{i}" if i == 0 else name)
            tar.addfile(entry)
    data = (tmp_path / "0.tar").read_bytes()
    (tmp_path / "0.tar").write_bytes(data[: 2 * 512 + 100])
    with pytest.raises(UserError, match="truncated: it ends in the name at byte 512"):
        scan(tmp_path)
