"""A loader that gets nothing says which stage waits for what, and lets the program end."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from fastsc.pipelines import UserError, build, scan
from fastsc.pipelines.beton_writer import BetonOptions, write_beton
from fastsc.pipelines.errors import StalledError
from fastsc.pipelines.sweep import verify
from tests.pipelines.conftest import DALI, needs_dali, needs_ffcv, opened

pytestmark = [pytest.mark.usefixtures("forked"), pytest.mark.heavy]

# A pipe that nobody writes to stands for a mount that is gone. In a process of its own, since a
# thread that hangs must not keep it alive.
HANGING_READ = """
import os, sys
from fastsc.pipelines import UserError, build, scan
from fastsc.pipelines.beton_writer import BetonOptions, write_beton
from fastsc.pipelines.sweep import verify
index = scan(sys.argv[2])
for i in range(0, len(index), 4):
    os.unlink(index.path(i))
    os.mkfifo(index.path(i))
options = dict(batch_size=8, resolution=32, timeout=1, on_bad_image="skip")
loader = build(sys.argv[1], index, **options)
try:
    list(loader)
finally:
    loader.close()
"""


@pytest.mark.parametrize("name", [DALI, "cpu", "memory"])
def test_hanging_read_ends_the_program(folder: Path, name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HANGING_READ, name, str(folder / "train")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    said = "nothing for 1 s from" if name == "memory" else "no batch for 1 s: reading"
    assert f"StalledError: {said} " in last
    assert str(folder / "train") in last


def test_verify_does_not_wait_for_ever(folder: Path) -> None:
    index = scan(folder / "train")
    os.unlink(index.path(3))
    os.mkfifo(index.path(3))
    with pytest.raises(StalledError, match=r"nothing for 1 s from .*/apple/03\.jpg"):
        verify(index, timeout=1)


@needs_ffcv
@pytest.mark.parametrize("choice", ["raise", "skip"])
def test_beton_writer_does_not_wait_for_ever(
    folder: Path, monkeypatch: pytest.MonkeyPatch, choice: Any
) -> None:
    index = scan(folder / "train")
    os.unlink(index.path(3))
    os.mkfifo(index.path(3))
    monkeypatch.setattr("fastsc.pipelines.beton_writer.TIMEOUT", 1)
    with pytest.raises(UserError, match=r"nothing for 1 s from .*/apple/03\.jpg"):
        write_beton(index, folder / "x.beton", BetonOptions(), on_bad_image=choice)


@pytest.mark.parametrize(
    ("name", "function", "stage"),
    [
        ("cpu", "cpu.read_file", "reading"),
        ("cpu", "cpu.place", "resizing"),
        pytest.param("ffcv", "ffcv.fill", "reading, decoding or resizing", marks=needs_ffcv),
        ("memory", "cpu.place", "resizing"),
    ],
)
def test_hanging_stage_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, function: str, stage: str
) -> None:
    loader = build(name, opened(name, folder / "train"), batch_size=8, resolution=32, timeout=1)
    hanging = threading.Event()
    monkeypatch.setattr(f"fastsc.pipelines.{function}", lambda *_: hanging.wait(30))
    with pytest.raises(StalledError, match=rf"no batch for 1 s: {stage} .*\.jpg"):
        list(loader)
    hanging.set()
    loader.close()


def test_hanging_decoder_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loader: Any = build("cpu", folder / "train", batch_size=8, resolution=32, timeout=1)
    hanging = threading.Event()
    monkeypatch.setattr(loader, "_decode_region", lambda *_: hanging.wait(30))
    with pytest.raises(StalledError, match=r"no batch for 1 s: decoding .*\.jpg"):
        list(loader)
    hanging.set()
    loader.close()


@needs_dali
def test_hanging_dali_is_named(image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loader: Any = build(
        "dali", scan(image_folder / "train"), batch_size=8, resolution=32, timeout=1
    )
    graph, hanging = loader.graph, threading.Event()

    class Hanging:
        """DALI's own graph, whose second run never ends."""

        def __init__(self, *args: Any, **options: Any) -> None:
            self.graph, self.runs = graph(*args, **options), 0

        def __getattr__(self, name: str) -> Any:
            return getattr(self.graph, name)

        def run(self) -> Any:
            self.runs += 1
            if self.runs == 2:
                hanging.wait(30)
                raise StopIteration
            return self.graph.run()

    monkeypatch.setattr(loader, "graph", Hanging)
    batches = iter(loader)
    next(batches)
    with pytest.raises(StalledError, match=r"no batch for 1 s: DALI decodes or resizes .*\.jpg"):
        next(batches)
    hanging.set()
    loader.close()


def test_timeout_is_of_the_batch_and_not_of_an_image(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastsc.pipelines.resample import place

    def slow(*arguments: Any) -> None:
        time.sleep(0.2)
        place(*arguments)

    monkeypatch.setattr("fastsc.pipelines.cpu.place", slow)
    index = scan(image_folder / "train")
    loader = build("cpu", index, batch_size=32, resolution=32, timeout=1, workers=1)
    with pytest.raises(StalledError, match="no batch for 1 s"):
        next(iter(loader))
    loader.close()
