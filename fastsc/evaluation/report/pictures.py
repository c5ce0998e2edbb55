"""Images of the data, as cards on the page: the clean one next to the one in other colors."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastsc.evaluation.report.parts import Asked, Card, Question, Shot
from fastsc.evaluation.report.words import factors_text
from fastsc.evaluation.results.answers import Example

TINY = 64  # pixels of a side up to which an image is kept without loss
LARGEST = 320  # of a side on the page
CARDS = 6  # of one model
CARDS_EACH, WIDE_CARDS_EACH = (
    3,
    4,
)  # of several: a row of the page, or two with four images per card
Factors = tuple[float, float, float, float]


def data_uri(pixels: NDArray[np.uint8]) -> str:
    """(R, R, 3) uint8 -> a data URI: PNG of tiny images, JPEG of others, colors at full size."""
    image, file = Image.fromarray(np.ascontiguousarray(pixels)), io.BytesIO()
    kind = "png" if max(image.size) <= TINY else "jpeg"
    if kind == "png":
        image.save(file, kind, optimize=True)
    else:
        image.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
        image.save(file, kind, quality=86, subsampling=0)  # optimize=True fails on noisy pictures
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def picture(pixels: NDArray[np.uint8], name: str, caption: str) -> Shot:
    """(R, R, 3) uint8 with a caption; `name` says in words which image it is."""
    return Shot(data_uri(pixels), f"{name}: {caption}", caption, max(pixels.shape[:2]))


def shot(
    question: Question, asked: Asked, index: int, factors: Factors | None, caption: str
) -> Shot:
    """An image as a model sees it, unchanged or not; with its caption."""
    pixels = asked.model.picture(index, factors)
    change = "unchanged" if factors is None else factors_text(factors)
    alt = f"{title_of(question, index)}: {caption}" + ("" if change in caption else f", {change}")
    return Shot(data_uri(pixels), alt, caption, max(pixels.shape[:2]))


def title_of(question: Question, index: int) -> str:
    """An image's file and class."""
    name, folder = question.evaluation.image_name(index), question.evaluation.class_name(index)
    shown = name.removeprefix(f"{folder}/") if folder else name
    return f"{folder} · {shown}" if folder else shown


def most_cards(question: Question, *, wide: bool = False) -> int:
    """Cards of one model in a gallery."""
    return CARDS if question.alone else WIDE_CARDS_EACH if wide else CARDS_EACH


def example_cards(question: Question, asked: Asked, others: Sequence[str] = ()) -> Iterator[Card]:
    """A card for each example of a model's answer.

    Args:
        question: Whose examples.
        asked: The model.
        others: What `Example.others` are, in their order.
    """
    for example in asked.answer.examples[: most_cards(question, wide=bool(others))]:
        shots = [
            shot(question, asked, example.index, None, "unchanged"),
            shot(question, asked, example.index, example.factors, "in other colors"),
        ]
        for place, other in enumerate(example.others):
            caption = others[place] if place < len(others) else "for comparison"
            shots.append(shot(question, asked, other, None, caption))
        yield example_card(question, example, shots)


def example_card(question: Question, example: Example, shots: Sequence[Shot]) -> Card:
    """An example's pictures with the lines about it."""
    lines = (factors_text(example.factors), *example.lines)
    return Card(tuple(shots), title_of(question, example.index), lines)
