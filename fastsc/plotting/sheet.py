"""A sheet: a figure of the page as a standalone SVG, under its title in words and its key.

GitHub shows it as an image on a light or a dark page, so it brings a white panel of its own. Text
stays text, in Verdana or DejaVu Sans, which are as wide as each other, and every text says how long
it is: in another font it is stretched to that, so that no label can run onto another. Outlines
would look the same too, at four times the size. Lengths are pixels at the width that GitHub gives
an image. The same figure gives the same bytes.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal
from xml.sax.saxutils import quoteattr, unescape

from fastsc.cli.packages import needed
from fastsc.plotting.svg import text_of, theme, with_ids

WIDTH, PAD = 720.0, 20.0
FONT, TITLE = 13.0, 15.5
ROW = 19.5  # of the key
FAMILY = "Verdana, &apos;DejaVu Sans&apos;, Geneva, sans-serif"
INK, MUTED, GRID = "#1f2328", "#59636e", "#e3e6ea"
SHADE = "#f3f5f7"  # of fields that group what stands on them

Color = Literal["grey", "blue", "orange", "green", "purple", "ochre"]
# Dark enough for words on white (4.8 : 1 or more), and at least 20 apart in CIELAB to red-blind and
# green-blind readers too.
COLORS: dict[Color, str] = {
    "grey": "#454c56", "blue": "#0072b2", "orange": "#c64a00", "green": "#00805e",
    "purple": "#4b1a6e", "ochre": "#553300",
}  # fmt: skip
_SIZES = {"o": 9, "s": 8, "^": 10, "D": 8, "*": 15, "X": 10, "v": 10}

_STYLE: dict[str, Any] = {
    **theme(INK, MUTED, GRID, FONT, line=1),
    "lines.linewidth": 2,
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "legend.frameon": False,
    "legend.borderpad": 0,
    "legend.borderaxespad": 1,
    "legend.handlelength": 1.6,
}


@dataclass(frozen=True)
class Mark:
    """How one thing is told from the others: by color, by shape, and by being filled or hollow."""

    color: Color = "blue"
    marker: str = "o"
    filled: bool = True

    @property
    def hex(self) -> str:
        return COLORS[self.color]

    def style(self, scale: float = 1.0) -> dict[str, Any]:
        """Matplotlib's, of a line with this marker."""
        return {
            "color": self.hex,
            "marker": self.marker,
            "markersize": _SIZES[self.marker] * scale,
            "markerfacecolor": self.hex if self.filled else "white",
            "markeredgecolor": "white" if self.filled else self.hex,
            "markeredgewidth": 0.8 if self.filled else 2,
        }


def draw(
    title: str,
    paint: Callable[[Any], object],
    *,
    height: float,
    keys: Mapping[str, Mapping[str, Any]] | None = None,
    finish: Callable[[Any], object] | None = None,
) -> str:
    """The text of an SVG file.

    Args:
        title: The finding in words; broken into lines.
        paint: Gets matplotlib's figure; what it labels is in the key.
        height: What the axes need, in pixels.
        keys: What else is in the key: words and the style of a line.
        finish: Adds words to the figure when everything else has its place, in pixels.
    """
    needed("matplotlib", "the page's figures")
    from matplotlib import style
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    # Over the defaults, not over the settings of whoever draws.
    with style.context(["default", _STYLE]):
        figure: Any = Figure(dpi=72, layout="constrained")
        FigureCanvasSVG(figure)  # it measures words as the file has them
        figure.get_layout_engine().set(w_pad=PAD / 72, h_pad=8 / 72, hspace=0)
        paint(figure)
        named: dict[str, Any] = {}
        for axis in figure.axes:
            handles, labels = axis.get_legend_handles_labels()
            named = {**dict(zip(labels, handles)), **named}
        named |= {key: Line2D([], [], **line) for key, line in (keys or {}).items()}
        widest = max((size(label)[0] for label in named), default=WIDTH)
        columns = max(1, int((WIDTH - 2 * PAD) / (widest + 52)))
        heading = wrap(title, 76)
        rows = 1.2 * (heading.count("\n") + 1) - (-len(named) // columns)
        whole = round(height + rows * ROW + 2 * PAD)
        figure.set_size_inches(WIDTH / 72, whole / 72)
        figure.legend(
            named.values(), named.keys(), loc="outside upper left", ncols=columns, title=heading,
            title_fontproperties={"size": TITLE, "weight": "bold"}, alignment="left",
        )  # fmt: skip
        if finish is not None:
            figure.draw_without_rendering()
            figure.set_layout_engine("none")
            finish(figure)
        return _standalone(text_of(figure), title, whole)


@cache
def size(
    words: str, fontsize: float = FONT, weight: str | int = "normal", style: Any = "normal"
) -> tuple[float, float]:
    """Width and height of a line, by its outlines: they know of no pixels of a screen."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(family="DejaVu Sans", size=fontsize, weight=weight, style=style)
    return float(text_to_path.get_text_width_height_descent(words, font, False)[0]), 1.25 * fontsize


def wrap(words: str, n: int) -> str:
    """Lines of about the same length, of n characters at most.

    None begins or ends with a sign between a name and its number.
    """
    glued = re.sub(r"(?<=[=<>≤≥±]) | (?=[=<>≤≥±%×])", "\xa0", words)
    texts = (textwrap.fill(glued, at, break_on_hyphens=False) for at in range(n // 2, n + 1))
    return min(texts, key=lambda text: text.count("\n")).replace("\xa0", " ")


def _standalone(text: str, title: str, height: int) -> str:
    """Matplotlib's file, less what a reader does not see: no header, few digits, short ids."""
    body = with_ids(text[text.index(">") + 1 : text.rindex("</svg>")], "i")
    body = re.sub(
        r'(?<= )(d|transform|x|y|width|height)="([^"]*)"',
        lambda m: f'{m[1]}="{re.sub(r"-?[0-9]+[.][0-9]+", _rounded, m[2])}"',
        body,
    )
    body = re.sub(r"<text ([^>]*)>([^<]*)</text>", _text, body)
    body = re.sub(r"\s*\n\s*", "\n", body).strip()
    body = re.sub(r'<g>\n<path d="[^"]*" style="fill: none"/>\n</g>\n', "", body)  # no ink at all
    body = re.sub(r"\n(?=[LQCz])|\n(?=\")", "", body)
    label = quoteattr(title)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH:g}" height="{height}" '
        f'viewBox="0 0 {WIDTH:g} {height}" role="img" aria-label={label} font-family="{FAMILY}">\n'
        f'<rect x="0.5" y="0.5" width="{WIDTH - 1:g}" height="{height - 1}" rx="8" '
        f'style="fill: #ffffff; stroke: {GRID}"/>\n{body}\n</svg>\n'
    )


def _text(match: re.Match[str]) -> str:
    """A text with its length, so that it takes the same room in every font."""
    rules, words = match[1], match[2]
    css = dict(re.findall(r"([a-z-]+): ([^;\"]+)", rules))
    place = re.search(r'x="([^"]*)" y="([^"]*)"|translate\(([-\d.]+) ([-\d.]+)\)', rules)
    assert place is not None, "matplotlib gives every text a place"
    x, y = (place[1], place[2]) if place[1] else (place[3], place[4])
    points = float(css["font-size"].removesuffix("px"))
    weight, slant = css.get("font-weight", "400"), css.get("font-style", "normal")
    width, _ = size(unescape(words), points, int(weight), slant)
    del css["font-family"]
    return (
        f'<text x="{x}" y="{y}" textLength="{width:.1f}" lengthAdjust="spacingAndGlyphs" '
        f'style="{"; ".join(f"{name}: {value}" for name, value in css.items())}">{words}</text>'
    )


def _rounded(match: re.Match[str]) -> str:
    """Two digits after the point, or four of what is below 1."""
    x = float(match[0])
    return f"{x:.{4 if abs(x) < 1 else 2}f}".rstrip("0").rstrip(".")
