"""Do explanations hold when the light changes? Maps of an image and of its perturbed view.

Wu et al., arXiv 2011.09789: the explanations of a semantically continuous model stay where they are
under a change without meaning. How far they do is to be read against two floors: what the map of
another image shares with this one's, and what that of a network that has learnt nothing does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fastsc.cli.packages import installed
from fastsc.errors import UserError
from fastsc.evaluation.models.classifier import Classifier
from fastsc.evaluation.questions.explanations.attribution import UnitViewer, check_gradient
from fastsc.evaluation.questions.explanations.explainer import (
    AGREEMENTS,
    GRAD_CAM,
    IG,
    LIME,
    METHODS,
    Explainer,
    explain,
    explain_pairs,
)
from fastsc.evaluation.questions.explanations.grad_cam import find_layer
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
from fastsc.evaluation.results.statistics import (
    NAN,
    RESAMPLES,
    TAIL,
    Estimate,
    Floats,
    bootstrapped,
)
from fastsc.evaluation.views import Indices, became, choose
from fastsc.pipelines import Pipeline

PACKAGES = {"captum": "captum", "sklearn": "scikit-learn", "skimage": "scikit-image"}
PART, SMALLEST_PART, LARGEST_PART = 8, 4, 64  # images of a part: at 224 px, at least, at most
FEW = 4  # of LIME's, which costs more
SAMPLES = 64  # of LIME
N_EXAMPLES = 6
WHICH = ("kept", "changed")  # predictions
LEAST = 4  # images that a correlation over images has an interval for
FLOORS = ("other", "random")


@dataclass(frozen=True, eq=False, kw_only=True)
class Explanations(Answer):
    """Answer of `explanations`.

    Attributes:
        maps: Method -> (examples, 2, s, s) float16 on [-1, 1], of the unchanged and the perturbed
            view of each example, as they are drawn.
        with_ds: Method -> Spearman correlation over images of the agreement ("rank") with how far
            the representation moves, with a percentile bootstrap interval.
        layer: The module of Grad-CAM; None where there is none.
        steps, samples: Of integrated gradients, and of LIME.
    """

    question: ClassVar[str] = "explanations"
    maps: Mapping[str, NDArray[np.float16]]
    with_ds: Mapping[str, Estimate]
    layer: str | None
    steps: int
    samples: int


def explanations(
    model: Classifier,
    loader: Pipeline,
    *,
    n: int | None = 24,
    n_lime: int | None = 8,
    steps: int = 16,
    samples: int = SAMPLES,
    seed: int = 0,
    cache: PartCache = compute,
) -> Explanations:
    """How alike the explanations of an image and of its perturbed view are.

    Of n images integrated gradients (summed over channels) and Grad-CAM, of n_lime of them LIME; of
    the unchanged view and of the perturbed one, which is that of validation during training; always
    of the logit of what the unchanged view is predicted as. In float32, with respect to the image
    on [0, 1], from black; see `attribution`. Both views have the same segments,
    those of the unchanged one, and the same of LIME's samples.

    Agreement of two maps: "rank", "ssim", "overlap"; see `agreement`. Over all
    images, and over those whose prediction is kept and is changed. The floors compare the unchanged
    view's map with that of another image, the next in a fixed keyed derangement of those of a part;
    and with its map by a network with random weights.

    Of the unchanged view's map also: entropy and Gini coefficient; the areas under the confidence
    of the class while pixels are inserted, in eighths, into the image blurred by a sixteenth of its
    side, and deleted to the mean color of the normalization.

    Args, besides those of all questions (`fastsc.evaluation.questions`):
        n, n_lime: Images, at least two. None: all of them; n_lime of 0: no LIME.
        steps: Of integrated gradients.
        samples: Of LIME.

    Returns:
        Without Grad-CAM where no module of the network has a grid of positions.

    Raises:
        UserError: A package is missing, there are fewer than two images, or the model lets no
            gradient through.
    """
    viewer = check_explanations(model, loader)
    index = choose(loader, n and max(n, 2), seed)
    limed = choose(loader, n_lime and max(n_lime, 2), seed, index)
    layer = find_layer(viewer.explained)
    explainer = Explainer(viewer, layer, index, steps, samples, seed)
    settings: dict[str, object] = {
        "n": len(index), "seed": seed, "strengths": loader.settings.strengths
    }  # fmt: skip
    rows = {IG: index, GRAD_CAM: index if layer else index[:0], LIME: limed}
    rows = {method: of for method, of in rows.items() if len(of)}
    own: dict[str, dict[str, object]] = {
        IG: {"steps": steps},
        LIME: {"n_lime": len(limed), "samples": samples},
    }
    by_method = {
        method: in_parts(
            cache,
            method,
            _shares(of, FEW if method == LIME else PART, viewer.settings.resolution),
            settings | own.get(method, {}),
            partial(explain, explainer, method),
        )
        for method, of in rows.items()
    }
    maps = {method: columns.pop("maps") for method, columns in by_method.items()}
    tables = {method: Rows(rows[method], columns) for method, columns in by_method.items()}
    left_out = [] if layer else [f"{GRAD_CAM}: no module of the model has a map of positions"]
    left_out += [] if len(limed) else [f"{LIME}: no images were asked for"]
    measures = list(_measures(tables))
    tables |= _split(tables)
    measures += _split_measures(tables)
    for name in WHICH:
        if f"{IG}-{name}" not in tables:
            left_out.append(f"{name}: there is no image whose prediction is {name}")
    for method in rows:
        if empty := int(tables[method].columns["empty"].sum()):
            left_out.append(
                f"{method}: {empty} of {len(rows[method])} images have an empty map, and count as "
                "maps that do not agree"
            )
    some = _telling(tables[IG], tables[LIME] if len(limed) else tables[IG])
    return Explanations(
        tables=tables,
        measures=tuple(measures),
        examples=tuple(_example(model, loader, tables, int(i)) for i in some),
        seed=seed,
        left_out=tuple(left_out),
        maps={method: _of_examples(maps[method], rows[method], some) for method in maps},
        with_ds={method: _with_ds(tables[method], seed) for method in rows},
        layer=layer.name if layer else None,
        steps=steps,
        samples=samples,
    )


def check_explanations(model: Classifier, loader: Pipeline) -> UnitViewer:
    """What shows the images; raises what `explanations` does, but for images that do not decode."""
    for module, package in PACKAGES.items():
        if not installed(module):
            raise UserError(f"explanations: {package} is missing; pip install {package}")
    if len(loader.index.usable) < 2:
        raise UserError("explanations: a map is compared with another image's; give two images")
    viewer = UnitViewer(model, loader)
    check_gradient(viewer.explained)
    return viewer


def explained_pairs(
    model: Classifier,
    loader: Pipeline,
    steps: int,
    seed: int,
    first: Indices,
    second: Indices,
    other: Indices,
    cache: PartCache,
) -> dict[str, Arrays]:
    """Method -> columns (k,) of the agreement of maps of two pictures, for the question pairs.

    Args, besides those of `explanations`:
        first, second: (k,) dataset indices, k > 1; other: (k,) pictures that are not the first.

    Raises:
        UserError: As `explanations`.
    """
    viewer = check_explanations(model, loader)
    layer, together = find_layer(viewer.explained), np.stack([first, second, other], axis=1)
    explainer = Explainer(viewer, layer, first, steps, 0, seed)
    methods = (IG, GRAD_CAM) if layer else (IG,)
    return {
        method: in_parts(
            cache, f"pairs-{method}", _shares(together, PART, viewer.settings.resolution),
            {"n": len(first), "seed": seed, "steps": steps},
            partial(explain_pairs, explainer, method),
            lambda part: {"images": part.tolist()},
        )
        for method in methods
    }  # fmt: skip


def _shares(index: Indices, at_224: int, resolution: int) -> list[Indices]:
    """Parts of about as many pixels, of at least two images each."""
    size = round(at_224 * (224 / resolution) ** 2)
    size = min(max(size, SMALLEST_PART), LARGEST_PART)
    return np.array_split(index, -(-len(index) // size))


# --- figures -------------------------------------------------------------------------------------


def _measures(tables: Mapping[str, Rows]) -> Iterator[Measure]:
    columns: dict[str, str] = {}
    for name in AGREEMENTS:
        columns |= {name: name} | {f"{name}_floor_{floor}": f"{name}_{floor}" for floor in FLOORS}
    columns |= {name: name for name in ("entropy", "gini", "insertion", "deletion")}
    for name, column in columns.items():
        yield from (Measure(Name(name, m), "mean", m, (column,)) for m in tables)
    yield Measure(Name("completeness_error", IG), "ratio", IG, ("gap", "difference"))


def _split(tables: Mapping[str, Rows]) -> dict[str, Rows]:
    """METHOD-kept and METHOD-changed: the rows of images by their prediction, where there are."""
    columns = {}
    for method, table in tables.items():
        for rows, name in enumerate(WHICH):
            own = table.columns["changed"] == rows
            if own.any():
                columns[f"{method}-{name}"] = table.take(table.index[own])
    return columns


def _split_measures(tables: Mapping[str, Rows]) -> list[Measure]:
    return [
        Measure(Name(name, method, which), "mean", f"{method}-{which}", (name,))
        for name in AGREEMENTS
        for method in METHODS
        for which in WHICH
        if f"{method}-{which}" in tables
    ]


def _with_ds(table: Rows, seed: int) -> Estimate:
    """Spearman correlation over images of the agreement with how far the representation moves."""
    from scipy.stats import rankdata

    columns = [table.columns[name].astype(np.float64) for name in ("rank", "moved")]
    n = len(table)

    def correlation(*of: Floats, axis: int = -1) -> Floats:
        ranks = [rankdata(one, axis=axis) for one in of]
        u, v = (one - one.mean(axis, keepdims=True) for one in ranks)
        with np.errstate(invalid="ignore"):  # 0 / 0 where a resample has one value only
            correlations: Floats = (u * v).sum(axis) / np.sqrt(
                (u * u).sum(axis) * (v * v).sum(axis)
            )
        return correlations

    value = float(correlation(*columns))
    if np.isnan(value) or n < LEAST:
        return Estimate(value, NAN, NAN, n, seed, "none")
    drawn = bootstrapped(np.stack(columns), correlation, seed, RESAMPLES).bootstrap_distribution
    low, high = np.nanquantile(drawn, (TAIL, 1 - TAIL)).tolist()
    return Estimate(value, low, high, n, seed, "percentile")


def _telling(table: Rows, among: Rows) -> Indices:
    """Of the images that all methods explain, those whose integrated gradients agree least."""
    rank = table.take(among.index).columns["rank"]
    return among.index[np.argsort(rank, kind="stable")[:N_EXAMPLES]]


def _example(
    model: Classifier, loader: Pipeline, tables: Mapping[str, Rows], index: int
) -> Example:
    at = np.array([index])
    own = {name: tables[name].take(at).columns for name in METHODS if name in tables}
    ranks = ", ".join(f"{name} {columns['rank'][0]:.2f}" for name, columns in own.items())
    columns = own[IG]
    before, after = (
        model.class_name(int(columns[f"predicted{view}"][0])) for view in ("", "_perturbed")
    )
    scale = tables[IG].columns["between"].mean()
    moved = ""
    if scale > 0:  # else all images have one representation
        moved = f"; moved by {columns['moved'][0] / scale:.2f} of the distance between images"
    return Example.of(
        index,
        loader.plan().factors[index],
        f"rank correlation of the two maps: {ranks}",
        f"{became(before, after)}{moved}",
    )


def _of_examples(maps: NDArray[np.float16], index: Indices, some: Indices) -> NDArray[np.float16]:
    place = {int(i): row for row, i in enumerate(index)}
    return maps[[place[int(i)] for i in some]]
