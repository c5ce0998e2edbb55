"""Packages that fastsc can do without: imported where used, or an error says what to install."""

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


def needed(package: str, what: str, extra: str | None = None) -> None:
    """Raises UserError where `what` cannot go on for want of a package, or of an extra of ours."""
    if not installed(package):
        wanted = package if extra is None else f"-e '.[{extra}]'"
        raise UserError(f"{what} needs {package}: pip install {wanted}")
