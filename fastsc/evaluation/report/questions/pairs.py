"""The pairs that are the furthest apart, and what brightness would move as far."""

from __future__ import annotations

import math
from collections.abc import Iterator

from fastsc.evaluation.questions.pairs import LEVELS, PairsAnswer
from fastsc.evaluation.report.parts import Asked, Card, Code, Question
from fastsc.evaluation.report.pictures import most_cards, picture
from fastsc.evaluation.report.words import change_text


def _as_brightness(asked: Asked) -> str:
    """ "as much as +22 % brightness (+18 % to +27 %)", or what can be said instead."""
    estimate = asked.its(PairsAnswer).as_brightness
    most = change_text("brightness", LEVELS[-1])
    if math.isnan(estimate.value):
        return ""
    if math.isinf(estimate.value):
        return f"more than {most} brightness does"
    low, high = (
        change_text("brightness", end) if math.isfinite(end) else f"beyond {most}"
        for end in (estimate.low, estimate.high)
    )
    value = change_text("brightness", estimate.value)
    return f"as much as {value} brightness does ({low} to {high})"


def _worst(question: Question, asked: Asked) -> Iterator[Card]:
    for example in asked.its(PairsAnswer).worst[: most_cards(question)]:
        shots = [
            picture(pixels, name, name)
            for pixels, name in zip(example.pictures, example.names, strict=True)
        ]
        yield Card(tuple(shots), " and ".join(example.names), example.lines)


CODE = Code(words={"as_brightness": _as_brightness}, cards={"worst": _worst})
