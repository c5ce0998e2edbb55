"""What a reader of an evaluation wants to know besides the figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from fastsc.distributed.devices import Precision
from fastsc.evaluation.data import Split
from fastsc.evaluation.options import Options
from fastsc.evaluation.registry import Subject
from fastsc.run.environment import environment


def facts_of(subject: Subject) -> dict[str, str]:
    """What one would want to know of a model, as text."""
    model, seen = subject.model, subject.model.preprocessing
    weights = sum(parameter.numel() for parameter in model.net.parameters())
    return {
        "architecture": type(model.net).__name__,
        "weights": f"{weights / 1e6:.2f} million",
        "outputs": f"{model.n_classes:,}",
        "images": f"{seen.resolution} px of {float(seen.resize):.4g}, {seen.interpolation}; "
        f"mean {_numbers(seen.mean)}, std {_numbers(seen.std)}",
        "representation": model.representation,
        "hash": model.hash,
    }


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:.4g}" for value in values)


def metadata_of(
    options: Options,
    split: Split,
    asked: Sequence[str],
    precision: Precision,
    first: Subject,
) -> dict[str, Any]:
    """For results.json: how this was made, on what, and how to make it again."""
    index = split.index
    return {
        **{key: value for key, value in environment().items() if key != "process"},
        "date": datetime.now(UTC).date().isoformat(),
        "data": str(options.data),
        "split": options.split or index.root.name,
        "images": len(index.usable),
        "images_left_out": len(index.left_out),
        "classes": len(index.classes) if split.labelled else None,
        "labelled": int((first.labels[index.usable] >= 0).sum()),
        "index_hash": index.hash,
        "models": list(options.models),
        "questions": list(asked),
        "budget": options.budget,
        "sizes": asdict(first.sizes),
        "seed": options.seed,
        "strengths": list(first.loader.settings.strengths),
        **({"perturb": first.loader.settings.perturbations.named()} if first.listed else {}),
        **({"pairs": len(first.pairs[1].first)} if first.pairs else {}),
        "device": first.loader.device.type,
        "precision": precision,
        "pipeline": options.pipeline,
        "decoder": first.loader.decoder,
        "interval": "95 %",
    }
