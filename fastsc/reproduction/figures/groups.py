"""Models side by side in groups: dots over perturbations, and bars of accuracies."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastsc.plotting.sheet import (
    INK,
    PAD,
    SHADE,
    WIDTH,
    Key,
    Mark,
    Sheet,
    draw,
    size,
    tint,
)
from fastsc.reproduction.figures.axes import interval, ticks
from fastsc.reproduction.seeds import Over

_HEIGHT, _LEFT = 330.0, 62.0
_VALUE = 12.0  # font size of the values over bars


@dataclass(frozen=True)
class Series:
    """A model or an arm: what was found of it in each group, None where nothing was."""

    label: str
    found: Sequence[Over | None]
    mark: Mark = field(default_factory=Mark)


def by_perturbation(
    series: Sequence[Series], groups: Sequence[str], title: str, *, y: str, low: float | None = 0
) -> str:
    """Dots with intervals, side by side over the name of each perturbation.

    Args:
        series: In the order of the key; marks should give the depth by shape, the constraint by
            colour.
        groups: Perturbations.
        title: The finding.
        y: What the axis shows, with its unit and which way is better.
        low: Where the axis begins; None where the values do.
    """

    def paint(sheet: Sheet) -> None:
        axis = _grouped(sheet, groups, y)
        step = 0.72 / max(len(series), 1)
        for place, one in enumerate(series):
            for group, found in _known(one):
                at = group + (place - (len(series) - 1) / 2) * step
                interval(axis, at, found, one.mark, width=3)
                axis.plot([at], [found.value], zorder=4, **one.mark.style(0.85))
        if low is not None:
            axis.set_ylim(low, None)
        ticks(axis.yaxis)

    return draw(title, paint, height=_HEIGHT, keys=[Key(one.label, one.mark) for one in series])


def bars(
    groups: Sequence[str],
    series: Sequence[Series],
    title: str,
    y: str,
    *,
    chance: float | None = None,
    write: Callable[[float], str] = "{:.1f}".format,
) -> str:
    """Bars from 0 with intervals, their values over them.

    Args:
        groups: Names under the axis.
        series: One a bar of each group, in the order of the key.
        title: The finding.
        y: What the axis shows, with its unit.
        chance: What guessing gives: a dashed line with its word.
        write: A value over its bar.
    """

    def paint(sheet: Sheet) -> None:
        right = PAD if chance is None else size("chance")[0] + PAD + 6
        axis = _grouped(sheet, groups, y, right=right)
        axis.grid(visible=False, axis="x")
        step = 0.8 / max(len(series), 1)
        highest = chance or 0.0
        for place, one in enumerate(series):
            style = {
                "color": one.mark.hex if one.mark.filled else tint(one.mark.hex),
                "edgecolor": one.mark.hex,
                "linewidth": 1.5,
            }
            for group, found in _known(one):
                at = group + (place - (len(series) - 1) / 2) * step
                axis.bar(at, found.value, step * 0.8, zorder=2, **style)
                top = found.value
                if math.isfinite(found.low) and math.isfinite(found.high):
                    ends = [found.low, found.high]
                    axis.plot([at, at], ends, color=INK, linewidth=1.5, zorder=3)
                    top = max(top, found.high)
                _over(axis, at, top, write(found.value))
                highest = max(highest, top)
        axis.set_ylim(0, highest * 1.1 or 1)  # with room for the values over the bars
        ticks(axis.yaxis)
        if chance is not None:
            axis.axhline(chance, color=INK, linewidth=1.2, linestyle=(0, (3, 2)), zorder=3)
            _, height = axis.transData.transform((0, chance))
            sheet.write(WIDTH - right + 6, sheet.height - height, "chance")

    keys = [Key(one.label, one.mark, "bar") for one in series]
    return draw(title, paint, height=_HEIGHT, keys=keys)


def _known(one: Series) -> list[tuple[int, Over]]:
    return [
        (group, found)
        for group, found in enumerate(one.found)
        if found is not None and math.isfinite(found.value)
    ]


def _grouped(sheet: Sheet, groups: Sequence[str], y: str, *, right: float = PAD) -> Any:
    """An axis with a name under each group, and every other group on a shade."""
    axis = sheet.axes(_LEFT, sheet.top + 34, WIDTH - right, sheet.height - 44)
    sheet.write(PAD, sheet.top + 18, y)
    axis.set_xticks(range(len(groups)), groups)
    axis.set_xlim(-0.5, len(groups) - 0.5)
    axis.tick_params(axis="x", length=0, pad=8)
    axis.grid(visible=False, axis="x")
    for group in range(0, len(groups), 2):
        axis.axvspan(group - 0.5, group + 0.5, color=SHADE, linewidth=0, zorder=0)
    return axis


def _over(axis: Any, at: float, top: float, words: str) -> None:
    style = {"ha": "center", "va": "bottom", "fontsize": _VALUE, "zorder": 5}
    axis.annotate(words, (at, top), (0, 3), textcoords="offset points", **style)
