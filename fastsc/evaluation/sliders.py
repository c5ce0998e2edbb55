"""Four sliders: a model's answers to an image over a grid of all four color changes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fastsc.errors import UserError
from fastsc.evaluation.models.classifier import Classifier
from fastsc.evaluation.results.answers import Arrays, PartCache, compute
from fastsc.evaluation.views import KINDS, Factors, Indices, Viewer
from fastsc.kernels.color import IDENTITY
from fastsc.pipelines import Pipeline
from fastsc.pipelines.progress import tracked

Positions = tuple[tuple[float, ...], ...]
TOP = 3  # classes to show

# The ends of the usual training box (0.6 and 1.4, a tenth of a turn) and what lies well beyond it.
QUICK: Positions = (
    (0.3, 0.6, 1.0, 1.4, 2.0),
    (0.3, 0.6, 1.0, 1.4, 2.0),
    (0.0, 0.6, 1.0, 1.4, 2.0),
    (-0.25, -0.1, 0.0, 0.1, 0.25),
)
FULL: Positions = (
    (0.2, 0.4, 0.6, 1.0, 1.4, 2.0, 3.0),
    (0.2, 0.4, 0.6, 1.0, 1.4, 2.0, 3.0),
    (0.0, 0.3, 0.6, 1.0, 1.4, 2.0, 3.0),
    (-0.4, -0.25, -0.1, 0.0, 0.1, 0.25, 0.4),
)


@dataclass(frozen=True, eq=False)
class Grid:
    """One image's answers at every combination of slider positions.

    Attributes:
        index: Dataset index.
        pixels: (R, R, 3) uint8, the unchanged image as the model sees it.
        positions: Four tuples, ascending, each with the unchanged value: the factors of
            brightness, contrast, saturation, and the hue shift in turns.
        top: (P, 3) int64, the three best classes, best first, or (P, C) where there are fewer; P
            the product of the numbers of positions, brightness slowest and hue fastest.
        confidence: float32, their softmax probabilities.
        ds_relative: (P,) float32, ‖f - f'‖₂ over the mean distance between different images.
        names: Class number -> what it is called, of the classes in `top`.
    """

    index: int
    pixels: NDArray[np.uint8]
    positions: tuple[tuple[float, ...], ...]
    top: NDArray[np.int64]
    confidence: NDArray[np.float32]
    ds_relative: NDArray[np.float32]
    names: dict[int, str]

    @property
    def factors(self) -> Factors:
        """(P, 4) float32: what each combination of positions does to the image."""
        return combinations(self.positions)

    @property
    def unchanged(self) -> int:
        """The combination at which nothing changes."""
        return unchanged(self.positions)


def combinations(positions: Positions) -> Factors:
    """(P, 4) float32 factors, brightness slowest and hue fastest."""
    return np.array(list(itertools.product(*positions)), np.float32)


def unchanged(positions: Positions) -> int:
    """The row of `combinations` that changes nothing."""
    sides = [len(values) for values in positions]
    at = [values.index(same) for values, same in zip(positions, IDENTITY, strict=True)]
    return int(np.ravel_multi_index(at, sides))


def grids(
    model: Classifier,
    loader: Pipeline,
    index: Indices,
    *,
    positions: Positions = QUICK,
    between: float,
    cache: PartCache = compute,
    class_names: Sequence[str] | None = None,
) -> tuple[Grid, ...]:
    """A model's answers to a few images at every combination of slider positions.

    At the unchanged combination `ds_relative` is 0 and the rest is the answer to the clean view:
    all answers to an image are computed in one pass, the unchanged one among them.

    Args:
        model: On the loader's device.
        loader: A validation pipeline (`build(..., train=False)`).
        index: (m,) dataset indices.
        positions: Of each slider, ascending, with the unchanged value; QUICK or FULL, or others.
        between: The mean distance of different images' features.
        cache: One part per image.
        class_names: Of the model's outputs. Default: `model.classes`, else numbers.

    Raises:
        UserError: Positions that are no sliders, or an image does not decode.
    """
    _check(positions)
    names = model.classes if class_names is None else class_names
    assert names is None or len(names) == model.n_classes, "each output has one name"
    viewer = Viewer(model, loader)
    settings = {"positions": [list(values) for values in positions], "top": TOP}
    made = []
    for number, one in enumerate(index.tolist(), 1):
        title = f"sliders: image {number} of {len(index)}"

        def answer(one: int = one, title: str = title) -> Arrays:
            return _answer(viewer, one, positions, title)

        arrays = cache(f"sliders/{one}", settings, answer)
        top, moved = arrays["top"], arrays["moved"]
        with np.errstate(divide="ignore", invalid="ignore"):  # features that are all the same
            relative = np.where(moved == 0, 0, moved / between)
        made.append(
            Grid(
                index=one,
                pixels=arrays["pixels"],
                positions=positions,
                top=top,
                confidence=arrays["confidence"],
                ds_relative=relative.astype(np.float32),
                names={
                    c: f"class {c}" if names is None else names[c] for c in np.unique(top).tolist()
                },
            )
        )
    return tuple(made)


def _answer(viewer: Viewer, one: int, positions: Positions, title: str) -> Arrays:
    """The arrays of one image's grid: pixels, top, confidence, moved (P,) float64."""
    (image,) = viewer.images(np.array([one]), "decode")
    factors, size = combinations(positions), viewer.settings.batch_size
    starts = range(0, len(factors), size)
    features, top, confidence = [], [], []
    for start in tracked(starts, title, len(starts)):
        table = factors[start : start + size]
        response = viewer.respond(image.pixels.expand(len(table), -1, -1, -1), table)
        # Stable, so that equal logits rank as argmax ranks them.
        best = response.logits.sort(dim=1, descending=True, stable=True).indices[:, :TOP]
        features.append(response.features)
        top.append(best)
        confidence.append(response.logits.softmax(1).gather(1, best))
    f = torch.cat(features).double()
    return {
        "pixels": image.pixels[0].cpu().numpy(),
        "top": torch.cat(top).numpy(),
        "confidence": torch.cat(confidence).numpy(),
        "moved": (f - f[unchanged(positions)]).norm(dim=1).numpy(),
    }


def _check(positions: Positions) -> None:
    if len(positions) != len(KINDS):
        raise UserError(
            f"sliders need positions of {', '.join(KINDS)}, not {len(positions)} of them"
        )
    for kind, values, same in zip(KINDS, positions, IDENTITY, strict=True):
        low, high = (-0.5, 0.5) if kind == "hue" else (0, math.inf)
        if list(values) != sorted(set(values)) or same not in values:
            raise UserError(f"the positions of {kind} must ascend and hold {same:g}: {values}")
        if values[0] < low or not values[-1] <= high or not all(map(math.isfinite, values)):
            raise UserError(f"the positions of {kind} must be from {low:g} to {high:g}: {values}")
