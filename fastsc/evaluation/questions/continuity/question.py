"""How continuous is a classifier? The paper's figure 4, the flip radius, and the layer profile.

ds_relative = mean ‖f - f'‖₂ / mean ‖f_i - f_j‖₂ over pooled features: how far the representation
moves when an image's light or colors change, in units of its distance between different images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastsc.errors import UserError
from fastsc.evaluation.models.classifier import Classifier
from fastsc.evaluation.questions.continuity import listed
from fastsc.evaluation.questions.continuity.flip_radius import HALVINGS, RANGES, STEPS, radii
from fastsc.evaluation.questions.continuity.layers import profile
from fastsc.evaluation.results.answers import Answer, Arrays, Example, PartCache, Rows, compute
from fastsc.evaluation.results.measures import Measure, Name
from fastsc.evaluation.views import (
    KINDS,
    MAX_HUE,
    Factors,
    Indices,
    Response,
    Viewer,
    changes,
    choose,
    ends,
    following,
    one_kind,
)
from fastsc.pipelines import Pipeline, keyed

LEVELS = (0.25, 0.5, 1.0, 1.5, 2.0)  # multiples of the strengths
DRAWS = 2  # of all four kinds together, an image; alone, a kind has two directions
N_EXAMPLES = 6
ANSWERED = ("moved", "flipped", "confidence_change")
CURVES: tuple[listed.CurveFamily, ...] = (
    ("ds_relative", "ratio", "moved", ("between",)),
    ("flips", "rate", "flipped", ()),
    ("confidence_change", "mean", "confidence_change", ()),
)


@dataclass(frozen=True, eq=False, kw_only=True)
class Continuity(Answer):
    """Answer of `continuity`.

    Attributes:
        strengths: Of brightness, contrast, saturation, hue: the training box, at level 1.
        levels: Multiples of the strengths in the curves.
        ranges: Kind -> the ends of the search for a flip, as factors, for hue in turns; and of what
            `--perturb` lists, as amounts.
        stages: The layer profile's, in forward order.
    """

    question: ClassVar[str] = "continuity"
    strengths: tuple[float, float, float, float]
    levels: tuple[float, ...]
    ranges: dict[str, tuple[float, float]]
    stages: tuple[str, ...]


def continuity(
    model: Classifier,
    loader: Pipeline,
    *,
    labels: NDArray[np.int64] | None = None,
    n: int | None = 64,
    n_profile: int | None = 256,
    levels: Sequence[float] = LEVELS,
    seed: int = 0,
    cache: PartCache = compute,
) -> Continuity:
    """How far the representation and the prediction move when light and colors change.

    Of every image: one perturbed view with the factors of validation during training, so that a
    run's last `ds_relative` and top-1 come out again; and how much of the features' mean square is
    their common mean's (`mean_share`), and of the mean square of the movement the part toward or
    away from zero (`radial_share`), neither of which moves a cosine much. Of n images: the curves
    over strength, each kind alone in both directions and all together in two draws; and the least
    change that flips the prediction. Of n_profile images: ds_relative at every stage. What the
    loader's `perturb` lists is measured as the four kinds are, each alone; and with them, of every
    image.

    Args, besides those of all questions (`fastsc.evaluation.questions`):
        n, n_profile: Images; None: all of them.
        levels: Of the curves, as multiples of the strengths.

    Raises:
        UserError: Fewer than two images.
    """
    check_images(loader)
    index = loader.index
    labels = index.targets if labels is None else labels
    viewer, some = Viewer(model, loader), choose(loader, n, seed)
    s = loader.settings.strengths
    settings = {"strengths": s, "levels": tuple(levels), "n": len(some), "seed": seed}

    pairs = Rows(index.usable, cache("pairs", {"strengths": s}, lambda: _pairs(viewer)))
    curves: Arrays = {}
    for kind in (*KINDS, "together"):
        curves |= cache(
            f"curves-{kind}", settings, partial(_curves, viewer, some, kind, levels, seed)
        )
    rows: Arrays = {}
    more_curves, more_radii = listed.measured(viewer, some, levels, seed, cache)
    for kind in KINDS:
        rows |= cache(
            f"radius-{kind}",
            {"n": len(some), "seed": seed, "search": (RANGES[kind], STEPS, HALVINGS)},
            partial(radii, viewer, some, kind),
        )
    profiled = choose(loader, n_profile, seed)
    layers = cache(
        "layers",
        {"strengths": s, "n": len(profiled), "seed": seed},
        lambda: profile(viewer, profiled),
    )
    stages = tuple(str(stage) for stage in layers["stages"])
    distances = {name: column for name, column in layers.items() if name != "stages"}
    tables = {
        "labelled": _labelled(pairs, labels),
        "pairs": pairs,
        "curves": Rows(
            some, {"between": pairs.take(some).columns["between"], **curves, **more_curves}
        ),
        "radius": Rows(some, rows | more_radii),
        "profile": Rows(profiled, distances),
    }
    if named := loader.settings.perturbations.named():
        all_of_p = cache("listed", {"strengths": s, "perturb": named}, lambda: listed.whole(viewer))
        between = pairs.columns["between"]
        tables["listed"] = Rows(index.usable, {"between": between, **all_of_p})
    return Continuity(
        tables={name: table for name, table in tables.items() if len(table)},
        measures=(*_measures(tables, s, levels, stages), *listed.measures(loader, levels, CURVES)),
        examples=_examples(model, loader, pairs),
        seed=seed,
        strengths=s,
        levels=tuple(levels),
        ranges=RANGES | listed.ranges(loader),
        stages=stages,
    )


def check_images(loader: Pipeline) -> None:
    """Raises UserError where there are fewer than two images."""
    index = loader.index
    if len(index.usable) < 2:
        raise UserError(
            f"{index.root}: continuity needs two images, and there is {len(index.usable) or 'none'}"
        )


def strength_name(kind: str, strengths: Sequence[float], level: float) -> str:
    """ "0.4" of brightness, in the kind's own unit; of "together" a multiple of the box."""
    alone = level if kind == "together" else level * strengths[KINDS.index(kind)]
    return f"{min(alone, MAX_HUE) if kind == 'hue' else alone:.4g}"


def _distinct(kind: str, strengths: Sequence[float], levels: Sequence[float]) -> dict[str, float]:
    """Name -> level, of those at which the kind changes and that are not the same as one before."""
    by_text: dict[str, float] = {}
    if kind == "together" or strengths[KINDS.index(kind)] > 0:
        for level in levels:
            by_text.setdefault(strength_name(kind, strengths, level), level)
    return by_text


# --- parts ---------------------------------------------------------------------------------------


def _pairs(viewer: Viewer) -> Arrays:
    """Every image once, as validation during training sees it."""
    index, table = viewer.loader.index.usable, viewer.loader.plan().factors
    clean, perturbed = [], []
    for images in viewer.images(index, "continuity: every image"):
        clean.append(viewer.respond(images.pixels))
        perturbed.append(viewer.respond(images.pixels, table[index[images.rows]]))
    f, g = joined(clean), joined(perturbed)
    between = (f.features - f.features[following(index, viewer.loader)]).norm(dim=1)
    answered = changes(f, g)
    return {
        "predicted": f.predicted.numpy(),
        "predicted_perturbed": g.predicted.numpy(),
        "confidence": f.confidence.numpy(),
        "confidence_perturbed": f.confidence.numpy() + answered["confidence_change"],
        "between": between.numpy(),
        **answered,
        **_shares(f.features.double(), g.features.double()),
    }


def _shares(f: Tensor, g: Tensor) -> Arrays:
    """What an angle between features of a common mean does not see, (n,) float64 each.

    Of m = (f + g) / 2 its square and its product with the mean of all m; of f - g the square and
    that of its part along m.
    """
    m, moved = (f + g) / 2, f - g
    square = m.square().sum(1)
    radial = (moved * m).sum(1).square() / square.clamp_min(torch.finfo(m.dtype).tiny)
    return {
        "square": square.numpy(),
        "along_mean": (m @ m.mean(0)).numpy(),
        "moved_square": moved.square().sum(1).numpy(),
        "radial_square": radial.numpy(),
    }


def _curves(
    viewer: Viewer, index: Indices, kind: str, levels: Sequence[float], seed: int
) -> Arrays:
    """Means over an image's directions or draws, at every level: columns "moved/brightness/0.4"."""
    named = _distinct(kind, viewer.settings.strengths, levels)
    columns = {f"{what}/{kind}/{name}": np.zeros(len(index)) for name in named for what in ANSWERED}
    draws = {name: _directions(viewer, index, kind, level, seed) for name, level in named.items()}
    for images in viewer.images(index, f"continuity: {kind} over strength"):
        clean = viewer.respond(images.pixels)
        for name, views in draws.items():
            for factors in views:
                there = changes(clean, viewer.respond(images.pixels, factors[images.rows]))
                for what in ANSWERED:
                    columns[f"{what}/{kind}/{name}"][images.rows] += there[what] / len(views)
    return columns


def _directions(
    viewer: Viewer, index: Indices, kind: str, level: float, seed: int
) -> list[Factors]:
    """The factors (n, 4) at which a kind is evaluated: both directions, or draws from the box."""
    b, c, s, h = (level * strength for strength in viewer.settings.strengths)
    if kind == "together":
        # The same uniforms at every level: an image walks outward on one ray.
        box = b, c, s, min(h, MAX_HUE)
        n = len(viewer.loader.index)
        return [keyed.factors(seed, draw, n, box)[index] for draw in range(DRAWS)]
    strength = (b, c, s, h)[KINDS.index(kind)]
    return [one_kind(kind, end, len(index)) for end in ends(kind, strength)]


def joined(responses: list[Response]) -> Response:
    """Batches of responses as one."""
    columns: list[Tensor] = [torch.cat(column) for column in zip(*responses, strict=True)]
    return Response(*columns)


def _labelled(pairs: Rows, labels: NDArray[np.int64]) -> Rows:
    """The rows of the images whose right output is known."""
    label = labels[pairs.index]
    kept = label >= 0
    predicted, perturbed = (
        pairs.columns[name][kept] for name in ("predicted", "predicted_perturbed")
    )
    return Rows(
        pairs.index[kept],
        {
            "label": label[kept],
            "predicted": predicted,
            "correct": (predicted == label[kept]).astype(np.float64),
            "correct_perturbed": (perturbed == label[kept]).astype(np.float64),
        },
    )


# --- figures -------------------------------------------------------------------------------------


def _measures(
    tables: dict[str, Rows],
    strengths: Sequence[float],
    levels: Sequence[float],
    stages: Sequence[str],
) -> tuple[Measure, ...]:
    measures = []
    if len(tables["labelled"]):
        measures += [
            Measure(Name("top1"), "share", "labelled", ("correct",)),
            Measure(Name("top1_perturbed"), "share", "labelled", ("correct_perturbed",)),
        ]
    measures += [
        Measure(Name("ds"), "mean", "pairs", ("moved",)),
        Measure(Name("ds_relative"), "ratio", "pairs", ("moved", "between")),
        Measure(Name("flips"), "share", "pairs", ("flipped",)),
        Measure(Name("confidence_change"), "mean", "pairs", ("confidence_change",)),
        Measure(Name("mean_share"), "ratio", "pairs", ("along_mean", "square")),
        Measure(Name("radial_share"), "ratio", "pairs", ("radial_square", "moved_square")),
    ]
    for kind in (*KINDS, "together"):
        for strength in _distinct(kind, strengths, levels):
            at = f"{kind}/{strength}"
            measures += [
                Measure(
                    Name(family, kind, strength), statistic, "curves", (f"{column}/{at}", *over)
                )
                for family, statistic, column, over in CURVES
            ]
    measures += [
        Measure(Name("flip_radius", kind, way), "median", "radius", (f"{kind}/{way}",))
        for kind in KINDS
        for way in ("down", "up", "either")
    ]
    for stage in stages:
        between = f"between/{stage}"
        measures += [
            Measure(Name("layers", stage), "ratio", "profile", (f"moved/{stage}", between)),
            Measure(Name("chance", stage), "ratio", "profile", (f"shuffled/{stage}", between)),
        ]
    return tuple(measures)


def _examples(model: Classifier, loader: Pipeline, pairs: Rows) -> tuple[Example, ...]:
    """The images whose representation moves most, with the factors that moved it."""
    columns, factors = pairs.columns, loader.plan().factors
    scale = columns["between"].mean()
    if not scale > 0:
        return ()  # one representation of all images: nothing moves, in no unit
    examples = []
    for row in np.argsort(-columns["moved"], kind="stable")[:N_EXAMPLES]:
        before, after = (
            model.class_name(columns[f"predicted{view}"][row]) for view in ("", "_perturbed")
        )
        confidence = columns["confidence"][row], columns["confidence_perturbed"][row]
        told = f"{before} ({100 * confidence[0]:.0f} %) → " + (
            f"the same ({100 * confidence[1]:.0f} %)" if before == after else after
        )
        moved = f"moved by {columns['moved'][row] / scale:.2f} of the distance between images"
        examples.append(Example.of(pairs.index[row], factors[pairs.index[row]], moved, told))
    return tuple(examples)
