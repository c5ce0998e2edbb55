"""Temporary files that a killed process left behind: the next one of its kind removes them."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def in_use(path: Path) -> Iterator[None]:
    """Within the context `remove_stale` of another process leaves a file or a folder alone.

    The kernel drops the lock when the process dies, however it does, and on a disk without locks
    nothing is ever taken for stale.
    """
    file = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(file)


def remove_stale(paths: Iterable[Path]) -> None:
    """Removes this user's files and folders among them that no process has `in_use`."""
    for path in paths:
        with suppress(OSError):  # another user's, or another process was first
            if path.is_symlink() or path.stat().st_uid != os.getuid():
                continue
            file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink()
            finally:
                os.close(file)
