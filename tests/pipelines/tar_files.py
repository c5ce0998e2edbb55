"""Tars that tests make, by Python's tarfile."""

from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path

import pytest

from fastsc.pipelines.tar import Member, members
from tests.pipelines.conftest import (
    encoded,
    photograph,
)

PHOTO = encoded(photograph())
FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
GNU_TAR = pytest.mark.skipif(shutil.which("tar") is None, reason="there is no tar")


def write(path: Path, files: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> Path:
    """A tar of these files, by Python's tarfile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def walked(path: Path) -> list[Member]:
    with open(path, "rb") as file:
        return list(members(str(path), file.fileno(), path.stat().st_size))


def two_classes(n: int = 3) -> dict[str, bytes]:
    return {f"{name}/{i}.jpg": PHOTO for name in ("cat", "dog") for i in range(n)}
