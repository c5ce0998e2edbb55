"""Events of a log that no run has written: one line with the log, the line and the field."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from fastsc.errors import UserError
from fastsc.run.log import RunLog, read_log


@pytest.mark.parametrize(
    ("event", "said"),
    [
        ({"step": 3}, "event must be a text, and is missing"),
        ({"event": 3}, "event must be a text, not 3"),
        ({"event": "step"}, "step must be there"),
        ({"event": "step", "step": "3"}, "step must be a whole number"),
        ({"event": "step", "step": -3}, "step must be a whole number"),
        ({"event": "step", "step": 10**400}, "step must be a whole number"),
        ({"event": "step", "step": True}, "step must be a whole number"),
        ({"event": "step", "step": 1, "ds_relative": "low"}, "ds_relative must be a finite number"),
        ({"event": "step", "step": 1, "ce": 10**400}, "ce must be a finite number"),
        ({"event": "resume", "step": 1, "changed": [1]}, "changed must be names with values"),
        ({"event": "resume", "step": 1, "changed": {"world_size": 0}}, "world_size must be"),
        ({"event": "header", "world_size": 10**9}, "world_size must be a whole number"),
        ({"event": "header", "log_every": 0}, "log_every must be a whole number"),
        ({"event": "header", "data": 3}, "data must be a text"),
        ({"event": "nonfinite", "step": 1, "index": 3}, "index must be a list"),
        ({"event": "nonfinite", "step": 1, "index": [[-1]]}, "index must be a whole number"),
        ({"event": "nonfinite", "step": 1, "index": [["a"]]}, "index must be a whole number"),
        ({"event": "bad_image"}, "path must be there"),
        ({"event": "epoch", "epoch": 0, "seconds": "1"}, "seconds must be a finite number"),
        ({"event": "epoch", "epoch": 0, "seconds": 1, "val": "good"}, "val must be names"),
        ({"event": "end", "time": "noon"}, "time must be a finite number"),
    ],
)
def test_a_field_that_no_reader_can_take(event: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"event": "epoch", "epoch": 0, "seconds": 1}\n' + json.dumps(event) + "\n")
    with pytest.raises(UserError) as caught:
        read_log(path)
    assert str(caught.value).startswith(f"{path}, line 2: ")
    assert said in str(caught.value)
    assert len(str(caught.value)) < 400


def test_lines_of_no_event_are_left_out_as_torn_ones(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(
        b'{"event": "a", "x": NaN}\n' + b"[" * 5000 + b"\n[3]\n\0\0\n" + b'{"event": "b'
    )
    assert read_log(path) == [{"event": "a", "x": None}]


def test_a_pipe_is_no_log(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "log.jsonl")
    with pytest.raises(UserError, match="not a regular file"):
        read_log(tmp_path / "log.jsonl")
    with pytest.raises(UserError, match="not a regular file"):
        RunLog(tmp_path / "log.jsonl")
