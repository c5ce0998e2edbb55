"""How far a model is from one picture of a thing to another real one: bursts, cameras, qualities.

What is measured of an image and its perturbed view, measured of pairs of files: intervals are over
pairs, and the scale is the distance between different first pictures: many pairs may share one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from fastsc.evaluation.models.classifier import Classifier
from fastsc.evaluation.results.answers import Answer, Arrays, PartCache, Rows, compute
from fastsc.evaluation.results.measures import Measure, Name
from fastsc.evaluation.results.statistics import (
    NAN,
    RESAMPLES,
    TAIL,
    Estimate,
    Floats,
    bootstrapped,
)
from fastsc.evaluation.views import Indices, Response, Viewer, became, changes, one_kind
from fastsc.pipelines import Pipeline, keyed

LEVELS = (0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0)  # brightness more, as a share
N_EXAMPLES = 6
Explain = Callable[[Indices, Indices, Indices, PartCache], dict[str, Arrays]]
"""explain(first, second, other, cache) -> method -> columns (k,) "rank", "ssim", "overlap", …"""


@dataclass(frozen=True)
class Example:
    """A pair of pictures as the model sees them: (R, R, 3) uint8 each."""

    names: tuple[str, str]
    pictures: tuple[NDArray[np.uint8], NDArray[np.uint8]]
    lines: tuple[str, ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class PairsAnswer(Answer):
    """Answer of `pairs`.

    Attributes:
        as_brightness: How much more brightness moves the first pictures as far, on average, as the
            pairs are apart; inf beyond LEVELS.
        worst: The pairs that are the furthest apart.
    """

    question: ClassVar[str] = "pairs"
    as_brightness: Estimate
    worst: tuple[Example, ...]


def pairs(
    model: Classifier,
    loader: Pipeline,
    *,
    first: Indices,
    second: Indices,
    numbers: Indices,
    labels: NDArray[np.int64],
    explain: Explain | None = None,
    n_explained: int = 24,
    left_out: tuple[str, ...] = (),
    seed: int = 0,
    cache: PartCache = compute,
) -> PairsAnswer:
    """ds_relative, flips and the agreement of explanations of real pairs.

    Args, besides those of all questions (`fastsc.evaluation.questions`):
        first, second: (m,) the pairs' dataset indices, of two first pictures at least;
            numbers: (m,) what they are called.
        explain: Makes the agreement of explanations of n_explained pairs. None: it is left out.
        left_out: Why other pairs are not among them.
    """
    viewer, m = Viewer(model, loader), len(first)
    digest = hashlib.sha256(np.stack([first, second]).tobytes()).hexdigest()
    other = _following(first)
    columns = cache(
        "pairs",
        {"pairs": digest, "between": "first pictures"},
        partial(_apart, viewer, first, second, other),
    )
    brighter = cache(
        "brightness",
        {"pairs": digest, "levels": LEVELS},
        lambda: {"moved": _brighter(viewer, first)},
    )["moved"]
    files = {
        "path": np.array([loader.index.paths[i] for i in first]),
        "second": np.array([loader.index.paths[i] for i in second]),
    }
    own: Arrays = {f"brighter/{level:g}": brighter[:, k] for k, level in enumerate(LEVELS)}
    tables = {"pairs": Rows(numbers, {**files, **columns, **own})}
    known = np.flatnonzero(labels[first] >= 0)
    if len(known):
        right = labels[first][known]
        tables["labelled"] = Rows(
            numbers[known],
            {name: column[known] for name, column in files.items()}
            | {
                name: (columns[predicted][known] == right).astype(np.float64)
                for name, predicted in (
                    ("correct", "predicted"), ("correct_second", "predicted_second"),
                )
            },
        )  # fmt: skip
    if explain is not None:
        drawn = keyed.order(seed, keyed.VALIDATION_EPOCH, np.arange(m), m)
        chosen = np.sort(drawn[: max(n_explained, 2)])
        explained = explain(first[chosen], second[chosen], other[chosen], cache)
        for method, of in explained.items():
            own_files = {name: column[chosen] for name, column in files.items()}
            tables[method] = Rows(numbers[chosen], own_files | of)
    return PairsAnswer(
        tables=tables,
        measures=tuple(_measures(tables)),
        seed=seed,
        left_out=left_out,
        as_brightness=_as_brightness(columns["moved"], brighter, seed),
        worst=tuple(_worst(viewer, first, second, columns)),
    )


def _following(first: Indices) -> Indices:
    """(m,) another first picture for each: the next in a cycle through the different ones."""
    every, rows = np.unique(first, return_inverse=True)
    cycle = keyed.cycle(np.arange(len(every)), len(every))
    other = np.empty_like(every)
    other[cycle] = every[np.roll(cycle, -1)]
    return other[rows]


def _apart(viewer: Viewer, first: Indices, second: Indices, other: Indices) -> Arrays:
    """Columns (m,) of the pairs; every file goes through the model once."""
    every = np.unique(np.concatenate([first, second]))
    parts = [viewer.respond(images.pixels) for images in viewer.images(every, "pairs: pictures")]
    features, logits = (torch.cat(column) for column in zip(*parts, strict=True))
    f, g, h = (
        Response(features[rows], logits[rows])
        for rows in (np.searchsorted(every, of) for of in (first, second, other))
    )
    return {
        "predicted": f.predicted.numpy(),
        "predicted_second": g.predicted.numpy(),
        "between": (f.features - h.features).norm(dim=1).double().numpy(),
        **changes(f, g),
    }


def _brighter(viewer: Viewer, index: Indices) -> NDArray[np.float64]:
    """(m, levels): how far the first pictures move when nothing but their brightness grows."""
    every, rows = np.unique(index, return_inverse=True)
    moved = np.empty((len(every), len(LEVELS)))
    for images in viewer.images(every, "pairs: brightness"):
        clean = viewer.respond(images.pixels)
        for k, level in enumerate(LEVELS):
            factors = one_kind("brightness", 1 + level, len(images.pixels))
            there = changes(clean, viewer.respond(images.pixels, factors))
            moved[images.rows, k] = there["moved"]
    return moved[rows]


def _as_brightness(moved: Floats, brighter: Floats, seed: int) -> Estimate:
    """Where the mean movement over brightness first reaches that of the pairs, with its interval.

    Straight between the levels; the interval is the bootstrap's over pairs, by percentiles.
    """
    columns, n = np.stack([moved, *brighter.T]), len(moved)

    def crossing(*of: Floats, axis: int = -1) -> Floats:
        wanted, *means = (column.mean(axis) for column in of)
        curve = [np.zeros_like(wanted), *means]
        ends, place = (0.0, *LEVELS), np.full_like(wanted, np.inf)
        for k in reversed(range(len(LEVELS))):
            low, high = curve[k], curve[k + 1]
            with np.errstate(invalid="ignore", divide="ignore"):
                share = np.where(high > low, (wanted - low) / (high - low), 0.0)
            inside = (low <= wanted) & (wanted <= high)
            place = np.where(inside, ends[k] + share * (ends[k + 1] - ends[k]), place)
        return place

    value = float(crossing(*columns))
    if np.isnan(value) or not brighter.any():
        return Estimate(NAN, NAN, NAN, n, seed, "none")
    drawn = bootstrapped(columns, crossing, seed, RESAMPLES).bootstrap_distribution
    low, high = np.quantile(drawn, (TAIL, 1 - TAIL), method="inverted_cdf").tolist()
    return Estimate(value, low, high, n, seed, "percentile")


def _measures(tables: dict[str, Rows]) -> list[Measure]:
    measures = []
    if "labelled" in tables:
        measures += [
            Measure(Name("top1"), "share", "labelled", ("correct",)),
            Measure(Name("top1_second"), "share", "labelled", ("correct_second",)),
        ]
    measures += [
        Measure(Name("ds"), "mean", "pairs", ("moved",)),
        Measure(Name("ds_relative"), "ratio", "pairs", ("moved", "between")),
        Measure(Name("flips"), "share", "pairs", ("flipped",)),
        Measure(Name("confidence_change"), "mean", "pairs", ("confidence_change",)),
    ]
    for method, table in tables.items():
        measures += [
            Measure(Name(name, method), "mean", method, (name,))
            for name in ("rank", "rank_other", "ssim", "overlap")
            if name in table.columns
        ]
    return measures


def _worst(viewer: Viewer, first: Indices, second: Indices, columns: Arrays) -> list[Example]:
    scale, examples = columns["between"].mean(), []
    for row in np.argsort(-columns["moved"], kind="stable")[:N_EXAMPLES].tolist():
        a, b = int(first[row]), int(second[row])
        names = [
            viewer.model.class_name(int(columns[f"predicted{which}"][row]))
            for which in ("", "_second")
        ]
        lines = [became(*names)]
        if scale > 0:
            moved = columns["moved"][row] / scale
            lines.insert(0, f"apart by {moved:.2f} of the distance between pictures")
        paths = viewer.loader.index.paths
        examples.append(
            Example((paths[a], paths[b]), (viewer.picture(a), viewer.picture(b)), tuple(lines))
        )
    return examples
