"""Models side by side in groups: dots over perturbations, and bars of accuracies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastsc.plotting.sheet import INK, SHADE, Mark, draw
from fastsc.reproduction.figures.axes import reach, ticks, values
from fastsc.reproduction.seeds import SeedEstimate

_HEIGHT = 310.0


@dataclass(frozen=True)
class Series:
    """A model or an arm: an estimate of each group; NaN is left out."""

    label: str
    estimates: Sequence[SeedEstimate]
    mark: Mark = field(default_factory=Mark)


def by_perturbation(series: Sequence[Series], groups: Sequence[str], title: str, *, y: str) -> str:
    """Dots with intervals, side by side over the name of each perturbation, over an axis from 0.

    Args:
        series: In the order of the key.
        groups: Perturbations.
        title: The finding.
        y: What the axis shows, with its unit and which way is better.
    """

    def paint(figure: Any) -> None:
        axis = _grouped(figure, groups, y)
        for at, arm, _ in _side_by_side(series, len(groups), 0.72):
            style = {**arm.mark.style(0.85), "linestyle": "none", "label": arm.label}
            axis.errorbar(at, values(arm.estimates), yerr=reach(arm.estimates), **style)
        axis.set_ylim(0, None)
        ticks(axis.yaxis)

    return draw(title, paint, height=_HEIGHT)


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
        series: One bar of each group, in the order of the key.
        title: The finding.
        y: What the axis shows, with its unit.
        chance: What guessing gives: a dashed line with its word.
        write: A value over its bar.
    """

    def paint(figure: Any) -> None:
        axis = _grouped(figure, groups, y)
        for at, arm, step in _side_by_side(series, len(groups), 0.8):
            color = (arm.mark.hex, 1.0 if arm.mark.filled else 0.3)
            drawn = axis.bar(
                at, values(arm.estimates), step * 0.8, yerr=reach(arm.estimates), zorder=2,
                color=color, edgecolor=arm.mark.hex, linewidth=1.5, ecolor=INK,
                error_kw={"linewidth": 1.5}, label=arm.label,
            )  # fmt: skip
            axis.bar_label(drawn, fmt=write, fontsize=12, padding=2)
        axis.margins(y=0.1)  # with room for the values over the bars
        ticks(axis.yaxis)
        if chance is not None:
            line = {"color": INK, "linewidth": 1.2, "linestyle": (0, (3, 2)), "zorder": 3}
            axis.axhline(chance, label="chance", **line)

    return draw(title, paint, height=_HEIGHT)


def _side_by_side(
    series: Sequence[Series], n_groups: int, width: float
) -> Iterator[tuple[Any, Series, float]]:
    """Each series with its places, one in each group, and the room of one."""
    step = width / max(len(series), 1)
    for place, arm in enumerate(series):
        yield np.arange(n_groups) + (place - (len(series) - 1) / 2) * step, arm, step


def _grouped(figure: Any, groups: Sequence[str], y: str) -> Any:
    """An axis with a name under each group, and every other group on a shade."""
    axis = figure.subplots()
    axis.set_title(y)
    axis.set_xticks(range(len(groups)), groups)
    axis.set_xlim(-0.5, len(groups) - 0.5)
    axis.tick_params(axis="x", length=0, pad=8)
    axis.grid(visible=False, axis="x")
    for group in range(0, len(groups), 2):
        axis.axvspan(group - 0.5, group + 0.5, color=SHADE, zorder=0)
    return axis
