"""The flip radius: the least change of one kind at which a prediction becomes another."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastsc.evaluation.results.answers import Arrays
from fastsc.evaluation.views import KINDS, Indices, Viewer, one_kind
from fastsc.kernels.color import IDENTITY

# Ends of the search: black, grey and grey; three times as much; half the color circle.
RANGES = {
    "brightness": (0.0, 3.0),
    "contrast": (0.0, 3.0),
    "saturation": (0.0, 3.0),
    "hue": (-0.5, 0.5),
}
STEPS = 10  # of the way outward, in each direction
HALVINGS = 6  # of the step in which the first flip lies: 1/64 of it is left


def radii(viewer: Viewer, index: Indices, kind: str) -> Arrays:
    """The least change that flips the prediction, in both directions, of each image.

    Nothing is assumed of what lies further out. Each direction is walked in STEPS equal steps from
    the unchanged image to the end of RANGES, up to the first that is predicted otherwise; the step
    that led there is halved HALVINGS times, and its outer end is the radius. An island of flips
    that lies between two steps is not seen.

    Returns:
        Columns (m,) "KIND/down", "KIND/up", "KIND/either": |factor - 1|, for hue turns; inf where
        nothing flips within the range.
    """
    radius = {way: np.full(len(index), np.inf) for way in ("down", "up")}
    for images in viewer.images(index, f"continuity: flips under {kind}"):
        predicted = viewer.respond(images.pixels).predicted
        for way, end in zip(("down", "up"), RANGES[kind], strict=True):
            radius[way][images.rows] = _walk(viewer, images.pixels, predicted, kind, end)
    radius["either"] = np.minimum(radius["down"], radius["up"])
    return {f"{kind}/{way}": column for way, column in radius.items()}


def _walk(
    viewer: Viewer, pixels: Tensor, predicted: Tensor, kind: str, end: float
) -> NDArray[np.float64]:
    """(n, R, R, 3) images, their predictions, a factor -> (n,) radius on the way to that factor."""
    unchanged = IDENTITY[KINDS.index(kind)]
    span = end - unchanged

    def flips(rows: NDArray[np.int64], share: NDArray[np.float64]) -> NDArray[np.bool_]:
        at = torch.from_numpy(rows)
        factors = one_kind(kind, (unchanged + span * share).astype(np.float32), len(rows))
        there = viewer.respond(pixels[at.to(pixels.device)], factors).predicted
        changed: NDArray[np.bool_] = (there != predicted[at]).numpy()
        return changed

    # Shares of the span: `inner` is predicted as the unchanged image is, `outer` otherwise.
    inner, outer = np.zeros(len(pixels)), np.full(len(pixels), np.inf)
    walking = np.arange(len(pixels))
    for step in range(1, STEPS + 1):
        if not len(walking):
            break
        share = np.full(len(walking), step / STEPS)
        flipped = flips(walking, share)
        outer[walking[flipped]] = step / STEPS
        walking = walking[~flipped]
        inner[walking] = step / STEPS
    rows = np.flatnonzero(np.isfinite(outer))
    for _ in range(HALVINGS if len(rows) else 0):
        middle = (inner[rows] + outer[rows]) / 2
        flipped = flips(rows, middle)
        outer[rows[flipped]] = middle[flipped]
        inner[rows[~flipped]] = middle[~flipped]
    return outer * abs(span)
