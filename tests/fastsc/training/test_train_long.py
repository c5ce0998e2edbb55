"""Many kills at moments that nobody chose: `make test-slow`."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from fastsc.run.log import read_log
from tests.fastsc.runs import run, same_weights, start
from tests.fastsc.training.test_train import BACKENDS, data

pytestmark = pytest.mark.heavy

__all__ = ["data"]  # a fixture: what --data is for a pipeline

MORE = ("--epochs", "15", "--checkpoint-steps", "2")


@pytest.mark.slow
@pytest.mark.parametrize("pipeline", BACKENDS)
def test_killed_again_and_again(data: Path, tmp_path: Path, pipeline: str) -> None:
    assert run(data, tmp_path / "whole", *MORE, pipeline=pipeline) == 0
    out, draw, kills = tmp_path / "killed", random.Random(pipeline), 0
    while True:
        process = start(data, out, pipeline, *MORE, "--resume")
        # Start-up takes some seconds; a run that resumes late is over before the kill.
        try:
            status = process.wait(timeout=draw.uniform(4, 9))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            time.sleep(0.1)
            assert kills < 100, "it makes no progress"
        else:
            assert status == 0, process.stderr and process.stderr.read().decode()
            break
    assert kills >= 1
    assert same_weights(tmp_path / "whole", out)
    assert read_log(out / "log.jsonl")[-1]["event"] == "end"
