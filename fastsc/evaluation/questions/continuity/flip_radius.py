"""The flip radius: the least change of one kind at which a prediction becomes another."""

from __future__ import annotations

from collections.abc import Callable

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
Floats = NDArray[np.float64]


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
    unchanged = IDENTITY[KINDS.index(kind)]
    for images in viewer.images(index, f"continuity: flips under {kind}"):
        predicted = viewer.respond(images.pixels).predicted

        def there(rows: Tensor, change: Floats, pixels: Tensor = images.pixels) -> Tensor:
            factors = one_kind(kind, (unchanged + change).astype(np.float32), len(rows))
            return viewer.respond(pixels[rows.to(pixels.device)], factors).predicted

        for way, end in zip(("down", "up"), RANGES[kind], strict=True):
            radius[way][images.rows] = walk(predicted, end - unchanged, there)
    radius["either"] = np.minimum(radius["down"], radius["up"])
    return {f"{kind}/{way}": column for way, column in radius.items()}


def walk(predicted: Tensor, span: float, there: Callable[[Tensor, Floats], Tensor]) -> Floats:
    """How far n images have to change, on the way from 0 to `span`, to be predicted otherwise.

    Args:
        predicted: (n,) of the unchanged images.
        span: The signed change at which the way ends.
        there: Rows (m,) of the images and their changes (m,) -> predictions (m,).

    Returns:
        (n,), not signed; inf where nothing flips.
    """

    def flips(rows: NDArray[np.int64], share: Floats) -> NDArray[np.bool_]:
        at = torch.from_numpy(rows)
        changed: NDArray[np.bool_] = (there(at, span * share) != predicted[at]).numpy()
        return changed

    # Shares of the span: `inner` is predicted as the unchanged image is, `outer` otherwise.
    inner, outer = np.zeros(len(predicted)), np.full(len(predicted), np.inf)
    walking = np.arange(len(predicted))
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
