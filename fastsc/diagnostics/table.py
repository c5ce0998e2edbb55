"""Results of the probes: as a table, as advice, as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from fastsc.cli.console import write_line
from fastsc.diagnostics.catalog import Result
from fastsc.run import environment

if TYPE_CHECKING:
    from rich.console import Console


def show(results: Iterable[Result], console: Console | None) -> None:
    """A table on a terminal; elsewhere, and where rich is missing, one line per row."""
    rows = [
        (probe, works, "works" if works else "no", f"{detail} -> {remedy}" if remedy else detail)
        for probe, works, detail, remedy in results
    ]
    if console is None or not console.is_terminal:
        for probe, _, status, words in rows:
            write_line(f"{probe.group:<12}{probe.name:<16}{status:<7}{words}")
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False)
    for probe, works, status, words in rows:
        color = "green" if works else "red" if probe.needed else "yellow"
        # Text, since brackets are no markup here.
        table.add_row(probe.group, probe.name, Text(status, color), Text(words))
    console.print(table)


def advice(results: Iterable[Result]) -> list[str]:
    """What is broken, which --pipeline to take here, and what would make it better: a line each."""
    by_name = {(r.probe.group, r.probe.name): r for r in results}
    lines = []
    for probe, works, *_ in by_name.values():
        if probe.needed and not works:
            by_hand = f"python {' '.join(probe.command)}".replace("fastsc.diagnostics.probes:", "")
            lines.append(f"Needed: {probe.group} {probe.name}. Its traceback: {by_hand}")
    on_gpu = by_name["torch", "GPU"].works
    device, suffix = ("GPU", " on cuda") if on_gpu else ("CPU", "")
    # On CPUs cpu is the faster of the two (docs/benchmarks.md).
    names = ("dali", "cpu", "memory") if on_gpu else ("cpu", "dali", "memory")
    usable = [name for name in names if by_name["pipelines", name + suffix].works]
    if usable:
        small = "; for small images --pipeline memory" if "memory" in usable[1:] else ""
        lines.append(f"Training on the {device} here: --pipeline {usable[0]}{small}.")
    else:
        lines.append(f"Training on the {device} here: no --pipeline works.")
    keys = [("torch", "GPU"), ("pipelines", "dali" + suffix), ("kernels", "triton")]
    if not by_name["decoders", "nvimgcodec"].works:
        keys.append(("decoders", "simplejpeg"))
    missing = [remedy for key in keys if (remedy := by_name[key].remedy) is not None]
    lines.append(f"Would make it better: {'; '.join(missing)}." if missing else "All is there.")
    return lines


def to_json(results: Iterable[Result], seconds: float) -> str:
    """The same as strict JSON, with versions and hardware."""
    rows = [
        {"name": p.name, "group": p.group, "works": works, "detail": detail, "remedy": remedy}
        for p, works, detail, remedy in results
    ]
    seen = {r.probe.name: r.detail for r in results if r.works}
    metadata = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "commit": environment.commit(),
        "command": environment.command(),
        "versions": environment.versions(),
        "hardware": {
            "cpu": seen.get("CPU"),
            "gpus": seen["GPU"].split("; ") if "GPU" in seen else [],
        },
    }
    return json.dumps({"metadata": metadata, "results": rows}, indent=2, allow_nan=False) + "\n"
