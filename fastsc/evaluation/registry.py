"""Which questions there are, how many images each gets, and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastsc.errors import UserError
from fastsc.evaluation import QUESTIONS
from fastsc.evaluation.models.classifier import Classifier
from fastsc.evaluation.questions.bias.question import bias
from fastsc.evaluation.questions.continuity.flip_radius import HALVINGS, STEPS
from fastsc.evaluation.questions.continuity.question import LEVELS, continuity
from fastsc.evaluation.questions.embedding import embedding
from fastsc.evaluation.questions.explanations.question import explanations
from fastsc.evaluation.questions.gradients import gradients
from fastsc.evaluation.questions.neighbours import neighbours
from fastsc.evaluation.questions.robustness.question import robustness
from fastsc.evaluation.questions.shifts.question import shifts
from fastsc.evaluation.questions.transfer.question import transfer
from fastsc.evaluation.results.answers import Answer, Arrays, Keep
from fastsc.evaluation.sliders import FULL, QUICK, Positions
from fastsc.pipelines import Pipeline

Budget = Literal["quick", "full"]
BACKWARD = 3  # a gradient costs as much as so many forward passes


@dataclass(frozen=True)
class Sizes:
    """Images that each question looks at; a small image costs less, and gets more of them.

    Attributes:
        curves: Of continuity over strength, and of the flip radius.
        profile: Of the layer profile.
        neighbours, searched: That look for a neighbour; and among which it is searched.
        gradients, robustness, transfer, bias: As they say; the worst colours are searched for
            longer if `thorough`.
        shifts: At each of `severities`.
        explained, limed: By integrated gradients, in `steps`, and Grad-CAM; and by LIME.
        sliders: With four sliders; `positions` are those of each.
    """

    curves: int
    profile: int
    neighbours: int
    searched: int
    gradients: int
    robustness: int
    thorough: bool
    shifts: int
    severities: tuple[int, ...]
    explained: int
    limed: int
    steps: int
    transfer: int
    bias: int
    sliders: int
    positions: Positions

    @classmethod
    def of(cls, budget: Budget, resolution: int, images: int | None = None) -> Sizes:
        """Of a budget; `images` in place of what it would give each question."""
        full = budget == "full"
        area = (224 / resolution) ** 2

        def n(at_224: int, most: int) -> int:
            scale = 10 if full else 1
            return images or max(1, min(round(at_224 * area), most)) * scale

        return cls(
            curves=n(96, 500),
            profile=n(256, 1000),
            neighbours=n(96, 500),
            searched=10 * n(96, 1000),
            gradients=n(64, 500),
            robustness=n(24, 200),
            thorough=full,
            shifts=n(48, 300),
            severities=(1, 2, 3, 4, 5) if full else (1, 3, 5),
            explained=n(24, 200),
            limed=n(8, 50),
            steps=50 if full else 32,
            transfer=n(400, 2000),
            bias=n(200, 2000),
            sliders=6 if full else 3,
            positions=FULL if full else QUICK,
        )


@dataclass(frozen=True, eq=False)
class Subject:
    """A model, the loader that shows it images as it wants them, and what is right there.

    Attributes:
        labels: (len(index),) the right output of each dataset index, or -1.
        class_name: Of the embedding; None: the class with most images.
        transfer: Loaders of another data set's training and test part, if there is one.
        fine_tune: Whether to fine-tune on it.
        colours: Loaders of Color MNIST's folders of test digits, where the data is that.
    """

    model: Classifier
    loader: Pipeline
    labels: NDArray[np.int64]
    seed: int
    sizes: Sizes
    class_name: str | None = None
    transfer: tuple[Pipeline, Pipeline] | None = None
    fine_tune: bool = False
    colours: Mapping[str, Pipeline] | None = None

    @property
    def loaders(self) -> tuple[Pipeline, ...]:
        """All of them."""
        return (self.loader, *(self.transfer or ()), *(self.colours or {}).values())

    def seen_by(self, question: str) -> tuple[Pipeline, ...]:
        """The loaders whose images a question looks at."""
        if question == "transfer":
            return self.transfer or ()
        return (
            (self.loader, *(self.colours or {}).values()) if question == "bias" else (self.loader,)
        )

    def ask(self, question: str, keep: Keep) -> Answer:
        """One question's answer.

        Raises:
            UserError: The data cannot answer it; the message says why.
        """
        return _QUESTIONS[question].ask(self, keep)

    def cannot(self, question: str) -> str | None:
        """Why the data cannot answer a question; None where it can. Nothing is computed."""
        try:
            self.ask(question, _reached)
        except _ReachedError:
            return None
        except UserError as error:
            return str(error).removeprefix(f"{question}: ")
        raise AssertionError(f"{question} computes nothing")


def passes(questions: Iterable[str], sizes: Sizes, n_images: int) -> dict[str, int]:
    """Question -> about so many images go through a model; a gradient counts as BACKWARD.

    The sliders, which come with continuity, are the last.
    """
    n = {name: value for name, value in asdict(sizes).items() if isinstance(value, int)}
    n = {name: min(value, n_images) for name, value in n.items()} | {
        "all": n_images,
        "steps": sizes.steps,
        "severities": len(sizes.severities),
        "grid": int(np.prod([len(values) for values in sizes.positions])),
    }
    found = {question: _QUESTIONS[question].passes(n) for question in questions}
    return found | ({"sliders": n["sliders"] * n["grid"]} if "continuity" in found else {})


# --- one by one ----------------------------------------------------------------------------------


class _Question(NamedTuple):
    ask: Callable[[Subject, Keep], Answer]
    passes: Callable[[dict[str, int]], int]  # of sizes and "all" images


def _continuity(s: Subject, keep: Keep) -> Answer:
    n = s.sizes
    return continuity(
        s.model, s.loader, labels=s.labels, n=n.curves, n_profile=n.profile, seed=s.seed, keep=keep
    )


def _neighbours(s: Subject, keep: Keep) -> Answer:
    n = s.sizes
    return neighbours(s.model, s.loader, n=n.neighbours, most=n.searched, seed=s.seed, keep=keep)


def _embedding(s: Subject, keep: Keep) -> Answer:
    return embedding(s.model, s.loader, class_name=s.class_name, seed=s.seed, keep=keep)


def _gradients(s: Subject, keep: Keep) -> Answer:
    return gradients(
        s.model, s.loader, labels=s.labels, n=s.sizes.gradients, seed=s.seed, keep=keep
    )


def _robustness(s: Subject, keep: Keep) -> Answer:
    n = s.sizes
    return robustness(
        s.model,
        s.loader,
        labels=s.labels,
        n=n.robustness,
        thorough=n.thorough,
        seed=s.seed,
        keep=keep,
    )


def _shifts(s: Subject, keep: Keep) -> Answer:
    n = s.sizes
    return shifts(
        s.model,
        s.loader,
        labels=s.labels,
        n=n.shifts,
        severities=n.severities,
        seed=s.seed,
        keep=keep,
    )


def _explanations(s: Subject, keep: Keep) -> Answer:
    n = s.sizes
    return explanations(
        s.model, s.loader, n=n.explained, n_lime=n.limed, steps=n.steps, seed=s.seed, keep=keep
    )


def _transfer(s: Subject, keep: Keep) -> Answer:
    if s.transfer is None:
        raise UserError("transfer: no other data set; give one with --transfer-data DIR")
    n, tune = s.sizes.transfer, s.fine_tune
    return transfer(s.model, *s.transfer, n=n, fine_tune=tune, seed=s.seed, keep=keep)


def _bias(s: Subject, keep: Keep) -> Answer:
    return bias(
        s.model,
        s.loader,
        labels=s.labels,
        splits=s.colours,
        n=s.sizes.bias,
        seed=s.seed,
        keep=keep,
    )


_RADIUS = 2 * 4 * (STEPS + HALVINGS)  # both directions of four kinds
_CURVES = 5 * (1 + 2 * len(LEVELS))
_QUESTIONS = {
    "continuity": _Question(
        _continuity,
        lambda n: 2 * n["all"] + n["curves"] * (_CURVES + _RADIUS) + 2 * n["profile"],
    ),
    "neighbours": _Question(_neighbours, lambda n: 2 * n["neighbours"] + n["searched"]),
    "embedding": _Question(_embedding, lambda n: min(n["all"], 200) + 24 + 9 * min(n["all"], 64)),
    "gradients": _Question(_gradients, lambda n: n["gradients"] * (2 * BACKWARD + 4 * 9)),
    "robustness": _Question(_robustness, lambda n: n["robustness"] * (38 * BACKWARD + 347)),
    "shifts": _Question(_shifts, lambda n: n["shifts"] * (4 + 22 * n["severities"])),
    "explanations": _Question(
        _explanations,
        lambda n: n["explained"] * (3 * n["steps"] * BACKWARD + 43) + n["limed"] * 215,
    ),
    "transfer": _Question(_transfer, lambda n: 3 * n["transfer"]),
    "bias": _Question(_bias, lambda n: 12 * n["bias"]),
}
assert tuple(_QUESTIONS) == QUESTIONS


class _ReachedError(Exception):
    """A question got as far as computing."""


def _reached(part: str, *_: object) -> Arrays:
    raise _ReachedError(part)
