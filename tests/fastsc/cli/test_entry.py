"""The entry of every command: exit statuses, and one line where something is said."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from fastsc.cli.entry import run_command
from fastsc.distributed.signals import Interrupted, StopSignal
from fastsc.errors import PeerError, UserError

SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP]


def raises(error: BaseException) -> Callable[[list[str]], int]:
    def work(words: list[str]) -> int:
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (UserError("--out is\n  empty"), 2, "fastsc.x: --out is empty\n"),
        (PeerError("another's"), 2, ""),
        (PermissionError(13, "Permission denied", "a/b"), 2, "fastsc.x: a/b: Permission denied\n"),
        (UserError("x" * 9000), 2, f"fastsc.x: {'x' * 8000} …\n"),
        (KeyboardInterrupt(), 75, "fastsc.x: interrupted; go on\n"),
        (Interrupted("stopped by SIGTERM"), 75, "fastsc.x: stopped by SIGTERM\n"),
    ],
)
def test_status_and_line(
    error: BaseException, status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    how: dict[str, Any] = {"interrupted": "interrupted; go on", "status": 75}
    assert run_command("fastsc.x", raises(error), [], **how) == status
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", said)


def test_what_the_command_returns_and_the_words_it_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    def work(words: list[str]) -> int:
        seen.append(words)
        return 7

    assert run_command("fastsc.x", work, ["--a"]) == 7
    monkeypatch.setattr("sys.argv", ["x", "--b"])
    assert run_command("fastsc.x", work, None) == 7
    assert seen == [["--a"], ["--b"]]


def test_our_own_fault_is_not_caught() -> None:
    with pytest.raises(ZeroDivisionError):
        run_command("fastsc.x", lambda words: 1 // 0, [])
    with pytest.raises(OSError, match="no file of anybody's"):
        run_command("fastsc.x", raises(OSError("no file of anybody's")), [])


def test_a_signal_while_the_handlers_are_being_set(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It counts as soon as all are: the work begins, and is interrupted."""
    real, begun = signal.signal, []

    def set_and_raise(number: int, handler: Any) -> Any:
        before = real(number, handler)
        if not begun:
            begun.append("handlers")
            signal.raise_signal(number)
        return before

    def work(words: list[str]) -> int:
        begun.append("work")
        time.sleep(10)
        return 0

    before = [signal.getsignal(number) for number in SIGNALS]
    monkeypatch.setattr(signal, "signal", set_and_raise)
    assert run_command("fastsc.x", work, [], status=75, stop=StopSignal("by {}")) == 75
    assert begun == ["handlers", "work"]
    assert capsys.readouterr().err == "fastsc.x: by SIGTERM\n"
    assert [signal.getsignal(number) for number in SIGNALS] == before


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_interrupts(number: signal.Signals, capsys: pytest.CaptureFixture[str]) -> None:
    outside = signal.getsignal(number)
    if outside is signal.SIG_IGN:  # of SIGHUP under nohup, and it would stay so
        signal.signal(number, signal.SIG_DFL)
    before = signal.getsignal(number)

    def work(words: list[str]) -> int:
        os.kill(os.getpid(), number)
        time.sleep(10)
        return 0

    assert run_command("fastsc.x", work, []) == 130
    assert capsys.readouterr().err == "fastsc.x: interrupted\n"
    assert signal.getsignal(number) is before
    signal.signal(number, outside)


def test_a_signal_of_the_commands_own(capsys: pytest.CaptureFixture[str]) -> None:
    stop = StopSignal("stopped by {} before the first step")

    def work(words: list[str]) -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
        return 0

    assert run_command("fastsc.x", work, [], status=75, stop=stop) == 75
    assert capsys.readouterr().err == "fastsc.x: stopped by SIGTERM before the first step\n"


@pytest.mark.parametrize("pause", [0.0, 1.2])
def test_a_second_sigterm_ends_the_tidying_and_one_passed_on_does_not(pause: float) -> None:
    ended = []

    def work(words: list[str]) -> int:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        finally:
            time.sleep(pause)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)
            ended.append("tidying")
        return 0

    assert run_command("fastsc.x", work, []) == 130
    assert ended == ([] if pause else ["tidying"])
