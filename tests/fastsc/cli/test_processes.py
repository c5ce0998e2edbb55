"""Commands as processes: whoever reads them goes away, and signals come at any moment."""

from __future__ import annotations

import os
import pty
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fastsc.runs import events, same_weights, wait_for_step

pytestmark = [pytest.mark.slow, pytest.mark.heavy]
ROOT = Path(__file__).parents[3]
TRAIN = [
    "fastsc.train", "cifar100", "--model", "fastsc:resnet8w8", "--batch-size", "8",
    "--device", "cpu", "--precision", "fp32", "--log-every", "1", "--checkpoint-minutes", "60",
]  # fmt: skip
EPOCHS = 10


def command(data: Path, out: Path, *more: str) -> list[str]:
    words = [*TRAIN, "--epochs", str(EPOCHS), "--data", str(data), "--out", str(out), *more]
    return [sys.executable, "-m", *words]


def started(words: list[str], **how: Any) -> subprocess.Popen[bytes]:
    how = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, **how}
    return subprocess.Popen(words, cwd=ROOT, **how)


def losses(out: Path) -> list[float]:
    return [event["loss"] for event in events(out, "step")]


@pytest.fixture(scope="module")
def whole(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing befell."""
    out = tmp_path_factory.mktemp("whole") / "run"
    subprocess.run(command(image_folder, out), cwd=ROOT, check=True, capture_output=True)
    return out


@pytest.mark.parametrize(
    "shell",
    ['"$@" | head -2', '"$@" >&-', '"$@" 2>&-', '"$@" >&- 2>&- <&-', '"$@" >/dev/full',
     '"$@" >/dev/full 2>&1', 'LC_ALL=C PYTHONIOENCODING=ascii "$@"', '"$@" 2>&1 | true'],
)  # fmt: skip
def test_nobody_reads(shell: str, image_folder: Path, tmp_path: Path, whole: Path) -> None:
    out = tmp_path / "run"
    words = ["bash", "-c", f"set -o pipefail; {shell}", "x", *command(image_folder, out)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")
    assert losses(out) == losses(whole)
    assert same_weights(out, whole)


@pytest.mark.parametrize(
    ("shell", "status", "n_lines"),
    [
        ("{} --help | head -1", 0, 0),
        ("{} cifar100 --help | true", 0, 0),
        ("{} --list-recipes | true", 0, 0),
        ("{} --help >&-", 0, 0),
        ("{} --help >/dev/full", 2, 1),
        ("{} --list-recipes >/dev/full", 2, 1),
        ("LC_ALL=C PYTHONIOENCODING=ascii {} cifar100 --help", 0, 0),
    ],
)
def test_output_that_is_the_product(shell: str, status: int, n_lines: int) -> None:
    text = "set -o pipefail; " + shell.format(f"{sys.executable} -m fastsc.train")
    done = subprocess.run(["bash", "-c", text], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, len(done.stderr.splitlines())) == (status, n_lines), done.stderr


def on_a_terminal(words: list[str], *, hangup_ignored: bool) -> tuple[subprocess.Popen[bytes], int]:
    """A process whose terminal it leads, and the other end."""
    other_end, terminal = pty.openpty()

    def prepare() -> None:
        import fcntl
        import termios

        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGHUP, signal.SIG_IGN if hangup_ignored else signal.SIG_DFL)

    process = subprocess.Popen(
        words, cwd=ROOT, stdin=terminal, stdout=terminal, stderr=terminal, preexec_fn=prepare,
        env={**os.environ, "TERM": "xterm"},
    )  # fmt: skip
    os.close(terminal)
    os.set_blocking(other_end, False)
    return process, other_end


@pytest.mark.parametrize("hangup_ignored", [False, True])
def test_a_terminal_that_is_closed(
    hangup_ignored: bool, image_folder: Path, tmp_path: Path, whole: Path
) -> None:
    """It is a stop like any other; where SIGHUP is ignored, the run goes on."""
    out = tmp_path / "run"
    process, other_end = on_a_terminal(command(image_folder, out), hangup_ignored=hangup_ignored)
    wait_for_step(process, out, 3)
    os.close(other_end)
    status = process.wait(100)
    if not hangup_ignored:
        assert status == 75
        assert events(out, "end")[-1]["reason"] == "stopped by SIGHUP"
        again = command(image_folder, out, "--resume")
        subprocess.run(again, cwd=ROOT, check=True, capture_output=True, timeout=100)
    else:
        assert status == 0
    assert losses(out) == losses(whole)
    assert same_weights(out, whole)


def test_nohup(image_folder: Path, tmp_path: Path, whole: Path) -> None:
    out = tmp_path / "run"
    process = started(["nohup", *command(image_folder, out)])
    wait_for_step(process, out, 3)
    process.send_signal(signal.SIGHUP)
    _, said = process.communicate(timeout=100)
    assert process.returncode == 0, said
    assert same_weights(out, whole)


def signalled(
    words: list[str], number: signal.Signals, moment: float
) -> subprocess.CompletedProcess[bytes]:
    """Sends a signal so many seconds after the process handles it."""
    process = started(words)
    until = time.monotonic() + 60
    while not handles(process.pid, number) and time.monotonic() < until:
        time.sleep(0.001)
    time.sleep(moment)
    process.send_signal(number)
    out, said = process.communicate(timeout=100)
    return subprocess.CompletedProcess(words, process.returncode, out, said)


def handles(pid: int, number: signal.Signals) -> bool:
    """Whether the program has handlers of its own: Python has one of SIGINT from the start."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = int(next(x for x in status.splitlines() if x.startswith("SigCgt")).split()[1], 16)
    return all(caught & 1 << n - 1 for n in (signal.SIGUSR1, number))


NUMBERS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1]


@pytest.mark.parametrize("number", NUMBERS)
def test_training_begins_and_is_told_to_stop(
    number: signal.Signals, image_folder: Path, tmp_path: Path
) -> None:
    moments = random.Random(int(number))
    for i in range(10):
        moment, out = moments.uniform(0, 3), tmp_path / f"{i}"
        words = command(image_folder, out, "--epochs", "4000")
        done = signalled(words, number, moment)
        said = done.stderr.decode()
        assert done.returncode == 75, (moment, said)
        assert len(said.splitlines()) <= 1, said
        assert number.name in said or events(out, "end")[-1]["reason"].endswith(number.name)


def evaluation(run: Path, data: Path, out: Path) -> list[str]:
    words = ["fastsc.evaluate", str(run), "--data", str(data), "--out", str(out)]
    return [*words, "--only", "continuity"]


def replay(run: Path, data: Path, out: Path) -> list[str]:
    return ["fastsc.replay", str(run), "--step", "1", "--out", str(out)]


@pytest.mark.parametrize(("words", "status"), [(evaluation, 75), (replay, 130)])
@pytest.mark.parametrize("number", NUMBERS[:2])
def test_another_command_begins_and_is_told_to_stop(
    words: Callable[[Path, Path, Path], list[str]],
    status: int,
    number: signal.Signals,
    image_folder: Path,
    tmp_path: Path,
    whole: Path,
) -> None:
    moments = random.Random(int(number))
    for i in range(10):
        moment = moments.uniform(0, 3)
        line = [sys.executable, "-m", *words(whole, image_folder, tmp_path / f"{i}")]
        done = signalled(line, number, moment)
        said = done.stderr.decode()
        assert done.returncode in (0, status), (moment, said)  # it may have come to its end
        assert len(said.splitlines()) == int(done.returncode == status), said


def test_the_doctor_is_told_to_stop() -> None:
    """Its probes, which may take minutes, end with it."""
    began = time.monotonic()
    done = signalled([sys.executable, "-m", "fastsc.doctor"], signal.SIGTERM, 4)
    assert done.returncode == 130
    assert done.stderr == b"fastsc.doctor: interrupted\n"
    assert time.monotonic() - began < 30
