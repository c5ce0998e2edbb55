"""A progress bar for passes over many files, on terminals only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.console import Console

MIN_FILES = 2000  # a smaller pass is over before a bar could be read

T = TypeVar("T")


def tracked(items: Iterable[T], title: str, total: int) -> Iterable[T]:
    """The items, with a bar on stderr that vanishes at the end; with none where rich is missing."""
    console = _terminal()
    if console is None:
        return items
    from rich.progress import track

    return track(items, title, total, console=console, transient=True)


def shows_bars() -> bool:
    """Whether stderr is a terminal that `tracked` shows bars on."""
    return _terminal() is not None


def _terminal() -> Console | None:
    try:
        from rich.console import Console
    except ModuleNotFoundError:
        return None
    console = Console(stderr=True)
    return console if console.is_terminal else None
