"""Lines: accuracy and continuity over α, and what became of runs over their steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fastsc.plotting.sheet import (
    COLOURS,
    PAD,
    WIDTH,
    Colour,
    Key,
    Mark,
    Sheet,
    draw,
    size,
    widest,
    wrap,
)
from fastsc.reproduction.figures.axes import interval, ticks
from fastsc.reproduction.figures.labels import spread
from fastsc.reproduction.seeds import Over

_LEFT = 68.0
_PANEL = 185.0  # height of one
_SIDE = 190.0  # the most that labels at the right may take
_END = 12.0  # font size of them
DASHES: Any = (0, (4, 2.5))
_BASE = Mark("grey")
_BANDS: tuple[Colour, ...] = ("grey", "ochre", "green")  # of baselines, in order


@dataclass(frozen=True)
class At:
    """What a strength of the constraint comes to."""

    alpha: float
    top1: Over
    ds: Over


@dataclass(frozen=True)
class Sweep:
    """Strengths of one kind of constraint, joined by a line; `label` stands in the key."""

    label: str
    points: Sequence[At]
    mark: Mark = field(default_factory=Mark)


@dataclass(frozen=True)
class Level:
    """A baseline, which has no α: a band from side to side, labelled at the right."""

    label: str
    top1: Over | None
    ds: Over | None


@dataclass(frozen=True)
class Line:
    """A run.

    Attributes:
        label: At its end; may be empty.
        steps, values: None and NaN where nothing was measured.
        mark: Colour and marker; hollow markers have a thin line.
        target: What it was to come to, as a dashed line: one number, or one a step.
    """

    label: str
    steps: Sequence[float]
    values: Sequence[float | None]
    mark: Mark = field(default_factory=Mark)
    target: float | Sequence[float | None] | None = None


@dataclass(frozen=True)
class Panel:
    """An axis with its lines; `y` says what it shows, with its unit."""

    y: str
    lines: Sequence[Line]
    log: bool = False
    low: float | None = None


def over_alpha(
    sweeps: Sequence[Sweep],
    levels: Sequence[Level],
    title: str,
    *,
    top1: str,
    ds: str,
    x: str = "α, the weight of the constraint (log scale)",
) -> str:
    """Two panels, accuracy over continuity, over the same logarithmic α.

    Args:
        sweeps: Dots with intervals, joined; α above 0.
        levels: Baselines.
        title: The finding.
        top1, ds: What the panels show, with units and which way is better.
        x: What α is.
    """
    alphas = sorted({at.alpha for sweep in sweeps for at in sweep.points if at.alpha > 0})

    def paint(sheet: Sheet) -> None:
        right = _right([level.label for level in levels])
        axes = _panels(sheet, (top1, ds), right, x)
        for axis, name in zip(axes, ("top1", "ds")):
            axis.set_xscale("log")
            if alphas:
                room = (alphas[-1] / alphas[0]) ** 0.05 if len(alphas) > 1 else 2.0
                axis.set_xlim(alphas[0] / room, alphas[-1] * room)
            found = [getattr(level, name) for level in levels]
            for place, one in enumerate(found):
                if one is not None and math.isfinite(one.value):
                    _band(axis, one, place)
            for sweep in sweeps:
                _sweep(axis, sweep, name)
            axis.margins(y=0.1)
            ticks(axis.yaxis, 5)
            ends = [
                (level.label, one.value, COLOURS[_BANDS[place % len(_BANDS)]])
                for place, (level, one) in enumerate(zip(levels, found))
                if one is not None and math.isfinite(one.value)
            ]
            _ends(sheet, axis, right, ends)
        _same_x(axes)

    named = [Key(sweep.label, sweep.mark) for sweep in sweeps if sweep.label]
    return draw(title, paint, height=_height(2), keys=named)


def trajectories(
    panels: Sequence[Panel],
    title: str,
    *,
    x: str = "step",
    target: str = "its target",
    named: Sequence[tuple[str, Mark]] = (),
) -> str:
    """Lines over steps, each labelled at its end, in one panel or more under one another.

    Args:
        panels: From top to bottom.
        title: The finding.
        x: What the steps are.
        target: What the key calls the dashed lines, where there are any.
        named: What else the key explains: words and a mark.
    """
    lines = [line for panel in panels for line in panel.lines]

    def paint(sheet: Sheet) -> None:
        right = _right([line.label for line in lines])
        axes = _panels(sheet, [panel.y for panel in panels], right, x)
        for axis, panel in zip(axes, panels):
            if panel.log:
                axis.set_yscale("log")
            for place, line in enumerate(panel.lines):
                _line(axis, line, place, panel.log)
            if panel.low is not None:
                axis.set_ylim(bottom=panel.low)
            ticks(axis.yaxis, 5)
            ends = [
                (line.label, shown[-1][1], line.mark.hex)
                for line in panel.lines
                if line.label and (shown := _shown(line.steps, line.values, panel.log))
            ]
            _ends(sheet, axis, right, ends)
        _same_x(axes)

    keys = [Key(text, mark) for text, mark in named]
    if any(line.target is not None for line in lines):
        keys.append(Key(target, _BASE, "dashed"))
    return draw(title, paint, height=_height(len(panels)), keys=keys)


def _height(panels: int) -> float:
    return panels * (_PANEL + 34) + 58


def _panels(sheet: Sheet, names: Sequence[str], right: float, x: str) -> list[Any]:
    """Axes under one another, each with what it shows over it; numbers under the last one."""
    axes = []
    for place, name in enumerate(names):
        top = sheet.top + place * (_PANEL + 34)
        sheet.write(PAD, top + 18, name)
        axes.append(sheet.axes(_LEFT, top + 34, right, top + 34 + _PANEL))
        if place < len(names) - 1:
            axes[-1].tick_params(axis="x", labelbottom=False)
    axes[-1].set_xlabel(x)
    return axes


def _same_x(axes: Sequence[Any]) -> None:
    limits = [axis.get_xlim() for axis in axes]
    for axis in axes:
        axis.set_xlim(min(low for low, _ in limits), max(high for _, high in limits))
        ticks(axis.xaxis, 7)


def _band(axis: Any, found: Over, place: int) -> None:
    """A baseline: its interval from side to side, its value in dashes of its own."""
    colour = COLOURS[_BANDS[place % len(_BANDS)]]
    if math.isfinite(found.low) and math.isfinite(found.high):
        axis.axhspan(found.low, found.high, color=colour, alpha=0.13, linewidth=0, zorder=1)
    dashes = (DASHES, (0, (1, 1.5)), (0, (7, 2, 1.5, 2)))[place % 3]
    axis.axhline(found.value, color=colour, linewidth=1.5, linestyle=dashes, zorder=2)


def _sweep(axis: Any, sweep: Sweep, name: str) -> None:
    points = sorted(sweep.points, key=lambda at: at.alpha)
    kept = [(at.alpha, getattr(at, name)) for at in points]
    kept = [(x, one) for x, one in kept if x > 0 and math.isfinite(one.value)]
    for x, one in kept:
        interval(axis, x, one, sweep.mark, width=3)
    where = [x for x, _ in kept], [one.value for _, one in kept]
    axis.plot(*where, color=sweep.mark.hex, linewidth=1.2, zorder=3)
    axis.plot(*where, zorder=4, **sweep.mark.style())


def _line(axis: Any, line: Line, place: int, log: bool) -> None:
    shown = _shown(line.steps, line.values, log)
    if not shown:
        return
    width = 2.0 if line.mark.filled else 1.4
    # Few markers, at other steps for each line: they tell lines apart and should not hide them.
    every = max(1, len(shown) // 5)
    style = {**line.mark.style(0.85), "linestyle": "-", "markevery": (place * every // 3, every)}
    where = [x for x, _ in shown], [y for _, y in shown]
    axis.plot(*where, color=line.mark.hex, linewidth=width, zorder=3, **style)
    if line.target is None:
        return
    goal = line.target if isinstance(line.target, Sequence) else [line.target] * len(line.steps)
    kept = _shown(line.steps, goal, log)
    where = [x for x, _ in kept], [y for _, y in kept]
    axis.plot(*where, color=line.mark.hex, linewidth=1.3, linestyle=DASHES, zorder=2)


def _shown(
    steps: Sequence[float], values: Sequence[float | None], log: bool
) -> list[tuple[float, float]]:
    """The points that can be drawn."""
    pairs = [(x, math.nan if y is None else float(y)) for x, y in zip(steps, values)]
    return [(x, y) for x, y in pairs if math.isfinite(y) and (y > 0 or not log)]


def _right(labels: Sequence[str]) -> float:
    """Where panels end, so that these labels have room beside them."""
    lines = [line for label in labels for line in wrap(label, _SIDE, fontsize=_END)]
    return WIDTH - PAD - (widest(lines, fontsize=_END) + 22 if lines else 0)


def _ends(sheet: Sheet, axis: Any, right: float, ends: Sequence[tuple[str, float, str]]) -> None:
    """Labels beside a panel at the heights of their values, or near them, with a thin line."""
    texts = ["\n".join(wrap(label, _SIDE, fontsize=_END)) for label, _, _ in ends]
    axis.set_ylim(axis.get_ylim())  # what it comes to, so that places are those of the drawing
    (_, low), (_, high) = axis.transAxes.transform([(0, 0), (0, 1)])
    wanted = [float(axis.transData.transform((1, value))[1]) for _, value, _ in ends]
    heights = [size(text, fontsize=_END)[1] + 1 for text in texts]
    places = spread(wanted, heights, low - 6, high + 8)
    for text, (_, _, colour), at, place in zip(texts, ends, wanted, places):
        if abs(place - at) > 4:
            style = {"color": colour, "linewidth": 0.8}
            up = (sheet.height - at, sheet.height - place)
            sheet.stroke((right + 2, right + 16), up, **style)
            sheet.write(right + 19, up[1], text, fontsize=_END, color=colour)
        else:
            sheet.write(right + 6, sheet.height - place, text, fontsize=_END, color=colour)
