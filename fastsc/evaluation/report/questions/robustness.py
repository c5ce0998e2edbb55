"""The charts of robustness over the size of a change, and the pictures of what was changed."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from fastsc.evaluation.questions.robustness.attacks import Norm, radius
from fastsc.evaluation.questions.robustness.question import Robustness, levels_of
from fastsc.evaluation.report.charts import Axes, curve_of, lines
from fastsc.evaluation.report.parts import Asked, Card, Chart, Code, Question
from fastsc.evaluation.report.pictures import most_cards, picture, title_of
from fastsc.evaluation.report.templates import declared
from fastsc.evaluation.report.words import PERCENT

TOLD: dict[Norm, float] = {"linf": 1.0, "l2": 0.25}  # levels that captions name
AXES: dict[Norm, str] = {"linf": "largest change, of 255", "l2": "RMS of the change, of 255"}


def _adversaries(question: Question, asked: Asked) -> Iterator[Card]:
    for one in asked.its(Robustness).adversaries[: most_cards(question)]:
        pixels = asked.model.picture(one.index, None)
        times = 127 / max(one.level, 1e-9)
        views = {
            "unchanged": pixels,
            f"changed by {one.level:g}/255": pixels + 255 * one.change,
            f"the difference, ×{times:.3g}": 127.5 + 255 * times * one.change,
        }
        name = title_of(question, one.index)
        shots = [
            picture(np.clip(np.round(view), 0, 255).astype(np.uint8), name, caption)
            for caption, view in views.items()
        ]
        yield Card(tuple(shots), name, one.lines)


def _charts(norm: Norm, question: Question) -> Iterator[Chart]:
    """The worst case, where there are several attacks, and each attack."""
    attacks = [
        attack
        for _, answer in question.of(Robustness)
        for attack in answer.attacks
        if attack.norm == norm
    ]
    names = list(dict.fromkeys(attack.name for attack in attacks))
    levels = levels_of(attacks, norm)
    for name in ("worst", *names) if len(names) > 1 else names:
        curves, measured = [], {}
        for asked in question.asked:
            at = {0.0: asked.figure("accuracy/clean")}
            at |= {x: asked.figure(f"accuracy/{name}/{norm}/{x:g}") for x in levels}
            # Places of the norm's levels are the same in all of its charts.
            points = [(x, figure.estimate) for x, figure in enumerate(at.values()) if figure]
            curves.append(curve_of(asked.slot, points))
            measured[asked] = {level: figure for level, figure in at.items() if level and figure}
        every = sorted({level for own in measured.values() for level in own})
        told = TOLD[norm] if TOLD[norm] in every else every[0]
        listing = [
            question.called(one) + own[told].value for one, own in measured.items() if told in own
        ]
        finding = f"At {told:g}{'/255' if norm == 'linf' else '/255 RMS'}: {', '.join(listing)}"
        title = declared("robustness")["names"][name]
        svg = lines(
            curves,
            Axes(AXES[norm], "still right", PERCENT),
            f"{title}, {AXES[norm]}. {finding}",
            ticks=[(float(x), f"{level:g}") for x, level in enumerate((0, *levels))],
        )
        yield Chart(svg, finding, title)


CODE = Code(
    words={"radius": radius},
    charts={"linf": partial(_charts, "linf"), "l2": partial(_charts, "l2")},
    cards={"adversaries": _adversaries},
)
