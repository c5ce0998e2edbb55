"""A rebuilt batch as arrays, as the pairs of a contact sheet, and in words."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from fastsc.plotting.contact_sheet import Pair
from fastsc.replaying.rebuild import Rebuilt

MAX_ROWS = 10  # of the table


def arrays(rebuilt: Rebuilt) -> dict[str, Any]:
    """What batch.npz holds.

    Returns:
        clean (N, 3, R, R), perturbed (M, 3, R, R): float32, normalized, the very values that the
        trainer was given in its dtype; row i of both is one image. target, index, planned: (N,)
        int64, `planned` being the dataset index whose slot it is where a broken file had to be
        replaced. Of the image in the row, by dataset index: boxes (N, 4) int32 pixels of the file
        (top, left, height, width), shifts (N, 2) int32 output pixels (y, x; --crop pad), flips
        (N,) bool, factors (N, 4) float32 (brightness, contrast, saturation, hue; rows from M on
        have no perturbed view), paths (N,) text, relative to the training folder. metadata: JSON.
    """
    views, plan = rebuilt.views, rebuilt.plan
    assert views.perturbed is not None
    at = views.index.numpy()
    n = len(at)
    return {
        "clean": views.clean.numpy(),
        "perturbed": views.perturbed.numpy(),
        "target": views.target.numpy(),
        "index": at,
        "planned": rebuilt.planned,
        "boxes": plan.boxes[at],
        "shifts": np.zeros((n, 2), np.int32) if plan.shifts is None else plan.shifts[at],
        "flips": plan.flips[at],
        "factors": plan.factors[at],
        "paths": np.array([rebuilt.index.paths[i] for i in at]),
        "metadata": np.array(json.dumps(metadata(rebuilt))),
    }


def metadata(rebuilt: Rebuilt) -> dict[str, Any]:
    """Where the batch comes from: JSON values."""
    config, record = rebuilt.config, rebuilt.record
    return {
        "step": record.step,
        "epoch": rebuilt.epoch,
        "batch": rebuilt.batch,
        "batches_per_epoch": rebuilt.n_batches,
        "rank": rebuilt.rank,
        "world_size": rebuilt.world_size,
        "batch_size": config.optim.batch_size,
        "seed": config.run.seed,
        "resolution": rebuilt.resolution,
        "crop": config.data.crop,
        "strengths": config.data.strengths,
        "dtype": str(rebuilt.dtype).removeprefix("torch."),
        "pipeline": config.data.pipeline,
        "pipeline_then": record.segment.facts.get("pipeline"),
        "decoder": rebuilt.decoder,
        "decoder_then": rebuilt.decoder_then,
        "device": rebuilt.device,
        "device_then": rebuilt.device_then,
        "index_hash": rebuilt.index.hash,
        "classes": rebuilt.index.classes,
        "nonfinite": record.nonfinite is not None,
        "notes": rebuilt.notes,
    }


# --- pictures and words ---------------------------------------------------------------------------


def pairs(rebuilt: Rebuilt) -> list[Pair]:
    """The rows for a contact sheet."""

    def pixels(views: torch.Tensor) -> Any:  # (n, 3, R, R) normalized -> (n, R, R, 3) uint8
        std, mean = torch.tensor(data.std), torch.tensor(data.mean)
        rgb = views.permute(0, 2, 3, 1) * std + mean
        return (rgb * 255).round().clamp(0, 255).byte().numpy()

    views, data = rebuilt.views, rebuilt.config.data
    assert views.perturbed is not None
    clean, perturbed = pixels(views.clean), pixels(views.perturbed)
    replaced = bool((rebuilt.planned != views.index.numpy()).any())
    shown = []
    for row, at in enumerate(views.index.tolist()):
        words = _words(rebuilt, row)
        lines = [Path(words.path).name, words.crop]
        if rebuilt.plan.shifts is not None:  # too much for one line below a small image
            lines.append(words.moves)
        elif words.moves:
            lines[1] += f", {words.moves}"
        lines.append(words.factors if row < len(perturbed) else "")
        if replaced:
            wanted = int(rebuilt.planned[row])
            lines.append("" if wanted == at else f"in place of {rebuilt.index.paths[wanted]}")
        second = perturbed[row] if row < len(perturbed) else None
        shown.append(Pair(clean[row], second, f"{row}: #{at}  {words.label}", lines))
    return shown


class _Words(NamedTuple):
    path: str
    label: str
    crop: str
    moves: str
    factors: str


def _words(rebuilt: Rebuilt, row: int) -> _Words:
    """A row in words."""
    index, plan = rebuilt.index, rebuilt.plan
    at = int(rebuilt.views.index[row])
    top, left, height, width = plan.boxes[at].tolist()
    (dy, dx), (brightness, contrast, saturation, hue) = plan.shift(at), plan.factors[at].tolist()
    moves = [f"shifted {dx:+d}, {dy:+d}"] if plan.shifts is not None else []
    return _Words(
        index.paths[at],
        index.classes[int(index.targets[at])],
        f"{width} x {height} at {left}, {top} of {index.widths[at]} x {index.heights[at]}",
        ", ".join(moves + ["flipped"] * bool(plan.flips[at])),
        f"b {brightness:.2f}  c {contrast:.2f}  s {saturation:.2f}  h {hue:+.3f}",
    )


def _where(rebuilt: Rebuilt) -> str:
    share = f"rank {rebuilt.rank} of {rebuilt.world_size}"
    if rebuilt.rank is None:
        share = f"all {rebuilt.world_size} ranks"
    return (
        f"step {rebuilt.record.step}, epoch {rebuilt.epoch}, batch {rebuilt.batch} of "
        f"{rebuilt.n_batches}, {share}"
    )


def titles(rebuilt: Rebuilt, run: Path) -> tuple[str, str]:
    """Title and subtitle of its contact sheets."""
    config = rebuilt.config
    dtype = str(rebuilt.dtype).removeprefix("torch.")
    what = (
        "Clean left, perturbed right. Crop: width x height at left, top. b, c, s, h: brightness, "
        "contrast, saturation, hue (turns)"
    )
    return (
        f"{run.resolve().name}: {_where(rebuilt)}",
        f"{what}.  {rebuilt.resolution} px, {dtype}, pipeline {config.data.pipeline} "
        f"({rebuilt.decoder}), seed {config.run.seed}, index {rebuilt.index.hash}",
    )


def table(rebuilt: Rebuilt) -> list[str]:
    """A line for each of the first images."""
    n, perturbed = len(rebuilt.views.index), rebuilt.views.perturbed
    assert perturbed is not None
    lines = [f"{_where(rebuilt)}: {n} images, epochs and batches counted from 0"]
    rows = []
    for row in range(min(n, MAX_ROWS)):
        name, _, crop, moves, factors = _words(rebuilt, row)
        crop = ", ".join(filter(None, [crop, moves]))
        factors = factors if row < len(perturbed) else "no second view"
        rows.append((str(row), f"#{int(rebuilt.views.index[row])}", name, crop, factors))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    justify: list[Callable[[str, int], str]] = [str.rjust, str.rjust, str.ljust, str.ljust]
    for cells in rows:
        padded = (pad(cell, width) for pad, cell, width in zip(justify, cells, widths))
        lines.append("  ".join([*padded, cells[4]]))
    return [*lines, f"… and {n - MAX_ROWS} more"] if n > MAX_ROWS else lines
