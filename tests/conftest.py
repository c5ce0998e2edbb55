"""Fixtures for all tests: an ImageFolder made here, and no trace left in the user's cache."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

# Small tensors: more threads cost more than they bring, and tests share the machine. OpenMP and
# each OpenBLAS (NumPy's, SciPy's) read it once, when they are loaded.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pytest
from PIL import Image

from tests.forked import ForkedPopen

FAULTS = pytest.StashKey["FaultTable"]()
CLASSES = ("apple", "boat", "cloud", "door")
TRAIN_PER_CLASS = 8
VAL_PER_CLASS = 3


@pytest.fixture(scope="module")
def forked() -> Iterator[None]:
    """Python processes of a module's tests are forked, not started: see `tests.forked`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("subprocess.Popen", ForkedPopen)
        yield


@pytest.fixture
def started(forked: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """But not those of this test."""
    monkeypatch.setattr("subprocess.Popen", ForkedPopen.__base__)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures of a page are painted, and then left blank: to write one takes 0.2 s."""
    blank = '<svg viewBox="0 0 9 9"></svg>'
    for module in ("inline", "sheet"):
        monkeypatch.setattr(f"fastsc.plotting.{module}.text_of", lambda figure: blank)


@pytest.fixture
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """An evaluation's page, which takes longer than all else, is left out: the test is of that."""
    monkeypatch.setattr("fastsc.evaluation.run.write_report", lambda path, evaluation: None)


@pytest.fixture(scope="session", autouse=True)
def no_notice() -> Iterator[None]:
    """Whichever test compiles first, its stderr has no word of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastsc.kernels.jit._Notice.given", True)
        yield


@pytest.fixture(scope="session", autouse=True)
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The index cache of the tests and of every process that they start."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTSC_CACHE_DIR", str(folder))
        yield folder


class FaultTable:
    """What faults did to commands: a row each, printed when all tests are over."""

    HEADINGS = ("fault", "when", "exit", "went on from", "result")

    def __init__(self) -> None:
        self.rows: list[tuple[str, ...]] = []

    def add(self, fault: str, when: str, status: object, resumed: str, equal: bool) -> None:
        """status: the struck process's exit. equal: its last results, with the unstruck one's."""
        same = "equal, bit for bit" if equal else "DIFFER"
        self.rows.append((fault, when, str(status), resumed, same))


def pytest_configure(config: pytest.Config) -> None:
    config.stash[FAULTS] = FaultTable()


def pytest_collection_finish() -> None:
    """What is imported now lives to the end, and no collection of garbage looks at it again."""
    gc.freeze()


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """The table of faults, if a test wrote into it."""
    rows = config.stash[FAULTS].rows
    if not rows:
        return
    lines = [FaultTable.HEADINGS, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    terminalreporter.section(f"{len(rows)} processes that a fault struck")
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        terminalreporter.write_line("  ".join(cells).rstrip())


@pytest.fixture(scope="session")
def fault_table(pytestconfig: pytest.Config) -> FaultTable:
    return pytestconfig.stash[FAULTS]


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ROOT/{train,val}/CLASS/*.jpg: 4 classes, 8 and 3 images of 60 to 200 px a side, one grey.

    Shared by the whole session: a test that changes files copies the folder first.
    """
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(20201109)
    for split, per_class in (("train", TRAIN_PER_CLASS), ("val", VAL_PER_CLASS)):
        for label, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(per_class):
                image = smooth_image(rng, label)
                if (split, label, i) == ("train", 1, 2):
                    image = image.convert("L")
                image.save(folder / f"{i:02d}.jpg", quality=90)
    return root


@pytest.fixture(scope="session")
def beton_folder(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shared folder's images as train.beton and val.beton."""
    from fastsc import prepare

    out = tmp_path_factory.mktemp("betons")
    assert prepare.main(["beton", "--data", str(image_folder), "--out", str(out)]) == 0
    return out


def smooth_image(rng: np.random.Generator, label: int) -> Image.Image:
    """Coarse noise, upsampled: as smooth as a photograph, in a class's own color."""
    width, height = (int(side) for side in rng.integers(60, 201, size=2))
    coarse = rng.integers(0, 160, size=(5, 5, 3))
    coarse[..., label % 3] += 40 + 55 * (label // 3)
    return Image.fromarray(coarse.astype(np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
