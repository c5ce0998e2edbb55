"""Where the labels of points in a plane go, so that none covers another.

Places are pixels with y upward, as matplotlib's display has them. The same points give the same
places: the search starts from fixed seeds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Box = tuple[float, float, float, float]  # left, bottom, right, top

GAP = 4.0  # between two labels
RINGS = (10.0, 15.0, 26.0, 40.0, 58.0, 80.0)  # from a point to its label
LEADER = 17.0  # between them; from here on a thin line says whose label it is
# Which side of its point a label is on, in halves of its own size; the best to read comes first.
_SIDES = np.array([
    (1, 0), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1), (0, 1), (0, -1),
    (1, 0.5), (1, -0.5), (-1, 0.5), (-1, -0.5), (0.5, 1), (-0.5, 1), (0.5, -1), (-0.5, -1),
])  # fmt: skip
# Prices of what a place may do to others; a step away from its point costs about 10.
_COVERS, _CROSSES, _HIDES, _LEAVES, _MISLEADS = 1000.0, 60.0, 400.0, 4000.0, 150.0
_STARTS, _ROUNDS = 40, 8
_ALONG = np.linspace(0.15, 0.95, 6)  # places along a leader that stand for it


def place_labels(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    room: Box,
    *,
    hard: Sequence[Box] = (),
    soft: Sequence[Box] = (),
) -> list[Box]:
    """A box for each point's label; one at LEADER or farther needs a line to its point.

    Args:
        points: Their places.
        sizes: Width and height of their labels.
        room: What a label should not leave.
        hard: What a label must not cover, such as markers and other words.
        soft: What it had better not cover, such as intervals.
    """
    if not points:
        return []
    at, half = np.array(points, float)[:, None], np.array(sizes, float)[:, None] / 2  # (P, 1, 2)
    side, ring = np.tile(_SIDES, (len(RINGS), 1)), np.repeat(RINGS, len(_SIDES))  # (C, 2), (C)
    middle = at + side * (half + ring[:, None])
    boxes = np.concatenate([middle - half, middle + half], -1)  # (P, C, 4)
    end = np.clip(at, boxes[..., :2], boxes[..., 2:])
    led = np.hypot(*np.moveaxis(end - at, -1, 0)) >= LEADER
    # A candidate takes its box and, with a leader, the places along that.
    along = at[:, :, None] + (end - at)[:, :, None] * _ALONG[:, None]
    along = np.where(led[..., None, None], along, middle[:, :, None])
    takes = np.concatenate([boxes[:, :, None], np.concatenate([along, along], -1)], 2)

    # Near its point is better than far, and among equals the first side.
    cost = 0.35 * ring + 6.0 * (np.arange(len(ring)) // len(_SIDES))
    cost = np.tile(cost + 0.6 * np.tile(np.arange(len(_SIDES)), len(RINGS)), (len(points), 1))
    cost += _LEAVES * ((boxes[..., :2] < room[:2]) | (boxes[..., 2:] > room[2:])).any(-1)
    # A label that is nearer to another point would be read as that one's, unless it has a leader.
    away = np.hypot(*np.moveaxis(
        at[:, 0] - np.clip(at[:, 0], boxes[:, :, None, :2], boxes[:, :, None, 2:]), -1, 0
    ))  # (P, C, P)  # fmt: skip
    own = np.moveaxis(np.diagonal(away, axis1=0, axis2=2), -1, 0)
    cost += _MISLEADS * np.where(led, 0.3, 1.0) * ((away < 1.4 * own[..., None]).sum(-1) - 1)
    for kinds, price in ((hard, _HIDES), (soft, _CROSSES)):
        if kinds:
            cost += price * _meet(takes, np.array(kinds, float), 2.5).any(2).sum(-1)
    return [(float(a), float(b), float(c), float(d)) for a, b, c, d in _search(cost, takes)]


def _search(cost: Floats, takes: Floats) -> Floats:
    """For each label the box of a low sum of costs: descents from several starts.

    Args:
        cost: (P, C), of a candidate alone.
        takes: (P, C, K, 4), what it takes: its box first.
    """
    n = len(cost)
    random = np.random.default_rng(0)
    best, least = takes[:, 0], np.inf
    for _ in range(_STARTS):
        chosen = takes[np.arange(n), cost.argmin(1)]
        order = random.permutation(n)
        for _ in range(_ROUNDS):
            before, total = chosen.copy(), 0.0
            for i in order:
                others = np.delete(chosen, i, 0).reshape(-1, 4)
                all_costs = cost[i] + _COVERS * _meet(takes[i], others, GAP).any(1).sum(-1)
                pick = int(all_costs.argmin())
                chosen[i], total = takes[i, pick], total + float(all_costs[pick])
            if (before == chosen).all():
                break
        if total < least - 1e-9:
            best, least = chosen, total
    return best[:, 0]


def _meet(a: Floats, b: Floats, gap: float) -> NDArray[np.bool_]:
    """(..., B): whether two boxes (..., 4) and (B, 4) are closer than `gap` in both directions."""
    left, bottom, right, top = np.ascontiguousarray(np.moveaxis(a, -1, 0))[..., None]
    x = (left < b[:, 2] + gap) & (right > b[:, 0] - gap)
    return x & (bottom < b[:, 3] + gap) & (top > b[:, 1] - gap)
