"""Around the questions: what they cost here, the sliders, and one model against another."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from fastsc.evaluation.registry import Subject
from fastsc.evaluation.results.answers import Answer, PartCache
from fastsc.evaluation.results.evaluated import Comparison, Evaluated
from fastsc.evaluation.results.statistics import compare
from fastsc.evaluation.sliders import Grid, grids
from fastsc.evaluation.views import Indices, Viewer, choose


def grids_of(
    subject: Subject, index: Indices, answer: Answer, cache: PartCache
) -> tuple[Grid, ...]:
    """The answers for the sliders of some images; `answer` is that of continuity."""
    return grids(
        subject.model,
        subject.loader,
        index,
        positions=subject.sizes.positions,
        between=float(answer.tables["pairs"].columns["between"].mean()),
        cache=cache,
    )


def rate(subject: Subject) -> float:
    """Images a second that go through the model, measured on one batch."""
    viewer, size = Viewer(subject.model, subject.loader), subject.loader.settings.batch_size
    (images,) = viewer.images(choose(subject.loader, size, subject.seed), "")
    viewer.respond(images.pixels)  # the first pass compiles and allocates
    began = time.perf_counter()
    viewer.respond(images.pixels)
    return len(images.pixels) / max(time.perf_counter() - began, 1e-9)


def slider_images(first: Subject, continuity: Answer) -> Indices:
    """Images for the sliders: the least continuous one of the first model, and a keyed choice."""
    n = first.sizes.sliders
    worst = [example.index for example in continuity.examples[:1]]  # none where nothing moves
    others = [i for i in choose(first.loader, n, first.seed).tolist() if i not in worst]
    return np.array([*worst, *others][:n])


def comparisons(models: Sequence[Evaluated], seed: int) -> tuple[Comparison, ...]:
    """Every figure of each later model against the first's, over the images of both."""
    first, *later = models
    return tuple(
        comparison
        for model in later
        for question, answer in model.answers.items()
        if question in first.answers
        for comparison in _compared(model.name, first.name, answer, first.answers[question], seed)
    )


def _compared(
    name: str, against: str, answer: Answer, reference: Answer, seed: int
) -> Iterable[Comparison]:
    theirs = {measure.name: measure for measure in reference.measures}
    for measure in answer.measures:
        if theirs.get(measure.name) != measure:
            continue  # a stage that the other network does not have
        tables: list[Mapping[int, int]] = []
        for one in (answer, reference):
            index = one.tables[measure.table].index.tolist()
            tables.append({image: row for row, image in enumerate(index)})
        shared = sorted(tables[0].keys() & tables[1].keys())
        if len(shared) < 2:
            continue
        a, b = (
            one.values(measure)[:, [rows[image] for image in shared]]
            for one, rows in zip((answer, reference), tables, strict=True)
        )
        yield Comparison(
            name,
            against,
            answer.question,
            measure.name,
            compare(a, b, measure.statistic, seed=seed),
        )
