"""The charts of continuity: over strength, the flip radius, and the network's stages."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from fastsc.evaluation.report.charts import (
    Axes,
    Curve,
    Dots,
    curve_of,
    dots,
    legend,
    over_strength,
    survival,
)
from fastsc.evaluation.report.parts import Asked, Chart, Charts, Question
from fastsc.evaluation.report.words import (
    PERCENT,
    PLAIN,
    POINTS,
    change_text,
    listed,
    strength_text,
    value_of,
)
from fastsc.evaluation.results.answers import Answer
from fastsc.evaluation.results.statistics import estimate

KINDS = ("brightness", "contrast", "saturation", "hue", "together")
GRID = 41  # places of the band round a survival curve
CLOSE = 0.13  # of an axis: ticks that are nearer to each other would touch

OVER_STRENGTH = (
    (
        "ds_relative",
        "How far the representation moves",
        "Over the distance between different images: 0 is not at all, 1 as far as another image.",
        "distance, relative",
    ),
    (
        "flips",
        "Predictions that flip",
        "Share of images that are predicted as another class than the unchanged one.",
        "flipped",
    ),
    (
        "confidence_change",
        "Change of confidence",
        "Mean change of the softmax probability of the class that is predicted for the unchanged "
        "image, in percentage points.",
        "change, points",
    ),
)
STRENGTH_NOTE = (
    " Each kind alone, both directions averaged; “together” is all four, in multiples of the "
    "box. Bands: 95 % intervals over images."
)


def charts(question: Question) -> Iterator[Charts]:
    """All of them; those without data are left out."""
    keys = legend(question)
    said_once = STRENGTH_NOTE
    for what, title, note, label in OVER_STRENGTH:
        drawn = tuple(_strength_charts(question, what, title, label))
        if drawn:
            yield Charts(title, note + said_once, drawn, keys)
            said_once = ""
    drawn = tuple(_survival_charts(question))
    if drawn:
        yield Charts(
            "How much change a prediction survives",
            "Share of images whose prediction no smaller change in that direction has flipped; 0 "
            "is the unchanged image. Where a curve crosses the dotted line, half have flipped. "
            "Bands: 95 % intervals at each place.",
            drawn,
            keys,
        )
    drawn = tuple(_layer_charts(question))
    if drawn:
        yield Charts(
            "Where in the network it happens",
            "ds_relative at every stage, in forward order from top to bottom, with 95 % intervals. "
            "Faint, near 1: chance, the distance to another image’s perturbed view.",
            drawn,
            keys,
            wide=True,
        )


def _strengths(question: Question, what: str, kind: str) -> list[str]:
    """Strengths of a kind as they stand in the names of measures, ascending."""
    prefix = f"{what}/{kind}/"
    found = {
        measure.name.removeprefix(prefix)
        for asked in question.asked
        for measure in asked.answer.measures
        if measure.name.startswith(prefix)
    }
    return sorted(found, key=float)


def _strength_charts(question: Question, what: str, title: str, label: str) -> Iterator[Chart]:
    drawn: list[tuple[str, list[str], list[Curve], str]] = []
    for kind in KINDS:
        strengths = _strengths(question, what, kind)
        if not strengths:
            continue
        curves, said = [], []
        for asked in question.asked:
            here = [s for s in strengths if f"{what}/{kind}/{s}" in asked.answer.estimates]
            if not here:
                continue
            points = [(float(s), asked.answer[f"{what}/{kind}/{s}"]) for s in here]
            curves.append(curve_of(asked.slot, points, origin=True))
            name = "" if question.alone else f"{asked.model.name} "
            said.append(f"{name}{value_of(points[-1][1], _UNITS[what])}")
        last = strength_text(kind, float(strengths[-1]))
        drawn.append((kind, strengths, curves, f"At {last}: {', '.join(said)}"))
    limits = _limits([curve for _, _, curves, _ in drawn for curve in curves], what)
    scale, suffix = {"flips": (100.0, " %"), "confidence_change": (100.0, "")}.get(what, (1.0, ""))
    for kind, strengths, curves, finding in drawn:
        ticks = [(0.0, "0")] + [(float(s), strength_text(kind, float(s))) for s in strengths]
        svg = over_strength(
            curves,
            Axes(_AXIS[kind], label, scale, suffix),
            f"{title} over {kind}: {finding}",
            ticks=_thinned(ticks),
            limits=limits,
        )
        yield Chart(svg, finding, kind.capitalize())


_UNITS = {"ds_relative": PLAIN, "flips": PERCENT, "confidence_change": POINTS}
_AXIS = {
    "brightness": "change of brightness",
    "contrast": "change of contrast",
    "saturation": "change of saturation",
    "hue": "turn of hue",
    "together": "multiple of the box",
}


def _limits(curves: Sequence[Curve], what: str) -> tuple[float, float] | None:
    """One scale for all kinds, so that they can be compared."""
    ends = np.concatenate([np.r_[c.value, c.low, c.high] for c in curves] or [np.zeros(1)])
    ends = ends[np.isfinite(ends)]
    if not len(ends) or not np.ptp(ends):
        return None
    room = 0.05 * float(np.ptp(ends))
    low, high = float(ends.min()), float(ends.max()) + room
    return (low - room, high) if what == "confidence_change" else (min(low, 0.0), high)


def _thinned(ticks: Sequence[tuple[float, str]]) -> list[tuple[float, str]]:
    """Ticks that do not touch, the outer ones first."""
    span = ticks[-1][0] - ticks[0][0] or 1.0
    kept: list[tuple[float, str]] = []
    for tick in reversed(ticks):
        if not kept or kept[-1][0] - tick[0] > CLOSE * span:
            kept.append(tick)
    return kept[::-1]


def _survival_charts(question: Question) -> Iterator[Chart]:
    for kind in KINDS[:4]:
        curves, said = [], []
        for asked in question.asked:
            curve = _survival_curve(asked, kind)
            if curve is None:
                continue
            curves.append(curve)
            ways = [f"flip_radius/{kind}/{way}" for way in ("down", "up")]
            halves = [
                _median(asked.answer, name)
                for name in ways
                if name in asked.answer.estimates and math.isfinite(asked.answer[name].value)
            ]
            name = "" if question.alone else f"{asked.model.name}: "
            half = f"half flip by {listed(halves)}" if halves else "fewer than half flip"
            said.append(name + half)
        if not curves:
            continue
        low, high = min(c.x[0] for c in curves), max(c.x[-1] for c in curves)
        finding = "; ".join(said)
        svg = survival(
            curves,
            Axes(_AXIS[kind], "not yet flipped", 100, " %"),
            f"Predictions that survive a change of {kind}: {finding}",
            ticks=[(x, change_text(kind, x)) for x in _round_ticks(kind, float(low), float(high))],
        )
        yield Chart(
            svg, finding[0].upper() + finding[1:] if question.alone else finding, kind.capitalize()
        )


def _median(answer: Answer, name: str) -> str:
    """A finite flip radius with its direction: "−52 %"."""
    kind, way = name.split("/")[1:]
    return change_text(kind, (-1 if way == "down" else 1) * answer[name].value)


def _round_ticks(kind: str, low: float, high: float) -> list[float]:
    step = 0.25 if kind == "hue" else 0.5 if high - low <= 2 else 1.0
    return [step * i for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _survival_curve(asked: Asked, kind: str) -> Curve | None:
    """Share of images left over the signed change, at places of a grid, with Wilson's interval."""
    table = asked.answer.tables.get("radius")
    names = [f"{kind}/{way}" for way in ("down", "up")]
    if table is None or any(name not in table.columns for name in names):
        return None
    low, high = getattr(asked.answer, "ranges", {}).get(kind, (0.0, 2.0))
    unchanged = 0.0 if kind == "hue" else 1.0
    x, found = [], []
    for name, end in zip(names, (low - unchanged, high - unchanged), strict=True):
        radius = np.asarray(table.columns[name], float)
        places = np.linspace(0, end, GRID)
        for place in places[::-1] if end < 0 else places[1:]:
            left = (radius > abs(place)).astype(float)[None]
            x.append(float(place))
            found.append(estimate(left, "share", seed=asked.answer.seed))
    value, below, above = (
        np.array([getattr(one, end) for one in found]) for end in ("value", "low", "high")
    )
    return Curve(asked.slot, np.array(x), value, below, above)


def stages_of(answer: Answer) -> list[str]:
    """The stages whose ds_relative an answer holds, in forward order."""
    known = getattr(answer, "stages", ())
    found = [
        m.name.removeprefix("layers/") for m in answer.measures if m.name.startswith("layers/")
    ]
    return [stage for stage in known if stage in found] or found


def _layer_charts(question: Question) -> Iterator[Chart]:
    """One chart of all models with the same stages, else one a model."""
    by_stages: dict[tuple[str, ...], list[Asked]] = {}
    for asked in question.asked:
        stages = tuple(stages_of(asked.answer))
        if stages:
            by_stages.setdefault(stages, []).append(asked)
    for stages, models in by_stages.items():
        rows = [
            Dots(
                asked.slot,
                [asked.answer[f"layers/{stage}"] for stage in stages],
                [asked.answer.estimates.get(f"chance/{stage}") for stage in stages],
            )
            for asked in models
        ]
        said = "; ".join(
            ("" if question.alone else f"{asked.model.name}: ")
            + f"from {value_of(asked.answer[f'layers/{stages[0]}'], PLAIN)} at {stages[0]} to "
            + f"{value_of(asked.answer[f'layers/{stages[-1]}'], PLAIN)} at {stages[-1]}"
            for asked in models
        )
        svg = dots(
            stages,
            rows,
            Axes("ds_relative"),
            f"ds_relative by stage: {said}",
            line=1.0,
            joined=True,
        )
        yield Chart(svg, said)
