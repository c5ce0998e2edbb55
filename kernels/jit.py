"""numba's njit as everything here is compiled with it, and a word when it compiles."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from numba import njit
from numba.core import event

NOTICE = "compiling for this machine (numba), once; it may take a minute"


def jit(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """njit without the GIL, with numpy's division, cached where a folder for that can be written.

    options: More of njit's.
    """
    options = {"nogil": True, "error_model": "numpy", **options}

    def decorate(function: Callable[..., Any]) -> Any:
        _ours.add(function)
        try:
            return njit(cache=True, **options)(function)
        except RuntimeError:  # no writable folder for the cache: compile anew in every process
            return njit(**options)(function)

    return decorate


class _Notice(event.Listener):
    """One line on stderr before the first of our functions is compiled in this process.

    What comes out of the cache raises no event.
    """

    given = False

    def on_start(self, event: Any) -> None:
        if not self.given and event.data["dispatcher"].py_func in _ours:
            self.given = True
            with suppress(OSError, ValueError, AttributeError):  # nobody reads stderr, or none is
                sys.stderr.write(f"{NOTICE}\n")

    def on_end(self, event: Any) -> None:
        pass


_ours: set[Callable[..., Any]] = set()
event.register("numba:compile", _Notice())
