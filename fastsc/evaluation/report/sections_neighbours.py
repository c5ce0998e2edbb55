"""The page on neighbours: whether a perturbed self lies further away than other images do."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from fastsc.evaluation.report.charts import Axes, Dots, Sample, dots, legend, shares
from fastsc.evaluation.report.parts import Asked, Chart, Charts, Question, Said, Section
from fastsc.evaluation.report.pictures import gallery
from fastsc.evaluation.report.tables import tables, verdicts
from fastsc.evaluation.report.words import PERCENT, SPACE, interval_of, value_of
from fastsc.evaluation.results.answers import Answer

OTHERS = {"random": "a random image", "nearest": "the nearest image"}


def section(question: Question) -> Section:
    """Whether an image's perturbed self lies nearer to it than other images of its class do."""
    return Section(
        "neighbours",
        "Neighbours",
        "Is a picture in other colours nearer to itself than other pictures of its class are?",
        tuple(
            Said(one.model.name, one.slot, tuple(_farther(one.answer))) for one in question.asked
        ),
        f"0{SPACE}% would be a representation that knows its image again; 50{SPACE}%, against the "
        "random image, one to which a change of colours is as much as a change of image.",
        verdicts(
            question,
            {
                "farther_than_random": "Perturbed selves beyond a random image",
                "farther_than_nearest": "Perturbed selves beyond the nearest image",
            },
        ),
        tuple(
            found
            for asked in question.asked
            if (
                found := gallery(
                    question,
                    asked,
                    "Furthest from themselves",
                    "An image, its perturbed self, and two other images of its class: a random one "
                    "and the nearest.",
                    ("a random one", "the nearest"),
                )
            )
        ),
        tuple(_neighbour_charts(question)),
        tables(question),
    )


def _farther(answer: Answer) -> Iterator[str]:
    found = answer.estimates
    if "farther_than_random" in found:
        first = found["farther_than_random"]
        said = (
            f"{value_of(first, PERCENT)} of images lie further from their perturbed self than from "
            f"a random image of their class ({interval_of(first, PERCENT)}, "
            f"n{SPACE}={SPACE}{first.n})"
        )
        if "farther_than_nearest" in found:
            second = found["farther_than_nearest"]
            said += (
                f", and {value_of(second, PERCENT)} than from the nearest one "
                f"({interval_of(second, PERCENT)})"
            )
        yield said + "."


def _neighbour_charts(question: Question) -> Iterator[Charts]:
    names = [f"farther_than_{other}" for other in OTHERS]
    rows = [
        Dots(asked.slot, [asked.answer.estimates.get(name) for name in names])
        for asked in question.asked
    ]
    said = "; ".join(
        f"{asked.model.name}: {value_of(asked.answer[name], PERCENT)} beyond {other}"
        for asked in question.asked
        for name, other in zip(names, OTHERS.values(), strict=True)
        if name in asked.answer.estimates
    )
    svg = dots(
        list(OTHERS.values()),
        rows,
        Axes("images further from their perturbed self"),
        said,
        limits=(0, 1),
        x_scale=100,
        x_suffix=" %",
    )
    drawn = [
        Chart(svg, "Share of images whose perturbed self lies further away.", "Further away than …")
    ]
    for other, called in OTHERS.items():
        samples = [
            Sample(asked.slot, ratio)
            for asked in question.asked
            if (ratio := _ratio(asked, other)) is not None
        ]
        if samples:
            finding = f"Distance to the perturbed self over that to {called}"
            drawn.append(
                Chart(
                    shares(
                        samples,
                        Axes("ratio of distances", "images up to the ratio", 100, " %"),
                        f"{finding}: {said}",
                        log=True,
                        line=1.0,
                    ),
                    f"{finding} of the class. Right of the dotted line that image is nearer.",
                    f"Beside {called}",
                )
            )
    yield Charts(
        "How often another image is nearer",
        "Dots with 95 % intervals; then the whole distribution over images.",
        tuple(drawn),
        legend(question),
    )


def _ratio(asked: Asked, other: str) -> NDArray[np.float64] | None:
    table = asked.answer.tables.get("triples")
    if table is None or not {"moved", other} <= set(table.columns):
        return None
    moved, apart = (np.asarray(table.columns[name], float) for name in ("moved", other))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio: NDArray[np.float64] = moved / apart
    return ratio
