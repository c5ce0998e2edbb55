"""A progress bar for passes over many files, on terminals only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

MIN_FILES = 2000  # a smaller pass is over before a bar could be read

T = TypeVar("T")


def tracked(items: Iterable[T], title: str, total: int) -> Iterable[T]:
    """The items, with a bar on stderr that vanishes at the end; with none where rich is missing."""
    try:
        from rich.console import Console
        from rich.progress import track
    except ModuleNotFoundError:
        return items
    console = Console(stderr=True)
    if not console.is_terminal:
        return items
    return track(items, title, total, console=console, transient=True)
