"""What a person sees of a run: a bar on a terminal, plain lines elsewhere. The log has it all.

Where rich is not installed, a terminal gets the plain lines, too.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Self

from fastsc.cli.console import open_console, write_line
from fastsc.run.validation import Validation

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

SECONDS_BETWEEN_LINES = 30.0  # where there is no terminal


class Display:
    """Progress of one run on stdout."""

    def __init__(self, total_steps: int) -> None:
        console = open_console(soft_wrap=True)
        self._spoke = time.monotonic()
        self._total = total_steps
        self._bar: Progress | None = None
        if console is not None and console.is_terminal:
            self._bar = _bar(console)
            self._task = self._bar.add_task("training", total=total_steps, figures="")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, line: str) -> None:
        """A line that stays."""
        if self._bar is not None:  # above it
            self._bar.console.print(line, markup=False)
        else:
            write_line(line)

    def step(self, step: int, epoch: int, figures: dict[str, float]) -> None:
        """Figures of a logged step."""
        text = (
            f"loss {figures['loss']:.3f}  ds_relative {figures['ds_relative']:.3f}  "
            f"{figures['pairs_per_s']:.0f} pairs/s  wait {100 * figures['loader_wait']:.0f} %"
        )
        if self._bar is not None:
            name = f"epoch {epoch + 1}"
            self._bar.update(self._task, completed=step, description=name, figures=text)
        elif time.monotonic() - self._spoke > SECONDS_BETWEEN_LINES or step == 1:
            self._spoke = time.monotonic()
            self.say(f"epoch {epoch + 1}  step {step}/{self._total}  {text}")

    def epoch(self, epoch: int, seconds: float, val: Validation | None) -> None:
        """The line of a finished epoch."""
        line = f"epoch {epoch + 1} done in {seconds:.1f} s"
        if val is not None:
            line += (
                f": top-1 {100 * val.top1:.2f} %  top-5 {100 * val.top5:.2f} %  ds {val.ds:.4g}  "
                f"ds_relative {val.ds_relative:.4f}  ({val.n} images)"
            )
        self.say(line)


def _bar(console: Console) -> Progress:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
        console=console,
    )
