"""What `bench.kernels` knows of a case beside its time: bytes, launches, error."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from bench.common import Case, Result, Row, Skipped, measure

# On a GPU a timed call is so many of the case's, so that what is timed is the device's work and not
# the way there and back.
CALLS_ON_GPU = 20
COPY = "copy/torch"


@dataclass(frozen=True)
class Detail:
    """Of one call of a case."""

    bytes: int
    """That the operation has to move: its inputs read once, its outputs written once; an item's."""
    error: float | None = None
    """Against float64: in 1/255 for views, relative for distances and gradients."""
    launches: int | None = None
    """Kernels and copies on the GPU; None on a CPU."""


class Cases:
    """Cases to time in turns, with their details, and rows for what is not installed."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.cases: list[Case] = []
        self.skipped: list[Row] = []
        self.details: dict[str, Detail] = {}

    def add(self, case: Case, *, bytes: int, error: float | None = None) -> None:
        count = None
        if self.device.type == "cuda":
            case.run()  # compiled, and its memory there
            count = launches(case.run)
            case = replace(case, run=_repeated(case.run), items=CALLS_ON_GPU * case.items)
        self.details[case.name] = Detail(bytes, error, count)
        self.cases.append(case)

    def skip(self, name: str, reason: str) -> None:
        self.skipped.append(Skipped(name, reason))

    def add_copy(self, n_bytes: int) -> None:
        """torch's copy of n_bytes, by which the others' shares of the bandwidth are measured."""
        source = torch.ones(n_bytes, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        self.add(Case(COPY, lambda: target.copy_(source), unit="ms"), bytes=2 * n_bytes)

    def measure(self, rounds: int) -> list[Row]:
        return [*measure(self.cases, rounds=rounds, device=self.device), *self.skipped]


def _repeated(run: Callable[[], object]) -> Callable[[], None]:
    def calls() -> None:  # returns nothing: a number would be taken for items
        for _ in range(CALLS_ON_GPU):
            run()

    return calls


def launches(run: Callable[[], object]) -> int:
    """Kernels, copies and fills that one call puts on the GPU."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profile.events())


def columns(rows: Sequence[Row], details: dict[str, Detail]) -> dict[str, dict[str, Any]]:
    """GB/s, share of the copy's, launches and error, by the name of the row."""
    rates = {
        row.name: details[row.name].bytes / row.median / 1e6
        for row in rows
        if isinstance(row, Result) and row.name in details and row.unit.startswith("ms")
    }
    copy = rates.get(COPY)
    found: dict[str, dict[str, Any]] = {}
    for name, rate in rates.items():
        found[name] = asdict(details[name]) | {"gb_per_s": round(rate, 3)}
        found[name]["share_of_copy"] = round(rate / copy, 4) if copy else None
    return found
