"""A forest plot: what each claim comes to, its interval, and whether it holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastsc.plotting.sheet import INK, SHADE, Mark, draw, wrap
from fastsc.reproduction.figures.axes import reach, ticks, values
from fastsc.reproduction.seeds import SeedEstimate, Verdict

VERDICTS: dict[Verdict, Mark] = {
    "holds": Mark("green"),
    "does not hold": Mark("orange", "X"),
    "not shown": Mark("grey", "D", filled=False),
}
_BOUND = {"color": Mark("purple").hex, "marker": "|", "markersize": 18, "markeredgewidth": 2}
_ROW, _LINE = 27.0, 16.0  # pixels of a row, and of each further line of its label


@dataclass(frozen=True)
class Row:
    """What is compared, with its effect.

    Attributes:
        label: What is compared, with its n.
        estimate: The ratio or the difference.
        verdict: On the claim.
        bound: What the claim says it is below or above; drawn as a tick.
    """

    label: str
    estimate: SeedEstimate
    verdict: Verdict = "not shown"
    bound: float | None = None


def effects(
    sections: Mapping[str, Sequence[Row]],
    title: str,
    x: str,
    *,
    ratios: bool,
    directions: tuple[str, str],
    write: Callable[[float], str] = "{:.2f}".format,
) -> str:
    """One row per effect: label, dot with interval, and the figures in words at the right.

    Args:
        sections: Rows by heading, from top to bottom.
        title: The finding.
        x: What the axis shows, with its unit.
        ratios: A logarithmic axis with its line at 1, not a linear one with its line at 0.
        directions: What it means to be left and right of the line, such as "constraint better".
        write: A number at the right.
    """
    labels: list[str] = []
    places: list[float] = []
    rows: dict[float, Row] = {}
    y = 0.0
    for heading, of in sections.items():
        for row in (None, *of):
            labels.append(heading if row is None else wrap(row.label, 36))
            height = _ROW + _LINE * labels[-1].count("\n")
            places.append(y + height / 2)
            y += height
            if row is not None:
                rows[places[-1]] = row

    def paint(figure: Any) -> None:
        axis = figure.subplots()
        axis.set_xscale("log" if ratios else "linear")
        axis.axvline(1 if ratios else 0, color=INK, linewidth=1.2, zorder=1)
        for verdict, mark in VERDICTS.items():
            of = {y: row.estimate for y, row in rows.items() if row.verdict == verdict}
            if of:
                shown = list(of.values())
                style = {**mark.style(), "linestyle": "none", "label": verdict}
                axis.errorbar(values(shown), list(of), xerr=reach(shown), **style)
        bounds = {y: row.bound for y, row in rows.items() if row.bound is not None}
        if bounds:
            style = {**_BOUND, "linestyle": "none", "label": "bound of the claim"}
            axis.plot(list(bounds.values()), list(bounds), zorder=1.5, **style)
        axis.set_yticks(places, labels, linespacing=1.1)
        axis.set_ylim(y, 0)
        axis.tick_params(axis="y", length=0)
        axis.grid(visible=False, axis="y")
        axis.spines["left"].set_visible(False)
        style = {"transform": axis.get_yaxis_transform(), "va": "center_baseline"}
        for place, label in zip(places, axis.get_yticklabels()):
            if place in rows:
                words = _words(rows[place].estimate, write)
                axis.text(1.03, place, words, **style)
            else:
                label.set_fontweight("bold")
                axis.axhspan(place - _ROW / 2 + 3, place + _ROW / 2 - 3, color=SHADE, zorder=0)
        axis.set_title(f"← {directions[0]}")
        axis.set_title(f"{directions[1]} →", loc="right")
        axis.set_xlabel(x)
        ticks(axis.xaxis, 7)

    return draw(title, paint, height=y + 80)


def _words(effect: SeedEstimate, write: Callable[[float], str]) -> str:
    """The value with its interval, as far as there are any."""
    if not math.isfinite(effect.value):
        return "–"
    value, low, high = (write(x).replace("-", "−") for x in (effect.value, effect.low, effect.high))
    return f"{value} [{low}, {high}]" if math.isfinite(effect.low) else value
