"""The charts of continuity, over strength, of the flip radius and of the stages; its medians."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from fastsc.evaluation.questions.continuity.question import Continuity
from fastsc.evaluation.report.charts import Axes, Curve, curve_of, dot_chart, lines
from fastsc.evaluation.report.parts import Asked, Chart, Code, Question
from fastsc.evaluation.report.tables import reach
from fastsc.evaluation.report.words import (
    DEGREES,
    PERCENT,
    PLAIN,
    SPACE,
    Figure,
    Unit,
    change_text,
    listed,
    strength_text,
)
from fastsc.evaluation.results.measures import Name
from fastsc.evaluation.results.statistics import Estimate, estimate
from fastsc.evaluation.views import KINDS

GRID = 41  # places of the band round a survival curve
LAST = ("gamma", "jpeg")  # operations whose amounts' texts end in the number
CLOSE = 0.13  # of an axis: ticks that are nearer to each other would touch
NOTHING = (0.0, Estimate(0.0, 0.0, 0.0, 0, 0, "none"))  # where nothing has changed
AXES = {
    "brightness": "change of brightness",
    "contrast": "change of contrast",
    "saturation": "change of saturation",
    "hue": "turn of hue",
    "together": "multiple of the box",
}


# --- in words ------------------------------------------------------------------------------------


def _half_flipped(asked: Asked) -> dict[str, str]:
    """Figure -> "+38 % brightness (+31 to +45 %)": the nearer direction of each kind that flips."""
    names = (name for name in _radii(asked) if math.isfinite(_value(asked, name)))
    return {str(name): _signed(asked, name) for name in names}


def _never_flipped(asked: Asked) -> list[str]:
    """ "saturation (within −100 % to +200 %)": the kinds of which fewer than half flip."""
    kinds: dict[str | None, list[str]] = {}
    for name in _radii(asked):
        if _value(asked, name) == math.inf and not math.isnan(asked.answer[str(name)].value):
            end = reach(asked.answer, name._replace(level="either"))
            kinds.setdefault(end, []).append(name.kind)
    return [listed(of, "or") + (f" (within {end})" if end else "") for end, of in kinds.items()]


def _radii(asked: Asked) -> Iterator[Name]:
    """The nearer direction of each kind."""
    for kind in KINDS:
        names = [Name("flip_radius", kind, way) for way in ("down", "up")]
        names = [name for name in names if str(name) in asked.answer.estimates]
        if names:
            yield min(names, key=lambda name: _value(asked, name))


def _listed_radii(asked: Asked) -> Iterator[Name]:
    """The nearer direction of each perturbation of --perturb that has a radius."""
    for kind in _listed_kinds(asked.its(Continuity)):
        ways = ("down", "up") if asked.its(Continuity).ranges[kind][0] else ("up",)
        yield min((Name("flip_radius", kind, way) for way in ways), key=partial(_value, asked))


def _listed_kinds(answer: Continuity) -> list[str]:
    return [kind for kind in answer.ranges if kind not in KINDS]


def _listed_half(asked: Asked) -> list[str]:
    """ "below JPEG quality 23 (28 to 19)", "beyond 2.1 px of blur (1.8 px to 2.5 px)"."""
    phrases = []
    for name in _listed_radii(asked):
        if not math.isfinite(_value(asked, name)):
            continue
        operation = name.kind.partition("-")[0]
        radius, sign = asked.answer[str(name)], -1 if name.level == "down" else 1
        value, low, high = (
            change_text(name.kind, sign * end) if math.isfinite(end) else "beyond the range"
            for end in (radius.value, radius.low, radius.high)
        )
        low, high = (end.split(SPACE)[-1] if operation in LAST else end for end in (low, high))
        within = f" ({low} to {high})" if math.isfinite(radius.low) else ""
        phrases.append(
            f"below JPEG {value}{within}"
            if operation == "jpeg"
            else f"beyond {value} of {name.kind}{within}"
        )
    return phrases


def _listed_never(asked: Asked) -> list[str]:
    """ "blur up to 20.00 px": the listed perturbations of which fewer than half flip."""
    return [
        f"{name.kind} within {reach(asked.answer, name._replace(level='either'))}"
        for name in _listed_radii(asked)
        if asked.answer[str(name)].value == math.inf
    ]


def _value(asked: Asked, name: Name) -> float:
    value = asked.answer[str(name)].value
    return math.inf if math.isnan(value) else value


def _signed(asked: Asked, name: Name) -> str:
    """The median of a direction with its sign: "+38 % brightness (+31 to +45 %)"."""
    radius, kind = asked.answer[str(name)], name.kind
    value, low, high = (
        change_text(kind, (-1 if name.level == "down" else 1) * end) if math.isfinite(end) else ""
        for end in (radius.value, radius.low, radius.high)
    )
    if math.isnan(radius.low + radius.high):
        return f"{value} {kind}"
    if not high:
        end = reach(asked.answer, name) or "the range"
        return f"{value} {kind} ({low} to beyond {end})"
    suffix = DEGREES.suffix if kind == "hue" else PERCENT.suffix
    return f"{value} {kind} ({low.removesuffix(suffix)} to {high})"


def _stages(asked: Asked) -> list[str]:
    """The stages whose ds_relative an answer holds, in forward order."""
    return [m.figure.kind for m in asked.answer.measures if m.figure.family == "layers"]


def _stage_figures(asked: Asked) -> dict[str, Figure]:
    figures = {stage: asked.figure(f"layers/{stage}") for stage in _stages(asked)}
    return {stage: figure for stage, figure in figures.items() if figure and figure.known}


def _furthest(figures: dict[str, Figure]) -> str:
    return max(figures, key=lambda stage: figures[stage].estimate.value)


# --- charts --------------------------------------------------------------------------------------


def _over_strength(
    family: str, what: str, label: str, unit: Unit
) -> Callable[[Question], Iterator[Chart]]:
    """One chart per kind of change, of a figure over its strength."""

    def charts(question: Question) -> Iterator[Chart]:
        drawn: dict[str, list[Curve]] = {}
        captions, ticks = {}, {}
        figures = [m.figure for m in question.measures(family) if m.figure.level]
        for kind in dict.fromkeys([*AXES, *(figure.kind for figure in figures)]):
            names = [figure for figure in figures if figure.kind == kind]
            names.sort(key=lambda name: float(name.level))
            if not names:
                continue
            listing = []
            for asked in question.asked:
                points = [
                    (float(name.level), figure)
                    for name in names
                    if (figure := asked.figure(str(name)))
                ]
                if points:
                    curve = curve_of(asked.slot, [NOTHING, *((x, y.estimate) for x, y in points)])
                    drawn.setdefault(kind, []).append(curve)
                    listing.append(question.called(asked) + points[-1][1].value)
            ticks[kind] = [(0.0, "0")] + [
                (float(name.level), strength_text(kind, float(name.level))) for name in names
            ]
            captions[kind] = f"At {ticks[kind][-1][1]}: {', '.join(listing)}"
        limits = _limits([curve for curves in drawn.values() for curve in curves])
        for kind, curves in drawn.items():
            axes = Axes(AXES.get(kind, f"strength of {kind}"), label, unit)
            finding = f"{what} over {kind}: {captions[kind]}"
            svg = lines(curves, axes, finding, ticks=_thinned(ticks[kind]), limits=limits)
            yield Chart(svg, captions[kind], kind.capitalize())

    return charts


def _limits(curves: Sequence[Curve]) -> tuple[float, float] | None:
    """One scale for all kinds, so that they can be compared; from 0 where nothing is below it."""
    ends = np.concatenate([np.r_[c.value, c.low, c.high] for c in curves] or [np.zeros(1)])
    ends = ends[np.isfinite(ends)]
    if not len(ends) or not np.ptp(ends):
        return None
    room = 0.05 * float(np.ptp(ends))
    low, high = float(ends.min()), float(ends.max()) + room
    return (low - room if low < 0 else 0.0), high


def _thinned(ticks: Sequence[tuple[float, str]]) -> list[tuple[float, str]]:
    """Ticks that do not touch, the outer ones first."""
    span = ticks[-1][0] - ticks[0][0] or 1.0
    kept: list[tuple[float, str]] = []
    for tick in reversed(ticks):
        if not kept or kept[-1][0] - tick[0] > CLOSE * span:
            kept.append(tick)
    return kept[::-1]


def _survival(question: Question) -> Iterator[Chart]:
    every = [kind for _, answer in question.of(Continuity) for kind in answer.ranges]
    for kind in dict.fromkeys(every):
        curves, listing = [], []
        for asked, answer in question.of(Continuity):
            if "radius" not in answer.tables or kind not in answer.ranges:
                continue
            curves.append(_survival_curve(asked.slot, answer, kind))
            halves = [
                change_text(kind, sign * radius.value)
                for way, sign in (("down", -1), ("up", 1))
                if (radius := answer.estimates.get(f"flip_radius/{kind}/{way}"))
                and math.isfinite(radius.value)
            ]
            half = f"half flip by {listed(halves)}" if halves else "fewer than half flip"
            listing.append(question.called(asked) + half)
        if not curves:
            continue
        low, high = min(c.x[0] for c in curves), max(c.x[-1] for c in curves)
        step = 0.25 if kind == "hue" else 0.5 if high - low <= 2 else 1.0
        if kind not in KINDS:
            step = (high - low) / 4
        places = [step * i for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
        finding = "; ".join(listing)
        svg = lines(
            curves,
            Axes(AXES.get(kind, f"amount of {kind}"), "not yet flipped", PERCENT),
            f"Predictions that survive a change of {kind}: {finding}",
            ticks=[(x, change_text(kind, x)) for x in places],
            signed=True,
        )
        caption = finding[0].upper() + finding[1:] if question.alone else finding
        yield Chart(svg, caption, kind.capitalize())


def _survival_curve(slot: int, answer: Continuity, kind: str) -> Curve:
    """Share of images left over the signed change, at places of a grid, with Wilson's interval."""
    unchanged = float(kind in KINDS and kind != "hue")
    points = []
    for way, end in zip(("down", "up"), answer.ranges[kind], strict=True):
        if end == unchanged and kind not in KINDS:
            continue  # it has no such direction
        radius = answer.tables["radius"].columns[f"{kind}/{way}"]
        places = np.linspace(0, end - unchanged, GRID)
        for place in places[::-1] if way == "down" else places[1:]:
            left = (radius > abs(place)).astype(float)[None]
            points.append((float(place), estimate(left, "share", seed=answer.seed)))
    return curve_of(slot, points)


def _layers(question: Question) -> Iterator[Chart]:
    """One chart of all models with the same stages, else one per model."""
    models: dict[tuple[str, ...], list[Asked]] = {}
    for asked in question.asked:
        models.setdefault(tuple(_stages(asked)), []).append(asked)
    for stages, some in models.items():
        rows = {f"layers/{stage}": stage for stage in stages}
        chart = dot_chart(
            question, rows, title="ds_relative by stage", axis="ds_relative", line=1.0, asked=some,
            chance={f"layers/{stage}": f"chance/{stage}" for stage in stages},
        )  # fmt: skip
        if chart is not None:
            ends = {name: rows[name] for name in (next(iter(rows)), list(rows)[-1])}
            listing = "; ".join(
                f"{question.called(one)}from "
                + " to ".join(one.each(ends, "{figure.value} at {label}"))
                for one in some
            )
            yield replace(chart, caption=listing, title="")


CODE = Code(
    words={
        "half_flipped": _half_flipped,
        "never_flipped": _never_flipped,
        "listed_half": _listed_half,
        "listed_never": _listed_never,
        "stage_figures": _stage_figures,
        "furthest": _furthest,
    },
    charts={
        "movement": _over_strength("ds_relative", "Movement", "distance, relative", PLAIN),
        "flips": _over_strength("flips", "Predictions that flip", "flipped", PERCENT),
        "confidence": _over_strength(
            "confidence_change", "Change of confidence", "change, points", Unit(100)
        ),
        "survival": _survival,
        "layers": _layers,
    },
)
