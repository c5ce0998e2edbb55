"""The charts of gradients: how their cosine and their norms are distributed over images."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fastsc.evaluation.questions.gradients import Gradients
from fastsc.evaluation.report.charts import Axes, Sample, shares
from fastsc.evaluation.report.parts import Chart, Code, Question
from fastsc.evaluation.report.words import PERCENT
from fastsc.evaluation.views import KINDS


def _distributions(question: Question) -> Iterator[Chart]:
    cosines, norms = [], []
    for asked, answer in question.of(Gradients):
        columns = answer.tables["gradients"].columns
        cosines.append(Sample(asked.slot, columns["cosine"]))
        norms.append(Sample(asked.slot, columns["norm_clean"]))
        norms.append(Sample(asked.slot, columns["norm_perturbed"], second=True))
    listing = "; ".join(
        f"{asked.model.name}: mean cosine {asked.figure('gradient_cosine')}"
        for asked in question.asked
    )
    svg = shares(
        cosines,
        Axes("cosine of the two gradients", "images up to the cosine", PERCENT),
        f"Cosine of the gradients at an image and at its perturbed view. {listing}",
        line=0.0,
        limits=(min(-0.1, *(float(np.nanmin(one.values)) for one in cosines)), 1.0),
    )
    yield Chart(svg, "Direction: 1 is the same, 0 unrelated.")
    svg = shares(
        norms,
        Axes("norm, nats per unit of ‖x‖₂", "images up to the norm", PERCENT),
        "Norms of the gradients at images and at their perturbed views",
        log=True,
    )
    yield Chart(svg, "Length, on a logarithmic axis.")


CODE = Code(
    words={"SLOPES": {f"lipschitz/{kind}": kind for kind in KINDS}},
    charts={"distributions": _distributions},
)
