"""A disk that hangs ends the process, whichever thread it holds, and a signal hastens it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastsc.pipelines.disk import Watch, _Call, doing, watched
from tests.fastsc.runs import SMALL, events, run, wait_for_step

pytestmark = [pytest.mark.usefixtures("forked"), pytest.mark.heavy]

# In the main thread, and in another that the main one waits for. libc's poll, called with the
# interpreter's lock given back, does what a system call on a dead mount does: it does not return,
# and no Python runs in its thread.
HANGING = """
import ctypes, signal, sys, threading
from fastsc.pipelines import disk
from fastsc.pipelines.disk import doing, watched
disk.AFTER_TWO = 0.5
signal.signal(signal.SIGTERM, lambda *_: None)
libc = ctypes.CDLL(None)
def hang():
    with doing("writing a file"):
        print("begun", flush=True)
        while True:
            libc.poll(None, 0, 100_000)
if {closed}:
    sys.stderr = None
with watched({timeout}, "fastsc.test", frozenset([signal.SIGTERM])):
    if {apart}:
        threading.Thread(target=hang).start()
        while True:
            libc.poll(None, 0, 100_000)
    hang()
"""


def hanging(timeout: float, *, apart: bool = False, closed: bool = False) -> subprocess.Popen[str]:
    code = HANGING.format(timeout=timeout, apart=apart, closed=closed)
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    return process


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("closed", [False, True])
def test_a_call_that_does_not_return_ends_the_process(apart: bool, closed: bool) -> None:
    process = hanging(0.2, apart=apart, closed=closed)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75
    lines = said.splitlines()
    if closed:
        assert lines == []
    else:
        [line] = lines
        assert line.startswith("fastsc.test: writing a file: the disk has not answered for ")


@pytest.mark.parametrize("apart", [False, True])
def test_two_signals_end_it_before_its_time(apart: bool) -> None:
    process = hanging(1000, apart=apart)
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "the disk has not answered" in said


@pytest.mark.parametrize(
    ("began", "came", "overdue"),
    [
        (999, [], False),
        (1001, [], True),
        (100, [25], False),
        (100, [35], True),
        (25, [90], False),  # a call that began behind the signal has as long
        (100, [5, 1], False),
        (100, [5, 3], True),
        (1, [5, 3], False),
    ],
)
def test_how_long_a_call_may_take(began: float, came: list[float], overdue: bool) -> None:
    """Seconds ago that it began, and that signals came."""
    watch, now = Watch(1000, "fastsc.test", frozenset()), time.monotonic()
    watch._came = [now - ago for ago in came]
    waited = watch._overdue(_Call("reading", now - began))
    os.close(watch._reader)
    os.close(watch._writer)
    assert (waited is not None) == overdue
    assert waited is None or waited == pytest.approx(began, abs=1)


def test_what_returns_in_time_is_left_alone() -> None:
    with watched(0.4, "fastsc.test", frozenset()):
        for _ in range(6):
            with doing("writing a file"):
                time.sleep(0.1)
        time.sleep(0.7)
    with doing("writing a file"):  # nobody looks
        pass
    with pytest.raises(OSError, match="no room"), watched(9, "x", frozenset()), doing("x"):
        raise OSError("no room")


def ends_by_its_deadline(code: str, *words: str | Path) -> str:
    """The line that a process says whose disk hangs in one of the two calls that the code names."""
    begin = (
        "import sys, threading\n"
        "from fastsc.cli import entry\n"
        "entry.DISK_TIMEOUT = 0.5\n"
        "hang = lambda *_, **__: threading.Event().wait()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", begin + code, *words], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 75, done.stderr
    [line] = done.stderr.splitlines()
    return line


def test_every_command_has_a_deadline_and_a_training_its_own() -> None:
    line = ends_by_its_deadline(
        "from fastsc.pipelines.disk import doing, watched\n"
        "import time\n"
        "def work(words):\n"
        "    with watched(2, 'fastsc.other', frozenset()), doing('writing x'):\n"
        "        time.sleep(1)\n"
        "    with doing('writing y'):\n"
        "        hang()\n"
        "entry.run_command('fastsc.test', work, [])\n"
    )
    assert line.startswith("fastsc.test: writing y: the disk has not answered for ")


def test_a_configuration_that_cannot_be_read(tmp_path: Path) -> None:
    """By a training that resumes, before it knows its --disk-timeout."""
    line = ends_by_its_deadline(
        "from fastsc import train\n"
        "from fastsc.pipelines import reading\n"
        "reading.open_file = hang\n"
        "train.main([sys.argv[1], '--resume'])\n",
        tmp_path / "config.yaml",
    )
    assert line.startswith(f"fastsc.train: reading {tmp_path / 'config.yaml'}: the disk has not")


def test_folders_that_other_processes_list(image_folder: Path, tmp_path: Path) -> None:
    """The deadline is of a folder, not of all that a process lists."""
    (tmp_path / "hangs.py").write_text(
        "import os, time\n"
        "for _ in range(2):\n"
        "    time.sleep(0.4)\n"
        "    os.write(1, b'.')\n"
        "time.sleep(3)\n"
    )
    line = ends_by_its_deadline(
        "from pathlib import Path\n"
        "import os\n"
        "from fastsc.pipelines import scan, walk\n"
        "walk.FILES_ALONE, walk.__file__ = 0, sys.argv[2]\n"
        "os.sched_getaffinity = lambda _: {0, 1}\n"
        "entry.run_command('fastsc.test', lambda words: scan(Path(words[0])), [sys.argv[1]])\n",
        image_folder / "train",
        tmp_path / "hangs.py",
    )
    assert line.startswith("fastsc.test: ")
    assert ": the disk has not answered for " in line


HANGING_FSYNC = """
import ctypes, os, sys
from fastsc.train import main
libc = ctypes.CDLL(None)
def fsync(file):
    while os.path.exists(os.environ["HANG"]):
        libc.poll(None, 0, 100_000)
os.fsync = fsync
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    "ends", ["by its deadline", pytest.param("by signals", marks=pytest.mark.slow)]
)
def test_a_training_whose_checkpoint_hangs_ends_resumable(
    ends: str, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, hang = tmp_path / "run", tmp_path / "hang"
    monkeypatch.setenv("HANG", str(hang))
    timeout = "1" if ends == "by its deadline" else "1000"
    words = ["imagenet", "--pipeline", "cpu", "--data", str(image_folder), "--out", str(out)]
    words += [*SMALL, "--epochs", "4000", "--val", "none", "--disk-timeout", timeout]
    process = subprocess.Popen(
        [sys.executable, "-c", HANGING_FSYNC, *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        wait_for_step(process, out, 2)
        hang.touch()
        if ends == "by signals":
            process.send_signal(signal.SIGTERM)
            time.sleep(2)
            process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 75
    finally:
        process.kill()
    assert run(image_folder, out, "--resume", "--epochs", "2", "--val", "none") == 0
    assert events(out, "end")[-1]["reason"] == "done"
