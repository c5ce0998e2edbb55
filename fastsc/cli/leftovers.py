"""Temporary files that a killed process left: the next one of its kind removes them."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path

from fastsc.errors import UserError

LOCK = ".lock"  # of `lock.locked`, which a killed process leaves
TRIES = 10


@contextmanager
def claimed(path: Path, *, folder: bool = False) -> Iterator[None]:
    """Makes a temporary file or folder, which is `in_use` within the context; who makes it ends it.

    Those of the same name that killed processes left are removed.

    Args:
        path: .NAME.PID.SUFFIX, in a folder that is there.
        folder: What is made.

    Raises:
        OSError: It cannot be made.
    """
    file = _made(path, folder)
    try:
        stem, _, suffix = path.name.rsplit(".", 2)
        remove_stale(path.parent.glob(f"{escape(stem)}.*.{suffix}"))
        yield
    finally:
        os.close(file)


def _made(path: Path, folder: bool) -> int:
    """The descriptor of a new file or folder, locked."""
    for _ in range(TRIES):
        path.mkdir() if folder else path.touch()
        with suppress(FileNotFoundError):  # who removes what is stale took it before the lock
            file = _locked(path)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file), path.stat()):
                    return file
            os.close(file)
    raise OSError(errno.EBUSY, "another process removes it again and again", str(path))


@contextmanager
def in_use(path: Path) -> Iterator[None]:
    """Within the context `remove_stale` of another process leaves a file or a folder alone.

    The kernel drops the lock when the process dies, however it does, and on a disk without locks
    nothing is ever taken for stale.
    """
    file = _locked(path)
    try:
        yield
    finally:
        os.close(file)


def _locked(path: Path) -> int:
    file = os.open(path, os.O_RDONLY)
    with suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return file


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


def require_free(out: Path, *, but: Collection[str] = ()) -> None:
    """Raises UserError where something is in a folder that is to be made, `but` these names."""
    if out.name in ("", "..") or out.resolve() == Path.cwd():
        raise UserError(f"--out {out}: is where you are, or above; name a folder in it")
    try:
        if out.is_symlink() or (out.exists() and not out.is_dir()):
            raise UserError(f"--out {out}: is no folder; name another")
        if out.is_dir() and any(path.name not in but for path in out.iterdir()):
            raise UserError(f"--out {out}: is not empty; name another folder")
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"--out {out}: cannot be written ({reason})") from None
