"""numba's njit as everything here is compiled with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit


def jit(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """njit without the GIL, with numpy's division, cached where a folder for that can be written.

    options: More of njit's.
    """
    options = {"nogil": True, "error_model": "numpy", **options}

    def decorate(function: Callable[..., Any]) -> Any:
        try:
            return njit(cache=True, **options)(function)
        except RuntimeError:  # no writable folder for the cache: compile anew in every process
            return njit(**options)(function)

    return decorate
