"""Which classes depend on which kind of change? Each kind alone, class by class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastsc.cli.packages import needed
from fastsc.errors import UserError
from fastsc.evaluation.data import class_images, even_share
from fastsc.evaluation.results.answers import Arrays, Rows
from fastsc.evaluation.results.statistics import estimate
from fastsc.evaluation.views import (
    KINDS,
    Images,
    Indices,
    Viewer,
    between,
    changes,
    choose,
    ends,
    one_kind,
)
from fastsc.pipelines import Pipeline, keyed

What = Literal["moved", "flipped"]
Floats = NDArray[np.float64]

WHATS: tuple[What, ...] = ("moved", "flipped")
WAYS = ("down", "up")
LEAST = 5  # images of a class of which a mean says something
RATE = 0.05  # of false discoveries among the classes that are named
# Of the mean distance between images. What moves by less stands still, however surely: a kernel's
# rounding too may be larger in one class than in another.
STILL = 0.05
SHUFFLED = 20_000_000  # elements of all permutations together, but within FEWEST and MOST of them
FEWEST, MOST = 1_000, 10_000
AT_ONCE = 2**21  # elements of the permutations that are held


@dataclass(frozen=True)
class Dependence:
    """How far a class depends on one kind of change, alone.

    Attributes:
        class_name: The class folder.
        kind: "brightness", "contrast", "saturation" or "hue".
        what: "moved": mean distance that the features move, in mean distances between images;
            "flipped": share of predictions that flip. Both directions averaged.
        value, low, high: The figure and its 95 % interval over the class's images; that between
            images is taken as known.
        n: Images of the class.
        p: That the mean of as many images, whatever their class, is as large.
        stands_out: Whether it is more than that of all classes, after the correction for many
            comparisons; and, for "moved", more than a twentieth of the distance between images.
    """

    class_name: str
    kind: str
    what: What
    value: float
    low: float
    high: float
    n: int
    p: float
    stands_out: bool


def choose_images(loader: Pipeline, n: int | None, seed: int) -> tuple[Indices, tuple[str, ...]]:
    """At most about n images, equally many of every class that has LEAST; and what is left out.

    Where n is too few for LEAST of every class, a keyed choice of the classes is taken.

    Raises:
        UserError: Fewer than two classes have LEAST images, or no kind has a strength.
    """
    if not any(loader.settings.strengths):
        raise UserError("bias: the strengths are 0, and nothing changes; take others: --strengths")
    folders = class_images(loader)
    if not folders:
        raise UserError("bias: the images have no labels; take a split with class folders")
    large = {c: own for c, own in folders.items() if len(own) >= LEAST}
    if len(large) < 2:
        raise UserError(
            f"bias: {len(large)} of {len(folders)} class folders have {LEAST} images or more, and "
            "what depends on the class needs two; take a split with more images a class"
        )
    left_out = []
    if (small := len(folders) - len(large)) > 0:
        left_out.append(f"classes: {small} of {len(folders)} have fewer than {LEAST} images")
    room = len(large) if n is None else max(2, n // LEAST)
    if room < len(large):
        left_out.append(f"classes: {room} of {len(large)}, a keyed choice, are looked at")
        among = np.array(sorted(large))
        order = keyed.order(seed, keyed.VALIDATION_EPOCH, among, len(loader.index.classes))
        large = {c: large[c] for c in sorted(order[:room].tolist())}
    counts = np.array([len(own) for own in large.values()])
    limit = max(even_share(counts, int(counts.sum()) if n is None else n), LEAST)
    chosen = [choose(loader, limit, seed, own) for own in large.values()]
    return np.sort(np.concatenate(chosen)), tuple(left_out)


def respond(viewer: Viewer, index: Indices, kinds: Sequence[str]) -> Arrays:
    """What images (m,) answer unchanged, and with each kind alone in both directions.

    Returns:
        "features" (m, D) float32 and "predicted" (m,) of the clean views; "moved/hue/up" (m,)
        ‖f - f'‖₂ and "predicted/hue/up" (m,), and so on.
    """
    strengths = dict(zip(KINDS, viewer.settings.strengths, strict=True))

    def answer(images: Images) -> dict[str, Tensor]:
        clean = viewer.respond(images.pixels)
        columns = {"features": clean.features, "predicted": clean.predicted}
        for kind in kinds:
            for way, end in zip(WAYS, ends(kind, strengths[kind]), strict=True):
                there = viewer.respond(images.pixels, one_kind(kind, end, len(images.pixels)))
                moved = torch.from_numpy(changes(clean, there)["moved"])
                columns |= {f"moved/{kind}/{way}": moved}
                columns |= {f"predicted/{kind}/{way}": there.predicted}
        return columns

    return viewer.columns(index, "bias: each kind alone", answer)


def axis_rows(
    answered: Mapping[str, NDArray], index: Indices, loader: Pipeline, kinds: Sequence[str]
) -> Rows:
    """The table "axes" out of `respond`.

    Columns "moved/KIND" and "flipped/KIND", means of both directions; "between", the distance to
    another image by a fixed keyed derangement; "class", the position of the class folder; and
    "predicted".
    """
    predicted = answered["predicted"]
    columns: Arrays = {"class": loader.index.targets[index], "predicted": predicted}
    for kind in kinds:
        moved = [answered[f"moved/{kind}/{way}"] for way in WAYS]
        flipped = [answered[f"predicted/{kind}/{way}"] != predicted for way in WAYS]
        columns[f"moved/{kind}"] = np.stack(moved).mean(axis=0)
        columns[f"flipped/{kind}"] = np.stack(flipped).mean(axis=0)
    return Rows(index, {"between": between(answered["features"], index, loader), **columns})


# --- class by class ------------------------------------------------------------------------------


def by_class(rows: Rows, kinds: Sequence[str], seed: int) -> Arrays:
    """Figures of C classes under K kinds, moved and flipped: "value", "low", "high", "p".

    Returns:
        (2, K, C) each; "class" (C,) and "n" (C,). NaN where all features are the same.
    """
    groups = rows.columns["class"]
    classes, counts = np.unique(groups, return_counts=True)
    scale = float(rows.columns["between"].mean())
    columns = np.stack([rows.columns[f"{what}/{kind}"] for what in WHATS for kind in kinds]).astype(
        np.float64
    )
    figures = np.full((3, len(columns), len(classes)), np.nan)
    for place, column in enumerate(columns):
        flips = place >= len(kinds)
        unit = 1.0 if flips else scale
        if unit > 0:
            for at, c in enumerate(classes):
                figures[:, place, at] = _figure(column[groups == c] / unit, seed, flips=flips)
    shape = len(WHATS), len(kinds), len(classes)
    value, low, high = (figure.reshape(shape) for figure in figures)
    p = chances(columns, groups, seed).reshape(shape)
    return {"class": classes, "n": counts, "value": value, "low": low, "high": high, "p": p}


def _figure(values: Floats, seed: int, *, flips: bool) -> tuple[float, float, float]:
    """Mean and interval; where nothing varies, of flips a share's, which has a length still."""
    mean = estimate(values[None], "mean", seed=seed)
    if not flips or np.ptp(values) > 0:
        return mean.value, mean.low, mean.high
    hits, n = values.sum(), len(values)
    low, high = (
        estimate((np.arange(n) < bound)[None].astype(np.float64), "share")
        for bound in (np.floor(hits), np.ceil(hits))
    )
    return mean.value, low.low, high.high


def chances(columns: Floats, groups: NDArray[np.int64], seed: int) -> Floats:
    """p of each group's mean being no larger than that of as many rows at random, one-sided.

    The permutation test of a group against the rest. A permutation of all rows is cut into blocks
    of the group's size, each of which is a draw, so that small groups have very many:
    p = (1 + draws as large) / (1 + draws) (Phipson and Smyth, SAGMB 9, 2010).

    Args:
        columns: (k, n), one figure per row.
        groups: (n,) the group of each column.
        seed: Of the permutations.

    Returns:
        (k, G), groups in ascending order.
    """
    n = columns.shape[1]
    names, counts = np.unique(groups, return_counts=True)
    sums = np.stack([columns[:, groups == name].sum(axis=1) for name in names], axis=1)
    # Of equal sums in another order: they differ by rounding.
    slack = 1e-9 * np.abs(columns).sum(axis=1)
    as_large, drawn = np.zeros(sums.shape), np.zeros(len(names))
    permutations = int(np.clip(SHUFFLED // n, FEWEST, MOST))
    at_once = max(1, AT_ONCE // n)
    rng = np.random.default_rng(seed)
    for done in range(0, permutations, at_once):
        m = min(at_once, permutations - done)
        order = rng.permuted(np.tile(np.arange(n), (m, 1)), axis=1)
        for size in np.unique(counts):
            drawn[counts == size] += m * (n // size)
        for row, column in enumerate(columns):
            total = np.zeros((m, n + 1))
            np.cumsum(column[order], axis=1, out=total[:, 1:])
            for size in np.unique(counts):
                of = np.flatnonzero(counts == size)
                draws = np.sort(np.diff(total[:, :: int(size)], axis=1).ravel())
                reached = np.searchsorted(draws, sums[row, of] - slack[row])
                as_large[row, of] += len(draws) - reached
    return (1 + as_large) / (1 + drawn)


def dependences(
    arrays: Mapping[str, NDArray], kinds: Sequence[str], names: Sequence[str]
) -> tuple[Dependence, ...]:
    """The class-by-axis table out of `by_class`, class by class.

    Which stand out: Benjamini and Hochberg (JRSS B 57, 1995) at a rate of false discoveries of 5 %
    over all classes, kinds, and both figures.

    Args:
        arrays: Of `by_class`.
        kinds: As there.
        names: Of the class folders.
    """
    needed("scipy", "bias")
    from scipy.stats import false_discovery_control

    p = arrays["p"]
    adjusted = false_discovery_control(p.ravel(), method="bh").reshape(p.shape)
    with np.errstate(invalid="ignore"):
        stands_out = adjusted <= RATE
        stands_out[WHATS.index("moved")] &= arrays["value"][WHATS.index("moved")] > STILL
    return tuple(
        Dependence(
            names[c],
            kind,
            what,
            value=float(arrays["value"][i, j, at]),
            low=float(arrays["low"][i, j, at]),
            high=float(arrays["high"][i, j, at]),
            n=int(arrays["n"][at]),
            p=float(p[i, j, at]),
            stands_out=bool(stands_out[i, j, at]),
        )
        for at, c in enumerate(arrays["class"])
        for j, kind in enumerate(kinds)
        for i, what in enumerate(WHATS)
    )
