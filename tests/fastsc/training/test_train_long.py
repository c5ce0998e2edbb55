"""Many kills at moments that nobody chose: `make test-slow`."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest

from fastsc.run.log import read_log
from tests.fastsc.runs import run, same_weights, start
from tests.fastsc.training.test_train import BACKENDS, data

pytestmark = pytest.mark.heavy

__all__ = ["data"]  # a fixture: what --data is for a pipeline

MORE = ("--epochs", "15", "--checkpoint-steps", "2")


def checkpoints(out: Path) -> set[str]:
    """Those that are whole: the others have another ending."""
    return {path.name for path in (out / "checkpoints").glob("step-*.pt")}


@pytest.mark.slow
@pytest.mark.parametrize("pipeline", BACKENDS)
def test_killed_again_and_again(data: Path, tmp_path: Path, pipeline: str) -> None:
    assert run(data, tmp_path / "whole", *MORE, pipeline=pipeline) == 0
    out, draw, kills = tmp_path / "killed", random.Random(pipeline), 0
    while True:
        before, wanted = checkpoints(out), draw.randrange(1, 12)
        process = start(data, out, pipeline, *MORE, "--resume")
        seen = set[str]()
        while process.poll() is None and len(seen) < wanted:
            seen |= checkpoints(out) - before
            time.sleep(0.001)
        if process.poll() is None:
            time.sleep(draw.uniform(0, 0.05))
            process.send_signal(signal.SIGKILL)
        if (status := process.wait()) != -signal.SIGKILL:
            assert status == 0, process.stderr and process.stderr.read().decode()
            break
        kills += 1
        assert kills < 100, "it makes no progress"
    assert kills >= 1
    assert same_weights(tmp_path / "whole", out)
    assert read_log(out / "log.jsonl")[-1]["event"] == "end"
