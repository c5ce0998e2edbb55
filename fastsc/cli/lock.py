"""One command at a time in a folder that it writes."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fastsc.cli.leftovers import LOCK
from fastsc.errors import UserError
from fastsc.pipelines.disk import doing
from fastsc.pipelines.reading import require_file_or_nothing

_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
_HOLDER_BYTES = 1000


@contextmanager
def locked(folder: Path, *, patience: float = 0.0) -> Iterator[None]:
    """Within the context no other command, on any machine that shares the disk, works in a folder.

    A file of its own, which nobody rotates or edits, names the holder and is removed at the end;
    the kernel drops the lock when the process dies, however it does.

    Args:
        folder: Made where it is not there, and then removed at the end if it is still empty.
        patience: Seconds to wait for one that is on its way out, as a restarted job's first life
            may be on another machine.

    Raises:
        UserError: Another command holds it; or the folder takes no files.
    """
    with _made(folder):
        yield from _locked(folder, patience)


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    missing = [one for one in (folder, *folder.parents) if not os.path.exists(one)]
    try:
        try:
            with doing(f"making {folder}"):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--out {folder}: cannot be written ({error.strerror})") from None
        yield
    finally:
        for one in missing:
            with suppress(OSError):  # it holds something
                one.rmdir()


def _locked(folder: Path, patience: float) -> Iterator[None]:
    path, until = folder / LOCK, time.monotonic() + patience
    require_file_or_nothing(path)
    while (file := _taken(path)) is None:
        if time.monotonic() >= until:
            raise UserError(
                f"--out {folder}: another run is at work there{_holder(path)}; wait for its end, "
                "or name another folder"
            )
        time.sleep(0.2)
    try:
        yield
    finally:
        with suppress(OSError):  # while it is held: who opens it now finds that it is gone
            if _lies_at(path, file):
                path.unlink()
        os.close(file)


def _taken(path: Path) -> int | None:
    """The lock's file with the lock on it; None where another holds that."""
    try:
        with doing(f"writing {path}"):
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o644)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            os.close(file)
            raise UserError(f"{path} cannot be locked: {error.strerror}") from None
        # Some cluster file systems have no locks: then nobody can be kept out.
    if not _lies_at(path, file):
        os.close(file)  # of one that ended, and took its file away in the meantime
        return None
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "command": Path(sys.argv[0]).stem}
    with suppress(OSError):  # a full disk: then the holder has no name
        os.ftruncate(file, 0)
        os.write(file, json.dumps(holder).encode())
    return file


def _lies_at(path: Path, file: int) -> bool:
    with suppress(OSError):
        return os.path.samestat(os.fstat(file), os.stat(path))
    return False


def _holder(path: Path) -> str:
    """Which process the file names as the one that holds it."""
    try:
        with open(path, "rb") as file:
            holder = json.loads(file.read(_HOLDER_BYTES))
        return f" ({holder['command']}, process {holder['pid']} on {holder['host']})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""
