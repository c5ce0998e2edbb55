"""Matplotlib's figures as inline SVG that takes its colors and its font from the page.

A figure is drawn in sentinel colors, which become CSS variables afterwards: one drawing fits the
light and the dark theme. Text stays text. The same figure gives the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from markupsafe import Markup, escape

from fastsc.cli.packages import needed
from fastsc.plotting.svg import text_of, theme, with_ids

# Sentinel -> CSS variable. No two may be close: a converter of colors could round them together.
INK, MUTED, GRID, PAPER = "#010203", "#040506", "#070809", "#fdfcfb"
SERIES = tuple(f"#{10 * i:02d}00{i:02d}" for i in range(1, 9))
_VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid", PAPER: "--paper"} | {
    color: f"--c{i}" for i, color in enumerate(SERIES)
}
MARKERS = ("o", "s", "^", "D", "v", "p", "<", ">")
_DASHES = ((5, 2), (1, 1.2), (5, 1.5, 1, 1.5), (8, 2), (3, 1), (5, 1, 1, 1, 1, 1), (2, 2))
LINES: tuple[Any, ...] = ("-", *((0, dashes) for dashes in _DASHES))

FONT_SIZE = 10.0  # of 288 units of width: 11.4 px where a phone shows a figure 330 px wide
WIDTH, HEIGHT = 4.0, 2.7  # inches of 72 units

_STYLE: Any = {
    **theme(INK, MUTED, GRID, FONT_SIZE, line=0.8),
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
}


def series(slot: int) -> str:
    """The sentinel color of the model in a place."""
    return SERIES[slot % len(SERIES)]


def line_of(slot: int) -> dict[str, Any]:
    """Color, marker and dashes of the model in a place: three ways to tell it apart."""
    place = slot % len(SERIES)
    return {"color": SERIES[place], "marker": MARKERS[place], "linestyle": LINES[place]}


def draw(
    paint: Callable[[Any], None], finding: str, *, width: float = WIDTH, height: float = HEIGHT
) -> Markup:
    """A figure with one axis that `paint` fills, as inline SVG.

    Args:
        paint: Gets matplotlib's axis.
        finding: What the figure shows, for those who do not see it.
        width, height: In inches of 72 units; the page scales it to the room there is.
    """
    needed("matplotlib", "the page of an evaluation")
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        paint(figure.subplots())
        return Markup(inline(text_of(figure), finding))


def inline(text: str, finding: str) -> str:
    """`text_of` a figure as an element of a page: no reference outward, no fixed size."""
    view = re.search(r'viewBox="([^"]+)"', text)
    assert view is not None, "matplotlib writes a viewBox"
    label = escape(finding)
    head = f'<svg viewBox="{view[1]}" role="img" aria-label="{label}" focusable="false">'
    text = head + text[text.index(">") + 1 :]
    text = re.sub(r"font-family: [^;\"]*", "font-family: var(--font)", text)
    text = re.sub(r"font: ([^;\"]*?[\d.]+px) [^;\"]*", r"font: \1 var(--font)", text)
    text = text.replace(' transform="rotate(-0 ', ' transform="rotate(0 ')
    # Rules of a matplotlib file would hold for the whole page; this one is in the page's style.
    text = re.sub(r"<style[^>]*>.*?</style>", "", text, flags=re.DOTALL)
    for color, variable in _VARIABLES.items():
        text = text.replace(color, f"var({variable})")
    return re.sub(r"\s*\n\s*", "\n", with_ids(text)).strip()


def unique_ids(svg: Markup, prefix: str) -> Markup:
    """The same SVG with ids that no other one on the page has."""
    return Markup(re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{prefix}-", str(svg)))


def swatch(slot: int) -> Markup:
    """The piece of a legend for a model: its line with its marker."""
    place = slot % len(SERIES)
    return piece(f"var(--c{place})", MARKERS[place], 7, _DASHES[place - 1] if place else (1, 0))


def piece(color: str, marker: str = "", size: float = 0, dashes: tuple[float, ...] = ()) -> Markup:
    """The piece of a legend with one of matplotlib's markers, and a line if it has dashes.

    color: A CSS variable.
    """
    needed("matplotlib", "the page of an evaluation")
    from matplotlib.markers import MarkerStyle
    from matplotlib.transforms import Affine2D

    shape: Any = MarkerStyle(marker)
    path = shape.get_path().transformed(shape.get_transform() + Affine2D().scale(size))
    shapes = [
        f'<path d="M0 6H28" style="stroke:{color};stroke-width:2" '
        f'stroke-dasharray="{" ".join(f"{2 * x:g}" for x in dashes)}"/>'
    ] * bool(dashes)
    for polygon in path.to_polygons(closed_only=False):
        points = " ".join(f"{14 + x:.2f},{6 - y:.2f}" for x, y in polygon)
        shapes.append(f'<polygon points="{points}" style="fill:{color}"/>')
    frame = 'viewBox="0 0 28 12" width="28" height="12"'
    return Markup(f'<svg {frame} aria-hidden="true">{"".join(shapes)}</svg>')
