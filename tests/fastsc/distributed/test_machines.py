"""A job of several processes that loses one of them, or the network between two machines."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from fastsc.run import checkpoint
from fastsc.run.log import RunLog, read_log
from fastsc.run.resume import ended_for_good
from tests.conftest import FaultTable
from tests.fastsc.distributed import hosts
from tests.fastsc.distributed.test_ranks import (
    SMALL,
    WORKER,
    assert_equal_ranks,
    assert_no_image_twice,
    ranked,
)
from tests.fastsc.runs import events, same_weights, wait_for_step
from tests.forked import ForkedPopen

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).parents[3]
FAULTS = Path(__file__).parents[1] / "training" / "fault_worker.py"
MORE = ["--checkpoint-steps", "3"]
on_two_hosts = pytest.mark.skipif(
    not hosts.permitted(), reason="network namespaces are not permitted here"
)


def elastic(*words: str, rank: int = 1, restarts: int = 2) -> subprocess.Popen[str]:
    """Two processes that torchrun starts anew when one dies; a fault strikes `rank`."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "--max-restarts", str(restarts), str(FAULTS), *words]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "FAULT_RANK": str(rank)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("what", ["step 8 SIGKILL", "load 9 segfault"])
def test_a_dead_rank_comes_back_by_itself(
    fault_table: FaultTable,
    image_folder: Path,
    tmp_path: Path,
    rank: int,
    what: str,
) -> None:
    moment, n, fault = what.split()
    ranked(2, image_folder, tmp_path / "whole", *MORE)
    out = tmp_path / "run"
    words = [*SMALL, *MORE, "--data", str(image_folder), "--out", str(out)]
    said, _ = (process := elastic(moment, n, fault, *words, rank=rank)).communicate(timeout=150)
    assert process.returncode == 0, said
    equal = same_weights(tmp_path / "whole", out)
    starts = [event["step"] for event in events(out, "resume")]
    went_on = f"step {starts[0]}, by itself" if starts else "the start, by itself"
    fault_table.add(fault, f"{moment} {n}, rank {rank} of 2", "", went_on, equal)
    assert equal
    assert len(starts) == (moment == "step")
    lives = [e for e in read_log(out / "ranks" / "rank-1.jsonl") if e["event"] == "rank"]
    assert [life["restarts"] for life in lives] == [0, 1]
    assert all(life["rank"] == 1 and life["world_size"] == 2 for life in lives)


@pytest.mark.slow
def test_a_fault_of_any_rank_is_in_the_runs_folder(image_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = [*SMALL, *MORE, "--data", str(image_folder), "--out", str(out)]
    process = elastic("step", "7", "MemoryError", *words, restarts=0)
    said, _ = process.communicate(timeout=100)
    assert process.returncode == 1, said
    own = read_log(out / "ranks" / "rank-1.jsonl")[-1]
    assert own["event"] == "end"
    assert "MemoryError: a fault that a test made" in own["reason"]
    assert "lost contact" in events(out, "end")[-1]["reason"]
    assert "rank 0 has lost contact with the others" in said


@pytest.mark.slow
def test_a_job_that_was_told_to_stop_is_not_brought_back(
    image_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    words = [*SMALL, *MORE, "--data", str(image_folder), "--out", str(out), "--epochs", "4000"]
    process = elastic("step", "8", "SIGUSR1", *words)
    said, _ = process.communicate(timeout=100)
    assert process.returncode, said
    end = events(out, "end")
    assert [event["reason"] for event in end] == ["stopped by SIGUSR1"]
    loaded = checkpoint.load_newest(out / "checkpoints")
    assert loaded is not None
    assert loaded.state["step"] == end[0]["steps"]


@pytest.mark.slow
def test_restarts_need_a_folder_to_come_back_to(image_folder: Path) -> None:
    words = [*SMALL, "--data", str(image_folder)]
    process = elastic("step", "8", "SIGKILL", *words)
    said, _ = process.communicate(timeout=100)
    assert process.returncode
    assert "--max-restarts comes back to a run: name its folder, --out DIR" in said


@pytest.mark.slow
@on_two_hosts
def test_two_hosts_equal_two_processes_of_one(image_folder: Path, tmp_path: Path) -> None:
    """Bit for bit; that these equal one process, test_ranks says."""
    ranked(2, image_folder, tmp_path / "one")
    dump, out = tmp_path / "dump", tmp_path / "many"
    dump.mkdir()
    words = [str(WORKER), str(dump), "train", *SMALL, "--data", str(image_folder)]
    with hosts.two_hosts():
        processes = [hosts.start(number, 29511, *words, "--out", str(out)) for number in (0, 1)]
        said = [process.communicate(timeout=110)[0] for process in processes]
        assert [process.returncode for process in processes] == [0, 0], said
    assert same_weights(tmp_path / "one", out)
    seen = [torch.load(dump / f"rank{r}.pt") for r in range(2)]
    assert_no_image_twice(seen, 5, 32)
    assert_equal_ranks(seen)


@pytest.mark.slow
@on_two_hosts
def test_a_cut_network(fault_table: FaultTable, image_folder: Path, tmp_path: Path) -> None:
    """Packets stop, and no connection is closed: each end finds out by itself."""
    ranked(2, image_folder, tmp_path / "whole", *MORE, "--epochs", "40")
    out = tmp_path / "run"
    words = ["-m", "fastsc.train", *SMALL, *MORE, "--data", str(image_folder), "--out", str(out)]
    words += ["--epochs", "40", "--rank-timeout", "5"]
    with hosts.two_hosts():
        processes = [hosts.start(number, 29512, *words) for number in (0, 1)]
        try:
            wait_for_step(processes[0], out, 7)  # type: ignore[arg-type]
            hosts.cable("down")
            began = time.monotonic()
            said = [process.communicate(timeout=100)[0] for process in processes]
        finally:
            for process in processes:
                process.kill()
        took = time.monotonic() - began
        for rank in (0, 1):
            assert f"fastsc.train: rank {rank} has lost contact with the others" in said[rank]
            assert "exitcode  : 75" in said[rank]
            assert "fastsc/training/" not in said[rank], "a traceback of ours"
        assert took < 60
        assert "lost contact" in events(out, "end")[-1]["reason"]
        assert "lost contact" in read_log(out / "ranks" / "rank-1.jsonl")[-1]["reason"]
        hosts.cable("up")
        processes = [hosts.start(number, 29513, *words, "--resume") for number in (0, 1)]
        said = [process.communicate(timeout=110)[0] for process in processes]
        assert [process.returncode for process in processes] == [0, 0], said
    equal = same_weights(tmp_path / "whole", out)
    resumed = events(out, "resume")[-1]["step"]
    fault_table.add("cut network", "between two hosts", 75, f"step {resumed}", equal)
    assert equal


@pytest.mark.slow
@pytest.mark.timeout(300)
@on_two_hosts
def test_a_host_whose_rank_dies_brings_the_job_back(
    fault_table: FaultTable, image_folder: Path, tmp_path: Path
) -> None:
    """torchrun on both hosts, elastic, as the README has it."""
    ranked(2, image_folder, tmp_path / "whole", *MORE)
    out = tmp_path / "run"
    words = ["--max-restarts", "3", "--rdzv-backend", "c10d", "--rdzv-endpoint", "10.77.0.1:29514"]
    words += ["--rdzv-id", "fastsc-test", "--local-addr"]
    training = [*SMALL, *MORE, "--data", str(image_folder), "--out", str(out)]
    with hosts.two_hosts():
        processes = [
            hosts.start(
                number,
                0,
                *words,
                f"10.77.0.{number + 1}",
                # By name a real host knows itself; these two share one name.
                *["--rdzv-conf", f"is_host={1 - number}"],
                *[str(FAULTS), "step", "8", "SIGKILL", *training],
                FAULT_RANK="1",
            )
            for number in (0, 1)
        ]
        said = [process.communicate(timeout=170)[0] for process in processes]
        assert [process.returncode for process in processes] == [0, 0], said
    equal = same_weights(tmp_path / "whole", out)
    resumed = events(out, "resume")[-1]["step"]
    fault_table.add("SIGKILL", "a rank on another host", "", f"step {resumed}, by itself", equal)
    assert equal


def test_a_signal_while_the_run_begins(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before there is anything to save: nothing is written, and it may be started again."""
    monkeypatch.setattr("subprocess.Popen", ForkedPopen)
    out = tmp_path / "run"
    code = (
        "import os, signal, sys, fastsc.training.loop as trainer\n"
        "from fastsc.train import main\n"
        "def stopped(*args, **more):\n"
        "    os.kill(os.getpid(), signal.SIGUSR1)\n"
        "trainer.open_data = stopped\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    words = [*SMALL, "--data", str(image_folder), "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 75
    assert done.stderr == "fastsc.train: stopped by SIGUSR1 before the first step\n"
    assert not out.exists()
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


def test_a_signal_in_the_first_second(image_folder: Path, tmp_path: Path) -> None:
    """As soon as Python runs our first lines; importing torch takes seconds more."""
    out = tmp_path / "run"
    words = [*SMALL, "--data", str(image_folder), "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-m", "fastsc.train", *words],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    began = time.monotonic()
    caught = 0
    while not caught & 1 << signal.SIGTERM - 1 and time.monotonic() < began + 60:
        status = Path(f"/proc/{process.pid}/status").read_text()
        caught = int(next(x for x in status.splitlines() if x.startswith("SigCgt")).split()[1], 16)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75, said
    assert said == "fastsc.train: stopped by SIGTERM before the first step\n"
    assert not out.exists()


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"reason": "stopped by SIGUSR1", "status": 75}, 75),
        ({"reason": "stopped by SIGINT", "status": 75}, 75),
        ({"reason": "a broken image", "status": 2}, 2),
        ({"reason": "stopped by SIGTERM", "status": 75}, 0),  # torchrun's own
        ({"reason": "rank 0 has lost contact with the others", "status": 75}, 0),
        ({"reason": "Traceback", "status": 1}, 0),
    ],
)
def test_what_is_not_started_anew(tmp_path: Path, fields: dict[str, Any], status: int) -> None:
    log = tmp_path / "log.jsonl"
    assert ended_for_good(log) == 0
    with RunLog(log) as lines:
        lines.event("end", **fields, time=time.time() - 10 * 365 * 86400)
        assert ended_for_good(log) == 0, "an earlier job's"
        lines.event("end", **fields, time=time.time())
        assert ended_for_good(log) == status
        lines.event("resume", step=3)
        assert ended_for_good(log) == 0


# What SLURM's commands do, as far as the script uses them, for one machine.
SRUN = """#!/bin/bash
[[ $1 = --kill-on-bad-exit=0 ]] || exit 99
shift
status=0
for ((i = 0; i < SLURM_NTASKS; i++)); do
    SLURM_PROCID=$i SLURM_LOCALID=$i "$@" & pids+=($!)
done
echo "${pids[@]}" > "$PIDS"
for pid in "${pids[@]}"; do wait "$pid" || status=$?; done
exit $status
"""
SCONTROL = """#!/bin/bash
case $1 in
show) echo localhost ;;
requeue) echo "$2" > "$REQUEUED" ;;
esac
"""


def slurm(folder: Path, python: str) -> dict[str, str]:
    """The environment of a job of two processes, whose Python is a shell script."""
    tools = folder / "bin"
    tools.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("python", python)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    return {
        **os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "SLURM_JOB_ID": str(port - 20000),
        "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_JOB_NODELIST": "localhost",
        "PIDS": str(folder / "pids"), "REQUEUED": str(folder / "requeued"), "FOLDER": str(folder),
    }  # fmt: skip


# A training as the script sees it: its command line, the names it looks for, its exit status.
TRAINER = """#!/bin/bash
trap 'exit 75' USR1
echo "$@" $RANK $LOCAL_RANK $WORLD_SIZE $LOCAL_WORLD_SIZE $MASTER_ADDR $MASTER_PORT \\
    > "$FOLDER/part-$RANK"
mv "$FOLDER/part-$RANK" "$FOLDER/seen-$RANK"
[ -z "$STATUS" ] || exit $STATUS
while true; do sleep 0.05; done
"""


@pytest.mark.parametrize(
    ("status", "restarts", "requeued"),
    [("", 0, True), ("0", 0, False), ("1", 0, True), ("2", 0, False), ("1", 50, False)],
)
def test_when_the_script_for_slurm_requeues(
    tmp_path: Path, status: str, restarts: int, requeued: bool
) -> None:
    """A signal, the end, a fault, a mistake, and a fault that comes back ever again."""
    environment = slurm(tmp_path, TRAINER)
    process = subprocess.Popen(
        ["bash", str(ROOT / "examples" / "slurm.sbatch"), "imagenet", "--data", "a b"],
        env={**environment, "STATUS": status, "SLURM_RESTART_COUNT": str(restarts)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    seen = [tmp_path / f"seen-{rank}" for rank in (0, 1)]
    deadline = time.monotonic() + 60
    while not all(path.exists() for path in (*seen, tmp_path / "pids")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    if not status:
        for pid in (tmp_path / "pids").read_text().split():
            os.kill(int(pid), signal.SIGUSR1)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == int(status or 75), said
    assert (tmp_path / "requeued").exists() == requeued
    if requeued:
        assert (tmp_path / "requeued").read_text().strip() == environment["SLURM_JOB_ID"]
    port = 20000 + int(environment["SLURM_JOB_ID"]) % 40000
    command = "-m fastsc.train imagenet --data a b --resume"
    for rank, path in enumerate(seen):
        assert path.read_text() == f"{command} {rank} {rank} 2 2 localhost {port}\n"


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [False, True])
def test_the_script_for_slurm(image_folder: Path, tmp_path: Path, stopped: bool) -> None:
    environment = slurm(tmp_path, f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    out, requeued, pids = (tmp_path / name for name in ("run", "requeued", "pids"))
    words = [*SMALL, "--data", str(image_folder), "--out", str(out)]
    words += ["--epochs", "4000" if stopped else "1"]
    process = subprocess.Popen(
        ["bash", str(ROOT / "examples" / "slurm.sbatch"), *words],
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        if stopped:
            wait_for_step(process, out, 2)  # type: ignore[arg-type]
            for pid in pids.read_text().split():  # as SLURM, to every process
                os.kill(int(pid), signal.SIGUSR1)
        said, _ = process.communicate(timeout=100)
    finally:
        process.kill()
    assert process.returncode == (75 if stopped else 0), said
    assert requeued.exists() == stopped
    (header,) = events(out, "header")
    assert header["world_size"] == 2
    reason = "stopped by SIGUSR1" if stopped else "done"
    assert events(out, "end")[-1]["reason"] == reason
    assert read_log(out / "ranks" / "rank-1.jsonl")[-1]["reason"] == reason
