"""log.jsonl: strict JSON, whole lines, and a header that says where a number comes from."""

from __future__ import annotations

import json
import math
import platform
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastsc.errors import UserError
from fastsc.run.environment import environment
from fastsc.run.log import RunLog, read_log

pytestmark = [pytest.mark.usefixtures("forked"), pytest.mark.heavy]


def strict(path: Path) -> list[dict[str, Any]]:
    """As a strict reader sees it: one object a line, no NaN."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} in the log")

    text = path.read_text("utf-8")
    assert text == "" or text.endswith("\n")
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def test_a_log_that_is_moved_away_goes_on_under_its_name(tmp_path: Path) -> None:
    """As logrotate does it."""
    path = tmp_path / "log.jsonl"
    with RunLog(path) as log:
        log.event("step", step=1)
        path.rename(tmp_path / "log.jsonl.1")
        log.event("step", step=2)
        assert read_log(path) == [{"event": "step", "step": 2}]
        path.unlink()
        tmp_path.joinpath("log.jsonl.1").unlink()
        tmp_path.rmdir()
        with pytest.raises(UserError, match="cannot be written: No such file"):
            log.event("step", step=3)


def test_events_are_lines_as_soon_as_they_are_known(tmp_path: Path) -> None:
    path = tmp_path / "run" / "log.jsonl"
    with RunLog(path) as log:
        assert log.dropped == 0
        log.event("step", step=1, loss=0.5)
        assert strict(path) == [{"event": "step", "step": 1, "loss": 0.5}]
        log.event("end", reason="done")
    assert [e["event"] for e in strict(path)] == ["step", "end"]
    assert read_log(path) == strict(path)
    assert next(iter(strict(path)[0])) == "event"


def test_values(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with RunLog(path) as log:
        log.event(
            "step",
            nan=math.nan,
            inf=[math.inf, -math.inf, 1.0],
            nested={"a": {"b": math.nan}},
            tensor=torch.tensor(0.25),
            bad=torch.tensor(math.nan),
            numpy=np.float32(0.5),
            array=np.arange(3),
            path=tmp_path / "NaN and Infinity",
            strengths=(0.4, 0.1),
            name="a name is a field like another",
            odd="caf\u00e9 \udcff \n",
            none=None,
        )
    (event,) = strict(path)
    assert event["nan"] is None
    assert event["inf"] == [None, None, 1.0]
    assert event["nested"] == {"a": {"b": None}}
    assert (event["tensor"], event["bad"], event["numpy"]) == (0.25, None, 0.5)
    assert event["array"] == [0, 1, 2]
    assert event["path"] == str(tmp_path / "NaN and Infinity")
    assert event["strengths"] == [0.4, 0.1]
    assert event["odd"] == "caf\u00e9 \udcff \n"
    with RunLog(path) as log, pytest.raises(TypeError, match="object cannot be logged"):
        log.event("step", what=object())
    assert len(strict(path)) == 1, "a refused event leaves no half line"


@pytest.mark.parametrize(
    "torn", ['{"event": "step", "st', "{", "\0\0\0\0", "\0\0\n\0\0\n", '{"event": "step"}']
)
def test_a_torn_last_line_is_dropped(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "log.jsonl"
    whole = '{"event": "step", "step": 1}\n{"event": "step", "step": 2}\n'
    path.write_text(whole + torn)
    with RunLog(path) as log:
        assert log.dropped == len(torn)
        log.event("resume", step=2)
    assert path.read_text() == whole + '{"event": "resume", "step": 2}\n'


def test_a_log_of_nothing_but_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"event": "hea')
    RunLog(path).close()
    assert path.read_text() == ""


def test_a_whole_log_is_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    for step in (1, 2):
        with RunLog(path) as log:
            assert log.dropped == 0
            log.event("step", step=step)
    assert [e["step"] for e in strict(path)] == [1, 2]


def test_a_killed_process_loses_no_line(tmp_path: Path) -> None:
    program = textwrap.dedent(
        """
        import os, signal, sys
        from fastsc.run.log import RunLog
        log = RunLog(sys.argv[1])
        for step in range(100):
            log.event("step", step=step)
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    path = tmp_path / "log.jsonl"
    assert subprocess.run([sys.executable, "-c", program, str(path)]).returncode == -9
    assert [e["step"] for e in strict(path)] == list(range(100))


def test_a_log_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        RunLog(tmp_path / "file" / "log.jsonl")


def test_environment(tmp_path: Path) -> None:
    found = environment()
    assert found["versions"]["python"] == platform.python_version()
    assert found["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert found["versions"]["fastsc"]
    assert {"torchvision", "timm", "numpy", "numba", "nvidia-dali"} <= set(found["versions"])
    assert found["hardware"]["cores"] >= 1
    assert found["hardware"]["cpu"]
    assert len(found["hardware"]["gpus"]) == torch.cuda.device_count()
    assert found["commit"] is None or len(found["commit"].removesuffix("-dirty")) == 40
    assert not Path(found["command"].split()[0]).is_absolute()
    with RunLog(tmp_path / "log.jsonl") as log:
        log.event("header", **found)
    assert strict(tmp_path / "log.jsonl")[0]["versions"] == found["versions"]
