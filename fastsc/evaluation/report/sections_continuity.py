"""The page on continuity: how far the representation moves, what flips, and where it happens."""

from __future__ import annotations

import math
from collections.abc import Iterator

from fastsc.evaluation.report.continuity_charts import KINDS, charts, stages_of
from fastsc.evaluation.report.parts import Gallery, Question, Section, said_by
from fastsc.evaluation.report.pictures import gallery
from fastsc.evaluation.report.tables import reach, tables, verdicts
from fastsc.evaluation.report.words import (
    DEGREES,
    PERCENT,
    PLAIN,
    SPACE,
    Unit,
    box_text,
    change_text,
    interval_of,
    listed,
    spoken,
    value_of,
)
from fastsc.evaluation.results.answers import Answer
from fastsc.evaluation.results.statistics import Estimate


def section(question: Question) -> Section:
    """The whole section."""
    return Section(
        "continuity",
        "Continuity",
        "How far does a picture move in the model’s eyes when only its light and colours change?",
        said_by(question, _sentences, _stage_sentences),
        "0 would be a representation that stays where it is, 1 one to which a change of colours is "
        "as much as a change of image.",
        verdicts(
            question,
            {
                "ds_relative": "Movement of the representation",
                "flips": "Predictions that flip",
                "top1": "Right answers",
                "top1_perturbed": "Right answers in other colours",
            },
        ),
        tuple(_galleries(question)),
        tuple(charts(question)),
        tables(question),
    )


# --- sentences -----------------------------------------------------------------------------------


def _sentences(answer: Answer) -> Iterator[str]:
    found = answer.estimates
    box = getattr(answer, "strengths", None)
    change = box_text(box) if box else "light and colours"
    if "ds_relative" in found:
        moved, of = found["ds_relative"], " of the distance between different images"
        if math.isnan(moved.value):
            yield "Different images have one representation: there is no distance to measure by."
            return
        said = f"Changing {change} moves the representation by {_in_brackets(moved, PLAIN, of)}"
        if "flips" in found:
            said += f"; {_without_n(found['flips'], ' of predictions flip')}"
        yield said + "."
    yield from _flips_before(answer)
    if "top1" in found:
        said = f"Right on {_in_brackets(found['top1'], PERCENT, ' of the labelled images')}"
        if "top1_perturbed" in found:
            said += f", and on {_without_n(found['top1_perturbed'], '')} in other colours"
        yield said + "."


def _stage_sentences(answer: Answer) -> Iterator[str]:
    stages = [s for s in stages_of(answer) if math.isfinite(answer[f"layers/{s}"].value)]
    if len(stages) < 2:
        return
    most = max(stages, key=lambda stage: answer[f"layers/{stage}"].value)
    last = stages[-1]
    there = spoken(answer[f"layers/{most}"], PLAIN)
    if most == last:
        yield f"Of its {len(stages)} stages the last, {last}, moves most: {there}."
    else:
        end = spoken(answer[f"layers/{last}"], PLAIN)
        yield (
            f"Of its {len(stages)} stages {most} moves most, by {there}; the last, {last}, "
            f"by {end}."
        )


def _in_brackets(found: Estimate, unit: Unit, of: str) -> str:
    """ "0.28 of the distance (0.26 to 0.30, n = 334)"."""
    within = interval_of(found, unit)
    return f"{value_of(found, unit)}{of} ({within}, n{SPACE}={SPACE}{found.n})"


def _without_n(found: Estimate, of: str) -> str:
    """ "12 % of predictions flip (9 to 16 %)"."""
    return f"{value_of(found, PERCENT)}{of} ({interval_of(found, PERCENT)})"


def _flips_before(answer: Answer) -> Iterator[str]:
    """ "Half of the images flip before +38 % brightness": the nearer direction of each kind."""
    flips: list[str] = []
    never: dict[str | None, list[str]] = {}
    for kind in KINDS[:4]:
        names = [f"flip_radius/{kind}/{way}" for way in ("down", "up")]
        names = [name for name in names if name in answer.estimates]
        if not names:
            continue
        name = min(names, key=lambda name: _or_last(answer[name].value))
        found = answer[name]
        if math.isfinite(found.value):
            flips.append(_signed(answer, name))
        elif math.isinf(found.value):
            never.setdefault(reach(answer, f"flip_radius/{kind}/either"), []).append(kind)
    if flips:
        n = answer.estimates[name].n
        yield f"Half of the images flip before {listed(flips)}; n{SPACE}={SPACE}{n}."
    if never:
        kinds = [
            listed(kinds, "or") + (f" (within {end})" if end else "")
            for end, kinds in never.items()
        ]
        yield f"Fewer than half flip when nothing but {listed(kinds, 'or')} changes."


def _or_last(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _signed(answer: Answer, name: str) -> str:
    """The median of a direction with its sign: "+38 % brightness (+31 to +45 %)"."""
    kind, way = name.split("/")[1:]
    found, sign = answer[name], -1 if way == "down" else 1
    end = reach(answer, name) or "the range"
    value = f"{change_text(kind, sign * found.value)} {kind}"
    if math.isnan(found.low + found.high):
        return value
    low = change_text(kind, sign * found.low)
    if math.isinf(found.high):
        return f"{value} ({low} to beyond {end})"
    suffix = DEGREES.suffix if kind == "hue" else PERCENT.suffix
    return f"{value} ({low.removesuffix(suffix)} to {change_text(kind, sign * found.high)})"


# --- pictures ------------------------------------------------------------------------------------


def _galleries(question: Question) -> Iterator[Gallery]:
    for asked in question.asked:
        found = gallery(
            question,
            asked,
            "The least continuous images",
            "Those whose representation moves furthest, unchanged and in the colours that do it.",
        )
        if found:
            yield found
