"""What every measure means, how intervals are made, and what was run: the end of the page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fastsc.evaluation import OPTIONAL, QUESTIONS
from fastsc.evaluation.report.templates import declared
from fastsc.evaluation.report.words import number
from fastsc.evaluation.results.evaluated import Evaluation


@dataclass(frozen=True)
class Definition:
    """A measure in words, and as a formula."""

    name: str
    words: str
    formula: str


def definitions(evaluation: Evaluation) -> tuple[Definition, ...]:
    """Of every kind of measure on the page, in the order of their first appearance."""
    answered = {question for model in evaluation.models for question in model.answers}
    known = [question for question in QUESTIONS if question not in OPTIONAL or question in answered]
    meanings = {question: declared(question).get("measures", {}) for question in known}
    definitions: dict[str, Definition] = {}
    for model in evaluation.models:
        for question, answer in model.answers.items():
            for measure in answer.measures:
                name = measure.figure.family
                # Questions may call what they measure alike: each has its own accuracy.
                shared = sum(name in known for known in meanings.values()) > 1
                title = f"{name} ({question})" if shared else name
                columns = " over the mean of ".join(measure.columns)
                unknown = (
                    f"Of the images in the table “{measure.table}”.",
                    f"{measure.statistic} of {columns}",
                )
                meaning = meanings.get(question, {}).get(name, unknown)
                definitions.setdefault(title, Definition(title, *meaning))
    return tuple(definitions.values())


def flattened(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """JSON values as lines: ("versions: torch", "2.11")."""
    for key, value in values.items():
        name = f"{prefix}: {key}" if prefix else str(key)
        if isinstance(value, Mapping):
            yield from flattened(value, name)
        elif value is not None:
            yield name.replace("_", " "), _text(value)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return number(value, 0)
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_text(item) for item in value) or "none"
    return json.dumps(value, default=str)
