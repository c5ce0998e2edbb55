"""What shows only while decoding: raised or skipped as the user chose, alike in every backend."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastsc.pipelines import BadImage, Pipeline, UserError, build, scan
from fastsc.pipelines.sweep import verify
from tests.pipelines.conftest import broken_files, encoded, needs_dali, odd_files, photograph


def indices(loader: Pipeline, number: int) -> list[list[int]]:
    loader.set_epoch(number)
    return [batch.index.tolist() for batch in loader]


def test_raise_names_the_file(backend: str, holey_folder: Path) -> None:
    with pytest.raises(UserError, match=r"(apple/zz|boat/00)\.png: .*--on-bad-image skip"):
        list(build(backend, holey_folder / "train", batch_size=34, resolution=32))
    with pytest.raises(UserError, match=r"cloud/01\.png"):
        list(build(backend, holey_folder / "val", batch_size=4, resolution=32, train=False))


def test_skip_fills_the_slot_with_a_keyed_substitute(backend: str, holey_folder: Path) -> None:
    index = scan(holey_folder / "train")
    holes = {i for i, path in enumerate(index.paths) if path.endswith(".png")}
    reports: list[BadImage] = []
    loader = build(
        backend,
        index,
        batch_size=34,
        resolution=32,
        on_bad_image="skip",
        report=reports.append,
    )
    for number in range(3):
        (batch,) = indices(loader, number)
        plan = loader.plan(number)
        expected = plan.order[:34].tolist()
        for slot, wanted in enumerate(expected):
            attempt = 0
            while expected[slot] in holes:
                expected[slot] = plan.substitute(wanted, attempt)
                attempt += 1
        assert batch == expected
    loader.close()
    assert sorted(Path(bad.path).name for bad in reports) == ["00.png", "zz.png"]  # once each
    assert all(bad.reason and bad.substitute for bad in reports)


def test_skip_leaves_the_slot_out_of_validation(backend: str, holey_folder: Path) -> None:
    reports: list[BadImage] = []
    index = scan(holey_folder / "val")
    hole = index.paths.index("cloud/01.png")
    for size in (4, 1):  # a batch of one, of the broken file alone, vanishes
        loader = build(
            backend,
            index,
            batch_size=size,
            resolution=32,
            train=False,
            on_bad_image="skip",
            report=reports.append,
        )
        found = indices(loader, 0)
        expected = [list(range(at, min(at + size, 13))) for at in range(0, 13, size)]
        kept = [[i for i in batch if i != hole] for batch in expected]
        assert found == [batch for batch in kept if batch]
        loader.close()
    assert {Path(bad.path).name for bad in reports} == {"01.png"}
    assert all(bad.substitute is None for bad in reports)


@pytest.mark.parametrize("change", ["vanish", "grow"])
@pytest.mark.parametrize("name", [pytest.param("dali", marks=needs_dali), "cpu"])
def test_file_that_changes_after_the_scan(name: str, folder: Path, change: str) -> None:
    loader = build(
        name, folder / "train", batch_size=32, resolution=32, on_bad_image="skip", timeout=30
    )
    victim = folder / "train" / "boat" / "03.jpg"
    if change == "vanish":
        os.unlink(victim)
    else:
        victim.write_bytes(victim.read_bytes() + b"\0")
    (batch,) = indices(loader, 0)
    assert loader.index.paths.index("boat/03.jpg") not in batch
    assert len(batch) == 32


def test_index_leaves_out_what_would_break_a_decoder(backend: str, folder: Path) -> None:
    for name, data in (broken_files() | odd_files()).items():
        (folder / "train" / "door" / name).write_bytes(data)
    index = scan(folder / "train")
    with pytest.raises(UserError, match="door"):
        build(backend, index, batch_size=8, resolution=32)
    loader = build(backend, index, batch_size=8, resolution=32, on_bad_image="skip")
    for number in range(3):
        found = [i for batch in indices(loader, number) for i in batch]
        assert len(found) == len(set(found)) == (32 + len(odd_files())) // 8 * 8
        assert not set(found) & set(index.left_out)
    loader.close()


def test_folder_of_broken_files_ends(backend: str, tmp_path: Path, holey_folder: Path) -> None:
    folder = tmp_path / "only" / "holes"
    folder.mkdir(parents=True)
    for i in range(3):
        (folder / f"{i}.png").write_bytes((holey_folder / "val" / "cloud" / "01.png").read_bytes())
    loader = build(
        backend, tmp_path / "only", batch_size=2, resolution=32, on_bad_image="skip", timeout=30
    )
    with pytest.raises(UserError, match="images in a row cannot be decoded"):
        list(loader)


@pytest.mark.parametrize("name", [pytest.param("dali", marks=needs_dali), "cpu"])
def test_hanging_read_ends_the_program(folder: Path, name: str) -> None:
    # A pipe that nobody writes to stands for a mount that is gone. In a process of its own, since
    # a thread that hangs must not keep it alive.
    program = """
import os, sys
from fastsc.pipelines import build, scan
index = scan(sys.argv[2])
for i in range(0, len(index), 4):
    os.unlink(index.path(i))
    os.mkfifo(index.path(i))
loader = build(sys.argv[1], index, batch_size=8, resolution=32, timeout=1, on_bad_image="skip")
try:
    list(loader)
finally:
    loader.close()
"""
    done = subprocess.run(
        [sys.executable, "-c", program, name, str(folder / "train")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "StalledError: no" in done.stderr
    assert "for 1 s" in done.stderr


@pytest.mark.parametrize("name", [pytest.param("dali", marks=needs_dali), "cpu"])
def test_failures_of_an_epoch_do_not_depend_on_earlier_ones(folder: Path, name: str) -> None:
    # Only regions that reach below the damage fail, which the header does not show.
    whole = encoded(photograph(5, (160, 160)), "PNG")
    (folder / "train" / "apple" / "zz.png").write_bytes(
        whole[: len(whole) // 2] + bytes(300) + whole[len(whole) // 2 + 300 :]
    )
    options = {"batch_size": 33, "resolution": 32, "on_bad_image": "skip"}
    straight = build(name, folder / "train", **options)  # type: ignore[arg-type]
    history = [indices(straight, number) for number in range(5)]
    fresh = build(name, folder / "train", **options)  # type: ignore[arg-type]
    assert indices(fresh, 4) == history[4]


def test_verify_finds_what_the_header_hides(holey_folder: Path) -> None:
    index = scan(holey_folder / "train")
    index = index.without(verify(index))
    assert {Path(bad.path).name for bad in index.bad_images()} == {"zz.png", "00.png"}
    assert index.hash != scan(holey_folder / "train").hash
    with pytest.raises(UserError, match=r"\(and 1 more\)"):
        index.require("raise")
