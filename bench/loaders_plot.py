"""The plot of bench.loaders: rates of all loaders, and where an image's time goes in ours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.common import Result, Row

# Okabe and Ito's colours, told apart by most eyes.
OURS, PEERS, FLOOR = "#0072B2", "#999999", "#E69F00"
STAGES = {
    "read": "#56B4E9",
    "feed": "#56B4E9",
    "decode": "#0072B2",
    "read and decode": "#0072B2",
    "resize": "#009E73",
    "pair": "#D55E00",
    "hand-over": "#CC79A7",
}


def draw(rows: Sequence[Row], workers: int, file: Path) -> None:
    """Bars of the median rates with their quartiles; below, the stages' milliseconds an image."""
    from matplotlib.figure import Figure

    rates = [row for row in rows if isinstance(row, Result) and row.name.startswith("loaders/")]
    rates.sort(key=lambda row: (not row.unit.startswith("pairs"), row.median))
    parts = stage_parts(rows)
    height = 1.6 + 0.24 * len(rates) + 0.4 * len(parts)
    figure = Figure(figsize=(8, height), layout="constrained")
    ratios = [max(1, len(rates)), max(1, 1.6 * len(parts))]
    top, bottom = figure.subplots(2, 1, height_ratios=ratios)
    for row in rates:
        name = row.name.removeprefix("loaders/")
        colour = OURS if "fastsc" in name else FLOOR if "floor" in name else PEERS
        spread = [[max(0, row.median - row.q1)], [max(0, row.q3 - row.median)]]
        top.barh(name, row.median, color=colour, xerr=spread, error_kw={"lw": 1, "capsize": 2})
        top.annotate(
            f"{row.median:,.0f}", (row.q3, name), (4, 0), textcoords="offset points", va="center",
            fontsize=8,
        )  # fmt: skip
    top.set_xlabel(f"images or pairs a second, {workers} workers (median, quartiles)")
    for name, stages in parts.items():
        left = 0.0
        for stage, ms in stages.items():
            bottom.barh(name, ms, left=left, color=STAGES[stage])
            if ms > 0.05:
                bottom.text(left + ms / 2, name, stage, ha="center", va="center", fontsize=7)
            left += ms
    bottom.set_xlabel("ms of one thread for an image, each stage alone (median)")
    for axes in (top, bottom):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    figure.savefig(file, dpi=150)


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
