"""Files that somebody else wrote: what is no file, too large or broken is one line that names it.

Every reader of text, JSON and arrays goes through here, so that no parser's own exception and no
size that a file claims reaches a command. `fields.Fields` checks what was parsed.
"""

from __future__ import annotations

import io
import json
import math
import os
import stat
import zipfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from fastsc.pipelines.disk import doing, without_waiting
from fastsc.pipelines.errors import UserError, first_line

MAX_TEXT = 2**20  # bytes of a file that a person writes: a recipe, a study, a class map
MAX_JSON = 2**26  # bytes of one that fastsc writes
MAX_DEPTH = 64  # lists and objects in each other
NO_FILE = "not a regular file (a pipe, a device, a socket or a folder)"


@contextmanager
def blamed(place: str) -> Iterator[None]:
    """Within the context, every exception that a file's content leads to is a UserError.

    place: The file, and where in it: what the line begins with.
    """
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{place} cannot be read: {error.strerror or first_line(error)}") from None
    except Exception as error:  # noqa: BLE001, what a parser raises depends on the bytes
        raise UserError(f"{place}: {reason(error)}") from None


def reason(error: BaseException) -> str:
    """What an exception says to somebody who does not know the code, without a line break."""
    match error:
        case UnicodeDecodeError():
            return "not a text file"
        case RecursionError():
            return "nested too deeply"
        case MemoryError():
            return "what it claims to hold does not fit into memory"
        case KeyError():
            return f"has no {error}"
        case ValueError() if "integer string conversion" in str(error):
            return "a number of too many digits"
        case _:
            return first_line(error)


def is_file(path: str | os.PathLike[str]) -> bool:
    """Whether a regular file is there; an unreadable folder above it counts as none."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


def require_file_or_nothing(path: Path) -> None:
    """Raises UserError where something lies there that would be waited for, or is a folder."""
    if os.path.lexists(path) and path.exists() and not is_file(path):
        raise UserError(f"{path}: {NO_FILE}; remove it")


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """A regular file, opened for reading; a pipe without a writer is not waited for.

    Raises:
        OSError: It cannot be opened, or is something else.
    """
    file = open(path, "rb", opener=without_waiting)  # noqa: SIM115, the caller closes it
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(0, NO_FILE, os.fspath(path))
    return file


def read_bytes(path: Path, place: str, most: int = MAX_TEXT) -> bytes:
    """A file's content.

    Args:
        path: The file.
        place: What a UserError calls it.
        most: Bytes that it may have.

    Raises:
        UserError: It cannot be read, is no regular file, or is larger.
    """
    with blamed(place), doing(f"reading {path}"), open_file(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise UserError(f"{place}: more than {most / 2**20:g} MB, which no such file has")
    return content


def read_text(path: Path, place: str, most: int = MAX_TEXT) -> str:
    """A UTF-8 file's content; arguments and errors are those of `read_bytes`."""
    content = read_bytes(path, place, most)
    with blamed(place):
        return content.decode("utf-8")


def read_json(path: Path, place: str, most: int = MAX_JSON) -> Any:
    """The value in a JSON file; arguments and errors are those of `read_bytes`."""
    return parse_json(read_bytes(path, place, most), place)


def parse_json(text: str | bytes, place: str) -> Any:
    """The value of a JSON text.

    Raises:
        UserError: It is none, holds NaN or the same key twice, or is nested beyond MAX_DEPTH.
    """
    with blamed(f"{place}: not JSON"):
        value = json.loads(text, parse_constant=_no_number, object_pairs_hook=_unlike)
        _check_depth(text, value)
    return value


def parse_line(line: str | bytes) -> dict[str, Any] | None:
    """The object in a line of JSON, with null for NaN; None where there is none."""
    try:
        value = json.loads(line, parse_constant=lambda _: None)
        _check_depth(line, value)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def finite(value: Any) -> Any:
    """A value for JSON, which has neither NaN nor infinity: they are null in it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value


def _no_number(word: str) -> float:
    raise ValueError(f"{word} is no number")


def _unlike(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"{twice!r} is given twice")
    return values


def _check_depth(text: str | bytes, value: Any) -> None:
    """Raises RecursionError where a reader that calls itself a level would come to its limit."""
    data = text if isinstance(text, bytes) else text.encode("utf-8", "replace")
    if data.count(b"[") + data.count(b"{") <= MAX_DEPTH:
        return
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [item for outer in level for item in _inside(outer)]
        if not level:
            return
    raise RecursionError


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def load_arrays(
    file: BinaryIO | str | os.PathLike[str],
    place: str,
    most: int,
    only: Collection[str] | None = None,
) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz, without pickles.

    Args:
        file: It, or its path.
        place: What a UserError calls it.
        most: Bytes that all arrays together may have: a small archive can claim any size.
        only: The names of those that are read; None: all.

    Raises:
        UserError: It is no such archive, or its arrays are larger.
    """
    with blamed(place), doing(f"reading {place}"):
        opened = open_file(file) if isinstance(file, (str, os.PathLike)) else file
        with opened, zipfile.ZipFile(opened) as archive:
            claimed = sum(entry.file_size for entry in archive.infolist())
            if claimed > most:
                raise ValueError(f"its arrays take {claimed:,} bytes, and {most:,} at most")
            names = {name.removesuffix(".npy"): name for name in archive.namelist()}
            wanted = names if only is None else [name for name in names if name in only]
            return {name: _array(archive.read(names[name])) for name in wanted}


def _array(content: bytes) -> NDArray[Any]:
    array: NDArray[Any] = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    return array
