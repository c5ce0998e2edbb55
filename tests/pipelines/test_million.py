"""A million images: `make test-slow`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastsc.pipelines import index as index_module
from fastsc.pipelines import scan, shards, tar_walk
from fastsc.pipelines.headers import Header
from tests.pipelines.conftest import encoded, photograph

pytestmark = [pytest.mark.slow, pytest.mark.heavy]

N_CLASSES, FILES_A_CLASS = 1000, 1000

# VmRSS is what the imports left, VmHWM the highest since the process began.
LOAD = """
import re, sys, time
from pathlib import Path
from fastsc.pipelines import index, tar_walk

def mebibytes(name):
    status = Path("/proc/self/status").read_text()
    return int(re.search(name + r":\\s*(\\d+) kB", status)[1]) // 1024

index.read_header = tar_walk.members = None  # from the cache or not at all
before, start = mebibytes("VmRSS"), time.perf_counter()
found = index.scan(sys.argv[1])
seconds = time.perf_counter() - start
assert len(found) == 1_000_000 and (found.heights == 70).all()
print(mebibytes("VmHWM") - before, seconds)
"""


@pytest.fixture
def million(tmp_path: Path) -> Iterator[Path]:
    """A thousand links to an image in each of a thousand classes."""
    root, image = tmp_path / "train", encoded(photograph())
    for label in range(N_CLASSES):
        folder = root / f"n{label:08d}"
        folder.mkdir(parents=True)
        first = folder / f"{folder.name}_0.JPEG"  # one a class: a file has 65,000 links at most
        first.write_bytes(image)
        for i in range(1, FILES_A_CLASS):
            os.link(first, f"{folder}/{folder.name}_{i}.JPEG")
    yield root
    shutil.rmtree(root)  # pytest would keep it for three runs


@pytest.fixture
def million_in_tars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A thousand tars, of which nothing but the size is real, and what their headers would say."""
    root = tmp_path / "train"
    root.mkdir()
    for label in range(N_CLASSES):
        (root / f"{label:04d}.tar").touch()
        os.truncate(root / f"{label:04d}.tar", 1024 * FILES_A_CLASS)

    def walk(i: int, *_: object) -> tar_walk.Walked:
        walked = tar_walk.Walked()
        for k in range(FILES_A_CLASS):
            walked.names.append(f"n{k:08d}/n{k:08d}_{i}.JPEG")
            walked.shards.append(i)
            walked.offsets.append(1024 * k + 512)
            walked.sizes.append(500)
        return walked

    monkeypatch.setattr(shards, "walk", walk)
    return root


@pytest.mark.parametrize("kind", ["million", "million_in_tars"])
def test_a_million_images_load_from_the_cache(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    million: Path = request.getfixturevalue(kind)

    def read(files: list[tuple[str, int]], *_: object) -> list[Header]:
        return [Header(70, 90)] * len(files)  # reading them takes minutes

    with monkeypatch.context() as patch:
        patch.setattr(index_module, "_read_headers", read)
        scan(million)
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(million)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    grown, seconds = map(float, done.stdout.split())
    print(f"a million images: {seconds:.2f} s, {grown:.0f} MiB")  # noqa: T201, for the reader
    assert grown * 2**20 < 500e6
