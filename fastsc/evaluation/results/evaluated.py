"""All results of an evaluation, as `results.json` and the page take it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsc.evaluation.results.answers import Answer
from fastsc.evaluation.results.statistics import Difference

Picture = Callable[[int, tuple[float, float, float, float] | None], NDArray[np.uint8]]
"""picture(dataset index, factors or None for the unchanged image) -> (R, R, 3) uint8 RGB."""


@dataclass(frozen=True, eq=False)
class Evaluated:
    """One model's answers.

    Attributes:
        name: Unique among the models of an evaluation.
        answers: By question, in the order in which they are shown.
        left_out: Question -> why this model or data cannot be asked, one line.
        picture: An image as this model sees it.
        facts: What a reader wants to know of it: architecture, resolution, preprocessing, hash.
        grids: For the sliders; see `fastsc.evaluation.sliders`.
    """

    name: str
    answers: Mapping[str, Answer]
    left_out: Mapping[str, str]
    picture: Picture
    facts: Mapping[str, str]
    grids: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """A figure of `model` less that of `against`, over the images of both."""

    model: str
    against: str
    question: str
    name: str
    difference: Difference


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Several models' answers over the same images.

    Attributes:
        models: At least one.
        comparisons: Each later model against the first.
        metadata: Versions, hardware, command, data, seed, budget: JSON values.
        image_name: A dataset index's file, relative to the data.
        class_name: A dataset index's class folder; empty where images have no labels.
    """

    models: tuple[Evaluated, ...]
    comparisons: tuple[Comparison, ...]
    metadata: Mapping[str, Any]
    image_name: Callable[[int], str]
    class_name: Callable[[int], str]
