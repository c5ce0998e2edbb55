"""What may happen to a run that is left alone, and that nothing of it is lost: `make test-slow`.

Each fault strikes a run, the run is resumed, and its last weights are those of the run that nothing
struck, bit for bit. Every case is a row of the table that pytest prints at the end.
"""

from __future__ import annotations

import os
import random
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fastsc.train import main
from tests.conftest import FaultTable
from tests.fastsc.runs import events, same_weights

pytestmark = [pytest.mark.slow, pytest.mark.heavy]

WORKER = Path(__file__).with_name("fault_worker.py")
ROOT = Path(__file__).parents[3]
# 32 images: 4 steps an epoch, 24 in all; 12 validation images: 2 batches an epoch.
WORDS = [
    "imagenet", "--pipeline", "cpu", "--model", "fastsc:resnet8w4", "--resolution", "32",
    "--batch-size", "8", "--precision", "fp32", "--log-every", "1", "--workers", "2",
    "--epochs", "6", "--lr", "0.05", "--checkpoint-steps", "3",
]  # fmt: skip
# How often each moment comes in the whole run, or nearly.
MOMENTS = {"load": 180, "step": 24, "write": 18, "validate": 24}


def words(data: Path, out: Path, *more: str) -> list[str]:
    return [*WORDS, "--data", str(data), "--out", str(out), *more]


@pytest.fixture(scope="module")
def whole(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing struck."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert main(words(image_folder, out)) == 0
    return out


def strike(
    moment: str, n: int, fault: str, data: Path, out: Path, *more: str
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(WORKER), moment, str(n), fault, *words(data, out, *more)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)


def resumed(
    table: FaultTable, fault: str, when: str, status: int, data: Path, out: Path, whole: Path
) -> None:
    """Resumes, compares, and writes the row."""
    assert main(words(data, out, "--resume")) == 0
    equal = same_weights(whole, out)
    starts = [event["step"] for event in events(out, "resume")]
    losses = {e["step"]: e["loss"] for e in events(whole, "step")}
    equal_losses = all(e["loss"] == losses[e["step"]] for e in events(out, "step"))
    table.add(fault, when, status, f"step {starts[-1]}" if starts else "the start", equal)
    assert equal
    assert equal_losses
    assert not list((out / "checkpoints").glob(".*")), "half a file stays"


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("draw", range(5))
def test_killed(
    fault_table: FaultTable,
    image_folder: Path,
    tmp_path: Path,
    whole: Path,
    moment: str,
    draw: int,
) -> None:
    n = random.Random(f"{moment} {draw}").randint(1, MOMENTS[moment])
    out = tmp_path / "run"
    done = strike(moment, n, "SIGKILL", image_folder, out)
    assert done.returncode == -9, done.stderr
    resumed(fault_table, "SIGKILL", f"{moment} {n}", -9, image_folder, out, whole)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_stopped(
    fault_table: FaultTable, image_folder: Path, tmp_path: Path, whole: Path, name: str, moment: str
) -> None:
    n = random.Random(f"{name} {moment}").randint(1, MOMENTS[moment] // 2)
    out = tmp_path / "run"
    done = strike(moment, n, name, image_folder, out)
    assert done.returncode == 75, done.stderr
    assert events(out, "end")[-1]["reason"] == f"stopped by {name}"
    resumed(fault_table, name, f"{moment} {n}", 75, image_folder, out, whole)
    # Nothing is done twice: the checkpoint is of the step at which it stopped.
    steps = [event["step"] for event in events(out, "step")]
    assert steps == list(range(1, 25))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    """One bit of the weights; elsewhere it may be padding."""
    (weights,) = (value for value in torch.load(path)["model"].values() if value.ndim == 2)
    data = bytearray(path.read_bytes())
    at = data.index(weights.numpy().tobytes())
    data[at + 10] ^= 1
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut, flip, empty])
def test_newest_checkpoint_is_damaged(
    fault_table: FaultTable,
    image_folder: Path,
    tmp_path: Path,
    whole: Path,
    damage: Callable[[Path], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run"
    assert strike("step", 14, "SIGKILL", image_folder, out).returncode == -9
    newest = max((out / "checkpoints").iterdir())
    damage(newest)
    capsys.readouterr()
    resumed(fault_table, damage.__name__, newest.name, -9, image_folder, out, whole)
    assert f"passed over the broken checkpoint {newest.name}" in capsys.readouterr().out
    (event,) = events(out, "resume")
    assert event["passed_over"][0].startswith(newest.name)
    assert event["step"] < int(newest.stem.removeprefix("step-"))


def limited() -> None:
    """In the process to be: no file above 50 kB, as on a disk that is full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))


def test_file_size_limit(
    fault_table: FaultTable, image_folder: Path, tmp_path: Path, whole: Path
) -> None:
    out = tmp_path / "run"
    assert strike("step", 9, "SIGKILL", image_folder, out).returncode == -9
    command = [sys.executable, "-m", "fastsc.train", *words(image_folder, out, "--resume")]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=100, preexec_fn=limited
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert "cannot be written" in done.stderr
    assert "step-" in done.stderr
    resumed(fault_table, "RLIMIT_FSIZE", "a checkpoint", 2, image_folder, out, whole)


def _may_mount() -> bool:
    return os.geteuid() == 0 and shutil.which("mount") is not None


@pytest.mark.skipif(not _may_mount(), reason="only root mounts")
def test_full_disk(
    fault_table: FaultTable, image_folder: Path, tmp_path: Path, whole: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting is not permitted here")
    try:
        out = disk / "run"
        (disk / "ballast").write_bytes(bytes(850_000))  # room for a checkpoint or two, no more
        command = [sys.executable, "-m", "fastsc.train", *words(image_folder, out)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
        assert done.returncode == 2, done.stderr
        assert done.stderr.count("\n") == 1
        assert "No space left" in done.stderr
        (disk / "ballast").unlink()
        subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True)
        resumed(fault_table, "full disk", "tmpfs of 1 MB", 2, image_folder, out, whole)
    finally:
        subprocess.run(["umount", "-l", str(disk)], capture_output=True)


@pytest.mark.parametrize(("fault", "status"), [("segfault", -11), ("MemoryError", 1)])
def test_loader_worker_dies(
    fault_table: FaultTable,
    image_folder: Path,
    tmp_path: Path,
    whole: Path,
    fault: str,
    status: int,
) -> None:
    out = tmp_path / "run"
    done = strike("load", 100, fault, image_folder, out)
    assert done.returncode == status
    if status == 1:
        assert "MemoryError: a fault that a test made" in events(out, "end")[-1]["reason"]
    else:
        assert "Segmentation fault" in done.stderr
    resumed(fault_table, f"worker: {fault}", "load 100", status, image_folder, out, whole)


def test_worker_that_ends_is_missed(
    fault_table: FaultTable, image_folder: Path, tmp_path: Path, whole: Path
) -> None:
    """A thread that ends, or hangs, without a word."""
    out = tmp_path / "run"
    code = (
        "import sys, threading, fastsc.pipelines.cpu as cpu\n"
        "from fastsc.train import main\n"
        "fill, calls = cpu.CpuPipeline._fill, []\n"
        "def hang(self, *args):\n"
        "    calls.append(1)\n"
        "    if len(calls) > 100:\n"
        "        threading.Event().wait()\n"
        "    fill(self, *args)\n"
        "cpu.CpuPipeline._fill = hang\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", code, *words(image_folder, out, "--loader-timeout", "2")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 75, done.stderr
    assert done.stderr.count("\n") == 1
    assert "no batch for 2 s" in done.stderr
    assert "no batch for 2 s" in events(out, "end")[-1]["reason"]
    resumed(fault_table, "worker hangs", "load 100", 75, image_folder, out, whole)


@pytest.mark.parametrize("on_bad_image", ["raise", "skip"])
@pytest.mark.parametrize("pipeline", ["cpu", "dali"])
def test_data_folder_vanishes(
    fault_table: FaultTable,
    image_folder: Path,
    tmp_path: Path,
    whole: Path,
    pipeline: str,
    on_bad_image: str,
) -> None:
    if pipeline == "dali":
        pytest.importorskip("nvidia.dali")
    data, out = tmp_path / "images", tmp_path / "run"
    shutil.copytree(image_folder, data)
    code = (
        "import os, sys, fastsc.training.step as step\n"
        "from fastsc.train import main\n"
        "train_step = step.Step.train_step\n"
        "def vanishing(self, *args, **options):\n"
        "    if self.step == 9:\n"
        "        os.rename(sys.argv[1], sys.argv[1] + '.away')\n"
        "    return train_step(self, *args, **options)\n"
        "step.Step.train_step = vanishing\n"
        "sys.exit(main(sys.argv[2:]))\n"
    )
    more = ["--on-bad-image", on_bad_image, "--pipeline", pipeline]
    command = [sys.executable, "-c", code, str(data), *words(data, out, *more)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2, done.stderr
    # Where the loader was at work by then: the last batches of the epoch may be decoded already.
    assert re.search(rf"{data}/(train|val) has vanished; bring it back", done.stderr), done.stderr
    assert not events(out, "bad_image")
    os.rename(f"{data}.away", data)
    reference = whole
    if pipeline != "cpu":  # other pixels
        reference = tmp_path / "reference"
        assert main(words(data, reference, *more)) == 0
        assert main(words(data, out, "--resume", *more)) == 0
    resumed(fault_table, "folder vanishes", f"{pipeline}, {on_bad_image}", 2, data, out, reference)
