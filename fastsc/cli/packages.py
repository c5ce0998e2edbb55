"""Packages that fastsc can do without: imported where they are used, or what to install is said."""

from __future__ import annotations

import importlib

from fastsc.errors import UserError


def installed(module: str) -> bool:
    """Whether a module can be imported; imports it."""
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True


def needed(package: str, what: str) -> None:
    """Raises UserError where `what` cannot go on for want of a package."""
    if not installed(package):
        raise UserError(f"{what} needs {package}: pip install {package}")
