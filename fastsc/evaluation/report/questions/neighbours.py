"""The charts of neighbours: how far the perturbed self lies, over how far another image does."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fastsc.evaluation.questions.neighbours import Neighbours
from fastsc.evaluation.report.charts import Axes, Sample, shares
from fastsc.evaluation.report.parts import Chart, Code, Question
from fastsc.evaluation.report.words import PERCENT

OTHERS = {"random": "a random image", "nearest": "the nearest image"}


def _ratios(question: Question) -> Iterator[Chart]:
    for other, called in OTHERS.items():
        samples = []
        for asked, answer in question.of(Neighbours):
            columns = answer.tables["triples"].columns
            with np.errstate(divide="ignore", invalid="ignore"):
                samples.append(Sample(asked.slot, columns["moved"] / columns[other]))
        finding = f"Distance to the perturbed self over that to {called}"
        svg = shares(
            samples, Axes("ratio of distances", "images up to the ratio", PERCENT), finding,
            log=True, line=1.0,
        )  # fmt: skip
        caption = f"{finding} of the class. Right of the dotted line that image is nearer."
        yield Chart(svg, caption, f"Compared with {called}")


CODE = Code(charts={"ratios": _ratios})
