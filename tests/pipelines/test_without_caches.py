"""A user without a home, and an installation that nobody can write to: all runs, uncached."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fastsc.pipelines import build, cache, scan

# numba, where neither the installation nor the home can be written.
NOWHERE = """
import numba
njit = numba.njit
def uncached(*args, cache=False, **options):
    if cache:
        raise RuntimeError("cannot cache function: no locator available")
    return njit(*args, **options)
numba.njit = uncached
from fastsc.pipelines import build
loader = build({name!r}, {folder!r}, batch_size=4, resolution=32, workers=1)
batch = next(iter(loader))
print(tuple(batch.clean.shape))
loader.close()
"""


@pytest.mark.parametrize("name", ["cpu", "memory"])
def test_where_numba_cannot_cache(name: str, image_folder: Path) -> None:
    code = NOWHERE.format(name=name, folder=str(image_folder / "train"))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(4, 3, 32, 32)"


def test_a_user_without_a_home(image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = scan(image_folder / "train")

    def none() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("FASTSC_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(cache.Path, "home", none)
    with pytest.raises(RuntimeError, match="home"):
        cache.folder()
    found = scan(image_folder / "train")
    assert found.hash == wanted.hash
    assert np.array_equal(found.heights, wanted.heights)
    loader = build("cpu", found, batch_size=4, resolution=32, workers=1)
    assert next(iter(loader)).clean.shape == (4, 3, 32, 32)
    loader.close()
