"""What does a classifier go by? Colors that lie on digits, and which classes depend on which axis.

Color MNIST (`datasets.colormnist`) ties a digit's color to its class in training, and unties it
in its test folders. Other data have no such folders: there, each of the four kinds of change is
made alone, and classes are compared by how far it moves them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fastsc.cli.packages import needed
from fastsc.datasets.colormnist import FOLDERS
from fastsc.errors import UserError
from fastsc.evaluation.models.classifier import Classifier
from fastsc.evaluation.questions.bias.axes import (
    WAYS,
    Dependence,
    axis_rows,
    by_class,
    choose_images,
    dependences,
    ends,
    respond,
)
from fastsc.evaluation.questions.bias.color_bias import (
    Digit,
    Digits,
    Splits,
    accuracy_rows,
    outputs_of,
    predictions,
    probe_rows,
    shown,
)
from fastsc.evaluation.results.answers import (
    Answer,
    Arrays,
    Example,
    PartCache,
    Rows,
    compute,
    in_parts,
)
from fastsc.evaluation.results.measures import Measure, Name
from fastsc.evaluation.views import KINDS, Indices, Viewer, became, one_kind, shares
from fastsc.pipelines import Pipeline

SHARE = 256  # images of a part: 9 views each
N_EXAMPLES = 8


@dataclass(frozen=True, eq=False, kw_only=True)
class Bias(Answer):
    """Answer of `bias`.

    Attributes:
        strengths: Of brightness, contrast, saturation, hue, at which each was changed alone.
        kinds: Those that were.
        dependence: The class-by-axis table, class by class; empty where there is none.
        digits: Some test digits of Color MNIST in their three colorings.
    """

    question: ClassVar[str] = "bias"
    strengths: tuple[float, float, float, float]
    kinds: tuple[str, ...]
    dependence: tuple[Dependence, ...]
    digits: tuple[Digit, ...]


def bias(
    model: Classifier,
    loader: Pipeline,
    *,
    labels: NDArray[np.int64],
    splits: Splits | None = None,
    n: int | None = 2_000,
    seed: int = 0,
    cache: PartCache = compute,
) -> Bias:
    """Which classes depend on which kind of change; and of Color MNIST, color or shape.

    Axes: of n images, equally many of every class folder that has 5 or more, each kind alone at the
    loader's strength in both directions. `axis/KIND` is mean ‖f - f'‖₂ / mean ‖f_i - f_j‖₂ of the
    pooled features, `axis_flips/KIND` the share of predictions that flip. Class by class with
    intervals in `dependence`, where a class stands out for a kind if its mean is above that of
    random images (a permutation test of the class against the rest, one-sided) after Benjamini and
    Hochberg's correction over all classes, kinds and both figures at 5 %.

    Color MNIST: accuracy on the same test digits in the colors of their class, random and
    reversed, and `gap`, aligned less reversed. Probes: logistic regressions (L2, C = 1) on
    standardized features of half of the digits in random colors, for the color and for the
    shape, tested on the other half; and the same of pixels. Chance is 1/10.

    Args, besides those of all questions (`fastsc.evaluation.questions`):
        labels: (len(index),) int64, the right output of each dataset index, -1 where it is not
            known. Only the accuracy on digits needs them.
        splits: Of Color MNIST: validation pipelines of its folders aligned, random and reversed.

    Raises:
        UserError: Fewer than two classes have 5 images and there is no Color MNIST, or its folders
            are damaged; or scipy is missing.
    """
    needed("scipy", "bias")
    left_out: list[str] = []
    index: Indices = np.empty(0, np.int64)
    try:
        index, lines = choose_images(loader, n, seed)
        left_out += lines
    except UserError as error:
        if splits is None:
            raise
        left_out.append(f"axes: {str(error).removeprefix('bias: ')}")
    digits = None if splits is None else Digits(splits, n, seed)
    tables: dict[str, Rows] = {}
    pictures: list[Digit] = []
    if digits is not None:
        answers = predictions(model, digits, cache)
        right = outputs_of(loader, labels, digits)
        if isinstance(right, str):
            left_out.append(f"accuracy: {right}")
        else:
            tables["colours"] = accuracy_rows(digits, answers, right)
            pictures = shown(model, digits, answers)
        read = probe_rows(digits, answers["random"], cache)
        if isinstance(read, str):
            left_out.append(f"probe: {read}")
        else:
            tables["probes"] = read
    strengths = loader.settings.strengths
    kinds = [kind for kind, s in zip(KINDS, strengths, strict=True) if s > 0 and len(index)]
    dependence: tuple[Dependence, ...] = ()
    examples: tuple[Example, ...] = ()
    if kinds:
        left_out += [f"axis/{kind}: its strength is 0" for kind in KINDS if kind not in kinds]
        answered = _answered(model, loader, index, kinds, seed, cache)
        rows = tables["axes"] = axis_rows(answered, index, loader, kinds)
        if not rows.columns["between"].any():
            left_out.append("axis: the features of different images are the same")
        dependence = dependences(
            cache("classes", _settings(loader, index, seed), lambda: by_class(rows, kinds, seed)),
            kinds,
            loader.index.classes,
        )
        examples = tuple(_examples(model, loader, rows, answered, dependence))
    return Bias(
        tables=tables,
        measures=tuple(_measures(tables, kinds)),
        examples=examples,
        seed=seed,
        left_out=tuple(left_out),
        strengths=strengths,
        kinds=tuple(kinds),
        dependence=dependence,
        digits=tuple(pictures),
    )


def _settings(loader: Pipeline, index: Indices, seed: int) -> dict[str, object]:
    return {"n": len(index), "seed": seed, "strengths": loader.settings.strengths}


def _answered(
    model: Classifier,
    loader: Pipeline,
    index: Indices,
    kinds: Sequence[str],
    seed: int,
    cache: PartCache,
) -> Arrays:
    """`respond` of all images, in parts."""
    work = partial(respond, Viewer(model, loader), kinds=kinds)
    return in_parts(cache, "axes", shares(index, SHARE), _settings(loader, index, seed), work)


# --- figures -------------------------------------------------------------------------------------


def _measures(tables: dict[str, Rows], kinds: Sequence[str]) -> Iterator[Measure]:
    if "colours" in tables:
        for folder in FOLDERS:
            yield Measure(Name("accuracy", folder), "share", "colours", (folder,))
        yield Measure(Name("gap"), "mean", "colours", ("gap",))
    if "probes" in tables:
        for name in (Name(of, what) for of in ("probe", "pixels") for what in ("colour", "shape")):
            yield Measure(name, "share", "probes", (str(name),))
    if "axes" in tables:
        for kind in kinds:
            yield Measure(Name("axis", kind), "ratio", "axes", (f"moved/{kind}", "between"))
        for kind in kinds:
            yield Measure(Name("axis_flips", kind), "rate", "axes", (f"flipped/{kind}",))


def _examples(
    model: Classifier,
    loader: Pipeline,
    rows: Rows,
    answered: Arrays,
    dependence: Sequence[Dependence],
) -> Iterator[Example]:
    """An image of each class that stands out, the kinds by turns, the surest class first: one whose
    prediction flips, if there is one, and of those the one that moves most."""
    columns, names = rows.columns, loader.index.classes
    for class_name, kind in _standing_out(dependence)[:N_EXAMPLES]:
        own = np.flatnonzero(columns["class"] == names.index(class_name))
        moved, after = (
            np.stack([answered[f"{what}/{kind}/{way}"][own] for way in WAYS])
            for what in ("moved", "predicted")
        )
        before = columns["predicted"][own]
        flips = after != before
        worst = np.where(flips | ~flips.any(), moved, -1.0).argmax()
        way, at = divmod(int(worst), len(own))
        end = ends(kind, loader.settings.strengths[KINDS.index(kind)])[way]
        first, second = (model.class_name(int(label)) for label in (before[at], after[way, at]))
        yield Example.of(
            rows.index[own[at]],
            one_kind(kind, end, 1)[0],
            *(
                _line(entry, columns)
                for entry in dependence
                if entry.stands_out and (entry.class_name, entry.kind) == (class_name, kind)
            ),
            became(first, second),
        )


def _standing_out(dependence: Sequence[Dependence]) -> list[tuple[str, str]]:
    """(class, kind): the first of every kind, then the second ones, and so on; what flips before
    what moves alone, the surer before the less sure."""
    of_kind: dict[str, list[str]] = {}
    for entry in sorted(dependence, key=lambda entry: (entry.what, entry.p, -entry.value)):
        if entry.stands_out and entry.class_name not in of_kind.setdefault(entry.kind, []):
            of_kind[entry.kind].append(entry.class_name)
    depth = max(map(len, of_kind.values()), default=0)
    return [
        (names[place], kind)
        for place in range(depth)
        for kind, names in of_kind.items()
        if place < len(names)
    ]


def _line(entry: Dependence, columns: Mapping[str, NDArray]) -> str:
    column = columns[f"{entry.what}/{entry.kind}"]
    if entry.what == "flipped":
        here, all_over = 100 * entry.value, 100 * column.mean()
        return f"{entry.kind} alone flips {here:.0f} % in this class, {all_over:.0f} % over all"
    overall = column.mean() / columns["between"].mean()
    return (
        f"{entry.kind} alone moves this class by {entry.value:.2f} of the distance between images, "
        f"{overall:.2f} over all"
    )
