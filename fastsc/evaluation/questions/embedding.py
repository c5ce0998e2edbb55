"""One class in two dimensions, with many views of one of its images. The paper's figure 2.

Wu et al., arXiv 2011.09789: the perturbed views of one image scatter over the whole class, where
they should lie close together.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastsc.cli.packages import installed
from fastsc.errors import UserError
from fastsc.evaluation.data import class_images
from fastsc.evaluation.models.classifier import Classifier
from fastsc.evaluation.results.answers import Answer, Arrays, Example, PartCache, Rows, compute
from fastsc.evaluation.results.measures import Measure, Name
from fastsc.evaluation.views import Factors, Indices, Viewer, choose
from fastsc.pipelines import Pipeline, keyed

LEAST = 5  # images of a class of which a picture says something
IMAGES, VIEWS = 200, 24  # of the class, and of the image that is marked
SPREAD_IMAGES = 64
SPREAD_VIEWS = 8
PERPLEXITY = 30.0  # of t-SNE where there are enough points; van der Maaten & Hinton use 5 to 50
NEIGHBOURS = 15  # UMAP's own default


@dataclass(frozen=True, eq=False, kw_only=True)
class Embedding(Answer):
    """Answer of `embedding`.

    Attributes:
        class_name: The class folder.
        index: (n,) int64, sorted dataset indices of the class's images.
        image: Dataset index, one of them, whose views are marked.
        view_factors: (v, 4) float32, the factors of its perturbed views.
        points: Method ("PCA", "t-SNE", "UMAP") -> (n + v, 2) float64: the images, then the views.
        explained: Share of the variance of the n + v features that PCA's two axes have.
    """

    question: ClassVar[str] = "embedding"
    class_name: str
    index: NDArray[np.int64]
    image: int
    view_factors: NDArray[np.float32]
    points: dict[str, NDArray[np.float64]]
    explained: float


def embedding(
    model: Classifier,
    loader: Pipeline,
    *,
    class_name: str | None = None,
    n: int | None = IMAGES,
    views: int = VIEWS,
    seed: int = 0,
    cache: PartCache = compute,
) -> Embedding:
    """Pooled features of one class and of one image's perturbed views, by PCA, t-SNE and UMAP.

    `spread`, the figure that goes with the picture, is about more than one image: of up to 64
    images of the class with 8 perturbed views each, the mean distance of a view from its image over
    the mean distance from the class's other images among the n; 1 means that views of one image lie
    as far apart as different images.

    Each method lays out images and views together. PCA's axes too are those of both: along axes of
    the images alone, views that leave in a direction of their own would seem to stand still.

    Args, besides those of all questions (`fastsc.evaluation.questions`):
        loader: A validation pipeline with labels; its strengths are those of the perturbations.
        class_name: A class folder. Default: the one with most images, the first by name of several.
        views: Perturbed views of the image that is marked.

    Returns:
        Without UMAP where umap-learn is not installed; `left_out` says so.

    Raises:
        UserError: There is no such class, it has fewer than 5 images, the model gives all of them
            the same features, or scikit-learn is missing.
    """
    assert views >= 1
    name, index = images_of(loader, class_name, n, seed)
    (image,) = choose(loader, 1, seed, index)
    some = choose(loader, SPREAD_IMAGES, seed, index)
    at = np.searchsorted(index, some)
    table = _factors(loader, index, max(views, SPREAD_VIEWS), seed)
    view_factors = table[:views, np.searchsorted(index, image)]
    viewer = Viewer(model, loader)
    settings = {
        "class": name, "n": len(index), "views": views, "seed": seed,
        "strengths": loader.settings.strengths,
    }  # fmt: skip

    features = cache(
        "features", settings, lambda: _features(viewer, index, int(image), view_factors)
    )["features"]
    if not np.ptp(features, axis=0).any():
        raise UserError(
            f"embedding: model {model.name} gives all images of class {name} the same features"
        )
    axes = cache("axes", settings, lambda: _axes(features, seed))
    points = {"PCA": axes["PCA"], "t-SNE": axes["t-SNE"]}
    left_out: tuple[str, ...] = ()
    if installed("umap"):
        points |= cache("umap", settings, lambda: {"UMAP": _umap(features, seed)})
    else:
        left_out = ("UMAP: umap-learn is not installed; pip install umap-learn",)
    draws = table[:SPREAD_VIEWS, at]
    spread = cache("spread", settings, lambda: {"views": _view_distances(viewer, some, draws)})
    rows = Rows(some, {"views": spread["views"], "others": _mean_distances(features, at, index)})
    return Embedding(
        tables={"views": rows},
        measures=(Measure(Name("spread"), "ratio", "views", ("views", "others")),),
        examples=(_example(features, index, int(image), view_factors),),
        seed=seed,
        left_out=left_out,
        class_name=name,
        index=index,
        image=int(image),
        view_factors=view_factors,
        points=points,
        explained=float(axes["explained"]),
    )


def images_of(
    loader: Pipeline, class_name: str | None, n: int | None, seed: int
) -> tuple[str, Indices]:
    """The class that is asked for, or the largest, and a choice of its images.

    Raises:
        UserError: As `embedding` does for want of images or of scikit-learn.
    """
    if not installed("sklearn"):
        raise UserError("embedding needs scikit-learn: pip install scikit-learn")
    names = loader.index.classes
    known = {names[c]: own for c, own in class_images(loader).items()}
    if not known:
        raise UserError("embedding: the images have no labels; take a split with class folders")
    name = class_name or min(known, key=lambda name: (-len(known[name]), name))
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3) or sorted(known)[:3]
        raise UserError(f"embedding: there are no images of class {name}; one as {', '.join(near)}")
    index = choose(loader, n, seed, known[name])
    if class_name is None and len(known[name]) < LEAST:
        raise UserError(f"embedding: no class has {LEAST} images, which it needs to show one")
    if len(index) < LEAST:
        raise UserError(
            f"embedding: class {name} is shown with {len(index)} of its {len(known[name])} images, "
            f"and needs at least {LEAST}; take a larger class"
        )
    return name, index


def _factors(loader: Pipeline, index: Indices, views: int, seed: int) -> NDArray[np.float32]:
    """(views, m, 4): factors of dataset indices (m,), view after view."""
    n, strengths = len(loader.index), loader.settings.strengths
    # Keys that no epoch of training has, nor validation.
    epochs = range(keyed.VALIDATION_EPOCH - views, keyed.VALIDATION_EPOCH)
    return np.stack([keyed.factors(seed, epoch, n, strengths)[index] for epoch in epochs[::-1]])


# --- parts ---------------------------------------------------------------------------------------


def _features(viewer: Viewer, index: Indices, image: int, factors: Factors) -> Arrays:
    """(n + v, D) float32: of the images, then of the views of one of them."""
    size = viewer.settings.batch_size
    clean: list[Tensor] = []
    perturbed: list[Tensor] = []
    for images in viewer.images(index, "embedding: images of one class"):
        clean.append(viewer.respond(images.pixels).features)
        for row in np.flatnonzero(index[images.rows] == image):
            for at in range(0, len(factors), size):
                share = factors[at : at + size]
                repeated = images.pixels[row].repeat(len(share), 1, 1, 1)
                perturbed.append(viewer.respond(repeated, share).features)
    return {"features": torch.cat(clean + perturbed).numpy()}


def _axes(features: NDArray[np.float32], seed: int) -> Arrays:
    """PCA and t-SNE of (m, D) features: (m, 2) each, and the share of variance of PCA's axes."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    wide = np.asarray(features, np.float64)
    if wide.shape[1] < 2:
        wide = np.pad(wide, ((0, 0), (0, 1)))  # on a line
    pca = PCA(2, svd_solver="full")
    perplexity = min(PERPLEXITY, (len(wide) - 1) / 3)
    tsne = TSNE(2, perplexity=perplexity, random_state=seed % 2**32)
    return {
        "PCA": pca.fit_transform(wide),
        "explained": np.array(pca.explained_variance_ratio_.sum()),
        "t-SNE": tsne.fit_transform(wide).astype(np.float64),
    }


def _umap(features: NDArray[np.float32], seed: int) -> NDArray[np.float64]:
    """UMAP of (m, D) features: (m, 2)."""
    from umap import UMAP

    n_neighbors = min(NEIGHBOURS, len(features) - 1)
    # One thread: with several a seed does not make it deterministic.
    umap = UMAP(n_neighbors=n_neighbors, random_state=seed % 2**32, n_jobs=1)
    return np.asarray(umap.fit_transform(features), np.float64)


def _view_distances(
    viewer: Viewer, index: Indices, table: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Mean distance of an image's views from it: (m,). table: (views, m, 4)."""
    distances = np.zeros(len(index))
    for images in viewer.images(index, "embedding: views of more images"):
        clean = viewer.respond(images.pixels).features.double()
        for factors in table:
            there = viewer.respond(images.pixels, factors[images.rows]).features
            distances[images.rows] += (there.double() - clean).norm(dim=1).numpy() / len(table)
    return distances


# --- figures -------------------------------------------------------------------------------------


def _distances(features: NDArray[np.float32], at: NDArray[np.int64]) -> NDArray[np.float64]:
    """(len(at), len(features)) Euclidean distances of some rows from all."""
    wide = torch.from_numpy(features).double()
    distances: NDArray[np.float64] = torch.cdist(
        wide[at], wide, compute_mode="donot_use_mm_for_euclid_dist"
    ).numpy()
    return distances


def _mean_distances(
    features: NDArray[np.float32], at: NDArray[np.int64], index: Indices
) -> NDArray[np.float64]:
    """Of the images at some rows, the mean distance from the class's other images."""
    n = len(index)
    means: NDArray[np.float64] = _distances(features[:n], at).sum(1) / (n - 1)
    return means


def _example(
    features: NDArray[np.float32], index: Indices, image: int, factors: Factors
) -> Example:
    """The image whose views are marked, in the colors that move it furthest."""
    row = np.searchsorted(index, image)
    n = len(index)
    apart = _distances(features, np.array([row]))[0]
    others, views = np.delete(apart[:n], row), apart[n:]
    worst = int(views.argmax())
    nearer = float((others < views[worst]).mean())
    nearest = int(np.delete(index, row)[others.argmin()])
    line = f"{100 * nearer:.0f} % of the class’s other images lie nearer to it than this view of it"
    return Example.of(image, factors[worst], line, others=(nearest,))
