"""The kinds of charts that the page knows, each drawn from plain numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from fastsc.evaluation.report.parts import Key, Question
from fastsc.evaluation.results.statistics import Estimate
from fastsc.plotting.inline import FONT_SIZE, INK, MUTED, draw, line_of, series, swatch

Floats = NDArray[np.float64]
BAND = 0.18  # opacity
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
    """What is written at the axes, and how ticks are formatted: a value times `scale`, `suffix`."""

    x: str = ""
    y: str = ""
    y_scale: float = 1.0
    y_suffix: str = ""


def curve_of(slot: int, points: Sequence[tuple[float, Estimate]], *, origin: bool) -> Curve:
    """Estimates over x; with `origin`, from 0 at x = 0, where nothing has changed."""
    x = [at for at, _ in points]
    columns = [[getattr(found, name) for _, found in points] for name in ("value", "low", "high")]
    if origin:
        x, columns = [0.0, *x], [[0.0, *column] for column in columns]
    value, low, high = (np.array(column, float) for column in columns)
    return Curve(slot, np.array(x, float), value, low, high)


def over_strength(
    curves: Sequence[Curve],
    axes: Axes,
    finding: str,
    *,
    ticks: Sequence[tuple[float, str]],
    limits: tuple[float, float] | None,
) -> Markup:
    """Lines with bands over strength; x in the data's unit with labelled ticks."""

    def paint(axis: Any) -> None:
        for curve in curves:
            style = line_of(curve.slot)
            axis.fill_between(
                curve.x, curve.low, curve.high, color=style["color"], alpha=BAND, linewidth=0
            )
            axis.plot(curve.x, curve.value, **style)
        _label(axis, axes)
        axis.set_xticks([x for x, _ in ticks], [text for _, text in ticks])
        axis.set_xlim(0, None)
        if limits is not None:
            axis.set_ylim(*limits)

    return draw(paint, finding)


def survival(
    curves: Sequence[Curve],
    axes: Axes,
    finding: str,
    *,
    ticks: Sequence[tuple[float, str]],
) -> Markup:
    """Shares of images over a signed change, as steps, with the line at which half are left."""

    def paint(axis: Any) -> None:
        axis.axhline(0.5, color=MUTED, linewidth=1, linestyle=(0, (2, 2)))
        axis.axvline(0, color=MUTED, linewidth=1)
        for curve in curves:
            style = line_of(curve.slot)
            axis.fill_between(
                curve.x, curve.low, curve.high, color=style["color"], alpha=BAND, linewidth=0
            )
            style["marker"] = ""
            axis.plot(curve.x, curve.value, **style)
        _label(axis, axes)
        axis.set_xticks([x for x, _ in ticks], [text for _, text in ticks])
        axis.set_ylim(0, 1.02)
        axis.margins(x=0.01)

    return draw(paint, finding)


@dataclass(frozen=True)
class Dots:
    """One model's estimates by row, and what chance would give, if that is known."""

    slot: int
    found: Sequence[Estimate | None]
    chance: Sequence[Estimate | None] = ()


def dots(
    rows: Sequence[str],
    models: Sequence[Dots],
    axes: Axes,
    finding: str,
    *,
    limits: tuple[float, float | None] = (0, None),
    line: float | None = None,
    joined: bool = False,
    x_scale: float = 1.0,
    x_suffix: str = "",
) -> Markup:
    """A row a name, a dot with its interval a model; from top to bottom.

    Args:
        rows: Names, short enough for half a phone's width.
        models: One a model.
        axes: Of x alone.
        finding: In words.
        limits: Of x.
        line: A reference, drawn from top to bottom.
        joined: A line from row to row: they are in an order.
        x_scale, x_suffix: Of the ticks of x.
    """
    spread = 0.5 / max(len(models), 1)

    def paint(axis: Any) -> None:
        if line is not None:
            axis.axvline(line, color=MUTED, linewidth=1, linestyle=(0, (2, 2)))
        for place, model in enumerate(models):
            y: Floats = (
                np.arange(len(rows), dtype=np.float64) + (place - (len(models) - 1) / 2) * spread
            )
            _dotted(axis, y, model.found, line_of(model.slot), joined=joined)
            if any(model.chance):
                style = line_of(model.slot) | {"alpha": 0.4, "markersize": 3}
                _dotted(axis, y, model.chance, style, joined=joined)
        axis.set_yticks(range(len(rows)), [_short(row) for row in rows])
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.grid(visible=False, axis="y")
        axis.tick_params(axis="y", length=0)
        axis.set_xlim(*limits)
        axis.set_xlabel(axes.x)
        _format(axis.xaxis, x_scale, x_suffix)

    height = 0.65 + len(rows) * max(ROW * len(models), 0.28)
    return draw(paint, finding, height=height)


def _dotted(
    axis: Any, y: Floats, found: Sequence[Estimate | None], style: dict[str, Any], *, joined: bool
) -> None:
    kept = [(at, one) for at, one in zip(y, found) if one is not None and math.isfinite(one.value)]
    for at, one in kept:
        if math.isfinite(one.low) and math.isfinite(one.high):
            axis.plot(
                [one.low, one.high], [at, at], color=style["color"], linewidth=2.6,
                alpha=0.45 * style.get("alpha", 1), solid_capstyle="butt",
            )  # fmt: skip
    style = style if joined else style | {"linestyle": "none"}
    axis.plot([one.value for _, one in kept], [at for at, _ in kept], **style)


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
    """Empirical distribution functions: the share of images at or under x."""

    def paint(axis: Any) -> None:
        if line is not None:
            axis.axvline(line, color=MUTED, linewidth=1, linestyle=(0, (2, 2)))
        for sample in samples:
            style = line_of(sample.slot) | {"marker": ""}
            if sample.second:
                style |= {"linestyle": (0, (1, 1)), "alpha": 0.75}
            kept = sample.values[np.isfinite(sample.values)]
            if log:
                kept = kept[kept > 0]
            if len(kept):
                axis.ecdf(kept, **style)
        if log:
            axis.set_xscale("log")
            _plain_log(axis)
        _label(axis, axes)
        axis.set_ylim(0, 1.02)
        if limits is not None:
            axis.set_xlim(*limits)

    return draw(paint, finding)


def scatter(images: Floats, image: Floats | None, views: Floats, slot: int, finding: str) -> Markup:
    """Images faint, the marked image large, and threads from it to its views.

    Args:
        images: (n, 2), image: (2,) or None, views: (v, 2): places on the plane.
        slot: The model's place.
        finding: In words.
    """

    def paint(axis: Any) -> None:
        axis.plot(*images.T, "o", color=MUTED, alpha=0.4, markersize=3.2, markeredgewidth=0)
        colour = series(slot)
        if image is not None:
            for view in views:
                axis.plot(*np.stack([image, view]).T, color=colour, alpha=0.35, linewidth=0.8)
        axis.plot(*views.T, "o", color=colour, markersize=4.5, markeredgewidth=0)
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
    _format(axis.yaxis, axes.y_scale, axes.y_suffix)


def _format(axis: Any, scale: float, suffix: str) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    if axis.get_scale() != "linear":
        return
    axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(
        FuncFormatter(lambda x, _: f"{x * scale:.6g}".replace("-", "−") + suffix)
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


def legend(question: Question) -> tuple[Key, ...]:
    """The models' lines and names; nothing where there is one model."""
    if question.alone:
        return ()
    return tuple(Key(swatch(asked.slot), asked.model.name) for asked in question.asked)
