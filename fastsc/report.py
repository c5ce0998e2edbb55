"""What a run tells: its log, a person, the sinks asked for. One rank speaks for all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import Any

from fastsc.config import TrainConfig
from fastsc.display import Display
from fastsc.folder import RunFolder
from fastsc.pipelines import BadImage
from fastsc.runlog import RunLog
from fastsc.sinks import Sink, open_sinks
from fastsc.validate import Validation


class Report:
    """Everything that is said of one run; on other ranks than the main one it says nothing."""

    def __init__(self, log: RunLog | None, display: Display | None, sinks: list[Sink]) -> None:
        self._log, self._display, self._sinks = log, display, sinks
        self._bad: set[str] = set()

    @classmethod
    @contextmanager
    def open(
        cls, config: TrainConfig, folder: RunFolder, total_steps: int, *, main: bool
    ) -> Iterator[Report]:
        """The report of a run in its folder; closes what it opened."""
        with ExitStack() as stack:
            if not main:
                yield cls(None, None, [])
                return
            log = stack.enter_context(RunLog(folder.log))
            display = stack.enter_context(Display(total_steps))
            sinks = stack.enter_context(open_sinks(config, folder.root))
            yield cls(log, display, sinks)

    def event(self, event: str, /, **fields: Any) -> None:
        """One line of log.jsonl."""
        if self._log is not None:
            self._log.event(event, **fields)

    def say(self, line: str) -> None:
        """One line for a person."""
        if self._display is not None:
            self._display.say(line)

    def step(self, step: int, epoch: int, figures: dict[str, float]) -> None:
        """Figures of a logged step."""
        self.event("step", step=step, epoch=epoch, **figures)
        if self._display is not None:
            self._display.step(step, epoch, figures)
        for sink in self._sinks:
            sink.step({"step": step, "epoch": epoch, **figures})

    def epoch(self, epoch: int, step: int, seconds: float, val: Validation | None) -> None:
        """A finished epoch, with its validation if there was one."""
        figures = None if val is None else asdict(val)
        self.event("epoch", epoch=epoch, seconds=seconds, val=figures)
        if self._display is not None:
            self._display.epoch(epoch, seconds, val)
        for sink in self._sinks:
            sink.epoch({"epoch": epoch, "step": step, "seconds": seconds, **(figures or {})})

    def bad_image(self, image: BadImage) -> None:
        """A file that was left out or replaced; each is named once, whichever rank met it."""
        if image.path not in self._bad:
            self._bad.add(image.path)
            self.event("bad_image", **asdict(image))
            self.say(f"skipped {image.path}: {image.reason}")

    def warning(self, step: int, reason: str) -> None:
        """Something that the run survives and a person should know."""
        self.event("warning", step=step, reason=reason)
        self.say(f"warning: {reason} (step {step})")
