"""Asks classifiers the questions: how many images each gets, in which order, and who wins."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fastsc.evaluation.answers import Answer, Arrays, Keep
from fastsc.evaluation.classifier import Classifier
from fastsc.evaluation.continuity import LEVELS, Continuity, continuity
from fastsc.evaluation.embedding import embedding
from fastsc.evaluation.evaluated import Comparison, Evaluated
from fastsc.evaluation.flip_radius import HALVINGS, STEPS
from fastsc.evaluation.gradients import gradients
from fastsc.evaluation.neighbours import neighbours
from fastsc.evaluation.sliders import FULL, QUICK, Grid, Positions, grids
from fastsc.evaluation.statistics import compare
from fastsc.evaluation.views import Indices, Viewer, choose
from fastsc.pipelines import Pipeline
from fastsc.pipelines.errors import UserError

Budget = Literal["quick", "full"]
QUESTIONS = ("continuity", "neighbours", "embedding", "gradients")


@dataclass(frozen=True)
class Sizes:
    """Images that each question looks at; a small image costs less, and gets more of them.

    Attributes:
        curves: Of continuity over strength, and of the flip radius.
        profile: Of the layer profile.
        neighbours, searched: That look for a neighbour; and among which it is searched.
        gradients: As it says.
        sliders: With four sliders; `positions` are those of each.
    """

    curves: int
    profile: int
    neighbours: int
    searched: int
    gradients: int
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
            sliders=6 if full else 3,
            positions=FULL if full else QUICK,
        )

    def looks(self, questions: Iterable[str], n_images: int) -> int:
        """About so many images go through a model; a gradient counts as three."""
        few = {
            name: min(value, n_images)
            for name, value in asdict(self).items()
            if isinstance(value, int)
        }
        combinations = int(np.prod([len(values) for values in self.positions]))
        radius = 2 * 4 * (STEPS + HALVINGS)
        found = {
            "continuity": 2 * n_images
            + few["curves"] * (5 * (1 + 2 * len(LEVELS)) + radius)
            + 2 * few["profile"]
            + few["sliders"] * combinations,
            "neighbours": 2 * few["neighbours"] + few["searched"],
            "embedding": min(n_images, 200) + 24 + 9 * min(n_images, 64),
            "gradients": few["gradients"] * (2 * 3 + 4 * 9),
        }
        return sum(found[question] for question in questions)


@dataclass(frozen=True, eq=False)
class Subject:
    """A model, the loader that shows it images as it wants them, and what is right there.

    Attributes:
        labels: (len(index),) the right output of each dataset index, or -1.
        class_name: Of the embedding; None: the class with most images.
    """

    model: Classifier
    loader: Pipeline
    labels: NDArray[np.int64]
    seed: int
    sizes: Sizes
    class_name: str | None = None

    def ask(self, question: str, keep: Keep) -> Answer:
        """One question's answer.

        Raises:
            UserError: The data cannot answer it; the message says why.
        """
        model, loader, n, seed = self.model, self.loader, self.sizes, self.seed
        if question == "continuity":
            return continuity(
                model,
                loader,
                labels=self.labels,
                n=n.curves,
                n_profile=n.profile,
                seed=seed,
                keep=keep,
            )
        if question == "neighbours":
            return neighbours(model, loader, n=n.neighbours, most=n.searched, seed=seed, keep=keep)
        if question == "embedding":
            return embedding(model, loader, class_name=self.class_name, seed=seed, keep=keep)
        assert question == "gradients", question
        return gradients(model, loader, labels=self.labels, n=n.gradients, seed=seed, keep=keep)

    def cannot(self, question: str) -> str | None:
        """Why the data cannot answer a question; None where it can. Nothing is computed."""
        try:
            self.ask(question, _reached)
        except _ReachedError:
            return None
        except UserError as error:
            return str(error)
        raise AssertionError(f"{question} computes nothing")

    def grids(self, index: Indices, answer: Continuity, keep: Keep) -> tuple[Grid, ...]:
        """The answers behind the sliders of some images."""
        between = float(answer.tables["pairs"].columns["between"].mean())
        return grids(
            self.model,
            self.loader,
            index,
            positions=self.sizes.positions,
            between=between,
            keep=keep,
        )

    def rate(self) -> float:
        """Images a second that go through the model, measured on one batch."""
        viewer = Viewer(self.model, self.loader)
        (images,) = viewer.images(
            choose(self.loader, self.loader.settings.batch_size, self.seed), ""
        )
        viewer.respond(images.pixels)  # the first pass compiles and allocates
        began = time.perf_counter()
        viewer.respond(images.pixels)
        return len(images.pixels) / max(time.perf_counter() - began, 1e-9)


def slider_images(loader: Pipeline, first: Continuity, n: int, seed: int) -> Indices:
    """Images for the sliders: the least continuous one of the first model, and a keyed choice."""
    worst = first.examples[0].index
    others = [i for i in choose(loader, n, seed).tolist() if i != worst]
    return np.array([worst, *others[: n - 1]])


def comparisons(models: Sequence[Evaluated], seed: int) -> tuple[Comparison, ...]:
    """Every figure of each later model against the first's, over the images that both looked at."""
    first, *later = models
    return tuple(
        found
        for model in later
        for question, answer in model.answers.items()
        if question in first.answers
        for found in _compared(model.name, first.name, answer, first.answers[question], seed)
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


class _ReachedError(Exception):
    """A question got as far as computing."""


def _reached(part: str, *_: object) -> Arrays:
    raise _ReachedError(part)
