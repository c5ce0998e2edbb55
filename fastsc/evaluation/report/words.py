"""Numbers in the words and units of the page: rounded as their interval allows, never "nan"."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fastsc.evaluation.results.measures import Measure
from fastsc.evaluation.results.statistics import Difference, Estimate

SPACE = "\u00a0"  # a number stays on the line of its unit
MAX_DECIMALS = 6
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
SIGNED = ("gamma", "temperature", "exposure", "sharpness")  # listed ones that go both ways
REAL = 0.05  # the p below which a difference is called one
IN_TEMPLATES = ("box_text", "listed", "number", "strength_text", "the_only", "PERCENT")


@dataclass(frozen=True)
class Unit:
    """How a figure is shown: times `scale`, with a suffix.

    Attributes:
        scale: Of the stored value.
        suffix: After it, with its space.
        signed: A plus sign stands before what is above 0.
    """

    scale: float = 1.0
    suffix: str = ""
    signed: bool = False


PLAIN = Unit()
PERCENT = Unit(100, f"{SPACE}%")
POINTS = Unit(100, f"{SPACE}points", signed=True)
DEGREES = Unit(360, "°")

# Of what --perturb lists.
_AMOUNTS = {
    "gamma": Unit(1, " octaves of the exponent"),
    "temperature": Unit(1, f"{SPACE}mired"),
    "exposure": Unit(1, f"{SPACE}stops"),
    "blur": Unit(1, f"{SPACE}px"),
    "sharpness": PERCENT,
    "noise": Unit(1, "/255"),
    "jpeg": Unit(1, " below quality 100"),
    "posterize": Unit(1, f"{SPACE}bits"),
}
_DECIMALS = {"gamma": 2, "exposure": 2, "blur": 2, "noise": 1}
_UNITS = {
    "top1": PERCENT,
    "top1_perturbed": PERCENT,
    "flips": PERCENT,
    "farther_than_random": PERCENT,
    "farther_than_nearest": PERCENT,
    "confidence_change": POINTS,
    "accuracy": PERCENT,
    "photometric": PERCENT,
    "axis_flips": PERCENT,
    "gap": POINTS,
}


def unit_of(measure: Measure) -> Unit:
    """The unit in which a measure is shown."""
    family, kind, _ = measure.figure
    if family == "flip_radius":
        operation = kind.partition("-")[0]
        return DEGREES if kind == "hue" else _AMOUNTS.get(operation, PERCENT)
    return _UNITS.get(family) or (PERCENT if measure.statistic == "share" else PLAIN)


def unit_of_difference(unit: Unit) -> Unit:
    """Shares differ by points."""
    return POINTS if unit is PERCENT else replace(unit, signed=True)


def number(value: float, decimals: int = 2, *, signed: bool = False) -> str:
    """A finite number with a true minus sign; nothing is "-0"."""
    if decimals >= MAX_DECIMALS and 0 < abs(value) < 10.0 ** (2 - MAX_DECIMALS):
        digits, power = f"{abs(value):.2e}".split("e")
        text = f"{digits}{SPACE}×{SPACE}10{str(int(power)).translate(_RAISED)}"
    else:
        text = f"{abs(value):,.{decimals}f}".replace(",", "\u202f")
    if not any(digit in text for digit in "123456789"):
        return text
    return ("−" if value < 0 else "+" if signed else "") + text


def decimals(value: float, low: float, high: float) -> int:
    """So many that half the interval shows one digit, or two from 10 to 19; else three digits."""
    half = (high - low) / 2
    if not math.isfinite(half) or half <= 0:
        known = value if math.isfinite(value) else low
        if not math.isfinite(known) or known == 0:
            return 2
        return _between(2 - math.floor(math.log10(abs(known))))
    return _between(math.ceil(-math.log10(half / 2)))


def _between(places: int) -> int:
    return min(max(places, 0), MAX_DECIMALS)


def value_text(value: float, unit: Unit, places: int) -> str:
    """A value in its unit; in words where it is no number."""
    if math.isnan(value):
        return "not defined"
    if math.isinf(value):
        return "beyond the range" if value > 0 else "below the range"
    return number(value * unit.scale, places, signed=unit.signed) + unit.suffix


def places_of(estimate: Estimate | Difference, unit: Unit) -> int:
    """Decimals of an estimate in its unit."""
    value, low, high = (unit.scale * x for x in (estimate.value, estimate.low, estimate.high))
    return decimals(value, low, high)


def value_of(estimate: Estimate | Difference, unit: Unit, beyond: str | None = None) -> str:
    """The figure; `beyond` says what infinity means."""
    if math.isinf(estimate.value) and beyond:
        return beyond
    return value_text(estimate.value, unit, places_of(estimate, unit))


def interval_of(estimate: Estimate | Difference, unit: Unit, beyond: str | None = None) -> str:
    """ "0.26 to 0.30"; "no interval" where there is none."""
    if math.isnan(estimate.low) or math.isnan(estimate.high):
        return "no interval"
    if math.isinf(estimate.low) and estimate.low == estimate.high:
        return beyond or value_text(estimate.low, unit, 0)
    places = places_of(estimate, unit)
    ends = [
        beyond if beyond and math.isinf(end) else value_text(end, replace(unit, suffix=""), places)
        for end in (estimate.low, estimate.high)
    ]
    suffix = unit.suffix if math.isfinite(estimate.high) else ""
    return f"{ends[0]} to {ends[1]}{suffix}"


@dataclass(frozen=True)
class Figure:
    """An estimate in its unit; `str` of it is "0.28 (0.26 to 0.30, n = 334)"."""

    estimate: Estimate
    unit: Unit = PLAIN

    def __str__(self) -> str:
        return f"{self.value} ({self.within}, n{SPACE}={SPACE}{self.n})"

    @property
    def known(self) -> bool:
        """Whether it is a finite number."""
        return math.isfinite(self.estimate.value)

    @property
    def value(self) -> str:
        return value_of(self.estimate, self.unit)

    @property
    def within(self) -> str:
        return interval_of(self.estimate, self.unit)

    @property
    def brief(self) -> str:
        """Without n."""
        return f"{self.value} ({self.within})"

    @property
    def plain(self) -> str:
        """To two decimals, whatever its interval."""
        return number(self.estimate.value)

    @property
    def n(self) -> int:
        return self.estimate.n


def p_text(p: float) -> str:
    """ "p = 0.042", "p < 0.001"."""
    if math.isnan(p):
        return "p not defined"
    if p < 0.001:
        return f"p{SPACE}<{SPACE}0.001"
    return f"p{SPACE}={SPACE}{p:.3f}" if p < 0.1 else f"p{SPACE}={SPACE}{p:.2f}"


def is_real(difference: Difference) -> bool:
    """Whether chance hardly explains a difference: p under 0.05, and 0 outside the interval."""
    return difference.p < REAL and (difference.low > 0 or difference.high < 0)


def smallest_text(difference: Difference, unit: Unit) -> str:
    """ "with 334 images a difference under 2.1 points would not show"."""
    if not math.isfinite(difference.smallest):
        return f"how small a difference {difference.n} images can show is not defined"
    if difference.smallest == 0:
        return f"the two are the same on all {difference.n} images"
    least = least_text(difference, unit)
    return f"with {difference.n} images a difference under {least} would not show"


def least_text(difference: Difference, unit: Unit) -> str:
    """The smallest difference that so many images show, to two digits."""
    of = replace(unit_of_difference(unit), signed=False)
    if not math.isfinite(difference.smallest):
        return "not defined"
    places = decimals(difference.smallest * of.scale, math.nan, math.nan) - 1
    return value_text(difference.smallest, of, max(places, 0))


def change_text(kind: str, value: float, *, signed: bool = True) -> str:
    """A change of one kind from the unchanged image: a share of it in %, hue's turns in degrees.

    Of what --perturb lists, the amount in its unit: "2.10 px", "quality 23", "exponent 1.49".
    """
    operation = kind.partition("-")[0]
    if operation == "gamma":
        return f"exponent{SPACE}{number(2**value)}"
    if operation == "jpeg":
        return f"quality{SPACE}{number(100 - value, 0)}"
    if operation in _AMOUNTS:
        amount, signed = _AMOUNTS[operation], signed and operation in SIGNED
        places = _DECIMALS.get(operation, 0)
        return number(value * amount.scale, places, signed=signed) + amount.suffix
    unit = DEGREES if kind == "hue" else PERCENT
    return number(value * unit.scale, 0, signed=signed) + unit.suffix


def strength_text(kind: str, strength: float) -> str:
    """A strength in its own unit: "±40 %", "±36°"; all together, a multiple of the box: "×1.5"."""
    if kind == "together":
        return f"×{strength:g}"
    operation = kind.partition("-")[0]
    if ":" in kind or operation == "grayscale":
        return "as drawn" if ":" in kind else "all"
    if operation == "gamma":
        return f"2^±{strength:g}"
    if operation == "jpeg":
        return change_text(kind, strength)
    if (amount := _AMOUNTS.get(operation)) is not None:
        return "±" * (operation in SIGNED) + f"{strength * amount.scale:g}{amount.suffix}"
    return "±" + change_text(kind, strength, signed=False)


def box_text(strengths: Sequence[float]) -> str:
    """The box of all four kinds: "light and colors within ±40 %, hue within ±36°"."""
    b, c, s, h = strengths
    hue = strength_text("hue", h)
    if b == c == s:
        return f"light and colors within {strength_text('brightness', b)} (hue {hue})"
    parts = [
        f"{kind} within {strength_text(kind, x)}"
        for kind, x in zip(("brightness", "contrast", "saturation", "hue"), strengths, strict=True)
        if x > 0
    ]
    return listed(parts) if parts else "nothing"


def factors_text(factors: Sequence[float]) -> str:
    """ "brightness +38 %, contrast −12 %, saturation +5 %, hue −20°", without what is unchanged."""
    changes = [factors[0] - 1, factors[1] - 1, factors[2] - 1, factors[3]]
    kinds = ("brightness", "contrast", "saturation", "hue")
    changed = [
        f"{k} {change_text(k, x)}" for k, x in zip(kinds, changes, strict=True) if abs(x) > 5e-4
    ]
    return ", ".join(changed) or "unchanged"


def the_only(values: Iterable[Any]) -> Any:
    """The value that all are, or None."""
    different = set(values)
    return different.pop() if len(different) == 1 else None


def listed(parts: Sequence[str], last: str = "and") -> str:
    """ "a, b and c"."""
    return f" {last} ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
