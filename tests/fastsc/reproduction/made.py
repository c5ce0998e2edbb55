"""Records made up for tests: a study's runs with figures that are known beforehand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastsc.reproduction.records import Record, science
from fastsc.reproduction.study import Study

MADE: dict[str, Any] = {
    "hardware": {"cpu": "Some CPU", "cores": 2, "memory_gib": 8.0, "gpus": []},
    "versions": {"python": "3.11.7", "torch": "2.14.1", "torchvision": "0.29.1"},
    "commit": "0123456789abcdef",
    "device": "cpu",
    "precision": "bf16",
    "threads": 1,
    "pipeline": "memory",
    "date": "2026-11-28",
}


def made(
    study: Study,
    arm: str,
    seed: int,
    *,
    top1: float = 0.5,
    ds_relative: float = 0.2,
    figures: Mapping[str, float | None] | None = None,
    **changes: Any,
) -> Record:
    """A record of a run that never was."""
    options = science(study.config(study.arms[arm], Path("DIR"), seed))
    n = 20
    curve: dict[str, list[float | None]] = {
        "step": [10.0 * (i + 1) for i in range(n)],
        "ds_relative": [ds_relative * (1 + 1 / (i + 1)) for i in range(n)],
        "between": [5.0 + i for i in range(n)],
        "effective_rank": [20.0] * n,
        "alpha": [float(options["alpha"])] * n,
        "ce": [4.0 - i / n for i in range(n)],
    }
    values: dict[str, Any] = {
        "study": study.name,
        "arm": arm,
        "seed": seed,
        "key": f"{arm}-{seed}-key",
        "options": options,
        "command": f"python -m fastsc.train {study.recipe} --data DIR --seed {seed}",
        "made": MADE,
        "images": {"train": 20_000, "val": 10_000},
        "steps": 1000,
        "seconds": 100.0,
        "pairs_per_s": 640.0,
        "val": {
            "top1": top1, "top5": top1 + 0.2, "top1_perturbed": top1 - 0.05,
            "ds": ds_relative / 10, "ds_relative": ds_relative, "n": 10_000,
        },
        "curve": curve,
        "figures": dict(figures or {}),
    }  # fmt: skip
    return Record(**{**values, **changes})


def runs(
    study: Study, figures: Mapping[str, Mapping[str, list[float]]]
) -> dict[tuple[str, int], Record]:
    """{arm: {"top1": [a number a seed], "ds_relative": […], "question/name": […]}} as records."""
    found = {}
    for arm, columns in figures.items():
        for seed in range(len(next(iter(columns.values())))):
            row = {name: values[seed] for name, values in columns.items()}
            own = {name: row.pop(name) for name in ("top1", "ds_relative") if name in row}
            found[arm, seed] = made(study, arm, seed, figures=row, **own)
    return found
