"""Where labels go, so that none covers another: beside points of a plane, and along a side.

Places are pixels with y upward, as matplotlib's display has them. The same points give the same
places: the search starts from fixed seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
_COVERS, _CROSSES, _HIDES, _LEAVES, _MISLEADS = 1000.0, 200.0, 400.0, 4000.0, 90.0
_STARTS = 40


@dataclass(frozen=True)
class Placed:
    """A label's box, and the end at it of the line from its point, if it has one."""

    box: Box
    leader: tuple[float, float] | None


def beside(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    room: Box,
    *,
    hard: Sequence[Box] = (),
    soft: Sequence[Box] = (),
) -> list[Placed]:
    """A place for each point's label.

    Args:
        points: Their places.
        sizes: Width and height of their labels.
        room: What a label should not leave.
        hard: What a label must not cover, such as markers and other words.
        soft: What it had better not cover, such as intervals.
    """
    if not points:
        return []
    at, half = np.array(points, float), np.array(sizes, float) / 2
    n, per = len(points), len(_SIDES) * len(RINGS)
    ring = np.repeat(RINGS, len(_SIDES))  # (C,)
    side = np.tile(_SIDES, (len(RINGS), 1))  # (C, 2)
    middle = at[:, None] + side * (half[:, None] + ring[None, :, None])  # (P, C, 2)
    low, high = middle - half[:, None], middle + half[:, None]
    boxes = np.concatenate([low, high], -1).reshape(-1, 4)
    own = np.repeat(at, per, 0)
    ends = np.clip(own, boxes[:, :2], boxes[:, 2:])
    # A leader is judged by places along it, from where it leaves its marker.
    along = own[:, None] + (ends - own)[:, None] * np.linspace(0.15, 0.95, 12)[None, :, None]
    led = np.hypot(*(ends - own).T) >= LEADER

    # Near its point is better than far, and among equals the first side.
    steps = np.repeat(np.arange(len(RINGS)), len(_SIDES))
    cost = np.tile(0.35 * ring + 6.0 * steps, n)
    cost += np.tile(0.6 * np.arange(len(_SIDES)), n * len(RINGS))
    # A label that is nearer to another point would be read as that one's, unless it has a leader.
    reach = np.hypot(*(at[None] - np.clip(at[None], boxes[:, None, :2], boxes[:, None, 2:])).T).T
    mine = np.repeat(np.eye(n, dtype=bool), per, 0)  # (P * C, P)
    nearer = ~mine & (reach < 1.4 * reach[mine][:, None])
    cost += _MISLEADS * np.where(led, 0.3, 1.0) * nearer.sum(1)
    inside = (boxes[:, :2] >= room[:2]).all(1) & (boxes[:, 2:] <= room[2:]).all(1)
    cost += _LEAVES * ~inside
    for kinds, price, start in ((hard, _HIDES, True), (soft, _CROSSES / 4, False)):
        if kinds:
            others = np.array(kinds, float)
            cost += price * _meet(boxes, others, 2.5).sum(1)
            # A leader starts at its own marker, but should not run along its own interval.
            passes = _passes(along, others) & ~(_within(own, others) & start)
            cost += price / 2 * (passes & led[:, None]).sum(1)
    pair = _COVERS * _meet(boxes, boxes, GAP)
    through = _CROSSES * (_passes(along, boxes) & led[:, None])
    pair += through + through.T
    pair += _CROSSES * (_cross(own, ends) & led[:, None] & led[None])
    both = np.asarray(pair, np.float64).reshape(n, per, n, per)
    chosen = _search(cost.reshape(n, per), both)
    found = []
    for row in np.arange(n) * per + chosen:
        left, bottom, right, top = (float(x) for x in boxes[row])
        end = (float(ends[row, 0]), float(ends[row, 1])) if led[row] else None
        found.append(Placed((left, bottom, right, top), end))
    return found


def spread(
    wanted: Sequence[float], heights: Sequence[float], low: float, high: float
) -> list[float]:
    """Middles of labels along a side, near those wanted, between two ends, none on another.

    Where there is no room for all, they are closer.
    """
    short = min(1.0, (high - low) / (sum(heights) or 1.0))
    tall = [height * short for height in heights]

    def start(group: Sequence[int]) -> float:
        """The lower end of labels on top of each other, in the middle of what they want."""
        length, offset = sum(tall[i] for i in group), 0.0
        ideal = 0.0
        for i in group:
            ideal += (wanted[i] - offset - tall[i] / 2) / len(group)
            offset += tall[i]
        return max(low, min(ideal, high - length))

    groups: list[list[int]] = []
    for i in sorted(range(len(wanted)), key=lambda i: (wanted[i], i)):
        groups.append([i])
        while len(groups) > 1 and start(groups[-1]) < (
            start(groups[-2]) + sum(tall[i] for i in groups[-2]) - 1e-9
        ):
            last = groups.pop()
            groups[-1] += last
    places = [0.0] * len(wanted)
    for group in groups:
        at = start(group)
        for i in group:
            places[i] = at + tall[i] / 2
            at += tall[i]
    return places


def _search(cost: Floats, pair: Floats) -> NDArray[np.int64]:
    """For each label the candidate of a low sum of costs: descents from several starts.

    Args:
        cost: (P, C), of a candidate alone.
        pair: (P, C, P, C), of two at once.
    """
    n = len(cost)
    rows = np.arange(n)
    random = np.random.default_rng(0)
    best, least = cost.argmin(1), float("inf")
    for start in range(_STARTS):
        chosen = cost.argmin(1)
        order = rows if start == 0 else random.permutation(n)
        placed = np.zeros(n, bool)
        for _ in range(12):
            before = chosen.copy()
            for i in order:
                placed[i] = False
                others = rows[placed]
                met = pair[i][:, others, chosen[others]].sum(1)
                chosen[i] = int((cost[i] + met).argmin())
                placed[i] = True
            if (before == chosen).all():
                break
        met = pair[rows, chosen][:, rows, chosen]
        total = float(cost[rows, chosen].sum() + (met.sum() - np.trace(met)) / 2)
        if total < least - 1e-9:
            best, least = chosen, total
    return best


def _meet(a: Floats, b: Floats, gap: float) -> NDArray[np.bool_]:
    """(A, B): whether two boxes are closer than `gap` in both directions."""
    left, bottom, right, top = (a[:, None, i] for i in range(4))
    return (
        (left < b[None, :, 2] + gap)
        & (b[None, :, 0] < right + gap)
        & (bottom < b[None, :, 3] + gap)
        & (b[None, :, 1] < top + gap)
    )


def _within(at: Floats, b: Floats) -> NDArray[np.bool_]:
    """(..., B): whether places (..., 2) lie in boxes."""
    x, y = at[..., None, 0], at[..., None, 1]
    return (x > b[:, 0]) & (x < b[:, 2]) & (y > b[:, 1]) & (y < b[:, 3])


def _passes(along: Floats, b: Floats) -> NDArray[np.bool_]:
    """(A, B): whether a line, by places (A, K, 2) on it, passes through boxes."""
    hit = np.zeros((len(along), len(b)), bool)
    for k in range(along.shape[1]):
        hit |= _within(along[:, k], b)
    return hit


def _cross(a: Floats, b: Floats) -> NDArray[np.bool_]:
    """(A, A): whether two of the lines from a to b (A, 2) cross."""

    def side(p: Floats, q: Floats, r: Floats) -> Floats:
        return (q[..., 0] - p[..., 0]) * (r[..., 1] - p[..., 1]) - (q[..., 1] - p[..., 1]) * (
            r[..., 0] - p[..., 0]
        )

    p, q, r, s = a[:, None], b[:, None], a[None], b[None]
    return (side(p, q, r) * side(p, q, s) < 0) & (side(r, s, p) * side(r, s, q) < 0)
