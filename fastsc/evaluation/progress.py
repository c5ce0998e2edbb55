"""How far an evaluation is, in lines for a log: where there is no terminal, nothing else moves."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from torch import Tensor, nn

from fastsc.evaluation.registry import BACKWARD
from fastsc.pipelines.progress import shows_bars

SECONDS_BETWEEN_LINES = 30.0
Part = tuple[str, str]  # a model's name, a question


class Progress:
    """Says every half minute what is done and what is left, but where a terminal shows it all.

    It reads the clock whenever a model has answered and, in a thread that only writes, every
    `interval`, as some work needs no model, a fit of scikit-learn say. A line that cannot be
    written is lost, and nothing else.

    Args:
        passes: (model, question) -> about how many images go through the model, a gradient
            counting as BACKWARD, as `registry.passes` has it; in the order of the work.
        say: Takes a line.
        clock: Seconds.
        interval: Seconds between the thread's readings of the clock.
    """

    def __init__(
        self,
        passes: Mapping[Part, int],
        say: Callable[[str], object],
        clock: Callable[[], float] = time.monotonic,
        interval: float = 1.0,
    ) -> None:
        self._left, self._all = dict(passes), sum(passes.values())
        self._say, self._clock, self._interval = say, clock, interval
        self._lock = threading.Lock()  # of all below
        self._began = self._spoke = clock()
        self._part: Part | None = None
        self._computed = 0  # passes, of all parts; what is cached needs none
        self._here = 0  # of the present part
        # A bar on a terminal says it all, but not to a log that stdout goes to.
        self._silent = shows_bars() and sys.stdout.isatty()

    @contextlib.contextmanager
    def part(self, name: str, question: str) -> Iterator[None]:
        """Within the context a model is asked a question; afterwards that is done."""
        with self._lock:
            self._part, self._here = (name, question), 0
        try:
            yield
        finally:
            with self._lock:
                self._left.pop((name, question), None)
                self._part = None

    @contextlib.contextmanager
    def watching(self, models: Sequence[nn.Module]) -> Iterator[None]:
        """Within the context the models' answers are counted, and the thread runs."""

        # A function of its own: a deep copy of a model shares it, where it would copy a method's
        # object. Copies that are fine-tuned or have random weights count, too.
        def count(_: nn.Module, args: tuple[Tensor, ...], answers: tuple[Tensor, Tensor]) -> None:
            self.passed(len(args[0]) * (BACKWARD if answers[1].requires_grad else 1))

        hooks = [model.register_forward_hook(count) for model in models]
        ended = threading.Event()

        def write() -> None:
            while not ended.wait(self._interval):
                # Whatever a log raises, the work is not to end of it.
                with contextlib.suppress(Exception):
                    self.passed(0)

        # A daemon, so that a log that takes no line does not keep the process.
        writer = threading.Thread(target=write, name="progress", daemon=True)
        if not self._silent:
            writer.start()
        try:
            yield
        finally:
            ended.set()
            if not self._silent:
                writer.join(self._interval)  # no longer: it may be writing to what takes no line
            for hook in hooks:
                hook.remove()

    def passed(self, n: int) -> None:
        """So many images have gone through a model."""
        with self._lock:
            self._here += n
            self._computed += n
            now = self._clock()
            if self._silent or self._part is None or now - self._spoke < SECONDS_BETWEEN_LINES:
                return
            self._spoke = now
            line = self._line(self._part, now - self._began)
        with contextlib.suppress(OSError, ValueError):  # on a full disk, into a closed pipe
            self._say(line)

    def _line(self, part: Part, seconds: float) -> str:
        name, question = part
        here = self._left[part]
        # The announced numbers are rough: what goes on is never done.
        left = sum(self._left.values()) - min(self._here, here)
        share = min(99, int(100 * (1 - left / max(self._all, 1))))
        line = (
            f"{name}: {question}: {self._here:,} of about {here:,} passes; {share} % of all after "
            f"{_duration(seconds)}"
        )
        if not self._computed:  # nothing tells how fast it is
            return line
        return f"{line}, about {_duration(seconds * left / self._computed)} left"


def _duration(seconds: float) -> str:
    """ "45 s", "12 min", "3.5 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"
