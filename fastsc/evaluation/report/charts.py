"""The kinds of charts that the page knows, each drawn from plain numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from fastsc.evaluation.report.parts import Asked, Chart, Question
from fastsc.evaluation.report.words import PERCENT, PLAIN, Unit
from fastsc.evaluation.results.statistics import Estimate
from fastsc.plotting.inline import FONT_SIZE, INK, MUTED, draw, line_of, series

Floats = NDArray[np.float64]
BAND = 0.18  # opacity
REFERENCE: Any = {"color": MUTED, "linewidth": 1, "linestyle": (0, (2, 2))}
ROW = 0.24  # inches that a row of a dot plot takes for each model in it


@dataclass(frozen=True)
class Curve:
    """A line over x with its band; NaN where there is none."""

    slot: int
    x: Floats
    value: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True)
class Axes:
    """What is written at the axes, and the unit of y."""

    x: str
    y: str
    unit: Unit = PLAIN


def curve_of(slot: int, points: Sequence[tuple[float, Estimate]]) -> Curve:
    """Estimates over x."""
    columns = ([x, estimate.value, estimate.low, estimate.high] for x, estimate in points)
    return Curve(slot, *np.array(list(columns), float).T)


def lines(
    curves: Sequence[Curve],
    axes: Axes,
    finding: str,
    *,
    ticks: Sequence[tuple[float, str]],
    limits: tuple[float, float] | None = (0, 1.02),
    signed: bool = False,
) -> Markup:
    """Lines with bands; x in the data's unit with labelled ticks.

    Args:
        signed: x goes both ways from 0, the curves are steps on a fine grid, and the place where
            half is left is marked.
    """

    def paint(axis: Any) -> None:
        if signed:
            axis.axhline(0.5, **REFERENCE)
            axis.axvline(0, color=MUTED, linewidth=1)
            axis.margins(x=0.01)
        for curve in curves:
            style = line_of(curve.slot) | ({"marker": ""} if signed else {})
            axis.fill_between(
                curve.x, curve.low, curve.high, color=style["color"], alpha=BAND, linewidth=0
            )
            axis.plot(curve.x, curve.value, **style)
        _label(axis, axes)
        axis.set_xticks([x for x, _ in ticks], [text for _, text in ticks])
        if not signed:
            axis.set_xlim(0, None)
        if limits is not None:
            axis.set_ylim(*limits)

    return draw(paint, finding)


@dataclass(frozen=True)
class Dots:
    """One model's estimates by row, and what chance would give, if that is known."""

    slot: int
    estimates: Sequence[Estimate | None]
    chance: Sequence[Estimate | None] = ()


def dots(
    rows: Sequence[str],
    models: Sequence[Dots],
    axis: str,
    finding: str,
    unit: Unit,
    *,
    high: float | None = None,
    line: float | None = None,
    joined: bool = False,
) -> Markup:
    """One row per name, a dot with its interval per model; from top to bottom.

    Args:
        rows: Names, short enough for half a phone's width.
        models: One per model.
        axis: What stands under x, which begins at 0, or at what lies below.
        finding: In words.
        unit: Of x.
        high: Where x ends. Default: at the largest.
        line: A reference, drawn from top to bottom.
        joined: A line from row to row: they are in an order.
    """
    drawn = [
        estimate for model in models for estimate in (*model.estimates, *model.chance) if estimate
    ]
    ends = [
        end for estimate in drawn for end in (estimate.value, estimate.low) if math.isfinite(end)
    ]
    spread = 0.5 / max(len(models), 1)

    def paint(axes: Any) -> None:
        if line is not None:
            axes.axvline(line, **REFERENCE)
        for place, model in enumerate(models):
            y: Floats = (
                np.arange(len(rows), dtype=np.float64) + (place - (len(models) - 1) / 2) * spread
            )
            _dotted(axes, y, model.estimates, line_of(model.slot), joined=joined)
            if any(model.chance):
                style = line_of(model.slot) | {"alpha": 0.4, "markersize": 3}
                _dotted(axes, y, model.chance, style, joined=joined)
        axes.set_yticks(range(len(rows)), [_short(row) for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.set_xlim(1.05 * min([0.0, *ends]), high)
        axes.set_xlabel(axis)
        _format(axes.xaxis, unit)

    height = 0.65 + len(rows) * max(ROW * len(models), 0.28)
    return draw(paint, finding, height=height)


def dot_chart(
    question: Question,
    rows: Mapping[str, str],
    *,
    title: str,
    axis: str,
    caption: str = "",
    chance: Mapping[str, str] | None = None,
    asked: Sequence[Asked] = (),
    line: float | None = None,
    high: float | None = None,
) -> Chart | None:
    """`dots` of figures by their names, less the rows that no model has; None without any.

    Args:
        question: Whose figures.
        rows: Name of a figure -> what stands before its row.
        title, caption: Over and under it.
        axis, line, high: See `dots`.
        chance: Name of a figure -> that of what chance would give; the rows are in an order.
        asked: In place of all models.
    """
    models = asked or question.asked
    shown = {
        name: row
        for name, row in rows.items()
        if any(name in one.answer.estimates for one in models)
    }
    if not shown:
        return None
    figures = [[one.figure(name) for name in shown] for one in models]
    unit = next(figure.unit for row in figures for figure in row if figure)
    listing = "; ".join(
        f"{one.model.name}: "
        + ", ".join(
            f"{row} {figure.value}"
            for row, figure in zip(shown.values(), own, strict=True)
            if figure
        )
        for one, own in zip(models, figures, strict=True)
    )
    drawn = [
        Dots(
            one.slot,
            [one.answer.estimates.get(name) for name in shown],
            [one.answer.estimates.get(chance[name]) for name in shown] if chance else (),
        )
        for one in models
    ]
    if unit is PERCENT and high is None:
        high = 1.02
    svg = dots(
        list(shown.values()), drawn, axis, f"{title}: {listing}", unit,
        high=high, line=line, joined=chance is not None,
    )  # fmt: skip
    return Chart(svg, caption, title)


def _dotted(
    axis: Any, y: Floats, row: Sequence[Estimate | None], style: dict[str, Any], *, joined: bool
) -> None:
    kept = [
        (at, estimate)
        for at, estimate in zip(y, row)
        if estimate is not None and math.isfinite(estimate.value)
    ]
    for at, estimate in kept:
        if math.isfinite(estimate.low) and math.isfinite(estimate.high):
            axis.plot(
                [estimate.low, estimate.high], [at, at], color=style["color"], linewidth=2.6,
                alpha=0.45 * style.get("alpha", 1), solid_capstyle="butt",
            )  # fmt: skip
    style = style if joined else style | {"linestyle": "none"}
    axis.plot([estimate.value for _, estimate in kept], [at for at, _ in kept], **style)


@dataclass(frozen=True)
class Sample:
    """Values of one model whose distribution is shown; `second` draws it in dots, as the other."""

    slot: int
    values: Floats
    second: bool = False


def shares(
    samples: Sequence[Sample],
    axes: Axes,
    finding: str,
    *,
    log: bool = False,
    line: float | None = None,
    limits: tuple[float, float] | None = None,
) -> Markup:
    """Empirical distribution functions: the share of images at or under x.

    Of all images whose value is known: those that have no place on the axis (inf, and on a
    logarithmic one 0) are where the curve begins above 0 or ends below 1.
    """

    def paint(axis: Any) -> None:
        if line is not None:
            axis.axvline(line, **REFERENCE)
        for sample in samples:
            style = line_of(sample.slot) | {"marker": ""}
            if sample.second:
                style |= {"linestyle": (0, (1, 1)), "alpha": 0.75}
            places, heights = cumulated(sample.values, 0 if log else -np.inf)
            axis.step(places, heights, where="post", **style)
        if log:
            axis.set_xscale("log")
            _plain_log(axis)
        _label(axis, axes)
        axis.set_ylim(0, 1.02)
        if limits is not None:
            axis.set_xlim(*limits)

    return draw(paint, finding)


def cumulated(values: Floats, least: float) -> tuple[Floats, Floats]:
    """Corners of the curve of the share of values at or under x, over all that are not NaN.

    Of the x above `least` and below inf, in order, the first of them twice: the curve begins at the
    share of what lies at `least` or below, and ends below 1 by that of inf.
    """
    known = values[~np.isnan(values)]
    x = np.sort(known[(known > least) & (known < np.inf)])
    before = np.count_nonzero(known <= least)
    heights = (before + np.arange(len(x) + 1)) / max(len(known), 1)
    return np.concatenate([x[:1], x]), heights[: len(x) + 1] if len(x) else heights[:0]


def scatter(images: Floats, image: Floats | None, views: Floats, slot: int, finding: str) -> Markup:
    """Images faint, the marked image large, and threads from it to its views.

    Args:
        images: (n, 2), image: (2,) or None, views: (v, 2): places on the plane.
        slot: The model's place.
        finding: In words.
    """

    def paint(axis: Any) -> None:
        axis.plot(*images.T, "o", color=MUTED, alpha=0.4, markersize=3.2, markeredgewidth=0)
        color = series(slot)
        if image is not None:
            for view in views:
                axis.plot(*np.stack([image, view]).T, color=color, alpha=0.35, linewidth=0.8)
        axis.plot(*views.T, "o", color=color, markersize=4.5, markeredgewidth=0)
        if image is not None:
            axis.plot(*image, "*", color=INK, markersize=13, markeredgewidth=0)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.grid(visible=False)
        for side in axis.spines.values():
            side.set_visible(True)
        # The axes of an embedding have no unit; distances have the same scale in both directions.
        axis.set_aspect("equal", adjustable="datalim")

    return draw(paint, finding, height=3.6)


# --- axes ----------------------------------------------------------------------------------------


def _label(axis: Any, axes: Axes) -> None:
    axis.set_xlabel(axes.x)
    # Over the axis: a label that is turned takes width, which a phone does not have.
    axis.set_title(axes.y, loc="left", color=MUTED, fontsize=FONT_SIZE)
    _format(axis.yaxis, axes.unit)


def _format(axis: Any, unit: Unit) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    if axis.get_scale() != "linear":
        return
    axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(
        FuncFormatter(lambda x, _: f"{x * unit.scale:.6g}".replace("-", "−") + unit.suffix)
    )


def _plain_log(axis: Any) -> None:
    """Few ticks with plain numbers on a logarithmic x axis."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_xlim()
    wide = math.log10(high / low) > 2.5
    axis.xaxis.set_major_locator(LogLocator(10, subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.6g}"))


def _short(name: str, most: int = 22) -> str:
    """A long name's end, which tells it from its neighbours."""
    return name if len(name) <= most else "…" + name[1 - most :]
