"""Maps over their pictures, and what the page says of explanations besides its figures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastsc.evaluation.questions.explanations.question import Explanations
from fastsc.evaluation.report.parts import Asked, Card, Code, Question
from fastsc.evaluation.report.pictures import (
    example_card,
    most_cards,
    picture,
    shot,
    title_of,
)
from fastsc.evaluation.report.words import Figure

METHODS = {"IG": "integrated gradients", "Grad-CAM": "Grad-CAM", "LIME": "LIME"}
MAPS = {
    "IG": "Integrated gradients of",
    "Grad-CAM": "Grad-CAM maps of",
    "LIME": "LIME maps of",
}
FOR, AGAINST = (213, 94, 0), (0, 114, 178)  # Okabe and Ito's vermilion and blue
PALE = 0.5  # of the way to white goes the grey picture under a map


def _of_methods(pattern: str) -> dict[str, str]:
    """Figure -> method, of every method."""
    return {pattern.format(method): name for method, name in METHODS.items()}


def _with_ds(answer: Explanations) -> list[str]:
    """How agreement and movement go together, by method."""
    figures = {name: Figure(one) for name, one in answer.with_ds.items()}
    return [
        f"{one.value} for {METHODS[name]} ({one.within})"
        for name, one in figures.items()
        if one.known
    ]


def overlaid(pixels: NDArray[np.uint8], drawn: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """A map over its picture in pale grey: vermilion speaks for the class, blue against it.

    Args:
        pixels: (R, R, 3).
        drawn: (s, s) on [-1, 1]; 0 leaves the picture as it is, ±1 covers it.

    Returns:
        (R, R, 3).
    """
    height, width = pixels.shape[:2]
    resized = Image.fromarray(drawn.astype(np.float32)).resize(
        (width, height), Image.Resampling.BILINEAR
    )
    strength = np.asarray(resized)[..., None]
    grey = np.asarray(Image.fromarray(pixels).convert("L"), np.float64)
    pale = np.repeat((grey + PALE * (255 - grey))[..., None], 3, axis=2)
    color = np.where(strength > 0, np.array(FOR, float), np.array(AGAINST, float))
    shown = pale + np.abs(strength).clip(0, 1) * (color - pale)
    return np.rint(shown).astype(np.uint8)


def _maps(question: Question, asked: Asked) -> Iterator[Card]:
    """The examples, unchanged and in other colors, with every method's maps of both."""
    answer = asked.its(Explanations)
    for place, example in enumerate(answer.examples[: most_cards(question)]):
        views = (None, "unchanged"), (example.factors, "in other colors")
        shots = [
            shot(question, asked, example.index, factors, caption) for factors, caption in views
        ]
        for method, drawn in answer.maps.items():
            for view, (factors, caption) in enumerate(views):
                pixels = asked.model.picture(example.index, factors)
                shown = overlaid(pixels, drawn[place][view])
                caption = f"{METHODS[method]}, {caption}"
                shots.append(picture(shown, title_of(question, example.index), caption))
        yield example_card(question, example, shots)


CODE = Code(
    words={"MAPS": MAPS, "of_methods": _of_methods, "with_ds": _with_ds},
    cards={"maps": _maps},
)
