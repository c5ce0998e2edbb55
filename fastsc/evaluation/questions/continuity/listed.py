"""The listed perturbations (`--perturb`), each measured as the four kinds of color change are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
from torch import Tensor

from fastsc.evaluation.questions.continuity.flip_radius import HALVINGS, STEPS, Floats, walk
from fastsc.evaluation.results.answers import Arrays, PartCache
from fastsc.evaluation.results.measures import Measure, Name
from fastsc.evaluation.results.statistics import Statistic
from fastsc.evaluation.views import Indices, Viewer, changes
from fastsc.kernels.perturbations import OPERATIONS, Change, perturb_bytes
from fastsc.pipelines import Pipeline
from fastsc.pipelines.perturb_list import Listed
from fastsc.pipelines.perturbing import Uniforms, ends_of, perturbations

DRAWS = 2  # of a function of one's own, an image
AS_DRAWN = "1"  # the level of what has no strength to vary
WHOLE = "listed"  # the kind of all of them and the colors: P as validation during training has it
CurveFamily = tuple[str, Statistic, str, tuple[str, ...]]  # family, column, and over which others
View = Callable[[Tensor, slice], Tensor]  # of pixels and their rows


def ranges(loader: Pipeline) -> dict[str, tuple[float, float]]:
    """Label -> the ends of the search for a flip, as amounts; of those that have a radius."""
    return {
        entry.label: (OPERATIONS[entry.name].low, OPERATIONS[entry.name].high)
        for entry in loader.settings.perturbations.entries
        if entry.strength is not None and entry.name != "grayscale"
    }


def levels_of(entry: Listed, levels: Sequence[float]) -> dict[str, float]:
    """Name -> strength, of the multiples of an entry's strength at which something changes."""
    if entry.strength is None or (entry.name == "grayscale" and entry.strength):
        return {AS_DRAWN: 1.0}
    operation, named = OPERATIONS[entry.name], dict[str, float]()
    for level in levels:
        strength = min(level * entry.strength, operation.high)
        strength = float(round(strength)) if operation.whole else strength
        if strength > 0:
            named.setdefault(f"{strength:.4g}", strength)
    return named


def measured(
    viewer: Viewer, index: Indices, levels: Sequence[float], seed: int, cache: PartCache
) -> tuple[Arrays, Arrays]:
    """Columns of the curves, "moved/blur/2", and of the radii, "blur/up", of images (n,)."""
    listed = viewer.loader.settings.perturbations
    curves: Arrays = {}
    radii: Arrays = {}
    for entry, named in zip(listed.entries, listed.named(), strict=True):
        settings = {"perturb": named, "label": entry.label, "n": len(index), "seed": seed}
        curves |= cache(
            f"curves-{entry.label}",
            settings | {"levels": tuple(levels)},
            partial(_curves, viewer, index, entry, levels, seed),
        )
        if entry.label in ranges(viewer.loader):
            radii |= cache(
                f"radius-{entry.label}",
                settings | {"search": (STEPS, HALVINGS)},
                partial(_radii, viewer, index, entry, seed),
            )
    return curves, radii


def whole(viewer: Viewer) -> Arrays:
    """Every image once, with all of P: as validation during training sees it."""
    loader = viewer.loader
    index, plan = loader.index.usable, loader.plan()

    def answer(images: Tensor, rows: slice) -> Arrays:
        own = index[rows]
        second = loader.second(images, plan.uniforms[own])
        return changes(viewer.respond(images), viewer.respond(second, plan.factors[own]))

    parts = [answer(*images) for images in viewer.images(index, "continuity: all perturbations")]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _curves(
    viewer: Viewer, index: Indices, entry: Listed, levels: Sequence[float], seed: int
) -> Arrays:
    named = levels_of(entry, levels)
    views = {name: list(_views(viewer, index, entry, s, seed)) for name, s in named.items()}
    columns: Arrays = {}
    for pixels, rows in viewer.images(index, f"continuity: {entry.label} over strength"):
        clean = viewer.respond(pixels)
        for name, of in views.items():
            for view in of:
                for what, values in changes(clean, viewer.respond(view(pixels, rows))).items():
                    place = f"{what}/{entry.label}/{name}"
                    columns.setdefault(place, np.zeros(len(index)))[rows] += values / len(of)
    return columns


def _views(
    viewer: Viewer, index: Indices, entry: Listed, strength: float, seed: int
) -> Iterator[View]:
    """What an image is compared with: both ends of the strength, or draws."""
    if entry.strength is None:
        alone = perturbations((entry.name,))
        for draw in range(DRAWS):
            drawn = alone.uniforms(seed, draw, len(viewer.loader.index))[index]
            yield lambda pixels, rows, drawn=drawn: alone(pixels, drawn[rows])  # type: ignore[misc]
        return
    keys = _keys(viewer, index, entry, seed)
    for end in ends_of(entry.name, strength):
        yield partial(_at, entry.name, end, keys)


def _at(name: str, amount: float, keys: Uniforms, pixels: Tensor, rows: slice) -> Tensor:
    own = keys[rows].astype(np.float64)
    return perturb_bytes(pixels, [Change(name, np.full(len(pixels), amount), own)])


def _keys(viewer: Viewer, index: Indices, entry: Listed, seed: int) -> Uniforms:
    """(n, k) what chance within an image depends on, the same at every amount."""
    alone = perturbations((str(entry),))
    return alone.uniforms(seed, 0, len(viewer.loader.index))[index][:, 1:]


def _radii(viewer: Viewer, index: Indices, entry: Listed, seed: int) -> Arrays:
    """Columns "LABEL/down", where amounts below 0 exist, and "LABEL/up": |amount|, or inf."""
    operation, keys = OPERATIONS[entry.name], _keys(viewer, index, entry, seed)
    ends = {"down": operation.low, "up": operation.high}
    radius = {way: np.full(len(index), np.inf) for way, end in ends.items() if end}
    for pixels, rows in viewer.images(index, f"continuity: flips under {entry.label}"):
        predicted, own = viewer.respond(pixels).predicted, keys[rows].astype(np.float64)

        def there(
            at: Tensor, amounts: Floats, pixels: Tensor = pixels, own: Floats = own
        ) -> Tensor:
            amounts = np.round(amounts) if operation.whole else amounts
            change = Change(entry.name, amounts, own[at.numpy()])
            changed = perturb_bytes(pixels[at.to(pixels.device)], [change])
            return viewer.respond(changed).predicted

        for way, column in radius.items():
            column[rows] = walk(predicted, ends[way], there)
    if operation.whole:
        radius = {way: np.round(column) for way, column in radius.items()}
    if len(radius) > 1:
        radius["either"] = np.minimum(radius["down"], radius["up"])
    return {f"{entry.label}/{way}": column for way, column in radius.items()}


def measures(
    loader: Pipeline, levels: Sequence[float], curves: Sequence[CurveFamily]
) -> Iterator[Measure]:
    """The figures; `curves` are those over strength."""
    entries, searched = loader.settings.perturbations.entries, ranges(loader)
    for entry in entries:
        for level in levels_of(entry, levels):
            for family, statistic, column, over in curves:
                columns = (f"{column}/{entry.label}/{level}", *over)
                yield Measure(Name(family, entry.label, level), statistic, "curves", columns)
    for entry in entries:
        if entry.label in searched:
            for way in ("down", "up", "either") if searched[entry.label][0] else ("up",):
                column = f"{entry.label}/{way}"
                yield Measure(Name("flip_radius", entry.label, way), "median", "radius", (column,))
    if entries:
        for family, statistic, column, over in curves:
            yield Measure(Name(family, WHOLE), statistic, "listed", (column, *over))
