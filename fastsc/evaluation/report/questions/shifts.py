"""The grid of shifts, one picture under all of them, and the worst one in words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from fastsc.evaluation.questions.shifts.corruptions import (
    CORRUPTIONS,
    WITHOUT_DEGREES,
    case_of,
    shift,
)
from fastsc.evaluation.questions.shifts.question import Shifts
from fastsc.evaluation.report.parts import Asked, Card, Chart, Code, Question
from fastsc.evaluation.report.pictures import picture, title_of
from fastsc.evaluation.report.tables import words_of
from fastsc.evaluation.report.words import PERCENT, Figure, listed, number
from fastsc.evaluation.results.measures import Name
from fastsc.plotting.inline import INK, MUTED, draw, series

FAINT, FULL = 0.04, 0.5  # opacity of a cell with no right answers, and with nothing else
CELL = 0.26  # inches a row
MOVED = ("noise", "blur", "weather", "digital", "colour")


def case_words(*case: str) -> str:
    """What a kind or a group is called, with its severity: "glass blur", "fog, severity 3"."""
    return words_of("shifts", Name("accuracy", *case))


def _kinds(answer: Shifts) -> list[str]:
    return [kind for kinds in answer.groups.values() for kind in kinds]


def _corrupted(answer: Shifts) -> list[str]:
    return [kind for group in CORRUPTIONS for kind in answer.groups.get(group, ())]


def _worst(asked: Asked) -> str:
    """The case with the fewest right answers, and the kind over its severities."""
    right = {
        m.figure: asked.answer[m.name]
        for m in asked.answer.measures
        if m.figure.family == "accuracy"
    }
    kinds = [kind for kind in _kinds(asked.its(Shifts)) if Name("accuracy", kind) in right]
    if not kinds:
        return ""
    kind = min(kinds, key=lambda kind: right[Name("accuracy", kind)].value)
    over = "" if kind in WITHOUT_DEGREES else " over its severities"
    figure = Figure(right[Name("accuracy", kind)], PERCENT)
    text = f"{case_words(kind)}{over}: {figure.brief}"
    cases = [name for name in right if name.kind == kind and name.level]
    if len(cases) > 1:
        case = min(cases, key=lambda name: right[name].value)
        text += f", and {Figure(right[case], PERCENT).value} at severity {case.level}"
    return text


def _pictures(question: Question, asked: Asked) -> Iterator[Card]:
    """One image under every kind, one card per group, as the first model sees it."""
    answer = asked.its(Shifts)
    if not answer.predictions:
        return
    clean, title = asked.model.picture(answer.image, None), title_of(question, answer.image)
    for group, kinds in answer.groups.items():
        shots = [picture(clean, title, "unchanged")]
        for prediction in (
            prediction for prediction in answer.predictions if prediction.kind in kinds
        ):
            pixels = shift(
                clean, prediction.kind, prediction.severity, index=answer.image, seed=answer.seed
            )
            shots.append(picture(pixels, title, case_words(prediction.kind)))
        lines = tuple(
            _wrong(question.called(one), other, answer.image, kinds)
            for one, other in question.of(Shifts)
        )
        yield Card(tuple(shots), case_words(group).capitalize(), lines)


def _wrong(name: str, answer: Shifts, image: int, kinds: Sequence[str]) -> str:
    """ "plain: wrong under snow (wolf) and fog (sheep)"."""
    predictions = [prediction for prediction in answer.predictions if prediction.kind in kinds]
    if answer.image != image or not predictions:
        return f"{name}not asked about this picture"
    wrong = [f"{case_words(one.kind)} ({one.predicted})" for one in predictions if not one.right]
    text = f"wrong under {listed(wrong)}" if wrong else "right under all of them"
    return name + text if name else text[0].upper() + text[1:]


def _grids(question: Question) -> Iterator[Chart]:
    for asked, answer in question.of(Shifts):
        yield Chart(
            _grid(asked, answer),
            "Right answers in %; the fuller the color, the more.",
            "" if question.alone else asked.model.name,
        )


def _grid(asked: Asked, answer: Shifts) -> Any:
    """One row per kind, one column per severity, in each cell the share of right answers in %."""
    kinds, levels = _kinds(answer), sorted(answer.severities)

    def paint(axis: Any) -> None:
        from matplotlib.patches import Rectangle

        for y, kind in enumerate(kinds):
            for x, level in enumerate(levels):
                right = answer.estimates.get(str(Name("accuracy", *case_of(kind, level))))
                columns = len(levels) if kind in WITHOUT_DEGREES else 1
                if right is None or not math.isfinite(right.value) or (columns > 1 and x):
                    continue
                axis.add_patch(
                    Rectangle(
                        (x - 0.47, y - 0.45), columns - 0.06, 0.9, facecolor=series(asked.slot),
                        edgecolor="none", alpha=FAINT + (FULL - FAINT) * right.value,
                    )
                )  # fmt: skip
                axis.text(
                    x + (columns - 1) / 2, y, number(100 * right.value, 0),
                    ha="center", va="center", color=INK,
                )  # fmt: skip
        for group in list(answer.groups.values())[1:]:
            axis.axhline(kinds.index(group[0]) - 0.5, color=MUTED, linewidth=0.8)
        axis.set_xticks(range(len(levels)), [str(level) for level in levels])
        axis.set_yticks(range(len(kinds)), [case_words(kind) for kind in kinds])
        axis.set_xlim(-0.55, len(levels) - 0.45)
        axis.set_ylim(len(kinds) - 0.5, -0.5)
        axis.grid(visible=False)
        axis.tick_params(length=0)
        axis.set_xlabel("severity")

    finding = f"{asked.model.name}: right answers by kind and severity. Worst: {_worst(asked)}"
    return draw(paint, finding, height=0.6 + CELL * len(kinds))


CODE = Code(
    words={
        "MOVED": {f"ds_relative/{group}": case_words(group) for group in MOVED},
        "corrupted": _corrupted,
        "worst_case": _worst,
    },
    charts={"grids": _grids},
    cards={"kinds": _pictures},
)
