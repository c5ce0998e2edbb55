"""The plot of bench.loaders: rates of all loaders, and where an image's time goes in ours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.common import Result, Row

# Okabe and Ito's colors, told apart by most eyes.
OURS, PEERS, FLOOR = "#0072B2", "#999999", "#E69F00"
STAGES = {
    "read": "#56B4E9",
    "feed": "#F0E442",
    "read and decode": "#0072B2",
    "decode": "#0072B2",
    "resize": "#009E73",
    "pair": "#D55E00",
    "hand-over": "#CC79A7",
}


def draw(rows: Sequence[Row], workers: int, file: Path) -> None:
    """Bars of the median rates with their quartiles; below, the stages' milliseconds an image."""
    from matplotlib.figure import Figure

    rates = [row for row in rows if isinstance(row, Result) and row.name.startswith("loaders/")]
    panels = [
        ("pairs a second", [row for row in rates if row.unit == "pairs/s"]),
        ("single images a second", [row for row in rates if row.unit != "pairs/s"]),
    ]
    parts = stage_parts(rows)
    heights = [0.7 + 0.24 * len(bars) for _, bars in panels] + [0.9 + 0.3 * len(parts)]
    figure = Figure(figsize=(8, sum(heights)), layout="constrained")
    axes: Any = figure.subplots(3, 1, height_ratios=heights)
    for axis, (unit, bars) in zip(axes, panels, strict=False):
        _rates(axis, sorted(bars, key=lambda row: row.median))
        axis.set_xlabel(f"{unit}, {workers} workers (median, quartiles)", fontsize=9)
    for stage, color in STAGES.items():
        left = [sum(list(of.values())[: list(of).index(stage)]) if stage in of else 0.0
                for of in parts.values()]  # fmt: skip
        width = [of.get(stage, 0.0) for of in parts.values()]
        label = stage if any(width) and stage != "read and decode" else None
        label = "decode (ffcv: and read)" if label == "decode" else label
        axes[2].barh(list(parts), width, left=left, color=color, label=label)
    axes[2].set_xlabel("ms of one thread for an image, each stage alone (median)", fontsize=9)
    if parts:
        axes[2].legend(ncols=len(STAGES), fontsize=7, frameon=False, loc="lower right",
                       bbox_to_anchor=(1, 1))  # fmt: skip
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
        axis.margins(y=0.02)
    figure.savefig(file, dpi=150)


def _rates(axis: Any, bars: list[Result]) -> None:
    for row in bars:
        name = row.name.removeprefix("loaders/")
        color = OURS if "fastsc" in name else FLOOR if "floor" in name else PEERS
        spread = [[max(0, row.median - row.q1)], [max(0, row.q3 - row.median)]]
        axis.barh(name, row.median, color=color, xerr=spread, error_kw={"lw": 1, "capsize": 2})
        axis.annotate(
            f"{row.median:,.0f}", (row.q3, name), (4, 0), textcoords="offset points", va="center",
            fontsize=8,
        )  # fmt: skip


def stage_parts(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Loader -> stage -> median ms an image. DALI's stages are differences of its graphs'."""
    parts: dict[str, dict[str, float]] = {}
    for row in rows:
        if isinstance(row, Result) and row.name.startswith("stages/"):
            _, loader, stage = row.name.split("/")
            parts.setdefault(loader, {})[stage.replace("-and-", " and ")] = row.median
    if "dali" in parts and "cpu" in parts:
        d = parts["dali"]
        parts["dali"] = {
            "read": d["read"],
            "feed": d["feed"],
            "decode": max(0.0, d["feed and decode"] - d["feed"]),
            "resize": max(0.0, d["feed-decode-resize"] - d["feed and decode"]),
            "pair": parts["cpu"]["pair"],
        }
    return parts
