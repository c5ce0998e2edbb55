"""The lines that say how far an evaluation is, where there is no terminal."""

from __future__ import annotations

import copy
import sys
import threading
from dataclasses import replace

import pytest
import torch

from fastsc.evaluation import progress
from fastsc.evaluation.progress import SECONDS_BETWEEN_LINES, Progress
from fastsc.evaluation.registry import BACKWARD, Sizes, passes
from tests.fastsc.evaluation import tiny

PARTS = {("A", "continuity"): 100, ("B", "continuity"): 100, ("A", "gradients"): 200}


class Clock:
    """Seconds, as a test has them pass."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def lines() -> list[str]:
    return []


def test_a_line_comes_every_half_minute_from_the_first_question_on(
    clock: Clock, lines: list[str]
) -> None:
    told = Progress(PARTS, lines.append, clock)
    with told.part("A", "continuity"):
        for clock.now in (10, 29, 30, 31, 59, 60, 61):
            told.passed(10)
    assert lines == [
        "A: continuity: 30 of about 100 passes; 7 % of all after 30 s, about 6 min left",
        "A: continuity: 60 of about 100 passes; 15 % of all after 60 s, about 6 min left",
    ]
    assert SECONDS_BETWEEN_LINES == 30


def test_what_is_done_is_done_whether_it_was_announced_well_or_cached(
    clock: Clock, lines: list[str]
) -> None:
    told = Progress(PARTS, lines.append, clock)
    with told.part("A", "continuity"):
        told.passed(50)  # fewer than announced
    with told.part("B", "continuity"):
        pass  # cached
    clock.now = 600
    with told.part("A", "gradients"):
        told.passed(150)
        clock.now = 10_000
        told.passed(100)  # more than announced
    assert lines[0] == (
        "A: gradients: 150 of about 200 passes; 87 % of all after 10 min, about 2 min left"
    )
    assert lines[1] == (
        "A: gradients: 250 of about 200 passes; 99 % of all after 2.8 h, about 0 s left"
    )


def test_a_line_that_cannot_be_written_ends_nothing(clock: Clock) -> None:
    tried: list[str] = []
    errors = iter((OSError(28, "no space left on device"), ValueError("closed"), None))

    def say(line: str) -> None:
        tried.append(line)
        if (error := next(errors)) is not None:
            raise error

    told = Progress(PARTS, say, clock)
    with told.part("A", "continuity"):
        for clock.now in (30, 60, 90):
            told.passed(1)
    assert len(tried) == 3


def test_models_and_their_copies_count_and_a_gradient_counts_as_several(
    clock: Clock, lines: list[str]
) -> None:
    told, model = Progress(PARTS, lines.append, clock), tiny.flat()
    x = torch.rand(4, 3, tiny.SIDE, tiny.SIDE)
    with told.watching([model]), told.part("A", "continuity"):
        model(x)
        copy.deepcopy(model)(x)
        clock.now = 30
        model(x.requires_grad_())
    model(x)
    assert lines[0].startswith(f"A: continuity: {8 + 4 * BACKWARD} of about 100 passes")
    assert not model._forward_hooks


def test_lines_come_while_no_model_answers_and_end_with_the_context(clock: Clock) -> None:
    lines: list[str] = []
    written = threading.Event()

    def say(line: str) -> None:
        lines.append(line)
        if len(lines) == 1:
            clock.now = 60
            raise RuntimeError("a log that raises what a stream does not")
        written.set()

    told, before = Progress(PARTS, say, clock, interval=1e-3), threading.active_count()
    with told.watching([]), told.part("A", "continuity"):
        clock.now = 30
        assert written.wait(timeout=60)
    assert lines == [
        "A: continuity: 0 of about 100 passes; 0 % of all after 30 s",
        "A: continuity: 0 of about 100 passes; 0 % of all after 60 s",
    ]
    assert threading.active_count() == before


@pytest.mark.parametrize(("bars", "terminal"), [(True, True), (True, False), (False, True)])
def test_a_terminal_has_bars_and_no_lines_and_a_log_lines(
    bars: bool,
    terminal: bool,
    clock: Clock,
    lines: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(progress, "shows_bars", lambda: bars)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    told = Progress(PARTS, lines.append, clock)
    with told.part("A", "continuity"):
        clock.now = 100
        told.passed(1)
    assert bool(lines) != (bars and terminal)


def test_without_rich_a_terminal_has_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert not progress.shows_bars()


def test_the_sliders_come_with_continuity() -> None:
    sizes = Sizes.of("quick", 224)
    assert list(passes(["continuity", "shifts"], sizes, 50)) == ["continuity", "shifts", "sliders"]
    assert list(passes(["shifts"], sizes, 50)) == ["shifts"]


def test_numbers_of_images_of_single_questions() -> None:
    of_all = Sizes.of("quick", 224, {"": 7})
    assert (of_all.curves, of_all.robustness, of_all.searched) == (7, 7, 70)
    some = Sizes.of("full", 224, {"": 7, "robustness": 1000})
    assert some == replace(Sizes.of("full", 224, {"": 7}), robustness=1000)
    alone = Sizes.of("quick", 224, {"explanations": 30})
    assert alone == replace(Sizes.of("quick", 224), explained=30, limed=30)
