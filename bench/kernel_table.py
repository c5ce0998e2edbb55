"""What `bench.kernels` knows of a case beside its time: bytes, launches, error."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from bench.common import Case, Result, Row, Skipped, measure, synchronize

# What is timed is so many calls of a case that they take about as long in each: a case of 2 ms,
# once, would be timed on the caches that another of 20 ms has left it. On a GPU it also spreads the
# way there and back.
REGION_S = 0.03
COPY = "copy/torch"


@dataclass(frozen=True)
class Detail:
    """Of one call of a case."""

    bytes: int
    """That the operation has to move: its inputs read once, its outputs written once; an item's."""
    error: float | None = None
    """Against float64: in 1/255 for views, relative for distances and gradients."""
    launches: int | None = None
    """Kernels, copies and fills on the GPU; None on a CPU, or where the profiler may not look."""
    device_ms: float | None = None
    """That they take of the GPU, an item; what is timed has Python and the launches in it too."""


class Cases:
    """Cases to time in turns, with their details, and rows for what is not installed."""

    def __init__(
        self,
        device: torch.device,
        *,
        inductor: bool = True,
        write: Callable[[Sequence[Row], dict[str, Any]], None] | None = None,
    ) -> None:
        """inductor: also what torch.compile makes. write: takes the rows so far, after each."""
        self.device, self.inductor, self._write = device, inductor, write
        self._early: list[Row] = []
        self.cases: list[Case] = []
        self.skipped: list[Row] = []
        self.details: dict[str, Detail] = {}

    def add(self, case: Case, *, bytes: int, error: float | None = None) -> None:
        detail = Detail(bytes, error)
        case.run()  # compiled, and its memory there
        if self.device.type == "cuda" and (seen := on_device(case.run)) is not None:
            count, ms = seen
            detail = replace(detail, launches=count, device_ms=ms / case.items)
        calls = self._calls(case)
        self.details[case.name] = detail
        self.cases.append(replace(case, run=_repeated(case.run, calls), items=calls * case.items))
        self._early += measure(self.cases[-1:], rounds=1, warmup=0, device=self.device)
        if self._write is not None:
            self._write(self._early, columns(self._early, self.details))

    def _calls(self, case: Case) -> int:
        synchronize(self.device)
        start = time.perf_counter()
        case.run()
        synchronize(self.device)
        return max(1, round(REGION_S / (time.perf_counter() - start)))

    def skip(self, name: str, reason: str) -> None:
        self.skipped.append(Skipped(name, reason))

    def add_copy(self, n_bytes: int) -> None:
        """torch's copy of n_bytes, by which the others' shares of the bandwidth are measured."""
        source = torch.ones(n_bytes, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        self.add(Case(COPY, lambda: target.copy_(source), unit="ms"), bytes=2 * n_bytes)

    def measure(self, rounds: int) -> list[Row]:
        return [*measure(self.cases, rounds=rounds, device=self.device), *self.skipped]


def _repeated(run: Callable[[], object], calls: int) -> Callable[[], None]:
    def repeated() -> None:  # returns nothing: a number would be taken for items
        for _ in range(calls):
            run()

    return repeated


def on_device(run: Callable[[], object], calls: int = 5) -> tuple[int, float] | None:
    """Kernels, copies and fills that a call puts on the GPU, and how many ms they take of it.

    None where the profiler sees none: without the rights to the counters.
    """
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(calls):
            run()
        torch.cuda.synchronize()
    spans = [
        event.time_range.elapsed_us()
        for event in profile.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
    ]
    return (round(len(spans) / calls), sum(spans) / calls / 1e3) if spans else None


def columns(rows: Sequence[Row], details: dict[str, Detail]) -> dict[str, dict[str, Any]]:
    """GB/s, share of the copy's, launches and error, by the name of the row.

    The rates are the device's where it is known how long that worked, else of what was timed.
    """
    rates: dict[str, float] = {}
    for row in rows:
        if isinstance(row, Result) and row.name in details and row.unit.startswith("ms"):
            detail = details[row.name]
            ms = row.median if detail.device_ms is None else detail.device_ms
            rates[row.name] = detail.bytes / ms / 1e6
    copy = rates.get(COPY)
    found: dict[str, dict[str, Any]] = {}
    for name, rate in rates.items():
        found[name] = asdict(details[name]) | {"gb_per_s": round(rate, 3)}
        found[name]["share_of_copy"] = round(rate / copy, 4) if copy else None
    return found
