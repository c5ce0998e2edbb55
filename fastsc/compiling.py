"""Counts the graphs that torch.compile makes: each costs minutes, and a person should know."""

from __future__ import annotations

from fastsc.report import Report


class GraphCounter:
    """Tells of every step that compiled something; nothing where nothing is compiled."""

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled
        self._seen = self._now()

    def _now(self) -> int:
        if not self._enabled:
            return 0
        # Private, but torch has no public counter; a recompilation counts as one more graph.
        from torch._dynamo.utils import counters

        return int(counters["stats"]["unique_graphs"])

    def report_new(self, report: Report, step: int, resolution: int) -> None:
        """A `compile` line in the log if graphs were made since the last call."""
        if (now := self._now()) > self._seen:
            new, self._seen = now - self._seen, now
            report.event("compile", step=step, resolution=resolution, graphs=new, total=now)
            report.say(f"step {step}: compiled {new} graphs for {resolution} px, {now} in all")
