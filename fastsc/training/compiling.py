"""torch.compile in a run: that it works here at all, and how many graphs it makes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from fastsc.config import TrainConfig
from fastsc.errors import UserError, first_line
from fastsc.models.representation import Represented
from fastsc.run.reporter import Report
from fastsc.training.schedules import resolutions

# Steps after which a graph has repaid its making. By arithmetic, nobody has timed it: one to two
# minutes to make it, and at least 10 ms a step that are won, where a step of few images is bound by
# its launches.
REPAID = 10_000


def check_compiler(device: torch.device) -> None:
    """Compiles a line of code: a missing compiler should not show after a folder was made.

    Raises:
        UserError: It does not work here.
    """
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(8, device=device))
    except Exception as error:  # noqa: BLE001, whatever the compilers of this machine throw
        raise UserError(
            f"--compile: torch.compile does not work here ({first_line(error)}); "
            "python -m fastsc.doctor says what to install, or leave the option out"
        ) from None


def repays(
    config: TrainConfig, model: Represented, device: torch.device, steps_per_epoch: int
) -> bool:
    """What --compile auto is for a run: on a GPU whether it wins more time than it takes.

    By the whole schedule, of which a trial is a part. Not where the network draws at random by
    other ways than modules do, which only the eager step shares between the views.
    """
    n_steps = config.optim.epochs * steps_per_epoch
    if (
        device.type != "cuda"
        or config.run.deterministic
        or model.shares_draws
        or model.model.drops_by_function
        or n_steps < REPAID * len(resolutions(config.data, config.optim.epochs))
    ):
        return False
    try:
        check_compiler(device)
    except UserError:
        return False
    return True


@contextmanager
def graphs_allowed(n: int) -> Iterator[None]:
    """Within the context a function may have n graphs more than this process has made so far.

    Past its limit torch would go on without compiling.
    """
    limits: Any = torch._dynamo.config
    with limits.patch(recompile_limit=limits.recompile_limit + n_graphs() + n):
        yield


def n_graphs() -> int:
    """Graphs that this process has compiled; a recompilation counts as one more."""
    from torch._dynamo.utils import counters  # private, but torch has no public counter

    return int(counters["stats"]["unique_graphs"])


class GraphCounter:
    """Tells of every step that compiled something; nothing where nothing is compiled."""

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled
        self._seen = self._before = self._now()

    def _now(self) -> int:
        return n_graphs() if self._enabled else 0

    def report_new(self, report: Report, step: int, resolution: int) -> None:
        """A `compile` line in the log if graphs were made since the last call."""
        if (now := self._now()) > self._seen:
            new, total, self._seen = now - self._seen, now - self._before, now
            report.event("compile", step=step, resolution=resolution, graphs=new, total=total)
            report.say(f"step {step}: compiled {new} graphs for {resolution} px, {total} in all")
