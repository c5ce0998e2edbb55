"""Every figure of a question in tables: value, interval and n a model, and what differs."""

from __future__ import annotations

import math
from collections.abc import Iterator

from fastsc.evaluation.report.parts import Cell, Question, Table, Verdict
from fastsc.evaluation.report.words import (
    SPACE,
    Unit,
    change_text,
    family,
    interval_of,
    is_real,
    least_text,
    p_text,
    smallest_text,
    strength_text,
    unit_of,
    unit_of_difference,
    value_of,
)
from fastsc.evaluation.results.answers import Answer, Measure
from fastsc.evaluation.results.evaluated import Comparison
from fastsc.evaluation.results.statistics import Difference

EMPTY = Cell("–")


def reach(answer: Answer, name: str) -> str | None:
    """How far the search for a flip went: "+200 %"; None of other measures."""
    ranges = getattr(answer, "ranges", None)
    parts = name.split("/")
    if parts[0] != "flip_radius" or len(parts) != 3 or not ranges or parts[1] not in ranges:
        return None
    kind, way = parts[1:]
    low, high = ranges[kind]
    unchanged = 0.0 if kind == "hue" else 1.0
    ends = {"up": high - unchanged, "down": low - unchanged}
    if way in ends:
        return change_text(kind, ends[way])
    return f"{change_text(kind, ends['down'])} to {change_text(kind, ends['up'])}"


def words_of(name: str) -> str:
    """What a measure's name says, but for its family: "brightness ±40 %", "contrast, upwards"."""
    parts = name.split("/")
    if parts[0] == "flip_radius" and len(parts) == 3:
        ways = {"up": "upwards", "down": "downwards", "either": "either way"}
        return f"{parts[1]}, {ways.get(parts[2], parts[2])}"
    if len(parts) == 3:
        try:
            return f"{parts[1]} {strength_text(parts[1], float(parts[2]))}"
        except ValueError:
            pass
    return " ".join(parts[1:]) or parts[0].replace("_", " ")


def tables(question: Question) -> tuple[Table, ...]:
    """One table of the figures without a slash in their names, and one a family of the others."""
    measures: dict[str, Measure] = {}
    for asked in question.asked:
        for measure in asked.answer.measures:
            measures.setdefault(measure.name, measure)
    groups: dict[str, list[Measure]] = {}
    for measure in measures.values():
        groups.setdefault(family(measure.name) if "/" in measure.name else "", []).append(measure)
    return tuple(_table(question, title, of) for title, of in groups.items())


def _table(question: Question, title: str, measures: list[Measure]) -> Table:
    compared: dict[tuple[str, str], dict[str, Comparison]] = {}
    names = {measure.name for measure in measures}
    for one in question.comparisons():
        if one.name in names:
            compared.setdefault((one.model, one.against), {})[one.name] = one
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
    caption = f"{title or 'Overall'}, seed {', '.join(map(str, seeds))}"
    return Table(caption, tuple(headings), rows, tuple(groups))


def _row(
    question: Question, measure: Measure, compared: list[dict[str, Comparison]]
) -> Iterator[Cell]:
    unit = unit_of(measure)
    yield Cell(words_of(measure.name))
    methods = []
    for asked in question.asked:
        if measure.name not in asked.answer.estimates:
            yield from (EMPTY, EMPTY, EMPTY)
            continue
        found = asked.answer[measure.name]
        end = reach(asked.answer, measure.name)
        never, beyond = (f"does not flip within {end}", f"beyond {end}") if end else (None, None)
        yield Cell(value_of(found, unit, never), _sortable(found.value))
        yield Cell(interval_of(found, unit, beyond), _sortable(found.low))
        yield Cell(str(found.n), found.n)
        methods.append(found.method)
    for pairs in compared:
        one = pairs.get(measure.name)
        yield from _difference(one.difference, unit) if one else (EMPTY,) * 4
    yield Cell(", ".join(dict.fromkeys(methods)))
    yield Cell(measure.name)


def _difference(found: Difference, unit: Unit) -> Iterator[Cell]:
    of = unit_of_difference(unit)
    yield Cell(value_of(found, of), _sortable(found.value))
    yield Cell(interval_of(found, of), _sortable(found.low))
    p = p_text(found.p).removeprefix(f"p{SPACE}").removeprefix(f"={SPACE}")
    yield Cell(p, _sortable(found.p))
    yield Cell(least_text(found, unit), _sortable(found.smallest))


def _sortable(value: float) -> float | None:
    return None if math.isnan(value) else max(min(value, 1e300), -1e300)


def verdicts(question: Question, names: dict[str, str]) -> tuple[Verdict, ...]:
    """On each comparison of the measures that matter.

    Args:
        question: Of the comparisons.
        names: Measure -> what it is called, with a capital.
    """
    units = {m.name: unit_of(m) for asked in question.asked for m in asked.answer.measures}
    return tuple(
        _verdict(one, what, units.get(name, Unit()))
        for name, what in names.items()
        for one in question.comparisons(name)
    )


def _verdict(one: Comparison, what: str, unit: Unit) -> Verdict:
    found, of = one.difference, unit_of_difference(unit)
    models = f"{one.model} less {one.against}"
    if math.isnan(found.value):
        return Verdict(what, models, "not defined", "the two cannot be compared", False)
    difference = f"{value_of(found, of)} ({interval_of(found, of)})"
    sure = f"{p_text(found.p)}, n{SPACE}={SPACE}{found.n}"
    if is_real(found):
        return Verdict(what, models, difference, f"more than chance explains ({sure})", True)
    return Verdict(
        what, models, difference, f"may be chance ({sure}); {smallest_text(found, unit)}", False
    )
