"""A file or a folder that is made beside its place and gets its name when it is whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fastsc.cli.leftovers import claimed
from fastsc.errors import UserError


@contextmanager
def made_whole(target: Path, *, folder: bool) -> Iterator[Path]:
    """Yields a path to write; at the end of the context it becomes `target`.

    Whatever fails, nothing of it stays: neither the path nor folders that were made for it.

    Raises:
        UserError: The disk does not take it.
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
            os.rename(part, place) if folder else os.replace(part, place)
    except BaseException as error:
        shutil.rmtree(work, ignore_errors=True)
        for parent in made:
            with suppress(OSError):
                parent.rmdir()
        if isinstance(error, OSError):
            raise UserError(f"{target} cannot be written: {error.strerror or error}") from None
        raise
    shutil.rmtree(work, ignore_errors=True)
