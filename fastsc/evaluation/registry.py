"""Which questions there are, how many images each gets, and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastsc.datasets.colormnist import FOLDERS
from fastsc.errors import UserError
from fastsc.evaluation import QUESTIONS
from fastsc.evaluation.models.classifier import Classifier
from fastsc.evaluation.pairs_data import Pairs
from fastsc.evaluation.questions.bias.axes import choose_images
from fastsc.evaluation.questions.bias.color_bias import Digits
from fastsc.evaluation.questions.bias.question import bias
from fastsc.evaluation.questions.continuity import flip_radius as radii
from fastsc.evaluation.questions.continuity.question import LEVELS, check_images, continuity
from fastsc.evaluation.questions.embedding import (
    IMAGES,
    SPREAD_IMAGES,
    SPREAD_VIEWS,
    VIEWS,
    embedding,
    images_of,
)
from fastsc.evaluation.questions.explanations.explainer import TAKEN
from fastsc.evaluation.questions.explanations.question import (
    SAMPLES,
    check_explanations,
    explained_pairs,
    explanations,
)
from fastsc.evaluation.questions.gradients import STEPS, gradients
from fastsc.evaluation.questions.neighbours import company, neighbours
from fastsc.evaluation.questions.pairs import LEVELS as BRIGHTER
from fastsc.evaluation.questions.pairs import pairs
from fastsc.evaluation.questions.robustness.question import right_images, robustness
from fastsc.evaluation.questions.shifts import corruptions
from fastsc.evaluation.questions.shifts.question import check_shifts, shifts
from fastsc.evaluation.questions.transfer.question import check_transfer, transfer
from fastsc.evaluation.results.answers import Answer, PartCache
from fastsc.evaluation.sliders import FULL, QUICK, Positions
from fastsc.evaluation.views import KINDS
from fastsc.pipelines import Pipeline

Budget = Literal["quick", "full"]
BACKWARD = 3  # a gradient costs as much as so many forward passes


@dataclass(frozen=True)
class Sizes:
    """Images of each question; a small image costs less, and gets more of them.

    Attributes:
        curves: Of continuity over strength, and of the flip radius.
        profile: Of the layer profile.
        neighbours, searched: Whose nearest neighbour is searched; and among which.
        gradients, robustness, transfer, bias: As they say; the worst colors are searched for
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
    def of(cls, budget: Budget, resolution: int, images: Mapping[str, int] | None = None) -> Sizes:
        """Of a budget; `images` in place of what it would give a question, "" of every other."""
        full, given = budget == "full", images or {}
        area = (224 / resolution) ** 2

        def n(question: str, at_224: int, most: int) -> int:
            scale = 10 if full else 1
            wanted = given.get(question, given.get(""))
            return wanted or max(1, min(round(at_224 * area), most)) * scale

        return cls(
            curves=n("continuity", 96, 500),
            profile=n("continuity", 256, 1000),
            neighbours=n("neighbours", 96, 500),
            searched=10 * n("neighbours", 96, 1000),
            gradients=n("gradients", 64, 500),
            robustness=n("robustness", 24, 200),
            thorough=full,
            shifts=n("shifts", 48, 300),
            severities=(1, 2, 3, 4, 5) if full else (1, 3, 5),
            explained=n("explanations", 24, 200),
            limed=n("explanations", 8, 50),
            steps=50 if full else 32,
            transfer=n("transfer", 400, 2000),
            bias=n("bias", 200, 2000),
            sliders=6 if full else 3,
            positions=FULL if full else QUICK,
        )


@dataclass(frozen=True, eq=False)
class Subject:
    """A model, the loader that shows it images as it wants them, and what is right there.

    Attributes:
        name: Unique among the subjects of an evaluation.
        labels: (len(index),) the right output of each dataset index, or -1.
        class_name: Of the embedding; None: the class with most images.
        transfer: Loaders of another data set's training and test part, if there is one.
        fine_tune: Whether to fine-tune on it.
        colors: Loaders of Color MNIST's folders of test digits, where the data is that.
        pairs: The loader of the pictures of real pairs, the pairs, and the right outputs by its
            dataset indices, if there are any.
        left_out: Question, or part of one, -> why it is not answered.
    """

    name: str
    model: Classifier
    loader: Pipeline
    labels: NDArray[np.int64]
    seed: int
    sizes: Sizes
    class_name: str | None = None
    transfer: tuple[Pipeline, Pipeline] | None = None
    fine_tune: bool = False
    colors: Mapping[str, Pipeline] | None = None
    pairs: tuple[Pipeline, Pairs, NDArray[np.int64]] | None = None
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def listed(self) -> bool:
        """Whether there are perturbations besides those of the colors."""
        return bool(self.loader.settings.perturb)

    @property
    def loaders(self) -> tuple[Pipeline, ...]:
        """All of them."""
        more = (self.pairs[0],) if self.pairs else ()
        return (self.loader, *(self.transfer or ()), *(self.colors or {}).values(), *more)

    def seen_by(self, question: str) -> tuple[Pipeline, ...]:
        """The loaders whose images a question uses."""
        seen = {
            "transfer": self.transfer or (),
            "bias": (self.loader, *(self.colors or {}).values()),
            "pairs": (self.pairs[0],) if self.pairs else (),
        }
        return seen.get(question, (self.loader,))

    def ask(self, question: str, cache: PartCache) -> Answer:
        """One question's answer.

        Raises:
            UserError: The data cannot answer it; the message says why.
        """
        asked = _QUESTIONS[question]
        loaders: tuple[Pipeline, ...] = (self.loader,)
        if question == "transfer":
            loaders = _transfer_loaders(self)
        elif question == "pairs":
            loaders = (_pairs_of(self)[0],)
        return asked.ask(self.model, *loaders, **asked.options(self), seed=self.seed, cache=cache)

    def cannot(self, question: str) -> str | None:
        """Why the data cannot answer a question; None where it can. Nothing is computed."""
        try:
            _QUESTIONS[question].check(self)
        except UserError as error:
            return str(error).removeprefix(f"{question}: ")
        return None


def passes(
    questions: Iterable[str], sizes: Sizes, n_images: int, n_listed: int = 0, n_pairs: int = 0
) -> dict[str, int]:
    """Question -> about so many images go through a model; a gradient counts as BACKWARD.

    n_listed: Perturbations besides the colors; n_pairs: of pictures. The sliders, which come with
        continuity, are last.
    """
    n = {name: value for name, value in asdict(sizes).items() if isinstance(value, int)}
    n = {name: min(value, n_images) for name, value in n.items()} | {
        "all": n_images,
        "steps": sizes.steps,
        "listed": n_listed,
        "pairs": n_pairs,
        "severities": len(sizes.severities),
        "grid": int(np.prod([len(values) for values in sizes.positions])),
    }
    by_question = {question: _QUESTIONS[question].passes(n) for question in questions}
    return by_question | (
        {"sliders": n["sliders"] * n["grid"]} if "continuity" in by_question else {}
    )


# --- one by one ----------------------------------------------------------------------------------


class _Question(NamedTuple):
    """A question's function, its options for a subject, the passes of its views, and what it needs.

    Attributes:
        ask: Of a model, loaders and options.
        options: By name.
        passes: Of the sizes, of no more images than there are, and of "all" images.
        check: Raises UserError where the data cannot answer it. Nothing is computed.
    """

    ask: Callable[..., Answer]
    options: Callable[[Subject], dict[str, Any]]
    passes: Callable[[dict[str, int]], int]
    check: Callable[[Subject], object]


def _transfer_loaders(subject: Subject) -> tuple[Pipeline, Pipeline]:
    if subject.transfer is None:
        raise UserError("transfer: no other data set; give one with --transfer-data DIR")
    return subject.transfer


def _pairs_of(subject: Subject) -> tuple[Pipeline, Pairs, NDArray[np.int64]]:
    if subject.pairs is None:
        raise UserError("pairs: no pairs of pictures; give them with --pairs FILE.csv")
    return subject.pairs


def _pairs_options(subject: Subject) -> dict[str, Any]:
    loader, of, labels = _pairs_of(subject)
    why: tuple[str, ...] = ()
    try:
        check_explanations(subject.model, loader)
    except UserError as error:
        why = (f"agreement of {error}",)
    explain = partial(explained_pairs, subject.model, loader, subject.sizes.steps, subject.seed)
    return {
        "first": of.first,
        "second": of.second,
        "numbers": of.numbers,
        "labels": labels,
        "explain": None if why else explain,
        "n_explained": subject.sizes.explained,
        "left_out": (*of.left_out, *why),
    }


_BOTH = 2  # directions of a kind, or views of an image: unchanged and perturbed
_WALK = _BOTH * (radii.STEPS + radii.HALVINGS)  # of one kind, until the prediction flips
_CURVE = 1 + _BOTH * len(LEVELS)
_ONCE = len(corruptions.WITHOUT_DEGREES)  # shifts that have one severity
_FAITHFUL = 2 * (TAKEN + 1)  # insertion and deletion of a map
_QUESTIONS = {
    "continuity": _Question(
        continuity,
        lambda s: {"labels": s.labels, "n": s.sizes.curves, "n_profile": s.sizes.profile},
        lambda n: (
            _BOTH * (n["all"] + n["profile"])
            + n["curves"] * ((len(KINDS) + 1) * _CURVE + len(KINDS) * _WALK)
            + n["curves"] * n["listed"] * (_CURVE + _WALK)
        ),
        lambda s: check_images(s.loader),
    ),
    "neighbours": _Question(
        neighbours,
        lambda s: {"n": s.sizes.neighbours, "most": s.sizes.searched},
        lambda n: _BOTH * n["neighbours"] + n["searched"],
        lambda s: company(s.loader),
    ),
    "embedding": _Question(
        embedding,
        lambda s: {"class_name": s.class_name},
        lambda n: min(n["all"], IMAGES) + VIEWS + (1 + SPREAD_VIEWS) * min(n["all"], SPREAD_IMAGES),
        lambda s: images_of(s.loader, s.class_name, IMAGES, s.seed),
    ),
    "gradients": _Question(
        gradients,
        lambda s: {"labels": s.labels, "n": s.sizes.gradients},
        lambda n: n["gradients"] * (_BOTH * BACKWARD + len(KINDS) * (STEPS + 1)),
        lambda _: None,
    ),
    "robustness": _Question(
        robustness,
        lambda s: {"labels": s.labels, "n": s.sizes.robustness, "thorough": s.sizes.thorough},
        # As counted on small networks: an image that is fooled is left alone.
        lambda n: n["robustness"] * (38 * BACKWARD + 347),
        lambda s: right_images(s.loader, s.labels),
    ),
    "shifts": _Question(
        shifts,
        lambda s: {"labels": s.labels, "n": s.sizes.shifts, "severities": s.sizes.severities},
        lambda n: n["shifts"] * (1 + _ONCE + (len(corruptions.KINDS) - _ONCE) * n["severities"]),
        lambda s: check_shifts(s.loader, s.labels, s.sizes.shifts, s.seed),
    ),
    "explanations": _Question(
        explanations,
        lambda s: {"n": s.sizes.explained, "n_lime": s.sizes.limed, "steps": s.sizes.steps},
        # Maps of both views and of the network with random weights.
        lambda n: (
            n["explained"] * (3 * (n["steps"] + 1) * BACKWARD + 2 * _FAITHFUL)
            + n["limed"] * (3 * SAMPLES + _FAITHFUL)
        ),
        lambda s: check_explanations(s.model, s.loader),
    ),
    "transfer": _Question(
        transfer,
        lambda s: {"n": s.sizes.transfer, "fine_tune": s.fine_tune},
        lambda n: (1 + _BOTH) * n["transfer"],
        lambda s: check_transfer(*_transfer_loaders(s), fine_tune=s.fine_tune),
    ),
    "bias": _Question(
        bias,
        lambda s: {"labels": s.labels, "splits": s.colors, "n": s.sizes.bias},
        lambda n: n["bias"] * (1 + _BOTH * len(KINDS) + len(FOLDERS)),
        lambda s: (
            Digits(s.colors, s.sizes.bias, s.seed)
            if s.colors
            else choose_images(s.loader, s.sizes.bias, s.seed)
        ),
    ),
    "pairs": _Question(
        pairs,
        _pairs_options,
        lambda n: (
            n["pairs"] * (_BOTH + 1 + len(BRIGHTER))
            + min(n["explained"], n["pairs"]) * _BOTH * (n["steps"] + 1) * BACKWARD
        ),
        _pairs_of,
    ),
}
assert tuple(_QUESTIONS) == QUESTIONS
