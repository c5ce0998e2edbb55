"""Figures as words, and tables in Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from fastsc.evaluation.report.words import listed
from fastsc.reproduction.claims import Effect, Goal, Measure
from fastsc.reproduction.seeds import SeedEstimate, Verdict, seeds_to_decide

NONE = "–"
EQUAL = "equal"  # in every seed
VERDICTS: dict[Verdict, tuple[str, str]] = {
    "holds": ("holds", "hold"),
    "does not hold": ("does not hold", "do not hold"),
    "not shown": ("is not shown", "are not shown"),
}  # of one and of more


def table(rows: Iterable[Sequence[object]], *headings: str) -> str:
    """A Markdown table whose first column is text and whose others are right-aligned."""
    rules = ["---", *("---:" for _ in headings[1:])]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |"
        for row in (headings, rules, *rows)
    )


def number(estimate: SeedEstimate, digits: int = 3, scale: float = 1) -> str:
    """0.141 ± 0.004, then the half width of its interval, where there is one."""
    if math.isnan(estimate.value):
        return NONE
    text = signed(scale * estimate.value, digits).removeprefix("+")
    if math.isnan(estimate.low):
        return text
    return f"{text} ± {scale * (estimate.high - estimate.low) / 2:.{digits}f}"


def percent(estimate: SeedEstimate) -> str:
    """A share: 55.3 ± 0.5."""
    return number(estimate, 1, 100)


def figure(measure: Measure, estimate: SeedEstimate) -> str:
    """A measure's own figure: accuracies and shares in per cent."""
    return number(estimate) if measure.effect == "ratio" else percent(estimate)


def effect(of: Effect | Goal) -> str:
    """An effect with its interval: ×0.52 (0.50 to 0.54), or −0.7 (−1.2 to −0.2) points.

    That of "not worse" is at 90 %: its ends are those of the one-sided tests at 95 %.
    """
    estimate, kind = of.estimate, of.measure.effect
    if math.isnan(estimate.value):
        return NONE
    known = math.isfinite(estimate.low)
    if kind == "ratio":
        inside = f" ({estimate.low:.2f} to {estimate.high:.2f})" if known else ""
        return f"×{estimate.value:.2f}{inside}"
    if estimate.low == estimate.high == 0:
        return EQUAL
    ends, level = (estimate.low, estimate.high), ""
    if kind == "not worse":
        ends, level = (estimate.lower, estimate.upper), " at 90 %"
    text = signed(100 * estimate.value, 1)
    low, high = (signed(100 * end, 1) for end in ends)
    return f"{text} ({low} to {high}{level})" if known else text


def judged(of: Effect) -> str:
    """An effect with its verdict, which a single seed does not have."""
    text = effect(of)
    return text if of.estimate.n < 2 or text in (NONE, EQUAL) else f"{text}: {of.verdict}"


def verdicts(effects: Sequence[Effect]) -> str:
    """How many verdicts are which, against each baseline."""
    parts = []
    for against in dict.fromkeys(claim.against for claim in effects):
        of = [claim.verdict for claim in effects if claim.against == against]
        counts = [
            f"{n} {words[n > 1]}" for verdict, words in VERDICTS.items() if (n := of.count(verdict))
        ]
        parts.append(f"against `{against}` {listed(counts)}")
    return "; ".join(parts)


def tally(effects: Sequence[Effect]) -> str:
    """How many of the claims hold, and what of the others: 4 of 6, 2 not shown."""
    if not effects:
        return NONE
    verdicts = [effect.verdict if effect.estimate.n > 1 else "one seed" for effect in effects]
    others = [f"{verdicts.count(v)} {v}" for v in dict.fromkeys(verdicts) if v != "holds"]
    return ", ".join([f"{verdicts.count('holds')} of {len(verdicts)}", *others])


def enough(effect: Effect | Goal) -> str:
    """How many seeds would decide, as half a sentence; nothing where that cannot be told."""
    n = seeds_to_decide(
        effect.estimate,
        effect.bound,
        log=effect.measure.effect == "ratio",
        one_sided=effect.measure.effect == "not worse",
    )
    return "" if n is None else f"; {count(n, 'seed')} would decide"


def capitalized(text: str) -> str:
    """With a capital letter at its beginning, and what follows as it is."""
    return text[:1].upper() + text[1:]


def count(n: int, noun: str) -> str:
    """1 seed, 3 seeds, 20,000 images."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def seeds(estimates: Iterable[SeedEstimate]) -> str:
    """3 seeds, or 2 to 5 seeds."""
    n = sorted({estimate.n for estimate in estimates})
    return count(n[0], "seed") if len(n) == 1 else f"{n[0]} to {n[-1]} seeds"


def signed(value: float, digits: int) -> str:
    """+1.2, −0.7, +0.0."""
    return f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", "−")  # no −0.0
