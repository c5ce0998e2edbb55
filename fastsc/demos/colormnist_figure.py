"""The picture of the color-bias demo: digits in three colorings, and who is fooled by them."""

from __future__ import annotations

from pathlib import Path
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
INK = "#222222"
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
    from matplotlib.figure import Figure

    hues = sorted({bar.hue for bar in bars if bar.hue})
    figure: Any = Figure(figsize=(11.3, 8.15), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.08)
    headline = {"x": 0.02, "ha": "left", "size": 16, "weight": "bold"}
    figure.suptitle("The same digits in other colors: who is fooled?", **headline)
    grid = figure.add_gridspec(len(CAPTIONS) + 1, len(hues), height_ratios=[1, 1, 1, 3.6])
    for row, (split, caption) in enumerate(CAPTIONS.items()):
        axes = figure.add_subplot(grid[row, :])
        axes.imshow(_strip(data / split), interpolation="lanczos")
        axes.set(xticks=[], yticks=[])
        axes.set_ylabel("\n".join(caption), rotation=0, ha="right", va="center", color=INK)
        axes.spines[:].set_visible(False)
        if row == 0:
            share = f"{100 * correlation:.4g} % of the digits have the color of their class"
            axes.set_title(f"In training {share}. These test digits were never seen.", loc="left")
    for column, hue in enumerate(hues):
        axes = figure.add_subplot(grid[-1, column])
        _panel(axes, [bar for bar in bars if bar.hue in (0, hue)])
        reach = "through the whole circle" if hue >= 0.5 else f"by up to ±{360 * hue:.0f}°"
        axes.set_title(f"Perturbation turns hues {reach}", loc="left", weight="bold", size=11)
        axes.set_ylabel("accuracy, %" if column == 0 else "")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4)
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
    for place, (label, fill) in enumerate(FILLS.items()):
        by_split = {bar.split: bar.values for bar in bars if bar.label == label}
        values = 100 * np.array([by_split[split] for split in CAPTIONS])  # (3, seeds)
        means = values.mean(1)
        ends = np.abs([values.min(1) - means, values.max(1) - means])
        drawn = axes.bar(
            np.arange(len(CAPTIONS)) + 0.27 * (place - 1), means, 0.25, label=label, color=fill,
            yerr=ends if values.shape[1] > 1 else None, error_kw={"linewidth": 1},
        )  # fmt: skip
        axes.bar_label(drawn, fmt="%.0f", padding=2)
    axes.axhline(100 * CHANCE, color=INK, linewidth=0.8, linestyle=(0, (4, 3)), label="chance")
    axes.set(ylim=(0, 112), xticks=range(len(CAPTIONS)), yticks=[0, 50, 100])
    axes.set_xticklabels(CAPTIONS, fontsize=11)
    axes.tick_params(length=0)
    axes.grid(axis="y", color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
