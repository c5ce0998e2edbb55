"""Streams that fail: what a person would have read is lost, and nothing else."""

from __future__ import annotations

import errno
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastsc import doctor, evaluate, prepare, replay, reproduce, train
from fastsc.cli.console import TolerantStream, open_console, tolerant_streams, write_line
from fastsc.cli.entry import run_command
from tests.fastsc.runs import events, run, same_weights

pytestmark = [pytest.mark.usefixtures("forked"), pytest.mark.heavy]


class Failing(io.StringIO):
    """A stream whose writes and flushes raise."""

    encoding = "utf-8"

    def __init__(self, error: Exception, *, terminal: bool = False) -> None:
        super().__init__()
        self._error, self._terminal = error, terminal

    def write(self, text: str) -> int:
        raise self._error

    def flush(self) -> None:
        raise self._error

    def isatty(self) -> bool:
        return self._terminal


def ascii_stream() -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding="ascii")


ERRORS = [
    BrokenPipeError(errno.EPIPE, "Broken pipe"),
    OSError(errno.EIO, "Input/output error"),
    OSError(errno.ENOSPC, "No space left on device"),
    BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"),
    ValueError("I/O operation on closed file"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_failing_stream_takes_every_write(error: Exception) -> None:
    stream = TolerantStream(Failing(error))  # type: ignore[arg-type]
    assert stream.write("a line\n") == 7
    stream.writelines(["one\n", "two\n"])
    stream.flush()
    assert stream.failure is not None


def test_what_an_encoding_lacks_is_escaped() -> None:
    file = ascii_stream()
    TolerantStream(file).write("2 × caf\udce9\n")
    file.flush()
    assert file.buffer.getvalue() == b"2 \\xd7 caf\\udce9\n"  # type: ignore[attr-defined]


def test_streams_are_the_callers_again(monkeypatch: pytest.MonkeyPatch) -> None:
    mine, none = io.StringIO(), None
    monkeypatch.setattr(sys, "stdout", mine)
    monkeypatch.setattr(sys, "stderr", none)
    with tolerant_streams():
        write_line("said")
        sys.stderr.write("to nobody\n")
        with tolerant_streams():
            write_line("again")
    assert (sys.stdout, sys.stderr) == (mine, none)
    assert mine.getvalue() == "said\nagain\n"


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_bar_on_a_terminal_that_is_gone(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rich.progress import Progress

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", Failing(error, terminal=True))
    console = open_console()
    assert console is not None
    with Progress(console=console) as bar:
        bar.advance(bar.add_task("trying", total=2))
        console.print("a line")


@pytest.mark.parametrize(
    ("error", "status"),
    [(ERRORS[0], 0), *((error, 2) for error in ERRORS[1:])],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("command", [train, evaluate, prepare, replay, reproduce, doctor])
def test_help_that_cannot_be_written(
    command: Any, error: Exception, status: int, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    """A closed pipe ends it quietly, as `head` wants; anything else is one line."""
    monkeypatch.setattr(sys, "stdout", Failing(error))
    try:
        ended = command.main(["--help"])
    except SystemExit as stop:
        ended = stop.code
    assert ended == status
    said = capfd.readouterr().err.splitlines()
    assert len(said) == bool(status)
    assert all("stdout cannot be written" in line for line in said)


def test_a_list_that_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", ascii_stream())
    monkeypatch.setattr(sys, "stderr", Failing(ERRORS[0]))
    with pytest.raises(SystemExit):
        train.main(["--list-recipes"])
    assert train.main(["nothing"]) == 2


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    "make",
    [
        lambda: Failing(ERRORS[1], terminal=True),
        pytest.param(lambda: ascii_stream(), marks=pytest.mark.slow),
    ],
)
def test_a_run_that_nobody_watches(
    make: Callable[[], io.TextIOBase],
    image_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Training, evaluation and replay: files and statuses are those of a watched run."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    small = ("--model", "fastsc:resnet8w8", "--epochs", "1")
    assert run(image_folder, whole, *small) == 0
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, make())
    monkeypatch.setenv("TERM", "xterm")
    assert run(image_folder, out, *small) == 0
    words = ["--data", str(image_folder), "--out", str(tmp_path / "evaluation")]
    words += ["--only", "continuity", "--images", "4"]
    assert evaluate.main([str(out), *words]) == 0
    assert replay.main([str(out), "--step", "1"]) == 0
    assert (tmp_path / "evaluation" / "results.json").exists()
    assert len(list((out / "replay" / "step-00000001").iterdir())) == 2
    assert [e["loss"] for e in events(out, "step")] == [e["loss"] for e in events(whole, "step")]
    assert same_weights(whole, out)


def test_output_that_is_not_asked_for_may_be_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Failing(ERRORS[2]))

    def work(words: list[str]) -> int:
        print("a line")  # noqa: T201, as libraries do
        return 7

    assert run_command("fastsc.x", work, []) == 7
