"""What may happen to commands other than training, and that their results stay: `make test-slow`.

Each fault strikes a real process, the command is given again, and what it leaves equals what the
command leaves that nothing struck. Every strike is a row of the table that pytest prints.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import yaml

from fastsc import train
from tests.conftest import FaultTable
from tests.fastsc.cli.struck import start

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.heavy]

TRIES = 10
TINY = {"model": "fastsc:resnet8w8", "resolution": 16, "batch_size": 8, "workers": 1,
        "precision": "fp32", "crop": "none", "device": "cpu"}  # fmt: skip
STUDY = {
    "title": "One run", "about": "a few images", "recipe": "cifar100", "images": 32, "epochs": 1,
    "reference": "default",
    "arms": {"default": {"label": "default", "seeds": 1, "options": {}}}, "options": TINY,
}  # fmt: skip


class Command(NamedTuple):
    name: str
    words: list[str]  # without --out
    results: Callable[[Path], Any]


def evaluated(out: Path) -> Any:
    """results.json without what is of the call, and that the page is whole."""
    results = json.loads((out / "results.json").read_text())
    for of_the_call in ("command", "date", "commit"):
        del results["metadata"][of_the_call]
    assert (out / "report.html").read_text().rstrip().endswith("</html>")
    return results


def records(out: Path) -> Any:
    """Records without times, and that their page is whole."""
    assert (out / "reproduction.md").read_text().endswith("\n")
    timed = ("seconds", "pairs_per_s", "made")
    return [
        {k: v for k, v in json.loads(path.read_text()).items() if k not in timed}
        for path in sorted(out.glob("records/*.json"))
    ]


def betons(out: Path) -> Any:
    return [hashlib.sha256((out / f"{n}.beton").read_bytes()).hexdigest() for n in ("train", "val")]


def replayed(out: Path) -> Any:
    with np.load(out / "batch.npz") as arrays:
        batch = {name: (array.dtype.str, array.tolist()) for name, array in arrays.items()}
    return batch, (out / "sheet.png").read_bytes()


@pytest.fixture(scope="module", params=["evaluate", "reproduce", "prepare", "replay"])
def command(
    request: pytest.FixtureRequest, image_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Command:
    here = tmp_path_factory.mktemp(request.param)
    data = ["--data", str(image_folder)]
    if request.param == "prepare":
        pytest.importorskip("ffcv")
        return Command("prepare", ["beton", *data, "--resolution", "32", "--workers", "1"], betons)
    if request.param == "reproduce":
        (here / "study.yaml").write_text(yaml.safe_dump(STUDY, sort_keys=False))
        return Command("reproduce", [str(here / "study.yaml"), *data], records)
    words = ["cifar100", *data, "--epochs", "1", "--out", str(here / "run")]
    options = [w for k, v in TINY.items() for w in (f"--{k.replace('_', '-')}", str(v))]
    assert train.main([*words, *options]) == 0
    if request.param == "replay":
        return Command("replay", [str(here / "run"), "--step", "1"], replayed)
    more = ["--only", "continuity", "--images", "4", "--workers", "1", "--device", "cpu"]
    return Command("evaluate", [str(here / "run"), *data, *more], evaluated)


class Place:
    """A folder OUT in a folder that holds nothing else, and what a command says."""

    def __init__(self, command: Command, root: Path, said: Path | None = None) -> None:
        self.command, self.root, self.out = command, root, root / "out"
        self.said = said or root.with_name(root.name + "-said")
        root.mkdir()

    def start(self, *more: str, said: str = "") -> ForkServerProcess:
        words = [*self.command.words, "--out", str(self.out), *more]
        return start(self.command.name, words, Path(f"{self.said}{said}"))

    def call(self, *more: str) -> int:
        process = self.start(*more)
        process.join(200)
        assert process.exitcode is not None, "it hangs"
        return process.exitcode

    def lines(self, said: str = "") -> list[str]:
        """On stderr."""
        return Path(f"{self.said}{said}.err").read_text().splitlines()

    def results(self) -> Any:
        """Of the folder, in which nothing temporary is left."""
        assert [str(path) for path in self.root.rglob(".*")] == []
        return self.command.results(self.out)

    def again(self, whole: Any) -> bool:
        """Gives the command again until it does its work, and compares.

        A training that a killed study left alone keeps others out; a beton, if only one of the two
        has its name, is replaced by --force alone.
        """
        until, more = time.monotonic() + 100, list[str]()
        while (status := self.call(*more)) != 0:
            told = Path(f"{self.said}.out").read_text() + "".join(self.lines())
            assert (status, len(told.splitlines())) in ((2, 1), (2, 4)), told
            if self.command.name == "prepare":
                assert "train.beton: is there already; name another --out, or --force" in told
                more = ["--force"]
            else:
                assert "another run is at work there" in told
                time.sleep(1)
            assert time.monotonic() < until
        return bool(self.results() == whole)


class Whole(NamedTuple):
    """The command that nothing struck."""

    results: Any
    seconds: float  # from the first thing that it writes
    n_bytes: int  # on the disk


@pytest.fixture(scope="module")
def whole(command: Command, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    place = Place(command, tmp_path_factory.mktemp("whole") / "place")
    assert place.call() == 0, place.lines()  # what is compiled once is compiled now
    shutil.rmtree(place.out)
    process = place.start()
    began = written(process, place)
    process.join(200)
    seconds = time.monotonic() - began
    assert process.exitcode == 0, place.lines()
    n_bytes = sum(path.stat().st_blocks * 512 for path in place.out.rglob("*"))
    return Whole(place.results(), seconds, n_bytes)


def written(process: ForkServerProcess, place: Place) -> float:
    """Waits for the first thing that the command writes: before it there is nothing to lose."""
    until = time.monotonic() + 100
    while not os.listdir(place.root) and process.is_alive():
        assert time.monotonic() < until
        time.sleep(0.001)
    return time.monotonic()


def test_killed(command: Command, whole: Whole, tmp_path: Path, fault_table: FaultTable) -> None:
    draw = random.Random(command.name)
    for i in range(TRIES):
        moment = draw.uniform(0, 0.9 * whole.seconds)
        place = Place(command, tmp_path / f"{i}")
        process = place.start()
        written(process, place)
        time.sleep(moment)
        process.kill()
        process.join(20)
        equal = place.again(whole.results)
        when = f"{command.name}, {moment:.2f} s"
        fault_table.add("SIGKILL", when, process.exitcode, "what was left", equal)
        assert equal


def require_a_line(place: Place, status: int) -> None:
    """One line of what the disk does not take; of a study's run, among what it tells."""
    lines = place.lines()
    assert status in (2, 75), lines
    assert len(lines) == 1 or (place.command.name == "reproduce" and not lines), lines
    told = " ".join(lines) + Path(f"{place.said}.out").read_text()
    assert "No space left" in told or "File too large" in told, told
    for path in place.root.rglob("*.json"):
        json.loads(path.read_text())
    for path in place.root.rglob("*.npz"):
        np.load(path).close()
    assert not list(place.root.rglob("*.beton"))


@pytest.fixture
def small_disk(tmp_path: Path, whole: Whole) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", f"size={4 * whole.n_bytes + 2**20}", "tmpfs", str(disk)]
    if os.geteuid() or not shutil.which("mount") or subprocess.run(words).returncode:
        pytest.skip("only root mounts, and not everywhere")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_full_disk(
    command: Command, whole: Whole, small_disk: Path, fault_table: FaultTable
) -> None:
    draw, ballast = random.Random(command.name), small_disk / "ballast"
    for i in range(TRIES):
        place = Place(command, small_disk / f"{i}", small_disk.with_name("said"))
        room = int(draw.uniform(0, 0.9) * whole.n_bytes)
        ballast.write_bytes(bytes(max(0, shutil.disk_usage(small_disk).free - room)))
        status = place.call()
        require_a_line(place, status)
        ballast.unlink()
        equal = place.again(whole.results)
        when = f"{command.name}, {room / 1000:.0f} kB left"
        fault_table.add("full disk", when, status, "what was left", equal)
        assert equal
        shutil.rmtree(place.root)


def test_two_at_once(
    command: Command, whole: Whole, tmp_path: Path, fault_table: FaultTable
) -> None:
    draw = random.Random(command.name)
    for i in range(TRIES):
        place, apart = Place(command, tmp_path / f"{i}"), draw.uniform(0, 0.5 * whole.seconds)
        processes = []
        for said in ("-a", "-b"):
            processes.append(place.start(said=said))
            time.sleep(apart)
        for process in processes:
            process.join(200)
        statuses = [process.exitcode for process in processes]
        assert 0 in statuses, (place.lines("-a"), place.lines("-b"))
        for said, status in zip(("-a", "-b"), statuses, strict=True):
            assert status in (0, 2), place.lines(said)
            assert len(place.lines(said)) == int(status != 0), place.lines(said)
        equal = place.results() == whole.results
        when = f"{command.name}, {apart:.2f} s apart"
        fault_table.add("two at once", when, str(statuses), "", equal)
        assert equal
