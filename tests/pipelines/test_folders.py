"""Folders that are no class, links that lead in circles, and classes that nothing is left of."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fastsc.pipelines import scan
from fastsc.pipelines.errors import UserError
from fastsc.pipelines.index import scan_flat
from fastsc.pipelines.walk import SYSTEM_FOLDERS, list_files
from tests.pipelines.conftest import photograph

CLASSES = ("cat", "dog")
N = 3


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "train"
    for name in CLASSES:
        (root / name).mkdir(parents=True)
        for i in range(N):
            photograph(i).save(root / name / f"{i}.jpg")
    return root


def test_hidden_and_system_folders_are_no_classes(folder: Path) -> None:
    wanted = scan(folder)
    hidden = (".ipynb_checkpoints", ".git", *SYSTEM_FOLDERS)
    for name in hidden:
        for place in (folder / name, folder / "cat" / name):
            place.mkdir()
            photograph().save(place / "copy.jpg")
    (folder / ".empty").mkdir()
    found = scan(folder)
    assert (found.classes, found.paths, found.hash) == (CLASSES, wanted.paths, wanted.hash)
    below = {f"cat/{name}" for name in hidden}
    assert set(found.passed_over) == {*hidden, ".empty", *below}
    line = found.passed_over_line()
    assert line == f"{folder}: passed over {', '.join(found.passed_over[:5])} and 10 more"
    assert wanted.passed_over == ()
    assert wanted.passed_over_line() is None


@pytest.mark.parametrize("apart", [False, True])
def test_notes_of_macos_are_no_images(
    folder: Path, apart: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process and in others."""
    if apart:
        monkeypatch.setattr("fastsc.pipelines.walk.FILES_ALONE", 0)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    wanted = scan(folder)
    notes = [f"{name}/._{i}.jpg" for name in CLASSES for i in range(N)]
    for note in notes:
        (folder / note).write_bytes(b"\0\5\x16\7")
    found = scan(folder)
    assert (found.hash, found.left_out) == (wanted.hash, {})
    assert sorted(found.passed_over) == sorted(notes)
    flat = scan_flat(folder / "dog")
    assert flat.passed_over == tuple(f"._{i}.jpg" for i in range(N))


@pytest.mark.parametrize("target", [".", "..", "../..", "../cat", "deep/.."])
@pytest.mark.parametrize("absolute", [False, True])
def test_a_link_to_a_folder_that_it_lies_in_adds_nothing(
    folder: Path, target: str, absolute: bool
) -> None:
    (folder / "cat" / "deep").mkdir()
    photograph().save(folder / "cat" / "deep" / "9.jpg")
    wanted = scan(folder).paths
    place = folder / "cat" / "deep" if "deep" not in target else folder / "cat"
    for name in ("a", "z"):
        os.symlink((place / target).resolve() if absolute else target, place / name)
    assert scan(folder).paths == wanted


def test_a_folder_counts_once_and_under_its_own_name(folder: Path) -> None:
    real = folder / "cat" / "real"
    real.mkdir()
    photograph().save(real / "9.jpg")
    for name in ("a", "z"):
        os.symlink("real", folder / "cat" / name)
    outside = folder.parent / "outside"
    outside.mkdir()
    photograph().save(outside / "8.jpg")
    for name in ("out", "out2"):
        os.symlink(outside, folder / "cat" / name)
    deep = folder / "cat" / "real" / "deep"
    deep.mkdir()
    photograph().save(deep / "7.jpg")
    os.symlink("real/deep", folder / "cat" / "b")
    below = [path for path in scan(folder).paths if path.count("/") > 1]
    assert below == ["cat/out/8.jpg", "cat/real/9.jpg", "cat/real/deep/7.jpg"]


def test_a_link_to_another_class_or_up_is_no_class_and_no_part_of_one(folder: Path) -> None:
    wanted = scan(folder)
    os.symlink("../dog", folder / "cat" / "dogs")
    os.symlink(".", folder / "all")
    os.symlink("..", folder / "up")
    found = scan(folder)
    assert (found.classes, found.paths, found.hash) == (CLASSES, wanted.paths, wanted.hash)
    assert found.passed_over == ("all", "up")


def test_a_path_through_a_link_and_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = folder.parent / "elsewhere" / "deep"
    elsewhere.mkdir(parents=True)
    os.symlink(folder.parent, elsewhere / "project")
    os.mkdir(folder / "inner")
    os.rmdir(folder / "inner")
    monkeypatch.chdir(elsewhere)
    os.symlink(folder, elsewhere / "link")
    assert scan("link/../train").paths == scan(folder).paths


def test_a_class_may_itself_be_a_link(folder: Path) -> None:
    os.rename(folder / "dog", folder.parent / "dogs")
    os.symlink(folder.parent / "dogs", folder / "dog")
    os.symlink(folder.parent / "dogs", folder.parent / "dogs" / "again")
    assert scan(folder).classes == CLASSES
    assert len(scan(folder)) == 2 * N


def test_folders_may_be_nested_as_deep_as_a_disk_allows(tmp_path: Path) -> None:
    path = tmp_path / "train" / "cat"
    path.mkdir(parents=True)
    here = os.getcwd()
    try:
        os.chdir(path)
        for _ in range(600):
            os.mkdir("d")
            os.chdir("d")
        photograph().save("x.jpg")
    finally:
        os.chdir(here)
    assert len(list_files([str(path)]).names) == 1


def test_a_class_without_a_usable_image_is_named(folder: Path) -> None:
    index = scan(folder)
    index.require_classes()
    dogs = {int(i): "broken" for i in index.usable[index.targets == 1]}
    left = index.without(dogs)
    left.require("skip")
    with pytest.raises(UserError, match="class dog has no image that can be used"):
        left.require_classes()


def test_a_flat_folder_may_link_to_the_one_beside_it(folder: Path) -> None:
    os.symlink("../dog", folder / "cat" / "dogs")
    assert len(scan_flat(folder / "cat").paths) == 2 * N
