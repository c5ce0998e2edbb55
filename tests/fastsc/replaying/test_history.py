"""Which options, ranks and data a past step ran with, by the log alone."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from fastsc.config import TrainConfig
from fastsc.config.recipes import dump
from fastsc.replay import main
from fastsc.replaying.history import History
from tests.fastsc.replaying.test_replay import write_log
from tests.fastsc.replaying.test_replay_files import assert_one_line

HEADER = {
    "event": "header", "world_size": 4, "pipeline": "dali", "data": "a", "decoder": "dali 2",
    "device": "cuda:0", "log_every": 10, "steps_per_epoch": 60, "max_steps": None, "alpha": 2.0,
}  # fmt: skip


def step(n: int) -> dict[str, Any]:
    return {"event": "step", "step": n, "epoch": (n - 1) // 60}


def resume(at: int, **facts: Any) -> dict[str, Any]:
    """As the trainer writes it: everything that the header says, as it is now."""
    return HEADER | {"event": "resume", "step": at, "epoch": at // 60, "changed": {}, **facts}


@pytest.fixture
def logged(tmp_path: Path) -> Any:
    """A run's folder with the given lines for a log, read."""

    def make(*events: dict[str, Any]) -> History:
        run = tmp_path / "logged"
        shutil.rmtree(run, ignore_errors=True)
        run.mkdir()
        (run / "config.yaml").write_text(dump(TrainConfig(recipe="imagenet")))
        write_log(run, *events)
        return History.read(run)

    return make


def facts(history: History, at: int) -> tuple[int, str, bool]:
    record = history.at(at)
    return record.segment.facts["world_size"], record.segment.facts["pipeline"], record.certain


def test_the_last_segment_that_ran_a_step_counts(logged: Any) -> None:
    # Killed at 93 or so; resumed from 50 on two ranks, killed at 71; from 50 again, with cpu.
    history = logged(
        HEADER, step(1), step(50), step(90),
        resume(50, world_size=2), step(70),
        resume(50, pipeline="cpu", decoder="pil"), step(60),
    )  # fmt: skip
    assert facts(history, 50) == (4, "dali", True)
    assert facts(history, 60) == (4, "cpu", True)
    assert facts(history, 65) == (2, "dali", True)
    assert facts(history, 80) == (4, "dali", True)
    assert facts(history, 95) == (4, "dali", False)
    with pytest.raises(ValueError, match="last step is 90"):
        history.at(101)
    assert history.at(60).segment.facts["decoder"] == "pil"
    assert history.config(history.at(60)).method.alpha == 2.0


def test_a_checkpoint_proves_the_steps_before_it(logged: Any) -> None:
    history = logged(
        HEADER, step(20),
        resume(25), step(30),  # killed at 27 or later, of 30 logged steps
        resume(38), {"event": "end", "reason": "stopped by SIGTERM", "steps": 40},
        resume(25, world_size=2), step(26),
    )  # fmt: skip
    assert facts(history, 25) == (4, "dali", True)
    assert facts(history, 26) == (2, "dali", True)
    assert facts(history, 38) == (4, "dali", True), "the third began from it"
    assert facts(history, 40) == (4, "dali", True)
    assert facts(history, 35) == (4, "dali", True), "and not by a guess beyond the last one's 26"


def test_a_line_that_says_no_more_than_it_must(logged: Any) -> None:
    """Of another writer: what it leaves out is as before, `changed` counts."""
    line = {"event": "resume", "step": 25, "epoch": 0, "changed": {"world_size": 2}}
    history = logged(HEADER, step(25), line, step(26))
    assert facts(history, 25) == (4, "dali", True)
    assert facts(history, 26) == (2, "dali", True)


def test_a_run_that_started_over_is_another(logged: Any) -> None:
    nonfinite = {"event": "nonfinite", "step": 3, "index": [[1]]}
    history = logged(HEADER, step(40), nonfinite, HEADER | {"world_size": 1}, step(1))
    assert facts(history, 1) == (1, "dali", True)
    with pytest.raises(ValueError, match="every logged loss is finite"):
        history.at(None)


def test_a_log_without_a_header_is_a_mistake(
    logged: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match="no step has run there yet"):
        logged({"event": "rank", "rank": 0})
    (tmp_path / "logged" / "log.jsonl").unlink()
    assert main([str(tmp_path / "logged"), "--step", "1"]) == 2
    assert_one_line(capsys, "log.jsonl cannot be read")


def test_a_log_without_an_option_is_of_runs_before_there_was_one(logged: Any) -> None:
    history = logged(HEADER, step(1), resume(1, exact_decode=False), step(2))
    for at, exact in ((1, True), (2, False)):
        assert history.config(history.at(at)).data.exact_decode is exact
    assert history.config(history.at(1)).model.front == "none"
