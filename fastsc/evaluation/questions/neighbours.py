"""Does an image's perturbed self lie nearer to it than other images do? The paper's figure 1.

Wu et al., arXiv 2011.09789: in the space of features, the same image in another light may lie
further from an image than a different image of the same class does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastsc.errors import UserError
from fastsc.evaluation.data import class_images, even_share
from fastsc.evaluation.models.classifier import Classifier
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
from fastsc.evaluation.views import Images, Indices, Viewer, choose, shares
from fastsc.pipelines import Pipeline, keyed

SELVES = 500  # images of a part of both views
SEARCHED = 1000  # images of a part of the search
N_EXAMPLES = 8
# Of the mean distance to a random other image: what lies nearer is the same picture twice, of which
# an example would say nothing about the model.
TWIN = 0.01


@dataclass(frozen=True, eq=False, kw_only=True)
class Neighbours(Answer):
    """Answer of `neighbours`.

    Attributes:
        others: (n, 2) int64, dataset indices of the random and the nearest other image of the
            class, in the order of the table "triples".
        searched: Images among which the nearest was searched, all classes together.
    """

    question: ClassVar[str] = "neighbours"
    others: NDArray[np.int64]
    searched: int


def neighbours(
    model: Classifier,
    loader: Pipeline,
    *,
    n: int | None = 500,
    most: int | None = 20_000,
    seed: int = 0,
    cache: PartCache = compute,
) -> Neighbours:
    """How many images lie further from their perturbed selves than from others of their class.

    Of n images that have company in their class folder, Euclidean distances of the pooled features
    of the clean views: `moved` = ‖f - f'‖₂ to the image's own perturbed view, which is that of
    validation during training; `random` to a keyed random other image of the class; `nearest` to
    the nearest other one. `farther_than_random` and `farther_than_nearest` are 1 where `moved` is
    the larger. Two copies of a file in one class are two images: nearest is then 0.

    Args, besides those of all questions (`fastsc.evaluation.questions`):
        most: The features of so many images at most are computed. Where the classes at hand have
            more, each is searched among a keyed choice of its images, equally many per class; the
            nearest of fewer lies further away. None: no bound.

    Raises:
        UserError: No image has another one of its class.
    """
    folders = class_images(loader)
    index = choose(loader, n, seed, company(loader))
    targets = loader.index.targets
    pools, limit = _pools(loader, {c: folders[c] for c in np.unique(targets[index])}, most, seed)
    draws = keyed.uniforms(seed, keyed.VALIDATION_EPOCH, keyed.Stream.NEIGHBOUR, len(loader.index))
    random = np.array([_another(i, pools[targets[i]], draws[i]) for i in index])
    searched = np.sort(np.concatenate(list(pools.values())))

    viewer = Viewer(model, loader)
    settings = {
        "n": len(index), "most": most, "seed": seed, "strengths": loader.settings.strengths
    }  # fmt: skip
    parts = shares(index, SELVES)
    selves = in_parts(cache, "selves", parts, settings, partial(_selves, viewer))
    features = torch.from_numpy(selves["features"]).double()
    searches = [
        cache(f"search-{place}", settings, partial(_search, viewer, part, index, features, random))
        for place, part in enumerate(shares(searched, SEARCHED))
    ]
    apart = np.stack([part["nearest"] for part in searches])  # (parts, n)
    best = apart.argmin(0), np.arange(len(index))
    others = np.stack([random, np.stack([part["at"] for part in searches])[best]], axis=1)
    triples = _triples(
        index, selves["moved"], np.min([p["random"] for p in searches], axis=0), apart[best]
    )
    return Neighbours(
        tables={"triples": triples},
        measures=tuple(
            Measure(Name(name), "share", "triples", (name,))
            for name in ("farther_than_random", "farther_than_nearest")
        ),
        examples=_examples(triples, others, loader),
        seed=seed,
        left_out=()
        if limit is None
        else (f"nearest: it is searched among {limit:,} images a class, and some have more",),
        others=others,
        searched=len(searched),
    )


def company(loader: Pipeline) -> Indices:
    """The images that have another one of their class; a UserError where none has."""
    several = [own for own in class_images(loader).values() if len(own) > 1]
    if not several:
        raise UserError(
            "neighbours: the data has one image a class, or no labels, and there is no other to "
            "compare with; take a split with class folders of several images"
        )
    return np.sort(np.concatenate(several))


def _pools(
    loader: Pipeline, folders: Mapping[int, Indices], most: int | None, seed: int
) -> tuple[dict[int, Indices], int | None]:
    """Class -> the images to search, at most `most` altogether; and the bound of a class, if any.

    At least two a class: an image and another.
    """
    counts = np.array([len(own) for own in folders.values()])
    if most is None or counts.sum() <= most:
        return dict(folders), None
    limit = max(even_share(counts, most), 2)
    return {c: choose(loader, limit, seed, own) for c, own in folders.items()}, limit


def _another(index: int, pool: Indices, draw: float) -> int:
    """One of the pool that is not the image itself, by a number in [0, 1)."""
    others = pool[pool != index]
    return int(others[int(draw * len(others))])


# --- parts ---------------------------------------------------------------------------------------


def _selves(viewer: Viewer, index: Indices) -> Arrays:
    """Features (m, D) float32 of images, and how far from them their perturbed views lie: (m,)."""
    factors = viewer.loader.plan().factors[index]

    def answer(images: Images) -> dict[str, Tensor]:
        f = viewer.respond(images.pixels).features
        g = viewer.respond(images.pixels, factors[images.rows]).features
        return {"features": f, "moved": (f.double() - g.double()).norm(dim=1)}

    return viewer.columns(index, "neighbours: images and their perturbed selves", answer)


def _search(
    viewer: Viewer,
    searched: Indices,
    index: Indices,
    features: Tensor,
    random: NDArray[np.int64],
) -> Arrays:
    """Distances (n,) from images to the others of their class among those searched.

    Args:
        searched: Dataset indices in which to search.
        index, features: The n images, and their features (n, D) float64.
        random: (n,) the other image that was drawn for each.

    Returns:
        "nearest", and "at", its dataset index; "random": inf where it is not among those searched.
    """
    targets = viewer.loader.index.targets
    nearest, drawn = np.full((2, len(index)), np.inf)
    at = np.full(len(index), -1, np.int64)
    for images in viewer.images(searched, "neighbours: search"):
        here = searched[images.rows]
        view = viewer.respond(images.pixels).features.double()
        for label in np.unique(targets[here]):
            rows = np.flatnonzero(targets[index] == label)
            columns = np.flatnonzero(targets[here] == label)
            # Not by products, which lose the digits of near pairs.
            apart = torch.cdist(
                features[rows], view[columns], compute_mode="donot_use_mm_for_euclid_dist"
            ).numpy()
            apart[index[rows, None] == here[columns]] = np.inf  # itself
            row, column = np.nonzero(random[rows, None] == here[columns])
            drawn[rows[row]] = apart[row, column]
            best = apart.argmin(1)
            least = apart[np.arange(len(rows)), best]
            nearer = least < nearest[rows]
            nearest[rows[nearer]] = least[nearer]
            at[rows[nearer]] = here[columns[best[nearer]]]
    return {"nearest": nearest, "at": at, "random": drawn}


# --- figures -------------------------------------------------------------------------------------


def _triples(
    index: Indices,
    moved: NDArray[np.float64],
    random: NDArray[np.float64],
    nearest: NDArray[np.float64],
) -> Rows:
    return Rows(
        index,
        {
            "moved": moved,
            "random": random,
            "nearest": nearest,
            "farther_than_random": (moved > random).astype(np.float64),
            "farther_than_nearest": (moved > nearest).astype(np.float64),
        },
    )


def _examples(triples: Rows, others: NDArray[np.int64], loader: Pipeline) -> tuple[Example, ...]:
    """The images that lie furthest from their perturbed selves, next to the nearest other image."""
    moved, random, nearest = (triples.columns[name] for name in ("moved", "random", "nearest"))
    rows = np.flatnonzero(nearest > TWIN * random.mean())
    rows = rows[np.argsort(-moved[rows] / nearest[rows], kind="stable")][:N_EXAMPLES]
    factors = loader.plan().factors
    return tuple(
        Example.of(
            triples.index[row],
            factors[triples.index[row]],
            f"its perturbed self lies {moved[row] / nearest[row]:.2f} times as far from it as the "
            "nearest other image of the class",
            f"distances: itself {moved[row]:.3g}, a random other {random[row]:.3g}, the nearest "
            f"{nearest[row]:.3g}",
            others=(int(others[row, 0]), int(others[row, 1])),
        )
        for row in rows
    )
