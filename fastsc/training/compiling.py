"""torch.compile in a run: that it works here at all, and how many graphs it makes."""

from __future__ import annotations

import torch

from fastsc.errors import UserError, first_line
from fastsc.run.reporter import Report


def check_compiler(wanted: bool, device: torch.device) -> None:
    """Compiles a line of code: a missing compiler should not show after a folder was made.

    Raises:
        UserError: It does not work here.
    """
    if not wanted:
        return
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(8, device=device))
    except Exception as error:  # noqa: BLE001, whatever the compilers of this machine throw
        raise UserError(
            f"--compile: torch.compile does not work here ({first_line(error)}); "
            "python -m fastsc.doctor says what to install, or leave the option out"
        ) from None


class GraphCounter:
    """Tells of every step that compiled something; nothing where nothing is compiled."""

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled
        self._seen = self._before = self._now()

    def _now(self) -> int:
        if not self._enabled:
            return 0
        # Private, but torch has no public counter; a recompilation counts as one more graph.
        from torch._dynamo.utils import counters

        return int(counters["stats"]["unique_graphs"])

    def report_new(self, report: Report, step: int, resolution: int) -> None:
        """A `compile` line in the log if graphs were made since the last call."""
        if (now := self._now()) > self._seen:
            new, total, self._seen = now - self._seen, now - self._before, now
            report.event("compile", step=step, resolution=resolution, graphs=new, total=total)
            report.say(f"step {step}: compiled {new} graphs for {resolution} px, {total} in all")
