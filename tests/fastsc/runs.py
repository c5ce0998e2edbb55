"""Small training runs for the tests of all rooms, and what they leave."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from fastsc.run import checkpoint
from fastsc.run.log import read_log
from fastsc.train import main

SMALL = [
    "--model", "fastsc:resnet8w8", "--resolution", "32", "--batch-size", "8", "--epochs", "2",
    "--precision", "fp32", "--log-every", "1", "--workers", "2",
]  # fmt: skip


def run(data: Path, out: Path, *more: str, pipeline: str = "cpu") -> int:
    words = ["imagenet", "--pipeline", pipeline, "--data", str(data), "--out", str(out)]
    return main([*words, *SMALL, *more])


def events(out: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_log(out / "log.jsonl") if event["event"] == kind]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load_safetensors(out / "weights.safetensors")[0]


def same_weights(a: Path, b: Path) -> bool:
    one, two = weights(a), weights(b)
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def start(data: Path, out: Path, pipeline: str, *more: str) -> subprocess.Popen[bytes]:
    words = ["imagenet", "--pipeline", pipeline, "--data", str(data), "--out", str(out)]
    command = [sys.executable, "-m", "fastsc.train", *words, *SMALL, *more]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def wait_for_step(process: subprocess.Popen[bytes], out: Path, step: int) -> None:
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline:
        assert process.poll() is None, process.stderr and process.stderr.read().decode()
        if (out / "log.jsonl").exists():
            steps = [event["step"] for event in events(out, "step")]
            if steps and steps[-1] >= step:
                return
        time.sleep(0.02)
    raise AssertionError(f"step {step} was not reached")
