"""Nothing compiled yet, no home, an installation that nobody can write to: all runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest

from fastsc.kernels.jit import NOTICE, jit
from fastsc.pipelines import build, cache, scan
from tests.forked import ForkedPopen
from tests.pipelines.conftest import DALI, FFCV, opened

pytestmark = pytest.mark.heavy

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


def test_a_loop_that_numba_cannot_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def uncached(*, cache: bool = False, **options: Any) -> Any:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return numba.njit(**options)

    monkeypatch.setattr("fastsc.kernels.jit.njit", uncached)

    @jit()
    def ratio(x: int, y: float) -> float:
        return x / y

    assert ratio(1, 2.0) == 0.5
    assert ratio(1, 0.0) == np.inf  # numpy's division, as ever


@pytest.mark.slow
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


# Prints the functions that are compiled once the loader is built.
FIRST_BATCHES = """
import sys
from numba.core import event
from fastsc.pipelines import build, open_beton, scan
name, data = sys.argv[1:]
index = open_beton(data) if name == "ffcv" else scan(data)
late = []
class Listener(event.Listener):
    def on_start(self, event):
        late.append(str(event.data["dispatcher"].py_func))
    def on_end(self, event):
        pass
for options in ({}, {"train": False}, {"crop": "pad", "paired_fraction": 0.5}):
    loader = build(name, index, batch_size=4, resolution=32, workers=1, **options)
    with event.install_listener("numba:compile", Listener()):
        next(iter(loader))
    loader.close()
print(late)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", [DALI, "cpu", FFCV, "memory"])
def test_a_pipeline_compiles_before_its_first_batch(
    name: str, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = opened(name, image_folder / "train", tmp_path).root
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "compiled"))
    for notices in (1, 0):
        done = subprocess.run(
            [sys.executable, "-c", FIRST_BATCHES, name, str(data)],
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == "[]"
        assert done.stderr.splitlines().count(NOTICE) == notices


ONE = """
import sys, numba
numba.config.CACHE_DIR = {cache!r}
sys.path.insert(0, {folder!r})
if {closed}:
    sys.stderr = None
from one import one, two
print(one(1), one(1.5), two(2))
"""


@pytest.mark.parametrize("closed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_compiling_is_said_once_and_only_where_it_is_done(
    closed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loops = "from fastsc.kernels.jit import jit\n@jit()\ndef {0}(x):\n    return x + {1}\n"
    (tmp_path / "one.py").write_text(loops.format("one", 1) + loops.format("two", 2))
    monkeypatch.setattr("subprocess.Popen", ForkedPopen)
    code = ONE.format(cache=str(tmp_path / "compiled"), folder=str(tmp_path), closed=closed)
    for notices in (1, 0):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=110, check=False
        )
        assert done.stdout == "2 2.5 4\n", done.stderr
        assert done.stderr.splitlines() == ([] if closed else [NOTICE] * notices)
