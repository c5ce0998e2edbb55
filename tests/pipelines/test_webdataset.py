"""WebDataset's tars: labels beside the images, and samples of several files."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import pytest

from fastsc.pipelines import UserError, scan
from tests.pipelines.tar_files import PHOTO, write


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


@pytest.mark.parametrize("name", ["0.cls", "cat/0.json", "README"])
def test_a_field_beside_no_image_is_refused(tmp_path: Path, name: str) -> None:
    folder = "" if name == "0.cls" else "cat/"
    files = {name: b'{"species": "dog"}', **{f"{folder}{i}.jpg": PHOTO for i in range(3)}}
    write(tmp_path / "0.tar", files)
    with pytest.raises(UserError, match=r"^[^\n]* and few or none of its images have one: leave"):
        scan(tmp_path, label_key="species")


def test_half_of_a_character_is_no_label(tmp_path: Path) -> None:
    """Which JSON can escape, and no hash of the index takes."""
    files = {"0.json": b'{"label": "\\ud800bad"}', "0.jpg": PHOTO, "1.cls": b"ray", "1.jpg": PHOTO}
    write(tmp_path / "0.tar", files)
    index = scan(tmp_path)
    assert index.classes == ("ray",)
    assert "neither a number from 0 on nor a name" in index.faults[0].reason
    assert len(index.hash) == 16


def test_a_number_in_quotes_is_a_number(tmp_path: Path) -> None:
    files = {"0.json": b'{"label": "12"}', "0.jpg": PHOTO, "1.cls": b"2", "1.jpg": PHOTO}
    write(tmp_path / "0.tar", files)
    assert scan(tmp_path).targets.tolist() == [2, 12]
    quoted = {"0.json": b'{"label": "2"}', "0.jpg": PHOTO, "1.json": b'{"label": "10"}'}
    write(tmp_path / "0.tar", quoted | {"1.jpg": PHOTO})
    assert scan(tmp_path).classes == ("10", "2")  # names, where all are in quotes
    (tmp_path / "classes.txt").write_text("\n".join(f"class {i}" for i in range(12)))
    assert scan(tmp_path).targets.tolist() == [2, 10]  # numbers of its lines


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("1.txt", b"0", "it has neither KEY.cls nor KEY.json"),
        ("1.cls", b"", "its label is '', and neither"),
        ("1.cls", b"cat", None),
        ("1.cls", b"-1", "its label is '-1', and neither"),
        ("1.cls", b"3.0", "its label is '3.0', and neither"),
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
        with pytest.raises(UserError, match=r"labels are numbers \(0\) and names \(cat\)"):
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


def test_further_images_of_a_sample_are_passed_over(tmp_path: Path) -> None:
    members = {"0.jpg": PHOTO, "0.seg.png": PHOTO, "0.cls": b"1"}  # of one key
    members |= {"a/1.left.jpg": PHOTO, "a/1.cls": b"0"}  # which has no other
    members |= {"2.jpg": PHOTO, "2.cls": b"0", "2.b.jpg": PHOTO, "2.b.cls": b"1"}  # two keys
    write(tmp_path / "0.tar", members)
    index = scan(tmp_path)
    assert index.paths == ("2.jpg", "a/1.left.jpg", "0.jpg", "2.b.jpg")
    assert index.targets.tolist() == [0, 0, 1, 1]
    assert index.passed_over == ("0.seg.png",)
    assert not index.bad_images()


def test_a_sample_of_two_files_has_one_image(tmp_path: Path) -> None:
    members = {"0.png": PHOTO, "0.jpg": PHOTO, "0.cls": b"1", "0.depth.png": PHOTO}
    members |= {
        "1.image.jpg": PHOTO,
        "1.mask.png": PHOTO,
        "1.cls": b"0",
        "2.jpg": PHOTO,
        "2.cls": b"0",
    }
    write(tmp_path / "0.tar", members)
    index = scan(tmp_path)
    assert index.paths == ("2.jpg", "0.jpg")
    assert index.passed_over == ("0.depth.png", "0.png")
    why = "its sample has several images: name the one that is meant 1.jpg"
    assert [(Path(bad.path).name, bad.reason) for bad in index.faults] == [
        ("1.image.jpg", why), ("1.mask.png", why),
    ]  # fmt: skip


def test_reads_that_give_less_than_they_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    label = json.dumps({"padding": "x" * 3000, "label": 1}).encode()
    write(tmp_path / "0.tar", {"0.jpg": PHOTO, "0.json": label, "1.jpg": PHOTO, "1.cls": b"0"})
    wanted = scan(tmp_path, use_cache=False)
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda file, n, at: pread(file, min(n, 700), at))
    found = scan(tmp_path, use_cache=False)
    assert (found.paths, found.targets.tolist()) == (wanted.paths, [0, 1])
    assert not found.bad_images()


def test_a_stray_json_leaves_class_folders_what_they_are(tmp_path: Path) -> None:
    photos = {f"{name}/{i}.jpg": PHOTO for name in ("boat", "door") for i in range(3)}
    write(tmp_path / "0.tar", {**photos, "boat/0.json": b'{"label": 7}', "README.json": b"{}"})
    index = scan(tmp_path)
    assert index.paths == tuple(sorted(photos))
    assert index.classes == ("boat", "door")
    # Where most have a label, one without it is still named.
    labels = {f"{name.removesuffix('.jpg')}.cls": b"0" for name in list(photos)[1:]}
    (tmp_path / "1").mkdir()
    write(tmp_path / "1" / "0.tar", {**photos, **labels})
    index = scan(tmp_path / "1")
    assert len(index) == 5
    assert [bad.reason for bad in index.faults] == ["it has neither KEY.cls nor KEY.json"]
