"""What a killed process leaves behind goes with the next one; what is at work stays."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fastsc.cli import leftovers
from fastsc.cli.leftovers import claimed, in_use, remove_stale


def test_only_what_nobody_uses_is_removed(tmp_path: Path) -> None:
    used, stale, folder = tmp_path / "used", tmp_path / "stale", tmp_path / "folder"
    used.touch()
    stale.touch()
    (folder / "in").mkdir(parents=True)
    (tmp_path / "link").symlink_to(used)
    with in_use(used):
        remove_stale([used, stale, folder, tmp_path / "link", tmp_path / "absent"])
    assert {path.name for path in tmp_path.iterdir()} == {"used", "link"}
    remove_stale([used])
    assert not used.exists()


@pytest.mark.parametrize("folder", [False, True])
def test_what_is_claimed_takes_the_place_of_what_was_left(tmp_path: Path, folder: bool) -> None:
    mine, stale = tmp_path / ".a[1].11.part", tmp_path / ".a[1].12.part"
    used, other = tmp_path / ".a[1].13.part", tmp_path / ".a1.14.part"
    for path in (stale, used, other):
        path.mkdir() if folder else path.touch()
    with in_use(used), claimed(mine, folder=folder):
        assert {path.name for path in tmp_path.iterdir()} == {mine.name, used.name, other.name}
        remove_stale([mine])
        assert mine.is_dir() == folder
        assert mine.exists()
    remove_stale([mine])
    assert not mine.exists()


def test_what_is_taken_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, locked, times = tmp_path / ".a.11.part", leftovers._locked, []

    def taken_first(path: Path) -> int:
        times.append(path)
        if len(times) == 1:
            path.unlink()  # before it is opened
        file = locked(path)
        if len(times) == 2:
            path.unlink()  # before it is locked, and made again by somebody else
            path.touch()
        return file

    monkeypatch.setattr(leftovers, "_locked", taken_first)
    with claimed(path):
        assert len(times) == 3
        assert path.exists()


def test_an_error_within_a_claim_is_the_callers(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), claimed(tmp_path / ".a.11.part"):
        os.stat(tmp_path / "absent")
    with pytest.raises(FileNotFoundError), claimed(tmp_path / "absent" / ".a.11.part"):
        pass
