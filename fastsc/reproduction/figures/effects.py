"""A forest plot: what each claim comes to, its interval, and whether it holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fastsc.plotting.sheet import (
    FONT,
    INK,
    LINE,
    MUTED,
    PAD,
    SPACING,
    WIDTH,
    Key,
    Mark,
    Sheet,
    draw,
    size,
    widest,
    wrap,
)
from fastsc.reproduction.figures.axes import interval, ticks
from fastsc.reproduction.seeds import Over, Verdict

VERDICTS: dict[Verdict, Mark] = {
    "holds": Mark("green", "circle"),
    "does not hold": Mark("orange", "cross"),
    "not shown": Mark("grey", "diamond", filled=False),
}
PLAIN = Mark("blue", "square")  # of a row without a verdict
_BOUND = Mark("purple")
_WIDEST = 250.0  # of the labels at the left
_ROW, _HEAD = 27.0, 30.0


@dataclass(frozen=True)
class Effect:
    """A row.

    Attributes:
        label: What is compared, with its n.
        found: The ratio or the difference.
        verdict: On the claim; None where there is none.
        bound: What the claim says it is below or above; drawn as a tick.
    """

    label: str
    found: Over
    verdict: Verdict | None = None
    bound: float | None = None


@dataclass(frozen=True)
class Section:
    """Rows under a heading; an empty heading takes no room."""

    heading: str
    rows: Sequence[Effect]


def effects(
    sections: Sequence[Section],
    title: str,
    x: str,
    *,
    ratios: bool,
    directions: tuple[str, str],
    write: Callable[[float], str] = "{:.2f}".format,
    limits: tuple[float, float] | None = None,
) -> str:
    """A row an effect: label, dot with interval, and the figures in words at the right.

    Args:
        sections: From top to bottom.
        title: The finding.
        x: What the axis shows, with its unit.
        ratios: A logarithmic axis with its line at 1, not a linear one with its line at 0.
        directions: What it means to be left and right of the line, such as "constraint better".
        write: A number at the right.
        limits: Ends of the axis; an interval that passes one ends in an arrow head.
    """
    rows = [row for section in sections for row in section.rows]
    used = [verdict for verdict in VERDICTS if any(row.verdict == verdict for row in rows)]
    keys = [Key(verdict, VERDICTS[verdict]) for verdict in used]
    if any(row.bound is not None for row in rows):
        keys.append(Key("bound of the claim", _BOUND, "tick"))
    rows_px = sum(_height(row) for row in rows)
    heads_px = _HEAD * sum(bool(section.heading) for section in sections)

    def paint(sheet: Sheet) -> None:
        written = [_words(row.found, write) for row in rows]
        left = PAD + max((size(_label(row))[0] for row in rows), default=0) + 18
        right = WIDTH - PAD - widest(written) - 16
        axis = sheet.axes(left, sheet.top + 8, right, sheet.top + 8 + rows_px + heads_px)
        _scale(axis, rows, ratios, limits)
        axis.axvline(1 if ratios else 0, color=INK, linewidth=1.2, zorder=1)
        y = sheet.top + 8
        top = y
        words = iter(written)
        for section in sections:
            if section.heading:
                sheet.shade(PAD, y + 3, WIDTH - PAD, y + _HEAD - 3)
                sheet.write(PAD + 6, y + _HEAD / 2, section.heading, weight="bold")
                y += _HEAD
            for row in section.rows:
                middle = y + _height(row) / 2
                sheet.write(PAD, middle, _label(row))
                sheet.write(right + 16, middle, next(words))
                _row(axis, middle - top, row)
                y += _height(row)
        axis.set_ylim(y - top, 0)
        _under(sheet, axis, y + 34, left, right, x, directions)

    return draw(title, paint, height=8 + rows_px + heads_px + 90, keys=keys)


def _label(row: Effect) -> str:
    return "\n".join(wrap(row.label, _WIDEST))


def _height(row: Effect) -> float:
    return _ROW + _label(row).count("\n") * FONT * SPACING


def _words(found: Over, write: Callable[[float], str]) -> str:
    """The value with its interval, as far as there are any."""
    if not math.isfinite(found.value):
        return "–"
    value, low, high = (write(x).replace("-", "−") for x in (found.value, found.low, found.high))
    return f"{value} [{low}, {high}]" if math.isfinite(found.low) else value


def _scale(
    axis: Any, rows: Sequence[Effect], ratios: bool, limits: tuple[float, float] | None
) -> None:
    """The axis wide enough for every interval, bound, and the line of no effect."""
    line = 1.0 if ratios else 0.0
    ends = [line]
    for row in rows:
        ends += [row.found.value, row.found.low, row.found.high, row.bound or line]
    ends = [end for end in ends if math.isfinite(end) and (end > 0 or not ratios)]
    low, high = limits or (min(ends), max(ends))
    if ratios:
        axis.set_xscale("log")
        room = (high / low) ** 0.06 if high > low else 1.5
        ends = [low / room, high * room]
    else:
        room = (high - low) * 0.06 or 1.0
        ends = [low - room, high + room]
    axis.set_xlim(*(limits or ends))
    ticks(axis.xaxis, 5)
    axis.set_yticks([])
    axis.spines["left"].set_visible(False)


def _row(axis: Any, y: float, row: Effect) -> None:
    """A dot with its interval, and the bound that it is held against."""
    mark = VERDICTS[row.verdict] if row.verdict else PLAIN
    if row.bound is not None:
        axis.plot([row.bound] * 2, [y - 9, y + 9], color=_BOUND.hex, linewidth=2, zorder=2)
    low, high = axis.get_xlim()
    found = row.found
    if not math.isfinite(found.value):
        return
    interval(axis, y, found, mark, across=True, width=3)
    if low <= found.value <= high:
        axis.plot([found.value], [y], zorder=4, **mark.style())
    for end, outside, head in ((low, found.low < low, "<"), (high, found.high > high, ">")):
        if outside or (not low <= found.value <= high and (found.value < low) == (end == low)):
            style = {**mark.style(), "marker": head, "clip_on": False}
            axis.plot([end], [y], zorder=5, **style)


def _under(
    sheet: Sheet,
    axis: Any,
    y: float,
    left: float,
    right: float,
    x: str,
    directions: tuple[str, str],
) -> None:
    """The words of both directions under the axis, and what it shows under them."""
    words = f"← {directions[0]}", f"{directions[1]} →"
    line = float(axis.transData.transform((1 if axis.get_xscale() == "log" else 0, 0))[0])
    # At the line, from where they count, as far as there is room.
    start = min(line + 8, right - size(words[1])[0])
    sheet.write(min(line - 8, start - 16), y, words[0], ha="right", color=MUTED)
    sheet.write(start, y, words[1], color=MUTED)
    sheet.write((left + right) / 2, y + LINE + 6, x, ha="center")
