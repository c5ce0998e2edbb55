"""What every SVG of matplotlib's goes through: one theme, and a file of which the bytes repeat."""

from __future__ import annotations

import io
import re
from typing import Any

_REFERENCE = re.compile(r'href="#([^"]+)"|url\(#([^)]+)\)')


def theme(ink: str, muted: str, grid: str, font_size: float, line: float) -> dict[str, Any]:
    """Matplotlib's settings: text stays text, two spines, a grid below the data.

    Args:
        ink, muted, grid: Colors of words, of axes and ticks, and of the grid.
        font_size: In points, of all words.
        line: Width of axes and grid, in points.
    """
    of_labels = ("axes.titlesize", "axes.labelsize", "xtick.labelsize", "ytick.labelsize")
    of_words = ("axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor", "text.color")
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": "fastsc",
        "font.family": "DejaVu Sans",  # comes with matplotlib: the layout is the same everywhere
        "font.size": font_size,
        **dict.fromkeys(of_labels, font_size),
        **dict.fromkeys(of_words, ink),
        **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), muted),
        "axes.linewidth": line,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.unicode_minus": True,
        "grid.color": grid,
        "grid.linewidth": line,
        "text.parse_math": False,  # labels may hold dollar signs
    }


def text_of(figure: Any) -> str:
    """Matplotlib's file from its <svg> on: no date, no metadata, links as HTML has them."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    return text.replace("xlink:href", "href")


def with_ids(text: str, name: str | None = None) -> str:
    """Without the ids that nothing refers to; with `name`, the others become NAME0, NAME1, …"""
    used = dict.fromkeys(a or b for a, b in _REFERENCE.findall(text))
    names = {old: old if name is None else f"{name}{i}" for i, old in enumerate(used)}
    text = re.sub(r' id="([^"]*)"', lambda m: f' id="{names[m[1]]}"' if m[1] in names else "", text)
    return re.sub(r'(href="#|url\(#)([^")]+)', lambda m: m[1] + names[m[2]], text)
