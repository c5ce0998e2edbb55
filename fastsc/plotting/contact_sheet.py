"""Contact sheets: pairs of views with captions, as pictures whose pixels are the views' own."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from fastsc.cli.console import printable

RGB8 = NDArray[np.uint8]  # (R, R, 3)

MAX_PAIRS = 64  # of a sheet
MAX_WIDTH, MAX_HEIGHT = 2000, 4200  # pixels, of a sheet
# Smaller views are enlarged by a whole factor, larger ones shrunk: the captions need the room.
MIN_SIDE, MAX_SIDE = 128, 256
GAP, INSET, MARGIN = 22, 4, 24  # between pairs, between the views of a pair, around all
LINE, HEAD = 17, 62  # height of a line of a caption, and of the title
INK, GREY, PALE = (20, 20, 20), (105, 105, 105), (238, 238, 238)


@dataclass(frozen=True)
class Pair:
    """One image of a sheet."""

    clean: RGB8
    perturbed: RGB8 | None  # None: it has no second view
    title: str
    lines: Sequence[str]  # below the title; all pairs of a sheet should have equally many


def draw_sheets(pairs: Sequence[Pair], title: str, subtitle: str) -> list[Image.Image]:
    """As many RGB pictures as the pairs need, at most MAX_PAIRS on each, in reading order.

    Args:
        pairs: At least one; all views of one side.
        title: One line over everything; " (2 of 3)" is added where there are several sheets.
        subtitle: A line below, smaller.
    """
    side, columns, cell_height = _sizes(pairs)
    rows = max(1, (MAX_HEIGHT - HEAD - 2 * MARGIN + GAP) // (cell_height + GAP))
    n_sheets = math.ceil(len(pairs) / min(MAX_PAIRS, rows * columns))
    most = math.ceil(len(pairs) / n_sheets)
    parts = [pairs[at : at + most] for at in range(0, len(pairs), most)]
    return [
        _sheet(part, title + (f" ({i} of {len(parts)})" if len(parts) > 1 else ""), subtitle, side)
        for i, part in enumerate(parts, 1)
    ]


def _sizes(pairs: Sequence[Pair]) -> tuple[int, int, int]:
    """Pixels of a view's side; pairs in a row; height of a pair with its caption."""
    side = pairs[0].clean.shape[0]
    side = min(side * math.ceil(MIN_SIDE / side), MAX_SIDE)
    n_lines = 1 + max(len(pair.lines) for pair in pairs)
    columns = (MAX_WIDTH - 2 * MARGIN + GAP) // (2 * side + INSET + GAP)
    return side, min(len(pairs), max(1, columns)), side + 6 + n_lines * LINE


def _sheet(pairs: Sequence[Pair], title: str, subtitle: str, side: int) -> Image.Image:
    _, columns, cell_height = _sizes(pairs)
    cell_width = 2 * side + INSET
    heads = (title, _font(20, bold=True), MARGIN, INK), (subtitle, _font(13), MARGIN + 29, GREY)
    rows = math.ceil(len(pairs) / columns)
    inner = columns * (cell_width + GAP) - GAP
    inner = max(inner, *(math.ceil(font.getlength(_plain(text))) for text, font, *_ in heads))
    size = inner + 2 * MARGIN, HEAD + rows * (cell_height + GAP) - GAP + 2 * MARGIN
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for text, font, y, ink in heads:
        draw.text((MARGIN, y), _plain(text), ink, font)
    for i, pair in enumerate(pairs):
        x = MARGIN + i % columns * (cell_width + GAP)
        y = MARGIN + HEAD + i // columns * (cell_height + GAP)
        _draw_pair(sheet, draw, pair, x, y, side)
    return sheet


def _draw_pair(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, pair: Pair, x: int, y: int, side: int
) -> None:
    sheet.paste(_scaled(pair.clean, side), (x, y))
    right = x + side + INSET
    if pair.perturbed is not None:
        sheet.paste(_scaled(pair.perturbed, side), (right, y))
    else:
        draw.rectangle((right, y, right + side - 1, y + side - 1), PALE)
        centre = right + side // 2, y + side // 2
        draw.text(centre, "no second view", GREY, _font(12), anchor="mm")
    width, at = 2 * side + INSET, y + side + 6
    for text, font, ink in (
        (pair.title, _font(13, bold=True), INK),
        *((line, _font(12), GREY) for line in pair.lines),
    ):
        draw.text((x, at), shortened(_plain(text), width, font), ink, font)
        at += LINE


def _scaled(view: RGB8, side: int) -> Image.Image:
    image = Image.fromarray(view)
    how = Image.Resampling.NEAREST if side >= view.shape[0] else Image.Resampling.LANCZOS
    return image.resize((side, side), how)


def shortened(text: str, width: int, font: Any) -> str:
    """The text, with its middle left out where it is wider than so many pixels."""
    if font.getlength(text) <= width:
        return text
    for kept in range(len(text) - 1, 1, -1):
        cut = f"{text[: (kept + 1) // 2]}…{text[-(kept // 2) :]}"
        if font.getlength(cut) <= width:
            return cut
    return text[:1]


@cache
def _dejavu() -> Path | None:
    """The folder of matplotlib's fonts, which know more letters than Pillow's."""
    spec = importlib.util.find_spec("matplotlib")
    for folder in (spec and spec.submodule_search_locations) or ():
        if (path := Path(folder, "mpl-data", "fonts", "ttf")).is_dir():
            return path
    return None


@cache
def _font(size: int, *, bold: bool = False) -> Any:
    if (folder := _dejavu()) is not None:
        name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
        return ImageFont.truetype(str(folder / name), size - 1)  # it is drawn wide
    return ImageFont.load_default(size)


def _plain(text: str) -> str:
    """What the font can show: Pillow's knows ASCII and little else."""
    if _dejavu() is None:
        text = "".join(c if c.isascii() or c == "…" else "?" for c in text)
    return printable(text).replace("\n", " ")
