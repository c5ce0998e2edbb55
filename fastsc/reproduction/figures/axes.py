"""What the axes of all figures share: intervals, and plain numbers at round places."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastsc.reproduction.seeds import SeedEstimate


def reach(estimates: Sequence[SeedEstimate]) -> Any:
    """(2, n) lengths of error bars below and above the values; 0 where there is no interval."""
    lengths = [(one.value - one.low, one.high - one.value) for one in estimates]
    return np.nan_to_num(np.reshape(lengths, (-1, 2)).T)


def values(estimates: Sequence[SeedEstimate]) -> list[float]:
    """(n) their values; NaN is not drawn."""
    return [one.value for one in estimates]


def ticks(axis: Any, most: int = 6) -> None:
    """Plain numbers at few round places of a linear or a logarithmic axis (`ax.xaxis`)."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    low, high = sorted(axis.get_view_interval())
    if axis.get_scale() != "log" or high < 12 * low:
        axis.set_major_locator(MaxNLocator(most, steps=[1, 2, 2.5, 5, 10]))
    else:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.6g}".replace("-", "−")))
