"""The user's cache of header scans: one small file a folder, replaced when the folder changes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsc.pipelines.errors import UserError
from fastsc.pipelines.fields import Fields
from fastsc.pipelines.headers import Header
from fastsc.pipelines.reading import MAX_JSON, blamed, load_arrays, parse_json

MAX_BYTES_EACH = 1024  # of a file's row in the table, with the reason why it was left out
_FORMAT = "4"  # part of the key: raise it when a check in headers.py changes


@dataclass(frozen=True, eq=False)
class Table:
    """What a scan found: (n,) int32 heights and widths, why files were left out, and Pillow's."""

    heights: NDArray[np.int32]
    widths: NDArray[np.int32]
    reasons: dict[int, str]
    by_pillow: frozenset[int]

    @classmethod
    def of(cls, headers: list[Header]) -> Table:
        """The columns of a list of headers."""
        return cls(
            np.array([h.height for h in headers], np.int32),
            np.array([h.width for h in headers], np.int32),
            {i: h.reason for i, h in enumerate(headers) if h.reason is not None},
            frozenset(i for i, h in enumerate(headers) if h.by_pillow),
        )


def folder() -> Path:
    """$FASTSC_CACHE_DIR, else fastsc in the user's cache directory ($XDG_CACHE_HOME, ~/.cache).

    Raises:
        RuntimeError: The user has no home.
    """
    if named := os.environ.get("FASTSC_CACHE_DIR"):
        return Path(named)
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "fastsc"


def _file(kind: str, root: Path) -> Path:
    return folder() / f"{kind}-{hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:24]}.npz"


def load(root: Path, key: str, n: int) -> Table | None:
    """The cached table of a folder's n files; None where there is none for its present state."""
    try:
        with blamed("the cache"):
            stored = load_stored("index", root, key, MAX_BYTES_EACH * n + MAX_JSON)
            return None if stored is None else _checked(stored, n)
    except UserError:
        return None  # absent, damaged or of another format: the scan makes it again


def load_stored(kind: str, root: Path, key: str, most: int) -> dict[str, NDArray[Any]] | None:
    """What `store_arrays` kept; None where it is of another state.

    most: Bytes that the arrays may have.

    Raises:
        UserError: There is nothing, or it is damaged.
    """
    with blamed("the cache"):
        path = _file(kind, root)
        stored = load_arrays(path, str(path), most)
        return stored if str(stored["key"]) == _FORMAT + key else None


def _checked(stored: dict[str, NDArray[Any]], n: int) -> Table:
    """The table, if it is one of n files; else whatever its values lead to."""
    reasons = Fields(parse_json(str(stored["reasons"]), "reasons"), "reasons")
    table = Table(
        stored["heights"],
        stored["widths"],
        {int(i): reasons.text(i) for i in reasons.values},
        frozenset(stored["by_pillow"].tolist()),
    )
    for column in (table.heights, table.widths):
        if column.shape != (n,) or column.dtype != np.int32 or column.min(initial=0) < 0:
            raise ValueError("sizes of other files")
    if not all(0 <= i < n for i in (*table.reasons, *table.by_pillow)):
        raise ValueError("other files")
    return table


def store(root: Path, key: str, table: Table) -> None:
    """Writes the table of a folder."""
    store_arrays(
        "index",
        root,
        key,
        heights=table.heights,
        widths=table.widths,
        reasons=np.array(json.dumps(table.reasons)),
        by_pillow=np.array(sorted(table.by_pillow), np.int64),
    )


def store_arrays(kind: str, root: Path, key: str, **arrays: NDArray[Any]) -> None:
    """Writes arrays; a cache that cannot be written costs the next run a scan."""
    with contextlib.suppress(OSError, RuntimeError):  # no room, or a user without a home
        folder().mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder(), suffix=".tmp", delete=False) as file:
            try:
                np.savez_compressed(file, allow_pickle=False, key=np.array(_FORMAT + key), **arrays)
                file.flush()
                os.fsync(file.fileno())
                os.replace(file.name, _file(kind, root))
            except BaseException:
                os.unlink(file.name)
                raise
