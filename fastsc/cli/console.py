"""rich's console, where rich is installed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def open_console(*, soft_wrap: bool = False) -> Console | None:
    """On stdout, without colours for numbers; None where rich is missing.

    soft_wrap: Lines stay whole, however narrow the terminal.
    """
    try:
        from rich.console import Console
    except ModuleNotFoundError:
        return None
    return Console(highlight=False, soft_wrap=soft_wrap)
