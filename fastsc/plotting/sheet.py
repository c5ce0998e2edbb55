"""A sheet: a figure of the page as a standalone SVG, with its title in words and its key.

GitHub shows it as an image on a light or a dark page, so it brings a white panel of its own. Text
stays text, in Verdana or DejaVu Sans, which are as wide as each other, and every text says how long
it is: in another font it is stretched to that, so that no label can run onto another. Outlines
would look the same too, at four times the size. Lengths are pixels at the width that GitHub gives
an image. The same figure gives the same bytes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal
from xml.sax.saxutils import quoteattr, unescape

from fastsc.cli.packages import needed
from fastsc.plotting.svg import text_of, theme, with_ids

WIDTH = 720.0
PAD = 20.0  # of the panel
FONT, TITLE = 13.0, 15.5
LINE = 18.0  # from one line of text to the next
SPACING = 1.25  # the same, of a label, in sizes of its font
FAMILY = "Verdana, &apos;DejaVu Sans&apos;, Geneva, sans-serif"
INK, MUTED, GRID = "#1f2328", "#59636e", "#e3e6ea"
SHADE = "#f3f5f7"  # of fields that group what stands on them

Colour = Literal["grey", "blue", "orange", "green", "purple", "ochre"]
Marker = Literal["circle", "square", "triangle", "diamond", "star", "cross", "down"]
# Dark enough for words on white (4.8 : 1 or more), and at least 20 apart in CIELAB to red-blind and
# green-blind readers too.
COLOURS: dict[Colour, str] = {
    "grey": "#454c56", "blue": "#0072b2", "orange": "#c64a00", "green": "#00805e",
    "purple": "#4b1a6e", "ochre": "#553300",
}  # fmt: skip
MARKERS: dict[Marker, str] = {
    "circle": "o", "square": "s", "triangle": "^", "diamond": "D", "star": "*", "cross": "X",
    "down": "v",
}  # fmt: skip
_SIZES: dict[Marker, float] = {
    "circle": 9, "square": 8, "triangle": 10, "diamond": 8, "star": 15, "cross": 10, "down": 10,
}  # fmt: skip

_STYLE: dict[str, Any] = {
    **theme(INK, MUTED, GRID, FONT, line=1),
    "lines.linewidth": 2,
    "lines.markersize": 8,
}


@dataclass(frozen=True)
class Mark:
    """How one thing is told from the others: by colour, by shape, and by being filled or hollow."""

    colour: Colour = "blue"
    marker: Marker = "circle"
    filled: bool = True

    @property
    def hex(self) -> str:
        return COLOURS[self.colour]

    def style(self, scale: float = 1.0) -> dict[str, Any]:
        """Matplotlib's, of a marker alone."""
        return {
            "marker": MARKERS[self.marker],
            "markersize": _SIZES[self.marker] * scale,
            "markerfacecolor": self.hex if self.filled else "white",
            "markeredgecolor": "white" if self.filled else self.hex,
            "markeredgewidth": 0.8 if self.filled else 2,
            "linestyle": "none",
        }


@dataclass(frozen=True)
class Key:
    """An entry of the key: a word beside a marker, a line, a dashed line, a bar or a tick."""

    label: str
    mark: Mark
    kind: Literal["marker", "line", "dashed", "bar", "tick"] = "marker"


@dataclass(frozen=True)
class Sheet:
    """What a figure is painted on; places are pixels from the top left corner.

    Attributes:
        figure: Matplotlib's; one unit of its display is one pixel.
        height: Of the whole.
        top: Where title and key end.
    """

    figure: Any
    height: float
    top: float

    def axes(self, left: float, top: float, right: float, bottom: float) -> Any:
        """An axis whose frame has these sides."""
        size = (right - left) / WIDTH, (bottom - top) / self.height
        return self.figure.add_axes((left / WIDTH, 1 - bottom / self.height, *size))

    def write(self, x: float, y: float, words: str, **style: Any) -> None:
        """Text at a place, whose `y` is the middle of it, in as many lines as it has."""
        from matplotlib.transforms import IdentityTransform

        points = style.get("fontsize", FONT)
        lines = words.split("\n")
        for at, line in enumerate(lines):
            # The middle of a line of small letters and capitals is about here over its foot.
            foot = y + (at - (len(lines) - 1) / 2) * points * SPACING + 0.36 * points
            self.figure.text(x, self.height - foot, line, transform=IdentityTransform(), **style)

    def stroke(self, x: Sequence[float], y: Sequence[float], **style: Any) -> None:
        """A line through places, or markers at them."""
        from matplotlib.lines import Line2D
        from matplotlib.transforms import IdentityTransform

        up = [self.height - at for at in y]
        self.figure.add_artist(Line2D(x, up, transform=IdentityTransform(), **style))

    def shade(self, left: float, top: float, right: float, bottom: float) -> None:
        """A pale field over the axes and under the words."""
        from matplotlib.patches import Rectangle
        from matplotlib.transforms import IdentityTransform

        corner = (left, self.height - bottom)
        pale = Rectangle(corner, right - left, bottom - top, facecolor=SHADE, linewidth=0)
        pale.set_transform(IdentityTransform())
        self.figure.add_artist(pale)


def draw(
    title: str, paint: Callable[[Sheet], None], *, height: float, keys: Sequence[Key] = ()
) -> str:
    """The text of an SVG file.

    Args:
        title: The finding in words; broken into lines.
        paint: Fills the sheet under the title and the key.
        height: What it needs there.
        keys: In order, from left to right.
    """
    needed("matplotlib", "the page's figures")
    from matplotlib import style
    from matplotlib.figure import Figure

    # Over the defaults, not over the settings of whoever draws.
    with style.context(["default", _STYLE]):
        lines = wrap(title, WIDTH - 2 * PAD, fontsize=TITLE, weight="bold")
        rows = _rows(keys)
        top = PAD + len(lines) * (LINE + 3) + len(rows) * (LINE + 4) + (6 if rows else 0)
        whole = math.ceil(top + height)
        figure = Figure(figsize=(WIDTH / 72, whole / 72), dpi=72)
        sheet = Sheet(figure, whole, top)
        for at, line in enumerate(lines):
            y = PAD + 8 + at * (LINE + 3)
            sheet.write(PAD, y, line, fontsize=TITLE, weight="bold")
        for at, row in enumerate(rows):
            y = PAD + len(lines) * (LINE + 3) + 12 + at * (LINE + 4)
            for x, key in row:
                _entry(sheet, x, y, key)
        paint(sheet)
        return _standalone(text_of(figure), title, whole)


@cache
def size(
    words: str, fontsize: float = FONT, weight: str | int = "normal", style: Any = "normal"
) -> tuple[float, float]:
    """Width and height of a text, by its outlines: they know of no pixels of a screen."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(family="DejaVu Sans", size=fontsize, weight=weight, style=style)
    lines = words.split("\n")
    measured = (text_to_path.get_text_width_height_descent(line, font, False) for line in lines)
    return max(float(found[0]) for found in measured), len(lines) * fontsize * SPACING


def widest(words: Sequence[str], **style: Any) -> float:
    """The width of the widest of some texts; 0 for none."""
    return max((size(text, **style)[0] for text in words), default=0.0)


def wrap(words: str, width: float, **style: Any) -> list[str]:
    """Lines no wider than `width`, of about the same length: a lone last word reads badly."""
    # No line begins or ends with a sign between a name and its number.
    parts = re.split(r"(?<![=<>≤≥±]) (?![=<>≤≥±%])", words)

    def broken(limit: float) -> list[str]:
        lines: list[str] = []
        for part in parts:
            longer = f"{lines[-1]} {part}" if lines else part
            if lines and size(longer, **style)[0] <= limit:
                lines[-1] = longer
            else:
                lines.append(part)
        return lines

    lines = broken(width)
    for share in (0.55, 0.65, 0.75, 0.85):
        even = broken(width * share)
        if len(even) == len(lines) and widest(even, **style) <= width:
            return even
    return lines


def _rows(keys: Sequence[Key]) -> list[list[tuple[float, Key]]]:
    """The key's entries with their left ends, in one row or in as many columns as fit."""
    widths = [26 + size(key.label)[0] + 20 for key in keys]
    if sum(widths) <= WIDTH - 2 * PAD + 20:
        starts = [PAD + sum(widths[:at]) for at in range(len(keys))]
        return [list(zip(starts, keys))] if keys else []
    for columns in range(len(keys) - 1, 0, -1):
        rows = math.ceil(len(keys) / columns)
        # Neighbours are often a pair, so that it stands in a column of two, or else in a row.
        of = [at // 2 if rows == 2 else at % columns for at in range(len(keys))]
        wide = [max(w for w, c in zip(widths, of) if c == column) for column in sorted(set(of))]
        if sum(wide) <= WIDTH - 2 * PAD + 20 or columns == 1:
            found: list[list[tuple[float, Key]]] = [[] for _ in range(rows)]
            for at, key in enumerate(keys):
                row = at % 2 if rows == 2 else at // columns
                found[row].append((PAD + sum(wide[: of[at]]), key))
            return found
    raise AssertionError("one column always fits")


def _entry(sheet: Sheet, x: float, y: float, key: Key) -> None:
    mark = key.mark
    if key.kind == "bar":
        edge = {"markeredgecolor": mark.hex, "markeredgewidth": 1.5, "marker": "s"}
        fill = mark.hex if mark.filled else tint(mark.hex)
        sheet.stroke([x + 9], [y], **{**mark.style(), **edge, "markersize": 12}, mfc=fill)
    elif key.kind == "tick":
        sheet.stroke([x + 9, x + 9], [y - 7, y + 7], color=mark.hex, linewidth=2)
    elif key.kind == "marker":
        sheet.stroke([x + 9], [y], **mark.style())
    else:
        dashes: Any = "-" if key.kind == "line" else (0, (3, 2))
        sheet.stroke([x, x + 20], [y, y], color=mark.hex, linewidth=2, linestyle=dashes)
    sheet.write(x + 26, y, key.label)


def tint(colour: str, share: float = 0.3) -> str:
    """A colour thinned with white."""
    parts = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return "#" + "".join(f"{round(255 - share * (255 - part)):02x}" for part in parts)


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


def _text(found: re.Match[str]) -> str:
    """A text with its length, so that it takes the same room in every font."""
    rules, words = found[1], found[2]
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


def _rounded(found: re.Match[str]) -> str:
    """Two digits behind the point, or four of what is below 1."""
    x = float(found[0])
    return f"{x:.{4 if abs(x) < 1 else 2}f}".rstrip("0").rstrip(".")
