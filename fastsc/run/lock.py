"""One run at a time in a folder."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fastsc.errors import UserError
from fastsc.run.log import read_log

_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


@contextmanager
def locked(log: Path, *, patience: float = 0.0) -> Iterator[None]:
    """Within the context no other process, on any machine that shares the disk, gets this lock.

    It lies on the run's log, which is there as long as the run is; the kernel drops it when the
    process dies, however it does.

    Args:
        log: Made empty where it is not there.
        patience: Seconds to wait for one that is on its way out, as a restarted job's first life
            may be on another machine.

    Raises:
        UserError: Another run holds it; or the folder takes no files.
    """
    until = time.monotonic() + patience
    while (file := _taken(log)) is None:
        if time.monotonic() >= until:
            raise UserError(
                f"--out {log.parent}: another run is at work there{_holder(log)}; wait for its "
                "end, or name another folder"
            )
        time.sleep(0.2)
    try:
        yield
    finally:
        os.close(file)


def _taken(log: Path) -> int | None:
    """The log's file with the lock on it; None where another holds that."""
    try:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError as error:
        raise UserError(f"{log} cannot be written: {error.strerror}") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            os.close(file)
            raise UserError(f"{log} cannot be locked: {error.strerror}") from None
        # Some cluster file systems have no locks: then nobody can be kept out.
    with suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(file), os.stat(log)):
            return file
    os.close(file)  # of a run that failed to begin, and took its files away in the meantime
    return None


def _holder(log: Path) -> str:
    """Which process the log names as the one that writes it."""
    for event in reversed(read_log(log)):
        if process := event.get("process") or event.get("changed", {}).get("process"):
            return f" (process {process['pid']} on {process['host']})"
    return ""
