"""Arms as points of a plane: continuity against accuracy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fastsc.plotting.sheet import (
    COLOURS,
    INK,
    MUTED,
    PAD,
    WIDTH,
    Key,
    Mark,
    Sheet,
    draw,
    size,
    wrap,
)
from fastsc.reproduction.figures.axes import interval, ticks
from fastsc.reproduction.figures.labels import Box, beside
from fastsc.reproduction.seeds import Over

Role = Literal["baseline", "constraint", "default", "other"]
MARKS: dict[Role, Mark] = {
    "baseline": Mark("grey", "square"),
    "constraint": Mark("blue", "circle"),
    "default": Mark("orange", "star"),
    "other": Mark("purple", "triangle", filled=False),
}
WORDS: dict[Role, str] = {
    "baseline": "no constraint",
    "constraint": "constraint",
    "default": "constraint, as recommended",
    "other": "other",
}
_HEIGHT, _LEFT = 420.0, 68.0
_LABEL = 12.0  # font size of the points' labels
_ARROW = 34.0  # length in both directions


@dataclass(frozen=True)
class Point:
    """An arm: `x` and `y` with their intervals; its label stands beside it."""

    label: str
    x: Over
    y: Over
    role: Role = "constraint"


@dataclass(frozen=True)
class Goal:
    """What was to be reached: x at most and y at least this; the region is shaded and labelled."""

    label: str
    x: float | None = None
    y: float | None = None


def plane(
    points: Sequence[Point],
    title: str,
    *,
    x: str,
    y: str,
    goal: Goal | None = None,
    words: Mapping[Role, str] = WORDS,
) -> str:
    """Points with intervals in both directions and labels that do not cover each other.

    Args:
        points: Lower is better in x, higher in y; those that are NaN are left out.
        title: The finding.
        x, y: What the axes show, with units.
        goal: Limits.
        words: What the key calls the roles that occur.
    """
    kept = [p for p in points if math.isfinite(p.x.value) and math.isfinite(p.y.value)]
    roles = [role for role in MARKS if any(p.role == role for p in kept)]

    def paint(sheet: Sheet) -> None:
        bottom = sheet.height - 56
        axis = sheet.axes(_LEFT, sheet.top + 34, WIDTH - PAD, bottom)
        sheet.write(PAD, sheet.top + 18, y)
        axis.set_xlabel(x)
        _limits(axis, kept, goal)
        ticks(axis.xaxis, 7)
        ticks(axis.yaxis, 7)
        _paint(sheet, axis, kept, goal)

    keys = [Key(words[role], MARKS[role]) for role in roles]
    return draw(title, paint, height=_HEIGHT, keys=keys)


def _limits(axis: Any, points: Sequence[Point], goal: Goal | None) -> None:
    """Room for every interval and goal, and for labels beside the outermost points."""
    limits = (None, None) if goal is None else (goal.x, goal.y)
    for name, limit in zip(("x", "y"), limits):
        ends = [] if limit is None else [limit]
        for found in (getattr(point, name) for point in points):
            ends += [end for end in (found.value, found.low, found.high) if math.isfinite(end)]
        low, high = (min(ends), max(ends)) if ends else (0.0, 1.0)
        room = (high - low) or abs(high) * 0.2 or 1.0
        getattr(axis, f"set_{name}lim")(low - 0.1 * room, high + 0.1 * room)


def _paint(sheet: Sheet, axis: Any, points: Sequence[Point], goal: Goal | None) -> None:
    display = axis.transData.transform
    (x0, y0), (x1, y1) = axis.transAxes.transform([(0, 0), (1, 1)])
    room: Box = (x0 + 2, y0 + 2, x1 - 2, y1 - 2)
    places = [tuple(map(float, display((p.x.value, p.y.value)))) for p in points]
    hard: list[Box] = [(px - 7, py - 7, px + 7, py + 7) for px, py in places]
    soft: list[Box] = []
    for point, (px, py) in zip(points, places):
        mark = MARKS[point.role]
        interval(axis, point.y.value, point.x, mark, across=True)
        interval(axis, point.x.value, point.y, mark)
        if math.isfinite(point.x.low):
            ends = [display((end, point.y.value))[0] for end in (point.x.low, point.x.high)]
            soft.append((ends[0], py - 2, ends[1], py + 2))
        if math.isfinite(point.y.low):
            ends = [display((point.x.value, end))[1] for end in (point.y.low, point.y.high)]
            soft.append((px - 2, ends[0], px + 2, ends[1]))
    for point in points:
        axis.plot([point.x.value], [point.y.value], zorder=4, **MARKS[point.role].style())
    taken = [*hard, *soft]
    if goal is not None:
        covered, lines = _goal(sheet, axis, goal, room, taken)
        hard += covered
        soft += 2 * lines  # which is worse than an interval: it would strike words out
        taken += covered
    hard.append(_better(sheet, room, taken))
    styles = [_style(point) for point in points]
    sizes = [size(point.label, **style) for point, style in zip(points, styles)]
    found = beside([(px, py) for px, py in places], sizes, room, hard=hard, soft=soft)
    for point, style, (px, py), placed in zip(points, styles, places, found):
        left, bottom, _, top = placed.box
        sheet.write(
            left,
            sheet.height - (bottom + top) / 2,
            point.label,
            **style,
            color=MARKS[point.role].hex,
        )
        if placed.leader is not None:
            x, y = placed.leader
            share = min(1.0, 8 / math.dist((px, py), placed.leader))  # of it, under the marker
            down = [sheet.height - end for end in (py + share * (y - py), y)]
            sheet.stroke([px + share * (x - px), x], down, color=MUTED, linewidth=0.8)


def _style(point: Point) -> dict[str, Any]:
    weight = "bold" if point.role == "default" else "normal"
    return {"fontsize": _LABEL, "weight": weight}


def _goal(
    sheet: Sheet, axis: Any, goal: Goal, room: Box, taken: Sequence[Box]
) -> tuple[list[Box], list[Box]]:
    """The region, its sides and its words; what the words and the sides cover."""
    x0, x1 = axis.get_xlim()
    y0, y1 = axis.get_ylim()
    edge, floor = (x1 if goal.x is None else goal.x), (y0 if goal.y is None else goal.y)
    green = COLOURS["green"]
    axis.fill_between([x0, edge], floor, y1, color=green, alpha=0.1, linewidth=0, zorder=0)
    right, bottom = (float(at) for at in axis.transData.transform((edge, floor)))
    lines: list[Box] = []
    if goal.x is not None:
        axis.plot([edge, edge], [floor, y1], color=green, linewidth=1, linestyle=(0, (4, 3)))
        lines.append((right - 1, bottom, right + 1, room[3]))
    if goal.y is not None:
        axis.plot([x0, edge], [floor, floor], color=green, linewidth=1, linestyle=(0, (4, 3)))
        lines.append((room[0], bottom - 1, right, bottom + 1))
    region: Box = (room[0] + 4, bottom + 4, right - 5, room[3] - 4)
    words = "\n".join(wrap(goal.label, max(region[2] - region[0], 40), fontsize=_LABEL))
    box = _corner(size(words, _LABEL, style="italic"), region, taken, "bl br tr tl")
    middle = sheet.height - (box[1] + box[3]) / 2
    sheet.write(box[0], middle, words, fontsize=_LABEL, style="italic", color=green)
    return [box], lines


def _better(sheet: Sheet, room: Box, taken: Sequence[Box]) -> Box:
    """An arrow up and to the left with its word, in a corner without points."""
    width, height = size("better", fontsize=_LABEL)
    whole = (_ARROW + 6 + width, _ARROW)
    box = _corner(whole, (room[0] + 4, room[1] + 4, room[2] - 4, room[3] - 4), taken, "tl br bl tr")
    left, top = box[0], sheet.height - box[3]
    style = {"color": INK, "linewidth": 1.6, "solid_capstyle": "round"}
    sheet.stroke([left + 2, left + _ARROW], [top + 2, top + _ARROW], **style)
    sheet.stroke([left + 2, left + 2, left + 12], [top + 12, top + 2, top + 2], **style)
    sheet.write(left + _ARROW + 5, top + _ARROW - height / 2, "better", fontsize=_LABEL)
    return box


def _corner(extent: tuple[float, float], room: Box, taken: Sequence[Box], corners: str) -> Box:
    """The first corner of a room in which a box of this extent covers least."""
    width, height = extent
    left, bottom, right, top = room

    def at(corner: str) -> Box:
        x = left if "l" in corner else right - width
        y = bottom if "b" in corner else top - height
        return x, y, x + width, y + height

    def covered(box: Box) -> int:
        return sum(
            box[0] < other[2] + 6
            and other[0] < box[2] + 6
            and box[1] < other[3] + 6
            and other[1] < box[3] + 6
            for other in taken
        )

    return min((at(corner) for corner in corners.split()), key=covered)
