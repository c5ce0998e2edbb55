"""What a killed process leaves behind goes with the next one; what is at work stays."""

from __future__ import annotations

from pathlib import Path

from fastsc.cli.leftovers import in_use, remove_stale


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
