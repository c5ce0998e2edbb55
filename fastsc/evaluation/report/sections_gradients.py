"""The page on gradients: their length, their direction, and how fast the features move."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fastsc.evaluation.report.charts import Axes, Dots, Sample, dots, legend, shares
from fastsc.evaluation.report.parts import Chart, Charts, Key, Question, Section, said_by
from fastsc.evaluation.report.pictures import gallery
from fastsc.evaluation.report.tables import tables, verdicts
from fastsc.evaluation.report.words import PLAIN, SPACE, interval_of, listed, spoken, value_of
from fastsc.evaluation.results.answers import Answer
from fastsc.plotting.inline import dashes

KINDS = ("brightness", "contrast", "saturation", "hue")


def section(question: Question) -> Section:
    """The whole section."""
    return Section(
        "gradients",
        "Gradients",
        "Does the gradient at a picture still hold when the light changes?",
        said_by(question, _sentences, _slope_sentences),
        "A cosine of 1 is the same direction, 0 what unrelated gradients have.",
        verdicts(
            question,
            {
                "gradient_cosine": "Agreement of the gradients",
                "gradient_norm": "Length of the gradient",
            },
        ),
        tuple(
            found
            for asked in question.asked
            if (
                found := gallery(
                    question,
                    asked,
                    "Where the gradient turns most",
                    "The image and its perturbed view, whose gradients point in different "
                    "directions.",
                )
            )
        ),
        tuple(_charts(question, _kinds(question))),
        tables(question),
    )


def _sentences(answer: Answer) -> Iterator[str]:
    found = answer.estimates
    if "gradient_cosine" in found:
        said = (
            "The gradients at an image and at the same image in other colours have a cosine of "
            f"{spoken(found['gradient_cosine'], PLAIN)}"
        )
        if {"gradient_norm", "gradient_norm_perturbed"} <= set(found):
            first, second = found["gradient_norm"], found["gradient_norm_perturbed"]
            said += (
                f"; their mean length is {value_of(first, PLAIN)} ({interval_of(first, PLAIN)}) "
                f"and {value_of(second, PLAIN)} ({interval_of(second, PLAIN)})"
            )
        yield said + "."


def _slope_sentences(answer: Answer) -> Iterator[str]:
    found = answer.estimates
    slopes = [
        f"{value_of(found[name], PLAIN)} along {kind} ({interval_of(found[name], PLAIN)})"
        for kind in KINDS
        if (name := f"lipschitz/{kind}") in found
    ]
    if slopes:
        n = next(found[f"lipschitz/{kind}"].n for kind in KINDS if f"lipschitz/{kind}" in found)
        yield (
            f"Where it changes fastest, the representation moves by {listed(slopes)} distances "
            f"between images per unit of pixel change (RMS; n{SPACE}={SPACE}{n})."
        )


def _kinds(question: Question) -> list[str]:
    names = {measure.name for asked in question.asked for measure in asked.answer.measures}
    return [kind for kind in KINDS if f"lipschitz/{kind}" in names]


def _charts(question: Question, kinds: list[str]) -> Iterator[Charts]:
    keys = legend(question)
    cosines, norms = [], []
    for asked in question.asked:
        table = asked.answer.tables.get("gradients")
        if table is None:
            continue
        columns = {name: np.asarray(column, float) for name, column in table.columns.items()}
        if "cosine" in columns:
            cosines.append(Sample(asked.slot, columns["cosine"]))
        if "norm_clean" in columns:
            norms.append(Sample(asked.slot, columns["norm_clean"]))
        if "norm_perturbed" in columns:
            norms.append(Sample(asked.slot, columns["norm_perturbed"], second=True))
    drawn = []
    said = "; ".join(
        f"{asked.model.name}: mean cosine {spoken(asked.answer['gradient_cosine'], PLAIN)}"
        for asked in question.asked
        if "gradient_cosine" in asked.answer.estimates
    )
    if cosines:
        svg = shares(
            cosines,
            Axes("cosine of the two gradients", "images up to the cosine", 100, " %"),
            f"Cosine of the gradients at an image and at its perturbed view. {said}",
            line=0.0,
            limits=(min(-0.1, *(float(np.nanmin(one.values)) for one in cosines)), 1.0),
        )
        drawn.append(Chart(svg, "Direction: 1 is the same, 0 unrelated."))
    if norms:
        svg = shares(
            norms,
            Axes("norm, nats per unit of ‖x‖₂", "images up to the norm", 100, " %"),
            "Norms of the gradients at images and at their perturbed views",
            log=True,
        )
        drawn.append(Chart(svg, "Length, on a logarithmic axis."))
    if drawn:
        views = (Key(dashes(), "at the perturbed view (length)"),)
        yield Charts(
            "The gradient at an image and at its perturbed view",
            "Share of images at or under a value: a curve further right has larger values.",
            tuple(drawn),
            keys + views,
        )
    if kinds:
        rows = [
            Dots(
                asked.slot,
                [asked.answer.estimates.get(f"lipschitz/{kind}") for kind in kinds],
            )
            for asked in question.asked
        ]
        said = "; ".join(
            f"{asked.model.name}: {value_of(asked.answer[f'lipschitz/{kind}'], PLAIN)} along {kind}"
            for asked in question.asked
            for kind in kinds
            if f"lipschitz/{kind}" in asked.answer.estimates
        )
        svg = dots(kinds, rows, Axes("image distances per unit of RMS"), f"Largest slopes. {said}")
        yield Charts(
            "How fast the representation moves",
            "The largest slope along each kind, mean over images with 95 % intervals: distances "
            "between images that the representation moves, per unit of RMS pixel change.",
            (Chart(svg, "Local Lipschitz figure by kind."),),
            keys,
        )
