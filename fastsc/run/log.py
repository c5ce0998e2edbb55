"""A run's log.jsonl: one JSON object a line, each on disk as soon as it is known."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from fastsc.errors import UserError
from fastsc.pipelines.disk import doing
from fastsc.pipelines.reading import (
    blamed,
    finite,
    open_file,
    parse_line,
    require_file_or_nothing,
)
from fastsc.run.events import checked


class RunLog:
    """Appends to a JSONL file; first drops a last line that a crash tore.

    `dropped` is the number of characters that were removed, 0 for a whole log. Every line is
    given to the operating system at once, so that a killed process loses none, and a line for which
    the disk has no room leaves no half of it.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        require_file_or_nothing(self.path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.dropped = cut_torn_end(self.path, lambda line: parse_line(line) is not None)
            self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115, closed in close()
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}") from None

    def event(self, event: str, /, **fields: Any) -> None:
        """Write {"event": event, …fields}: NaN and infinity as null, tensors of one as numbers.

        Raises:
            UserError: The disk does not take it.
        """
        line = json.dumps({"event": event} | fields, default=_plain, allow_nan=True)
        if "NaN" in line or "Infinity" in line:  # rare, or a path that is called so
            line = json.dumps(finite(json.loads(line)), allow_nan=False)
        data = (line + "\n").encode("utf-8")
        try:
            with doing(f"writing {self.path}"):
                self._follow()
                end = self._file.seek(0, os.SEEK_END)
                if (n := self._file.write(data)) < len(data):
                    self._file.truncate(end)
            if n < len(data):
                raise OSError(0, f"{n} of {len(data)} bytes were written: the disk is full")
        except OSError as error:
            raise UserError(f"{self.path} cannot be written: {error.strerror}") from None

    def _follow(self) -> None:
        """Opens the file anew where it was moved away, as logrotate does."""
        try:
            same = os.path.samestat(os.fstat(self._file.fileno()), os.stat(self.path))
        except FileNotFoundError:
            same = False
        if not same:
            moved, self._file = self._file, open(self.path, "ab", buffering=0)  # noqa: SIM115
            moved.close()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def read_log(path: Path | str) -> list[dict[str, Any]]:
    """The events of a log, in order; lines that a crash tore are left out.

    Raises:
        UserError: It cannot be read, or an event is not as its readers rely on it.
    """
    with blamed(str(path)), open_file(path) as file:
        lines = file.read().split(b"\n")
    events = [(n, event) for n, line in enumerate(lines, 1) if (event := parse_line(line))]
    return [checked(event, f"{path}, line {n}") for n, event in events]


def _plain(value: Any) -> Any:
    """What json does not know: tensors and numpy values by their numbers, paths by their text."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{type(value).__name__} cannot be logged")


def cut_torn_end(path: Path, is_whole: Callable[[bytes], bool] = bool) -> int:
    """Cuts off what a crash left after a file's last whole line; how many bytes it was."""
    if not path.exists():
        return 0
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    # A machine that lost power may leave zeros, and a newline after them.
    while end:
        start = data.rfind(b"\n", 0, end - 1) + 1
        if is_whole(data[start:end]):
            break
        end = start
    if end < len(data):
        with open(path, "r+b") as file:
            file.truncate(end)
            os.fsync(file.fileno())
    return len(data) - end
