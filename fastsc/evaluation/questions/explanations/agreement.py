"""Do two attribution maps say the same? And of one: how concentrated, how faithful is it?

A map is (H, W), a number a pixel: above 0 what speaks for the output, below 0 what speaks against
it. Its scale means nothing, and no measure here depends on it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Map = NDArray[np.floating[Any]]

SHARE = 0.1  # of the pixels that count as the most important ones
BRIGHT = 99.0  # percentile of the magnitudes at which a map is cut off, drawn or compared
WINDOW = 7  # pixels, of the structural similarity; scikit-image's default


def spearman(a: Map, b: Map) -> float:
    """Rank correlation of two maps over pixels: 1 is the same order, 0 what unrelated ones have.

    A constant map, which has no order, has 0 with any other, also with another constant one: maps
    that say nothing do not agree.
    """
    from scipy.stats import spearmanr

    if empty(a) or empty(b):
        return 0.0
    return float(spearmanr(a, b, axis=None).statistic)


def empty(attribution: Map) -> bool:
    """Whether a map says nothing: it is the same everywhere."""
    return bool(np.ptp(attribution) == 0)


def similarity(a: Map, b: Map) -> float:
    """Structural similarity (Wang et al., IEEE TIP 13, 2004) of two maps as they are drawn.

    Of `drawn` maps moved to [0, 1], where 0 is one half: around 0 itself a map and its negative
    would be alike. Maps of few bright pixels are alike in all the dull ones: the figure is to be
    read against that of unrelated maps.
    """
    from skimage.metrics import structural_similarity

    side = min(WINDOW, *a.shape)
    window = side - (side + 1) % 2
    x, y = ((1 + drawn(attribution)) / 2 for attribution in (a, b))
    return float(structural_similarity(x, y, win_size=window, data_range=1.0))


def drawn(attribution: Map) -> NDArray[np.float64]:
    """A map over the 99th percentile of its magnitudes, cut off at -1 and 1; zeros stay zeros."""
    wide = attribution.astype(np.float64)
    size = np.abs(wide)
    scale = np.percentile(size, BRIGHT) or size.max() or 1.0
    return np.clip(wide / scale, -1, 1)


def overlap(a: Map, b: Map, share: float = SHARE) -> float:
    """Share of the most important pixels that two maps have in common; unrelated ones have `share`.

    The most important are the `share` of pixels with the largest magnitudes; of equal ones, which a
    map of segments has, each counts in part.
    """
    count = max(1, round(share * a.size))
    return float(np.minimum(_important(a, count), _important(b, count)).sum() / count)


def _important(attribution: Map, count: int) -> NDArray[np.float64]:
    """How much of each pixel is among the `count` most important ones: (pixels,) in [0, 1]."""
    size = np.abs(attribution.astype(np.float64)).ravel()
    least = np.partition(size, -count)[-count]
    above, equal = size > least, size == least
    return above + equal * ((count - above.sum()) / equal.sum())


def entropy(attribution: Map) -> float:
    """Entropy of |map| normalized to sum 1, over its maximum, the logarithm of the pixels.

    1 where all pixels are as important, 0 where one alone is. An empty map points nowhere: 1.
    """
    size = np.abs(attribution.astype(np.float64)).ravel()
    if not size.any():
        return 1.0
    p = size[size > 0] / size.sum()
    return float(-(p * np.log(p)).sum() / np.log(attribution.size))


def gini(attribution: Map) -> float:
    """Gini coefficient of |map| over its N pixels.

    0 where all are as important, 1 - 1/N where one alone is (Hurley and Rickard, IEEE Trans. Inf.
    Theory 55, 2009). An empty map has 0.
    """
    size = np.sort(np.abs(attribution.astype(np.float64)).ravel())
    n = len(size)
    if not size.any():
        return 0.0
    return float(2 * (np.arange(1, n + 1) * size).sum() / (n * size.sum()) - (n + 1) / n)


def insertion_deletion(
    score: Callable[[Tensor], Tensor],
    image: Tensor,
    attribution: Tensor,
    blurred: Tensor,
    empty: Tensor,
    steps: int,
) -> tuple[float, float]:
    """Areas under the score while pixels come and go, the most important first.

    Petsiuk et al. (RISE, BMVC 2018): insertion puts the pixels of the image into a blurred one,
    deletion takes them out of it. A map that tells what the score rests on has a large area of the
    former and a small one of the latter. Pixels are in the order of the signed map; equal ones in
    that of their places.

    Args:
        score: (2 · (steps + 1), 3, H, W) -> (2 · (steps + 1),), of one batch.
        image: (3, H, W).
        attribution: (H, W), the map.
        blurred: (3, H, W), into which pixels are inserted.
        empty: Of a pixel that is gone: what broadcasts to (3, H, W).
        steps: Equal shares of pixels after which the score is taken, and before the first.

    Returns:
        Insertion and deletion: trapezoids over the share of pixels from 0 to 1.
    """
    order = attribution.flatten().argsort(descending=True, stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device)
    shares = np.arange(steps + 1) / steps
    counts = torch.from_numpy(np.rint(shares * len(order))).to(order.device)
    changed = (place < counts[:, None]).view(-1, 1, *attribution.shape)  # (steps + 1, 1, H, W)
    batch = torch.cat([torch.where(changed, image, blurred), torch.where(changed, empty, image)])
    scores = score(batch).double().cpu().numpy().reshape(2, -1)
    insertion, deletion = np.trapezoid(scores, shares, axis=1).tolist()
    return insertion, deletion
