"""Long checks of the pipelines: `make test-slow`."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from fastsc.pipelines import build, scan
from tests.pipelines.conftest import broken_files, odd_files, undecodable

pytestmark = pytest.mark.slow

EPOCHS = """
import sys
from fastsc.pipelines import build
named = []
loader = build(sys.argv[1], sys.argv[2], batch_size=8, resolution=48, seed=int(sys.argv[3]),
               workers=2, on_bad_image="skip", report=lambda bad: named.append(bad.path))
for epoch in range(5):
    loader.set_epoch(epoch)
    assert sum(len(batch.index) for batch in loader) == 8 * len(loader)
assert len(named) == len(set(named)) == 1, named
print("whole")
"""


@pytest.mark.parametrize("seed", range(10))
def test_broken_files_never_crash_the_interpreter(backend: str, folder: Path, seed: int) -> None:
    # In a process of its own, since what it looks for is a crash.
    for name, data in (broken_files() | odd_files()).items():
        (folder / "train" / "boat" / name).write_bytes(data)
    (folder / "train" / "boat" / "hole.png").write_bytes(undecodable())
    command = [sys.executable, "-c", EPOCHS, backend, str(folder / "train"), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stdout) == (0, "whole\n"), done.stderr


def test_memory_stays_level_over_many_epochs(backend: str, image_folder: Path) -> None:
    loader = build(backend, scan(image_folder / "train"), batch_size=8, resolution=224, workers=2)

    def epochs(n: int) -> int:
        for number in range(n):
            loader.set_epoch(number)
            for _ in loader:
                pass
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB, the highest so far

    before = epochs(20)
    grown = epochs(150) - before
    loader.close()
    # One leaked batch of two float32 views an epoch would be 1.4 GB.
    assert grown < 50_000, f"{grown} KiB more after 150 epochs"
