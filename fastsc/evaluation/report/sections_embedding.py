"""The page on the embedding of one class: whether the views of an image stay together in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsc.evaluation.report.charts import scatter
from fastsc.evaluation.report.parts import (
    Asked,
    Card,
    Chart,
    Charts,
    Gallery,
    Key,
    Question,
    Said,
    Section,
)
from fastsc.evaluation.report.pictures import gallery, shot, title_of
from fastsc.evaluation.report.tables import tables, verdicts
from fastsc.evaluation.report.words import (
    PLAIN,
    SPACE,
    factors_text,
    interval_of,
    number,
    spoken,
    value_of,
)
from fastsc.plotting.inline import dot, star

SHOWN_VIEWS = 5


def section(question: Question) -> Section:
    """One class on a plane, the views of one of its images marked."""
    keys = (
        Key(dot("var(--muted)", 3), "images of the class"),
        Key(dot("var(--c0)", 4.5), "views of one image in other colours (in the model’s colour)"),
        Key(star(), "that image, unchanged"),
    )
    drawn = tuple(chart for asked in question.asked for chart in _planes(question, asked))
    charts = Charts(
        "One class on a plane",
        "Each dot is an image in the representation, laid out by three methods. The axes have no "
        "unit; near dots are alike to the model. Views that scatter over the class mean that a "
        "change of colours is as much to the model as a change of image.",
        drawn,
        keys,
    )
    return Section(
        "embedding",
        "Embedding",
        "Do the views of one picture stay together among the pictures of its class?",
        tuple(Said(one.model.name, one.slot, tuple(_spread(one.answer))) for one in question.asked),
        "0 would be views that stay where the image is, 1 views that scatter over the class.",
        verdicts(question, {"spread": "Spread of an image’s views"}),
        tuple(_galleries(question)),
        (charts,) if drawn else (),
        tables(question),
    )


def _spread(answer: Any) -> Iterator[str]:
    if "spread" not in answer.estimates:
        return
    found, name = answer["spread"], getattr(answer, "class_name", "")
    among = f"class {name}" if name else "a class"
    yield (
        f"In {among} an image’s views in other colours lie {value_of(found, PLAIN)} times as far "
        f"from it as the class’s other images do ({interval_of(found, PLAIN)}, "
        f"n{SPACE}={SPACE}{found.n})."
    )


def _planes(question: Question, asked: Asked) -> Iterator[Chart]:
    answer: Any = asked.answer
    points: dict[str, NDArray[np.float64]] = getattr(answer, "points", {})
    index = np.asarray(getattr(answer, "index", ()))
    at = np.flatnonzero(index == getattr(answer, "image", -1))
    spread = answer.estimates.get("spread")
    said = f"; spread {spoken(spread, PLAIN)}" if spread else ""
    for method, places in points.items():
        images, views = places[: len(index)], places[len(index) :]
        name = "" if question.alone else f"{asked.model.name}: "
        share = ""
        if method == "PCA" and np.isfinite(getattr(answer, "explained", np.nan)):
            share = f", {number(100 * answer.explained, 0)}{SPACE}% of the variance"
        finding = (
            f"{name}{method} of {len(images)} images of {getattr(answer, 'class_name', 'a class')} "
            f"with {len(views)} views of one of them{said}"
        )
        image = images[at[0]] if len(at) else None
        yield Chart(scatter(images, image, views, asked.slot, finding), f"{name}{method}{share}")


def _galleries(question: Question) -> Iterator[Gallery]:
    """The marked image and some views; then, for each model, the view that moves it furthest."""
    shown = _views(question, question.asked[0])
    if shown:
        yield shown
    for asked in question.asked:
        furthest = gallery(
            question,
            asked,
            "The view that lies furthest from it",
            "With the image of the class that lies nearest to it unchanged.",
            ("the nearest image",),
        )
        if furthest:
            yield furthest


def _views(question: Question, asked: Asked) -> Gallery | None:
    """The marked image with some of its views."""
    answer: Any = asked.answer
    image = getattr(answer, "image", None)
    if image is None:
        return None
    factors = [
        (float(b), float(c), float(s), float(h)) for b, c, s, h in answer.view_factors[:SHOWN_VIEWS]
    ]
    shots = [shot(question, asked, int(image), None, "unchanged")]
    shots += [shot(question, asked, int(image), row, factors_text(row)) for row in factors]
    return Gallery(
        "The image whose views are marked",
        f"With the first {len(factors)} of its {len(answer.view_factors)} views.",
        (Card(tuple(shots), title_of(question, int(image)), ()),),
    )
