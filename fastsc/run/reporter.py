"""What a run tells: its log, a person, the sinks asked for. One rank speaks for all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from typing import Any

import torch

from fastsc.config import TrainConfig
from fastsc.distributed.ranks import Ranks
from fastsc.errors import UserError
from fastsc.pipelines import BadImage
from fastsc.pipelines.disk import doing
from fastsc.run.console import Display
from fastsc.run.environment import environment
from fastsc.run.folder import RunFolder
from fastsc.run.log import RunLog
from fastsc.run.loggers import Sink, open_sinks
from fastsc.run.validation import Validation


class Report:
    """All messages of one run; on other ranks than the main one there are none."""

    def __init__(
        self,
        log: RunLog | None,
        display: Display | None,
        sinks: list[Sink],
        folder: RunFolder | None = None,
    ) -> None:
        self._log, self._display, self._sinks, self._folder = log, display, sinks, folder
        self._bad: set[str] = set()
        self._failed: UserError | None = None
        self._rank_log: RunLog | None = None

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
            yield cls(log, display, sinks, folder)

    @contextmanager
    def rank_log(self, folder: RunFolder, ranks: Ranks, device: torch.device) -> Iterator[None]:
        """Within the context this rank says in the run's folder who it is, and how it ended.

        The main rank's log is log.jsonl; the others have a file each, since lines that several
        machines append to one file get lost. Without a shared disk a rank's file is where it runs.
        """
        if ranks.is_main:
            yield
            return
        with RunLog(folder.log_of(ranks.rank)) as log:
            who = {"rank": ranks.rank, "world_size": ranks.world_size, "restarts": ranks.restarts}
            log.event("rank", **who, device=str(device), **environment())
            self._rank_log = log
            yield
            self._rank_log = None

    def end(self, **fields: Any) -> None:
        """The last line of this rank's log: reason, steps, seconds."""
        with suppress(UserError):  # of a full disk; there is a reason already
            (self._rank_log or self).event("end", **fields)

    def check(self) -> None:
        """Raises UserError if a line could not be written since the last call."""
        failed, self._failed = self._failed, None
        if failed is not None:
            raise failed

    def event(self, event: str, /, **fields: Any) -> None:
        """One line of log.jsonl. If it cannot be written, `check` says so: to all ranks at once."""
        if self._log is not None:
            try:
                if self._folder is not None:
                    self._folder.require()
                self._log.event(event, **fields)
            except UserError as error:
                self._failed = error

    def say(self, line: str) -> None:
        """One line for a person."""
        if self._display is not None:
            self._display.say(line)

    def step(self, step: int, epoch: int, figures: dict[str, float]) -> None:
        """Figures of a logged step."""
        self.event("step", step=step, epoch=epoch, **figures)
        if self._display is not None:
            self._display.step(step, epoch, figures)
        self._tell(lambda sink: sink.step({"step": step, "epoch": epoch, **figures}))

    def epoch(self, epoch: int, step: int, seconds: float, val: Validation | None) -> None:
        """A finished epoch, with its validation if there was one."""
        figures = None if val is None else asdict(val)
        self.event("epoch", epoch=epoch, seconds=seconds, val=figures)
        if self._display is not None:
            self._display.epoch(epoch, seconds, val)
        values = {"epoch": epoch, "step": step, "seconds": seconds, **(figures or {})}
        self._tell(lambda sink: sink.epoch(values))

    def _tell(self, tell: Callable[[Sink], None]) -> None:
        for sink in self._sinks:
            try:
                with doing(f"writing --{sink.name}"):
                    tell(sink)
            except OSError as error:
                self._failed = UserError(f"--{sink.name} cannot be written: {error.strerror}")

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
