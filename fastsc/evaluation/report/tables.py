"""Every figure of a question in tables: value, interval and n per model, and what differs."""

from __future__ import annotations

import math
from collections.abc import Iterator

from fastsc.evaluation.questions.continuity.question import Continuity
from fastsc.evaluation.report.parts import Cell, Question, Table, Verdict
from fastsc.evaluation.report.templates import declared, line
from fastsc.evaluation.report.words import (
    SPACE,
    Unit,
    change_text,
    interval_of,
    is_real,
    least_text,
    p_text,
    smallest_text,
    unit_of,
    unit_of_difference,
    value_of,
)
from fastsc.evaluation.results.answers import Answer
from fastsc.evaluation.results.evaluated import Comparison
from fastsc.evaluation.results.measures import Measure, Name
from fastsc.evaluation.results.statistics import Difference
from fastsc.evaluation.views import KINDS

EMPTY = Cell("–")


def reach(answer: Answer, figure: Name) -> str | None:
    """How far the search for a flip went: "+200 %"; None of other measures."""
    family, kind, way = figure
    if family != "flip_radius" or not isinstance(answer, Continuity) or kind not in answer.ranges:
        return None
    unchanged = float(kind in KINDS and kind != "hue")
    down, up = (change_text(kind, end - unchanged) for end in answer.ranges[kind])
    return {"up": up, "down": down}.get(way, f"{down} to {up}")


def words_of(question: str, figure: Name) -> str:
    """What a figure is called in a table of its family: "brightness ±40 %", "contrast, upwards"."""
    own = declared(question)
    names = own.get("names", {})
    return line(
        own.get("row", "{{ [kind, level]|select|join(' ') or named(family) }}"),
        {**figure._asdict(), "named": lambda part: names.get(part, part.replace("_", " "))},
    )


def tables(question: Question) -> tuple[Table, ...]:
    """One table of the figures that are one of their family, and one a family of the others."""
    groups: dict[str, list[Measure]] = {}
    for measure in question.measures():
        family, kind, _ = measure.figure
        groups.setdefault(family if kind else "", []).append(measure)
    names = declared(question.name).get("names", {})
    return tuple(
        _table(question, names[title].capitalize() if title in names else title or "Overall", of)
        for title, of in groups.items()
    )


def _table(question: Question, title: str, measures: list[Measure]) -> Table:
    compared: dict[tuple[str, str], dict[str, Comparison]] = {}
    names = {measure.name for measure in measures}
    for comparison in question.comparisons():
        if comparison.name in names:
            compared.setdefault((comparison.model, comparison.against), {})[comparison.name] = (
                comparison
            )
    headings = ["Figure"]
    groups = [("", 1)]
    for asked in question.asked:
        groups.append((asked.model.name, 3))
        headings += ["Value", "95 % interval", "n"]
    for model, against in compared:
        groups.append((f"{model} less {against}", 4))
        headings += ["Difference", "95 % interval", "p", "Would show from"]
    groups.append(("", 2))
    headings += ["Interval by", "Name in results.json"]
    rows = tuple(tuple(_row(question, measure, list(compared.values()))) for measure in measures)
    seeds = sorted({asked.answer.seed for asked in question.asked})
    title += f", seed {', '.join(map(str, seeds))}"
    return Table(title, tuple(headings), rows, tuple(groups))


def _row(
    question: Question, measure: Measure, compared: list[dict[str, Comparison]]
) -> Iterator[Cell]:
    unit = unit_of(measure)
    yield Cell(words_of(question.name, measure.figure))
    methods = []
    for asked in question.asked:
        if measure.name not in asked.answer.estimates:
            yield from (EMPTY, EMPTY, EMPTY)
            continue
        estimate = asked.answer[measure.name]
        end = reach(asked.answer, measure.figure)
        never, beyond = (f"does not flip within {end}", f"beyond {end}") if end else (None, None)
        yield Cell(value_of(estimate, unit, never), _sortable(estimate.value))
        yield Cell(interval_of(estimate, unit, beyond), _sortable(estimate.low))
        yield Cell(str(estimate.n), estimate.n)
        methods.append(estimate.method)
    for pairs in compared:
        comparison = pairs.get(measure.name)
        yield from _difference(comparison.difference, unit) if comparison else (EMPTY,) * 4
    yield Cell(", ".join(dict.fromkeys(methods)))
    yield Cell(measure.name)


def _difference(difference: Difference, unit: Unit) -> Iterator[Cell]:
    of = unit_of_difference(unit)
    yield Cell(value_of(difference, of), _sortable(difference.value))
    yield Cell(interval_of(difference, of), _sortable(difference.low))
    p = p_text(difference.p).removeprefix(f"p{SPACE}").removeprefix(f"={SPACE}")
    yield Cell(p, _sortable(difference.p))
    yield Cell(least_text(difference, unit), _sortable(difference.smallest))


def _sortable(value: float) -> float | None:
    return None if math.isnan(value) else max(min(value, 1e300), -1e300)


def verdicts(question: Question, names: dict[str, str]) -> tuple[Verdict, ...]:
    """On each comparison of the measures that matter.

    Args:
        question: Of the comparisons.
        names: Measure -> what it is called, with a capital.
    """
    units = {measure.name: unit_of(measure) for measure in question.measures()}
    return tuple(
        _verdict(comparison, what, units.get(name, Unit()))
        for name, what in names.items()
        for comparison in question.comparisons(name)
    )


def _verdict(comparison: Comparison, what: str, unit: Unit) -> Verdict:
    difference, of = comparison.difference, unit_of_difference(unit)
    models = f"{comparison.model} less {comparison.against}"
    if math.isnan(difference.value):
        return Verdict(what, models, "not defined", "the two cannot be compared", False)
    shown = f"{value_of(difference, of)} ({interval_of(difference, of)})"
    sure = f"{p_text(difference.p)}, n{SPACE}={SPACE}{difference.n}"
    if is_real(difference):
        return Verdict(what, models, shown, f"more than chance explains ({sure})", True)
    return Verdict(
        what, models, shown, f"may be chance ({sure}); {smallest_text(difference, unit)}", False
    )
