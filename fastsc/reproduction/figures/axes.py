"""What the axes of all figures share: intervals, and plain numbers at round places."""

from __future__ import annotations

import math
from typing import Any

from fastsc.plotting.sheet import Mark
from fastsc.reproduction.seeds import Over


def interval(
    axis: Any, at: float, found: Over, mark: Mark, *, across: bool = False, width: float = 2.5
) -> None:
    """The bar of an interval, upright or `across`; nothing where there is none."""
    if not (math.isfinite(found.low) and math.isfinite(found.high)):
        return
    ends, place = [found.low, found.high], [at, at]
    x, y = (ends, place) if across else (place, ends)
    axis.plot(x, y, color=mark.hex, linewidth=width, alpha=0.55, solid_capstyle="butt")


def number(x: float) -> str:
    """As a tick has it: plain, or a power of ten where that is far from 1."""
    if x and not 1e-4 <= abs(x) < 1e5:
        exponent = round(math.log10(abs(x)))
        if math.isclose(abs(x), 10.0**exponent):
            power = str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
            return ("−" if x < 0 else "") + "10" + power
    return f"{x:.6g}".replace("-", "−")


def ticks(axis: Any, most: int = 6) -> None:
    """Plain numbers at few round places of a linear or a logarithmic axis (`ax.xaxis`)."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    if axis.get_scale() == "log":
        low, high = sorted(axis.get_view_interval())
        axis.set_major_locator(FixedLocator(log_places(low, high, most)))
        axis.set_minor_locator(NullLocator())
    else:
        axis.set_major_locator(MaxNLocator(most, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda x, _: number(x)))


def log_places(low: float, high: float, most: int) -> list[float]:
    """Round places between two ends that are about evenly spread in the logarithm."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    fine = tuple(i / 10 for i in range(10, 100))
    places: list[float] = []
    for subs in (fine, fine[::5], range(1, 10), (1, 2, 3, 4, 5, 6, 8), (1, 2, 5), (1, 3), (1,)):
        exact = (float(f"{sub * 10.0**decade:.4g}") for decade in decades for sub in subs)
        places = [x for x in exact if low <= x <= high]
        if len(places) <= most + 1:
            return places
    return places[:: math.ceil(len(places) / most)]
