"""Lines: accuracy and continuity over α, and what became of runs over their steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastsc.plotting.sheet import COLORS, Color, Mark, draw
from fastsc.reproduction.figures.axes import reach, ticks, values
from fastsc.reproduction.figures.plane import Point
from fastsc.reproduction.seeds import SeedEstimate

_PANEL = 230.0  # height of one with its name
DASHES: Any = (0, (4, 2.5))
_BANDS: tuple[tuple[Color, Any], ...] = (
    ("grey", DASHES), ("ochre", (0, (1, 1.5))), ("green", (0, (7, 2, 1.5, 2))),
)  # fmt: skip


@dataclass(frozen=True)
class Line:
    """A run.

    Attributes:
        label: In the key; may be empty.
        steps, values: None and NaN where nothing was measured.
        mark: Color and marker; hollow markers have a thin line.
        target: What it was to come to, as a dashed line.
    """

    label: str
    steps: Sequence[float]
    values: Sequence[float | None]
    mark: Mark = field(default_factory=Mark)
    target: float | None = None


@dataclass(frozen=True)
class Panel:
    """An axis with its lines; `y` says what it shows, with its unit."""

    y: str
    lines: Sequence[Line]
    log: bool = False


def over_alpha(
    label: str,
    sweep: Mapping[float, Point],
    levels: Sequence[Point],
    title: str,
    *,
    top1: str,
    ds: str,
) -> str:
    """Two panels, accuracy over continuity, over the same logarithmic α.

    Args:
        label: Of the sweep.
        sweep: By α, above 0: dots with intervals, joined.
        levels: Baselines, which have no α: bands from side to side.
        title: The finding.
        top1, ds: What the panels show, with units and which way is better.
    """

    def paint(figure: Any) -> None:
        axes = _panels(figure, (top1, ds), "α, the weight of the constraint (log scale)")
        for axis, name in zip(axes, "yx"):
            axis.set_xscale("log")
            for place, level in enumerate(levels):
                _band(axis, level.label, getattr(level, name), place)
            estimates = [getattr(point, name) for _, point in sorted(sweep.items())]
            style = {**Mark().style(), "linewidth": 1.2, "label": label}
            axis.errorbar(sorted(sweep), values(estimates), yerr=reach(estimates), **style)
            axis.margins(y=0.1)
            ticks(axis.yaxis, 5)
            ticks(axis.xaxis)
            axis.set_xticks(sorted(sweep))

    return draw(title, paint, height=2 * _PANEL)


def trajectories(panels: Sequence[Panel], title: str) -> str:
    """Lines over steps, in one panel or more under one another.

    Args:
        panels: From top to bottom.
        title: The finding.
    """
    keys: dict[str, Any] = {}
    if any(line.target is not None for panel in panels for line in panel.lines):
        keys["its target"] = {"color": COLORS["grey"], "linewidth": 1.3, "linestyle": DASHES}

    def paint(figure: Any) -> None:
        axes = _panels(figure, [panel.y for panel in panels], "step")
        for axis, panel in zip(axes, panels):
            axis.set_yscale("log" if panel.log else "linear")
            for place, line in enumerate(panel.lines):
                _line(axis, line, place)
            ticks(axis.yaxis, 5)
            ticks(axis.xaxis, 7)

    return draw(title, paint, height=len(panels) * _PANEL, keys=keys)


def _panels(figure: Any, names: Sequence[str], x: str) -> Any:
    """Axes under one another, each with what it shows over it; numbers under the last one."""
    axes = figure.subplots(len(names), sharex=True, squeeze=False)[:, 0]
    for axis, name in zip(axes, names):
        axis.set_title(name)
    axes[-1].set_xlabel(x)
    return axes


def _band(axis: Any, label: str, interval: SeedEstimate, place: int) -> None:
    """A baseline: its interval from side to side, its value in dashes of its own."""
    color, dashes = _BANDS[place % len(_BANDS)]
    if math.isfinite(interval.low):
        band = {"color": COLORS[color], "alpha": 0.13, "linewidth": 0, "zorder": 1}
        axis.axhspan(interval.low, interval.high, **band)
    if math.isfinite(interval.value):
        style = {"color": COLORS[color], "linewidth": 1.5, "linestyle": dashes, "label": label}
        axis.axhline(interval.value, **style)


def _line(axis: Any, line: Line, place: int) -> None:
    known = [(x, y) for x, y in zip(line.steps, line.values) if y is not None]
    # Few markers, at other steps for each line: they tell lines apart and should not hide them.
    every = max(1, len(known) // 5)
    style = {**line.mark.style(0.85), "markevery": (place * every // 3, every)}
    axis.plot(*zip(*known), **style, linewidth=2 if line.mark.filled else 1.4, label=line.label)
    if line.target is not None:
        axis.axhline(line.target, color=line.mark.hex, linewidth=1.3, linestyle=DASHES)
