"""Arms as points of a plane: continuity against accuracy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fastsc.plotting.sheet import COLORS, MUTED, Mark, draw, size
from fastsc.reproduction.figures.axes import reach, ticks, values
from fastsc.reproduction.figures.labels import LEADER, Box, place_labels
from fastsc.reproduction.seeds import SeedEstimate

Role = Literal["no constraint", "constraint", "constraint, with the goals"]
MARKS: dict[Role, Mark] = {
    "no constraint": Mark("grey", "s"),
    "constraint": Mark("blue", "o"),
    "constraint, with the goals": Mark("orange", "*"),
}
_LABEL = 12.0  # font size of the points' labels


@dataclass(frozen=True)
class Point:
    """An arm: `x` and `y` with their intervals; its label stands next to it."""

    label: str
    x: SeedEstimate
    y: SeedEstimate
    role: Role = "constraint"


@dataclass(frozen=True)
class Goal:
    """What was to be reached: x at most and y at least this; the region is shaded and labelled."""

    label: str
    x: float
    y: float


def plane(points: Sequence[Point], title: str, *, x: str, y: str, goal: Goal | None = None) -> str:
    """Points with intervals in both directions and labels that do not cover each other.

    Args:
        points: Lower is better in x, higher in y; those that are NaN are left out.
        title: The finding.
        x, y: What the axes show, with units.
        goal: Limits.
    """
    kept = [p for p in points if math.isfinite(p.x.value) and math.isfinite(p.y.value)]

    def paint(figure: Any) -> None:
        axis = figure.subplots()
        axis.set_title(y)
        axis.set_title("better ↖", loc="right")
        axis.set_xlabel(x)
        for role, mark in MARKS.items():
            of = [point for point in kept if point.role == role]
            if of:
                x_of, y_of = [point.x for point in of], [point.y for point in of]
                axis.errorbar(
                    values(x_of), values(y_of), yerr=reach(y_of), xerr=reach(x_of),
                    **mark.style(), linestyle="none", label=role,
                )  # fmt: skip
        if goal is not None:
            axis.plot(goal.x, goal.y, alpha=0)  # in sight
        axis.margins(0.1)
        axis.set(xlim=axis.get_xlim(), ylim=axis.get_ylim())
        if goal is not None:
            _shade(axis, goal)
        ticks(axis.xaxis, 7)
        ticks(axis.yaxis, 7)

    return draw(title, paint, height=390, finish=lambda figure: _label(figure.axes[0], kept, goal))


def _shade(axis: Any, goal: Goal) -> None:
    """The region, with its sides."""
    left, top = axis.get_xlim()[0], axis.get_ylim()[1]
    green = COLORS["green"]
    region = {"color": green, "alpha": 0.1, "linewidth": 0, "label": goal.label}
    axis.fill_between([left, goal.x], goal.y, top, **region)
    sides = [left, goal.x, goal.x], [goal.y, goal.y, top]
    axis.plot(*sides, color=green, linewidth=1, linestyle=(0, (4, 3)))


def _label(axis: Any, points: Sequence[Point], goal: Goal | None) -> None:
    """A name next to each point, in its color; one farther away with a thin line."""
    at = [_pixels(axis, point.x.value, point.y.value) for point in points]
    low = [_pixels(axis, point.x.low, point.y.low) for point in points]
    high = [_pixels(axis, point.x.high, point.y.high) for point in points]
    markers: list[Box] = [(x - 7, y - 7, x + 7, y + 7) for x, y in at]
    lines: list[Box] = []
    for (x, y), (left, bottom), (right, top) in zip(at, low, high):
        lines += [(left, y - 2, right, y + 2), (x - 2, bottom, x + 2, top)]
    left, bottom, right, top = axis.bbox.extents
    if goal is not None:
        x, y = _pixels(axis, goal.x, goal.y)
        # Worse than an interval: it would strike words out.
        lines += 3 * [(x - 1, y, x + 1, top), (left, y - 1, x, y + 1)]
    weights = ["bold" if point.role == "constraint, with the goals" else "normal"
               for point in points]  # fmt: skip
    sizes = [size(point.label, _LABEL, weight) for point, weight in zip(points, weights)]
    room = (left + 2, bottom + 2, right - 2, top - 2)
    boxes = place_labels(at, sizes, room, hard=markers, soft=lines)
    for point, weight, (x, y), box in zip(points, weights, at, boxes):
        near = min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3])
        far = math.dist((x, y), near) >= LEADER
        line = {"arrowstyle": "-", "color": MUTED, "linewidth": 0.8, "shrinkA": 0, "shrinkB": 8}
        corner = (near[0] - box[0]) / (box[2] - box[0]), (near[1] - box[1]) / (box[3] - box[1])
        axis.annotate(
            point.label, (x, y), (box[0], (box[1] + box[3]) / 2), "figure pixels",
            color=MARKS[point.role].hex, fontsize=_LABEL, weight=weight, va="center",
            arrowprops={**line, "relpos": corner} if far else None,
        )  # fmt: skip


def _pixels(axis: Any, x: float, y: float) -> tuple[float, float]:
    right, up = axis.transData.transform((x, y))
    return float(right), float(up)
