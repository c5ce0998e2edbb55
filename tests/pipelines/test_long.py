"""Long checks of the pipelines: `make test-slow`."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from fastsc.pipelines import build
from tests.pipelines.conftest import broken_files, odd_files, opened, with_holes

pytestmark = [pytest.mark.slow, pytest.mark.heavy]

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
    index = with_holes(backend, folder / "train", "boat/hole.png")
    command = [sys.executable, "-c", EPOCHS, backend, str(index.root), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stdout) == (0, "whole\n"), done.stderr


PAGE_KIB = resource.getpagesize() // 1024


def resident() -> int:
    """KiB of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_KIB


def test_memory_stays_level_over_many_epochs(
    backend: str, image_folder: Path, tmp_path: Path
) -> None:
    index = opened(backend, image_folder / "train", tmp_path)
    loader = build(backend, index, batch_size=8, resolution=224, workers=2)
    sizes = []
    for number in range(120):
        loader.set_epoch(number)
        for _ in loader:
            pass
        sizes.append(resident())
    loader.close()
    # Batches of files differ in size, and a larger one may be first in a late epoch. One leaked
    # batch of two float32 views an epoch would be 1.1 GB in all, one of bytes 130 MB.
    grown = max(sizes[60:]) - max(sizes[:20])
    assert grown < 20_000, f"{grown} KiB more than in the first 20 epochs"
