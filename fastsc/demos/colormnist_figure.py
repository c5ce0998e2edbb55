"""The picture of the color-bias demo: digits in three colorings, and who is fooled by them."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastsc.datasets.colormnist import CLASSES

CAPTIONS = {
    "aligned": ("aligned", "as in training"),
    "random": ("random", "any of the ten"),
    "reversed": ("reversed", "class k as 9 − k"),
}
CHANCE = 1 / CLASSES
INK, FAINT = "#222222", "#767676"
FILLS = {"CE": "#c9c9c9", "CE, both views": "#8fb3d9", "constraint": "#1f5fa8"}


class Bar(NamedTuple):
    """Accuracy of one kind of training on one folder."""

    label: str  # one of FILLS
    hue: float  # strength of its perturbation; 0: belongs into every panel
    split: str
    values: list[float]  # one per seed


def draw(path: Path, data: Path, bars: list[Bar], correlation: float) -> None:
    """Writes a PNG: a test digit of each class in its three colorings above, accuracies below.

    Args:
        path: The file to write.
        data: A folder that `fastsc.prepare colormnist` made.
        bars: Of every label and split, for each hue.
        correlation: That of the training digits, for the caption.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width, height = 11.3, 8.15
    left, right, cell = 1.75, 0.65, 0.89  # inches; a cell is a digit and its margin
    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)

    def box(x: float, top: float, w: float, h: float) -> Any:
        return figure.add_axes((x / width, 1 - (top + h) / height, w / width, h / height))

    def write(x: float, top: float, words: str, size: float, **style: Any) -> None:
        style = {"color": INK, "va": "top", **style}
        figure.text(x / width, 1 - top / height, words, fontsize=size, **style)

    write(0.35, 0.25, "The same digits in other colors: who is fooled?", 17, weight="bold")
    write(
        0.35,
        0.68,
        f"In training {100 * correlation:.4g} % of the digits have the color of their class. "
        "These test digits were never seen.",
        11,
        color=FAINT,
    )
    top = 1.12
    for split, (name, meaning) in CAPTIONS.items():
        write(0.35, top + 0.24, name, 13, weight="bold")
        write(0.35, top + 0.50, meaning, 9.5, color=FAINT)
        axes = box(left, top, CLASSES * cell, cell)
        axes.imshow(_strip(data / split), interpolation="lanczos", aspect="auto")
        axes.set_axis_off()
        top += cell + 0.06

    hues = sorted({bar.hue for bar in bars if bar.hue})
    panel = (width - left - right - 0.35 * (len(hues) - 1)) / len(hues)
    top += 0.68
    write(0.35, top - 0.37, "accuracy", 13, weight="bold")
    write(0.35, top - 0.11, "on these digits", 9.5, color=FAINT)
    for k, hue in enumerate(hues):
        x = left + k * (panel + 0.35)
        reach = "through the whole circle" if hue >= 0.5 else f"by up to ±{360 * hue:.0f}°"
        write(x, top - 0.35, f"Perturbation turns hues {reach}", 11, weight="bold")
        axes = box(x, top, panel, 2.75)
        _panel(axes, [bar for bar in bars if bar.hue in (0, hue)])
        if k == 0:
            axes.set_yticklabels(["0", "50 %", "100 %"], fontsize=9.5, color=FAINT)
    axes.text(2.54, CHANCE, "chance", va="center", fontsize=9.5, color=INK)
    _legend(figure, left / width, 0.3 / height)
    figure.savefig(path, dpi=130)


def _strip(folder: Path) -> NDArray[np.uint8]:
    """The first digit of each class side by side, with white margins: (h, w, 3)."""
    tiles = []
    for label in range(CLASSES):
        with Image.open(min((folder / str(label)).iterdir())) as image:
            digit = np.asarray(image.convert("RGB"))
        # Enlarged before the margin is added: resampling would bleed white into the black.
        large = Image.fromarray(digit).resize((168, 168), Image.Resampling.BICUBIC)
        tiles.append(np.pad(np.asarray(large), ((4, 4), (4, 4), (0, 0)), constant_values=255))
    return np.concatenate(tiles, axis=1)


def _panel(axes: Any, bars: list[Bar]) -> None:
    """Three groups of bars with their values, and the line of chance."""
    thick = 0.27
    for group, split in enumerate(CAPTIONS):
        for i, label in enumerate(FILLS):
            values = next(b.values for b in bars if (b.label, b.split) == (label, split))
            x, value = group + (i - 1) * thick, mean(values)
            axes.bar(x, value, 0.94 * thick, color=FILLS[label], zorder=2)
            style = {"weight": "bold"} if label == "constraint" else {}
            if len(values) > 1:
                axes.vlines(x, min(values), max(values), color=INK, linewidth=1, zorder=3)
            axes.text(
                x,
                max(values) + 0.015,
                f"{100 * value:.0f}",
                ha="center",
                va="bottom",
                fontsize=10,
                color=INK,
                **style,
            )
    axes.axhline(CHANCE, color=INK, linewidth=0.8, linestyle=(0, (4, 3)), zorder=4)
    axes.set(xlim=(-0.5, 2.5), ylim=(0, 1.1), xticks=range(len(CAPTIONS)), yticks=[0, 0.5, 1])
    axes.set_xticklabels([name for name, _ in CAPTIONS.values()], fontsize=11, color=INK)
    axes.set_yticklabels([])
    axes.tick_params(length=0)
    axes.grid(axis="y", color="#e4e4e4", linewidth=0.8, zorder=0)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)


def _legend(figure: Any, x: float, y: float) -> None:
    from matplotlib.patches import Patch

    legend = figure.legend(
        handles=[Patch(color=fill, label=label) for label, fill in FILLS.items()],
        loc="center left",
        bbox_to_anchor=(x, y),
        ncols=len(FILLS),
        frameon=False,
        fontsize=10.5,
        borderaxespad=0,
        borderpad=0,
    )
    for text in legend.get_texts():
        text.set_color(INK)
