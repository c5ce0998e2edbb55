"""Does a classifier hold where the world shifts? Corruptions and colors that training never saw.

A model that was trained to stand still under brightness, contrast, saturation and hue may do so
under these four alone, or under what resembles them, or have learned something wider.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastsc.errors import UserError
from fastsc.evaluation.models.classifier import Classifier
from fastsc.evaluation.questions.shifts.corruptions import (
    CORRUPTIONS,
    GROUPS,
    KINDS,
    LEAST_SIDE,
    SEVERITIES,
    WITHOUT_DEGREES,
    case_name,
    case_of,
    require_library,
    severities_of,
    shift,
)
from fastsc.evaluation.results.answers import (
    Answer,
    Arrays,
    PartCache,
    Rows,
    compute,
    in_parts,
)
from fastsc.evaluation.results.measures import Measure, Name
from fastsc.evaluation.views import Images, Indices, Viewer, between, choose, shares
from fastsc.pipelines import Pipeline

AT_224 = 128  # images of a part at 224 px: the slowest corruption takes 50 ms each
MOST = 500  # of a part at any size

Groups = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Prediction:
    """What a model takes one image under one kind for: for the page."""

    kind: str
    severity: int
    predicted: str
    right: bool


@dataclass(frozen=True, eq=False, kw_only=True)
class Shifts(Answer):
    """Answer of `shifts`.

    Attributes:
        groups: Group -> the kinds of it that were shown.
        severities: Those of the kinds that have degrees.
        chance: Share that guessing gets right.
        image: Dataset index, the same for every model, of `predictions`.
        predictions: Of the image under every kind, at the middle one of the severities.
    """

    question: ClassVar[str] = "shifts"
    groups: dict[str, tuple[str, ...]]
    severities: tuple[int, ...]
    chance: float
    image: int
    predictions: tuple[Prediction, ...]


def shifts(
    model: Classifier,
    loader: Pipeline,
    *,
    labels: NDArray[np.int64] | None = None,
    n: int | None = 48,
    severities: Sequence[int] = (1, 3, 5),
    seed: int = 0,
    cache: PartCache = compute,
) -> Shifts:
    """Accuracy and movement of the features under 15 corruptions and 10 color casts.

    What is shifted is the uint8 image as the model sees it, after crop and resize; see
    `shifts.corruptions` for the kinds. All draws are keyed by (seed, dataset index,
    kind, severity). Of n images whose right output is known:

    - accuracy/clean; accuracy/KIND/SEVERITY, without a severity where a kind has no degrees:
      shares. accuracy/KIND: mean over its severities. accuracy/GROUP: mean over the kinds of
      noise, blur, weather, digital, color. accuracy/corruptions: over the kinds of the first four;
      accuracy/all: over all kinds. Means are of an image's shares of right answers, every kind with
      the same weight; nothing is divided by another network's errors as in the paper's mCE.
    - ds_relative/KIND/SEVERITY = mean ‖f - f'‖₂ / mean ‖f_i - f_j‖₂, j the next in a fixed keyed
      derangement of the n images; and of the groups, likewise, the mean of ‖f - f'‖₂ over kinds.

    Args, besides those of all questions (`fastsc.evaluation.questions`):
        severities: Different ones of 1 to 5.

    Returns:
        Without the corruptions where the model sees less than 32 px; `left_out` says so.

    Raises:
        UserError: Fewer than two images with a known right output, or imagecorruptions-imaug is
            missing.
    """
    severities = tuple(severities)
    assert severities, "no severities"
    assert set(severities) <= set(SEVERITIES), severities
    assert len(set(severities)) == len(severities), severities
    labels = loader.index.targets if labels is None else labels
    index = check_shifts(loader, labels, n, seed)
    assert (labels[index] < model.n_classes).all(), "a label that the model has no output for"
    groups, left_out = _groups(loader.settings.resolution)
    viewer = Viewer(model, loader)
    parts = _shares(index, loader.settings.resolution)
    clean = in_parts(
        cache, "clean", parts, {}, partial(_clean, viewer), lambda rows: {"images": rows.tolist()}
    )
    features = clean.pop("features")
    sizes = np.cumsum([len(rows) for rows in parts])[:-1]
    columns = {"label": labels[index], **clean, "between": between(features, index, loader)}
    for kind in (kind for kinds in groups.values() for kind in kinds):
        levels = severities_of(kind, severities)
        columns |= in_parts(
            cache,
            kind,
            zip(parts, np.split(features, sizes), strict=True),
            {"severities": levels, "seed": seed},
            lambda part, kind=kind, levels=levels: _shifted(  # type: ignore[misc]
                viewer, part[0], kind, levels, seed, part[1]
            ),
            lambda part: {"images": part[0].tolist()},
        )
    rows = Rows(index, {**columns, **_summed(columns, groups, severities)})
    image = int(choose(loader, 1, seed, index)[0])
    return Shifts(
        tables={"images": rows},
        measures=_measures(groups, severities),
        seed=seed,
        left_out=left_out,
        groups=groups,
        severities=severities,
        chance=1 / model.n_classes,
        image=image,
        predictions=_predictions(model, rows.take(np.array([image])), groups, severities),
    )


def check_shifts(loader: Pipeline, labels: NDArray[np.int64], n: int | None, seed: int) -> Indices:
    """The images to shift; a UserError where there are too few, or a package is missing."""
    usable = loader.index.usable
    least = None if n is None else max(n, 2)
    index = choose(loader, least, seed, usable[labels[usable] >= 0])
    if len(index) < 2:
        raise UserError(
            "shifts: the right class has to be known of two images at least, and is of "
            f"{len(index) or 'none'}; take a split with class folders that the model knows"
        )
    if loader.settings.resolution >= LEAST_SIDE:
        require_library()
    return index


def _groups(resolution: int) -> tuple[dict[str, tuple[str, ...]], tuple[str, ...]]:
    """The kinds that can be shown, and why others cannot."""
    if resolution < LEAST_SIDE:
        why = f"they are made for {LEAST_SIDE} px and more, and the model sees {resolution}"
        return {"colour": GROUPS["colour"]}, (f"corruptions: {why}",)
    return dict(GROUPS), ()


def _shares(index: Indices, resolution: int) -> list[Indices]:
    """As many images as half a minute or so is enough for."""
    return shares(index, min(max(round(AT_224 * (224 / resolution) ** 2), 1), MOST))


# --- parts ---------------------------------------------------------------------------------------


def _clean(viewer: Viewer, index: Indices) -> Arrays:
    """Features (m, D) float32 and predictions (m,) of the unchanged images."""

    def answer(images: Images) -> dict[str, Tensor]:
        response = viewer.respond(images.pixels)
        return {"features": response.features, "predicted": response.predicted}

    return viewer.columns(index, "shifts: as they are", answer)


def _shifted(
    viewer: Viewer,
    index: Indices,
    kind: str,
    severities: tuple[int, ...],
    seed: int,
    features: NDArray[np.float32],
) -> Arrays:
    """Columns "predicted/fog/3" (m,) int64 and "moved/fog/3" (m,) float64.

    features: (m, D) of the unchanged images.
    """
    clean = torch.from_numpy(features)

    def answer(images: Images) -> dict[str, Tensor]:
        pixels, columns = images.pixels.cpu().numpy(), {}
        for severity in severities:
            there = np.stack(
                [
                    shift(image, kind, severity, index=int(at), seed=seed)
                    for image, at in zip(pixels, index[images.rows], strict=True)
                ]
            )
            response = viewer.respond(torch.from_numpy(there).to(images.pixels.device))
            case = case_name(kind, severity)
            columns[f"predicted/{case}"] = response.predicted
            moved = (response.features - clean[images.rows]).norm(dim=1)
            columns[f"moved/{case}"] = moved.double()
        return columns

    return viewer.columns(index, f"shifts: {kind.replace('_', ' ')}", answer)


# --- figures -------------------------------------------------------------------------------------


def _unions(groups: Groups) -> dict[str, list[str]]:
    """The groups, and those of groups that have more than one."""
    unions = {group: list(kinds) for group, kinds in groups.items()}
    corrupted = [kind for group in CORRUPTIONS for kind in groups.get(group, ())]
    if corrupted:
        unions["corruptions"] = corrupted
        unions["all"] = corrupted + list(groups["colour"])
    else:
        unions["all"] = list(groups["colour"])
    return unions


def _summed(columns: Arrays, groups: Groups, severities: tuple[int, ...]) -> Arrays:
    """An image's right answers: "correct", "correct/fog/3", "correct/fog", "correct/weather"; and
    the means of its movements over groups: "moved/weather"."""
    label = columns["label"]
    sums = {"correct": (columns["predicted"] == label).astype(np.float64)}
    moved: Arrays = {}
    for kind in KINDS:
        cases = [case_name(kind, level) for level in severities_of(kind, severities)]
        if f"moved/{cases[0]}" not in columns:
            continue
        for at in cases:
            sums[f"correct/{at}"] = (columns[f"predicted/{at}"] == label).astype(np.float64)
        sums[f"correct/{kind}"] = np.mean([sums[f"correct/{at}"] for at in cases], axis=0)
        moved[kind] = np.mean([columns[f"moved/{at}"] for at in cases], axis=0)
    for group, kinds in _unions(groups).items():
        sums[f"correct/{group}"] = np.mean([sums[f"correct/{kind}"] for kind in kinds], axis=0)
        sums[f"moved/{group}"] = np.mean([moved[kind] for kind in kinds], axis=0)
    return sums


def _measures(groups: Groups, severities: tuple[int, ...]) -> tuple[Measure, ...]:
    unions = _unions(groups)
    measures = [Measure(Name("accuracy", "clean"), "share", "images", ("correct",))]
    measures += [
        Measure(Name("accuracy", at), "rate", "images", (f"correct/{at}",)) for at in unions
    ]
    moved = [Name("moved", at) for at in unions]
    for kind in (kind for kinds in groups.values() for kind in kinds):
        cases = (case_of(kind, level) for level in severities_of(kind, severities))
        right = [Name("correct", *case) for case in cases]
        if kind not in WITHOUT_DEGREES:
            measures.append(Measure(Name("accuracy", kind), "rate", "images", (f"correct/{kind}",)))
        measures += [
            Measure(at._replace(family="accuracy"), "share", "images", (str(at),)) for at in right
        ]
        moved += [at._replace(family="moved") for at in right]
    measures += [
        Measure(at._replace(family="ds_relative"), "ratio", "images", (str(at), "between"))
        for at in moved
    ]
    return tuple(measures)


def _predictions(
    model: Classifier, row: Rows, groups: Groups, severities: tuple[int, ...]
) -> tuple[Prediction, ...]:
    """Of the image in the one row."""
    examples = []
    for kind in (kind for kinds in groups.values() for kind in kinds):
        levels = sorted(severities_of(kind, severities))
        severity = levels[len(levels) // 2]
        case = case_name(kind, severity)
        predicted = model.class_name(int(row.columns[f"predicted/{case}"][0]))
        examples.append(
            Prediction(kind, severity, predicted, bool(row.columns[f"correct/{case}"][0]))
        )
    return tuple(examples)
