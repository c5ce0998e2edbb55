"""The planes of the embedding, and the views of the image that is marked in them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fastsc.evaluation.questions.embedding import Embedding
from fastsc.evaluation.report.charts import scatter
from fastsc.evaluation.report.parts import Asked, Card, Chart, Code, Question
from fastsc.evaluation.report.pictures import shot, title_of
from fastsc.evaluation.report.words import SPACE, factors_text, number

SHOWN_VIEWS = 5


def _planes(question: Question) -> Iterator[Chart]:
    for asked, answer in question.of(Embedding):
        n, marked = len(answer.index), np.searchsorted(answer.index, answer.image)
        for method, places in answer.points.items():
            title = f"{question.called(asked)}{method}"
            finding = (
                f"{title} of {n} images of {answer.class_name} with {len(places) - n} views of one "
                f"of them; spread {asked.figure('spread')}"
            )
            svg = scatter(places[:n], places[marked], places[n:], asked.slot, finding)
            if method == "PCA" and np.isfinite(answer.explained):
                title += f", {number(100 * answer.explained, 0)}{SPACE}% of the variance"
            yield Chart(svg, title)


def _marked(question: Question, asked: Asked) -> Iterator[Card]:
    """The marked image with some of its views."""
    answer = asked.its(Embedding)
    shots = [shot(question, asked, answer.image, None, "unchanged")]
    shots += [
        shot(question, asked, answer.image, tuple(row), factors_text(row))
        for row in answer.view_factors[:SHOWN_VIEWS].tolist()
    ]
    yield Card(tuple(shots), title_of(question, answer.image), ())


CODE = Code(
    words={"SHOWN_VIEWS": SHOWN_VIEWS}, charts={"planes": _planes}, cards={"marked": _marked}
)
