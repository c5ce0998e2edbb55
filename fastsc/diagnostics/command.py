"""What `fastsc.doctor` does with the words of its command line."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from fastsc.cli.console import open_console, require_output, write_line
from fastsc.cli.parser import Parser
from fastsc.diagnostics.catalog import PROBES, Result
from fastsc.diagnostics.examine import examine
from fastsc.diagnostics.table import advice, show, to_json
from fastsc.errors import UserError
from fastsc.pipelines.disk import without_waiting

if TYPE_CHECKING:
    from rich.console import Console


def run(words: list[str]) -> int:
    """Tries everything and tells; 1 where something that fastsc cannot do without does not work."""
    parser = Parser(
        prog="python -m fastsc.doctor",
        description="Each backend and device: works, or why not and what to install.",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here, too")
    path: Path | None = parser.parse_args(words).json
    with nullcontext() if path is None else _writable(path):
        console, began = open_console(), time.monotonic()
        results = _examine_all(console)
        show(results, console)
        write_line("\n".join(["", *advice(results)]))
        if path is None:
            require_output()
        else:
            _write(path, to_json(results, time.monotonic() - began))
    return int(any(r.probe.needed and not r.works for r in results))


def _examine_all(console: Console | None) -> list[Result]:
    if console is None or not console.is_terminal:
        return examine(PROBES)
    from rich.progress import Progress

    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("trying", total=len(PROBES))
        return examine(PROBES, lambda _: bar.advance(task))


@contextmanager
def _writable(path: Path) -> Iterator[None]:
    """Raises UserError now rather than when all has been tried; keeps a pipe's reader."""
    new = not os.path.lexists(path)
    try:
        file = open(path, "ab", opener=without_waiting)  # noqa: SIM115, closed below
        if new:
            path.unlink()
    except OSError as error:
        raise UserError(f"--json {path} cannot be written: {error.strerror}") from None
    with file:
        yield


def _write(path: Path, text: str) -> None:
    try:
        with open(path, "w", encoding="utf-8", opener=without_waiting) as file:
            file.write(text)
    except OSError as error:
        raise UserError(f"--json {path} cannot be written: {error.strerror}") from None
