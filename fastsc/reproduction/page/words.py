"""Figures as words, and what a page in Markdown is made of."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fastsc.reproduction.claims import Effect, Goal, Measure
from fastsc.reproduction.seeds import Over

NONE = "–"
EQUAL = "equal"  # in every seed


@dataclass(frozen=True)
class Shown:
    """A figure: its file, relative to the page, and what it shows in words."""

    path: str
    alt: str


@dataclass(frozen=True)
class Part:
    """A heading with what belongs to it; Markdown."""

    title: str
    words: str
    table: str = ""
    figures: tuple[Shown, ...] = ()


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table whose first column is text and whose others are right-aligned."""
    rules = ["---", *("---:" for _ in headings[1:])]
    lines = [headings, rules, *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in x) + " |" for x in lines
    )


def percent(found: Over, digits: int = 1) -> str:
    """A share: 55.3 ± 0.5, the half width of its interval behind it where there is one."""
    return _with_reach(found, 100.0, digits)


def number(found: Over, digits: int = 3) -> str:
    """Likewise, as it is."""
    return _with_reach(found, 1.0, digits)


def _with_reach(found: Over, scale: float, digits: int) -> str:
    if math.isnan(found.value):
        return NONE
    text = _plain(scale * found.value, digits)
    if math.isnan(found.low):
        return text
    return f"{text} ± {scale * (found.high - found.low) / 2:.{digits}f}"


def figure(measure: Measure, found: Over) -> str:
    """A measure's own figure: accuracies and shares in per cent."""
    return percent(found) if measure.effect in ("difference", "not worse") else number(found)


def effect(measure: Measure, found: Over) -> str:
    """An effect with its interval: ×0.52 (0.50 to 0.54), or −0.7 (−1.2 to −0.2) points.

    That of "not worse" is at 90 %: its ends are those of the one-sided tests at 95 %.
    """
    if math.isnan(found.value):
        return NONE
    if measure.effect == "ratio":
        inside = f" ({found.low:.2f} to {found.high:.2f})" if math.isfinite(found.low) else ""
        return f"×{found.value:.2f}{inside}"
    if found.low == found.high == 0:
        return EQUAL
    one_sided = measure.effect == "not worse"
    ends = (found.lower, found.upper) if one_sided else (found.low, found.high)
    low, high = (signed(100 * end, 1) for end in ends)
    text = signed(100 * found.value, 1)
    if not math.isfinite(found.low):
        return text
    return f"{text} ({low} to {high}{' at 90 %' if one_sided else ''})"


def goal(found: Goal) -> str:
    """What was reached."""
    return effect(found.measure, found.found)


def reached(found: Goal) -> str:
    """The verdict on a goal."""
    return {"holds": "reached", "does not hold": "missed", "not shown": "undecided"}[found.verdict]


def count(n: int, noun: str) -> str:
    """1 seed, 3 seeds, 20,000 images."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def listed(words: Sequence[str]) -> str:
    """a, b and c."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def seeds_of(effects: Iterable[Effect]) -> str:
    """3 seeds, or 2 to 5 seeds."""
    numbers = sorted({effect.found.n for effect in effects})
    if not numbers:
        return "no seed"
    return (
        count(numbers[0], "seed") if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]} seeds"
    )


def signed(value: float, digits: int) -> str:
    """+1.2, −0.7, +0.0."""
    return f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", "−")  # no −0.0


def _plain(value: float, digits: int) -> str:
    return signed(value, digits).removeprefix("+")
