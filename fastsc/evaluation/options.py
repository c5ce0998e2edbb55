"""What an evaluation is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fastsc.evaluation.models.sources import ModelOptions
from fastsc.evaluation.registry import Budget
from fastsc.pipelines.plan import OnBadImage

Strengths = tuple[float, float, float, float]
STRENGTHS: Strengths = (0.4, 0.4, 0.4, 0.1)


@dataclass(frozen=True)
class Options:
    """What an evaluation is asked for; `python -m fastsc.evaluate --help` says what each is.

    images: Of a question so many; "" stands for every other one.
    """

    models: Sequence[str]
    data: Path
    out: Path
    only: Sequence[str] | None = None
    where_possible: bool = False
    budget: Budget = "quick"
    images: Sequence[tuple[str, int]] = ()
    names: Sequence[str] | None = None
    seed: int = 0
    split: str | None = None
    label_key: str | None = None
    class_map: Path | None = None
    class_name: str | None = None
    transfer_data: Path | None = None
    fine_tune: bool = False
    pairs: Path | None = None
    strengths: Strengths | None = None
    perturb: tuple[str, ...] | None = None
    on_bad_image: OnBadImage = "raise"
    weights: Sequence[Path] = ()
    model: ModelOptions = field(default_factory=ModelOptions)
    pipeline: str = "cpu"
    device: str = "auto"
    precision: str = "fp32"
    batch_size: int = 64
    memory_budget: float | None = None
    workers: int | None = None
