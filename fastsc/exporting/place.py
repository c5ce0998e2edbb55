"""A file or a folder that is made next to its place and gets its name when it is whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fastsc.cli.leftovers import claimed
from fastsc.errors import UserError
from fastsc.pipelines.disk import doing


@contextmanager
def made_whole(target: Path, *, folder: bool) -> Iterator[Path]:
    """Yields a path to write; at the end of the context it becomes `target`.

    Whatever fails, nothing of it stays: neither the path nor folders that were made for it. What
    appeared at the target's place in the meantime stays.

    Raises:
        UserError: The disk does not take it, or something is there.
    """
    place = target.absolute()
    made = [parent for parent in place.parents if not parent.exists()]
    work = place.with_name(f".{place.name}.{os.getpid()}.part")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with claimed(work, folder=True):
            part = work / place.name
            if folder:
                part.mkdir()
            yield part
            with doing(f"writing {target}"):
                for file in part.iterdir() if folder else [part]:
                    _sync(file)
                _put(part, place)
    except BaseException as error:
        shutil.rmtree(work, ignore_errors=True)
        for parent in made:
            with suppress(OSError):
                parent.rmdir()
        if isinstance(error, OSError):
            raise UserError(f"{target} cannot be written: {error.strerror or error}") from None
        raise
    shutil.rmtree(work, ignore_errors=True)


def _sync(file: Path) -> None:
    handle = os.open(file, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _put(part: Path, place: Path) -> None:
    """Gives the part its name, if nothing has it."""
    if part.is_dir():
        part.rename(place)  # takes an empty folder's place, and no other
        return
    try:
        os.link(part, place)
    except FileExistsError:
        raise
    except OSError:  # a disk without hard links
        if place.exists():
            raise
        part.rename(place)
