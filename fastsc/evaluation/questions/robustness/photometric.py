"""The worst light and colors of the training box: accuracy where an adversary chooses the factors.

The share of random views that are predicted rightly says what happens on average. Whoever may
choose brightness, contrast, saturation and hue within the same box finds the view that is not, and
a claim of continuity has to hold there too. It is a search: the true worst accuracy is at most the
one found.
"""

from __future__ import annotations

import contextlib
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastsc.cli.packages import needed
from fastsc.evaluation.results.answers import Arrays, PartCache, in_parts
from fastsc.evaluation.views import KINDS, Factors, Indices, Viewer, slices
from fastsc.kernels.color import IDENTITY, color_jitter
from fastsc.pipelines import keyed

RANDOM, SOBOL, STEPS = 16, 32, 4
STARTS = 4  # of the walks along the gradient
APART = 0.3  # of a side of the box: starts differ by more in at least one factor
FIRST, LAST = 0.5, 0.1  # lengths of a walk's steps, where the box's sides are 1
POLLS, POLL = 5, 0.15  # rounds of the search without gradients, and its first step
SPREAD = 1.5  # of the Sobol points about the box's middle: a third of each factor is at an end
AT_ONCE = 32  # views of an image in one pass, whatever the loader's batch: see `photometric`
PASSES = 2_500  # passes of an image of 224 px in a part; a gradient counts as three
LARGEST = 64  # images of a part

Floats = NDArray[np.float64]


def photometric(
    viewer: Viewer,
    index: Indices,
    labels: NDArray[np.int64],
    *,
    seed: int,
    cache: PartCache,
    random: int = RANDOM,
    sobol: int = SOBOL,
    steps: int = STEPS,
) -> Arrays:
    """Whether any factors in the loader's box make an image's prediction wrong, and the worst ones.

    The box: brightness, contrast and saturation in [max(0, 1 - s), 1 + s], hue in [-s, s] turns,
    with the loader's strengths s. The margin of a view is the logit of the label less the largest
    other logit. It is sought least, in four stages, each image by itself:

    1. the unchanged image and `random` keyed draws, uniform in the box;
    2. the box's 16 corners and `sobol` points of a scrambled Sobol sequence (scipy), keyed by seed
       and dataset index, spread by half as much again and clamped, since the worst factors mostly
       lie at an end;
    3. `steps` steps down the gradient of the margin from each of the 4 best places that lie apart,
       through `fastsc.kernels.color.color_jitter` in float32, projected on the box (projected
       gradient descent, Madry et al., arXiv 1706.06083, in four dimensions). A network that lets
       no gradient through goes without;
    4. a compass search from the best place (Kolda, Lewis and Torczon, SIAM Review 45, 2003): both
       neighbours along each factor, the step halved where none is better. It moves where a clamp
       has let the gradient die.

    An image that is found wrong is not searched in the later stages: its margin is the least found
    so far. What counts is always the answer of `viewer.respond`, in the precision of the loader.

    An image's views go through the model without other images, in passes whose size is not the
    loader's: the results depend neither on its batch nor on which other images are searched.

    Costs of an image in forward passes, a gradient being three: 1 + random where it is found wrong
    at once, else up to 57 + random + sobol + 16 · steps.

    Args:
        viewer: Of the model and the loader.
        index: (m,) different dataset indices, m at least 1.
        labels: (m,) the right output of each, all known.
        seed: Of the draws, from 0 to 2**64 - 1.
        cache: Of parts; see `fastsc.evaluation.results.answers`.
        random: Draws, at least 1.
        sobol: 0 or a power of two.
        steps: Of each walk along the gradient; 0: no walks.

    Returns:
        Columns (m,) float64: "photometric_random", the share of the random draws that is predicted
        rightly; "photometric_worst", 1.0 where every view that was tried is, else 0.0;
        "margin", the least found, negative where the prediction is wrong (0 is a tie); and its
        factors "worst/brightness", "worst/contrast", "worst/saturation", "worst/hue".

    Raises:
        UserError: scipy is not installed; or an image does not decode.
    """
    needed("scipy", "robustness: the search for the worst colors")
    assert 0 < len(index) == len(labels)
    assert ((labels >= 0) & (labels < viewer.model.n_classes)).all(), "an image without an output"
    assert random >= 1, "no average without draws"
    assert sobol & (sobol - 1) == 0, "a Sobol sequence is balanced at powers of two alone"
    settings = {
        "seed": seed,
        "strengths": viewer.settings.strengths,
        "search": (random, sobol, steps, STARTS, POLLS),
    }
    size = _images_a_part(viewer.settings.resolution, random, sobol, steps)
    return in_parts(
        cache,
        "photometric",
        slices(len(index), size),
        settings,
        lambda rows: _search(viewer, index[rows], labels[rows], seed, random, sobol, steps),
        lambda rows: {"index": index[rows].tolist(), "labels": labels[rows].tolist()},
    )


def _images_a_part(resolution: int, random: int, sobol: int, steps: int) -> int:
    each = 1 + random + 16 + sobol + 4 * STARTS * steps + 2 * len(KINDS) * POLLS
    return max(1, min(LARGEST, round(PASSES * (224 / resolution) ** 2 / each)))


class _Box(NamedTuple):
    """The factors that training may draw."""

    low: Factors  # (4,)
    high: Factors  # (4,)

    @classmethod
    def of(cls, strengths: tuple[float, float, float, float]) -> _Box:
        alone = np.array(strengths)
        unchanged = np.array(IDENTITY)
        low, high = unchanged - alone, unchanged + alone
        low[:3] = np.maximum(low[:3], 0)
        # To float32 inward: no factor is reported that lies outside by its rounding.
        low_f, high_f = low.astype(np.float32), high.astype(np.float32)
        return cls(
            np.where(low_f < low, np.nextafter(low_f, np.float32(np.inf)), low_f),
            np.where(high_f > high, np.nextafter(high_f, -np.float32(np.inf)), high_f),
        )

    @property
    def sides(self) -> Factors:
        """(4,): lengths."""
        return self.high - self.low

    def clamp(self, factors: Floats | Factors) -> Factors:
        """(k, 4) factors, each moved into the box."""
        return np.clip(factors.astype(np.float32), self.low, self.high)

    def corners(self) -> Factors:
        """(k, 4) different corners: 16, or fewer where a strength is 0."""
        return np.unique(np.array(list(product(*zip(self.low, self.high, strict=True)))), axis=0)

    def sobol(self, n: int, key: tuple[int, int]) -> Factors:
        """(n, 4) points of a scrambled Sobol sequence, spread and clamped."""
        from scipy.stats import qmc

        if n == 0:
            return np.empty((0, 4), np.float32)
        points = qmc.Sobol(4, seed=np.random.default_rng(key)).random(n)
        return self.clamp(self.low + self.sides * (0.5 + SPREAD * (points - 0.5)))


class _Seen:
    """What is known of one image.

    Args:
        pixels: (R, R, 3) uint8.
        label: Its right output.
    """

    def __init__(self, viewer: Viewer, pixels: Tensor, label: int) -> None:
        self.viewer, self.pixels, self.label = viewer, pixels, label
        self.factors: Factors = np.empty((0, 4), np.float32)
        self.margins: Floats = np.empty(0)
        self.right: NDArray[np.bool_] = np.empty(0, np.bool_)

    def evaluate(self, factors: Factors) -> None:
        """Takes in the views with factors (k, 4) as the model sees them."""
        for at in range(0, len(factors), AT_ONCE):
            some = factors[at : at + AT_ONCE]
            answer = self.viewer.respond(self.pixels.expand(len(some), -1, -1, -1), some)
            margins = _margin(answer.logits.double(), self.label).numpy()
            right = (answer.predicted == self.label).numpy()
            self.factors = np.concatenate([self.factors, some])
            self.margins = np.concatenate([self.margins, margins])
            self.right = np.concatenate([self.right, right])

    @property
    def standing(self) -> bool:
        """Nothing that was seen is predicted wrongly."""
        return bool(self.right.all())

    @property
    def order(self) -> NDArray[np.int64]:
        """(k,) rows of what was seen, the least margin first; of equal ones a wrong one."""
        return np.lexsort((self.right, self.margins))

    def slope(self, factors: Factors) -> Floats:
        """(k, 4): derivatives of the margins with respect to the factors, 0 where there are none.

        In float32 through torch's own color arithmetic, which is within rounding of what the model
        sees in `evaluate`.
        """
        s, device = self.viewer.settings, self.pixels.device
        mean, std = (torch.tensor(rgb, device=device)[:, None, None] for rgb in (s.mean, s.std))
        at = torch.from_numpy(factors).to(device, copy=True)
        # At a hue of exactly 0 the image is passed through, and nothing is learnt of turning it.
        at[:, 3] = torch.where(at[:, 3] == 0, 1e-6, at[:, 3])
        image = self.pixels.permute(2, 0, 1).float() / 255
        gradient = None
        with torch.enable_grad(), contextlib.suppress(RuntimeError):  # a model without gradients
            view = color_jitter(image.expand(len(at), -1, -1, -1), at.requires_grad_())
            _, logits = self.viewer.model((view - mean) / std)
            margins = _margin(logits.double(), self.label)
            if margins.requires_grad:
                (gradient,) = torch.autograd.grad(margins.sum(), at, allow_unused=True)
        if gradient is None:
            return np.zeros(factors.shape)
        return np.nan_to_num(gradient.double().cpu().numpy(), posinf=0, neginf=0)


def _margin(logits: Tensor, label: int) -> Tensor:
    """(k, C) -> (k,): the label's logit less the largest other."""
    others = torch.cat([logits[:, :label], logits[:, label + 1 :]], 1)
    return logits[:, label] - others.amax(1)


# --- the search ----------------------------------------------------------------------------------


def _search(
    viewer: Viewer,
    index: Indices,
    labels: NDArray[np.int64],
    seed: int,
    random: int,
    sobol: int,
    steps: int,
) -> Arrays:
    """The columns of `photometric`, of some images."""
    box, n = _Box.of(viewer.settings.strengths), len(viewer.loader.index)
    draws = np.stack(
        [keyed.factors(seed, draw, n, viewer.settings.strengths)[index] for draw in range(random)],
        axis=1,
    )  # (m, random, 4)
    names = "photometric_random", "photometric_worst", "margin", *(f"worst/{k}" for k in KINDS)
    columns = np.empty((len(index), len(names)))
    for images in viewer.images(index, "robustness: the worst light and colors"):
        for row, pixels in zip(range(len(index))[images.rows], images.pixels, strict=True):
            seen = _Seen(viewer, pixels, int(labels[row]))
            seen.evaluate(box.clamp(np.concatenate([[IDENTITY], draws[row]])))
            average = seen.right[1:].mean()
            if seen.standing:
                points = box.sobol(sobol, (seed, int(index[row])))
                seen.evaluate(np.concatenate([box.corners(), points]))
            if seen.standing and steps:
                _walk(seen, box, steps)
            if seen.standing:
                _poll(seen, box)
            least = seen.order[0]
            columns[row] = average, seen.standing, seen.margins[least], *seen.factors[least]
    return dict(zip(names, columns.T.copy(), strict=True))


def _walk(seen: _Seen, box: _Box, steps: int) -> None:
    """Projected gradient descent on the margin, from the best places that lie apart."""
    at = _starts(seen, box)
    on_the_way = []
    for length in np.geomspace(FIRST, LAST, steps):
        down = -seen.slope(at) * box.sides
        # What leads out of the box has no part in the step's length: it is clamped anyway.
        down[((at <= box.low) & (down < 0)) | ((at >= box.high) & (down > 0))] = 0
        norm = np.linalg.norm(down, axis=1, keepdims=True)
        at = box.clamp(at + length * box.sides * down / np.where(norm > 0, norm, 1))
        on_the_way.append(at)
    seen.evaluate(np.concatenate(on_the_way))


def _starts(seen: _Seen, box: _Box) -> Factors:
    """(k, 4), at most STARTS: the least margins that are not one and the same valley's."""
    far = APART * box.sides
    chosen: list[Factors] = []
    for place in seen.factors[seen.order]:
        if all((np.abs(place - other) > far).any() for other in chosen):
            chosen.append(place)
        if len(chosen) == STARTS:
            break
    return np.stack(chosen)


def _poll(seen: _Seen, box: _Box) -> None:
    """Compass search: both neighbours along each factor, until one is wrong."""
    length = POLL
    along = np.concatenate([np.eye(4), -np.eye(4)]) * box.sides
    for _ in range(POLLS):
        best = seen.order[0]
        near = box.clamp(seen.factors[best] + length * along)
        near = near[(near != seen.factors[best]).any(1)]
        seen.evaluate(near)
        if not seen.standing:
            return
        if seen.order[0] == best:
            length /= 2
