"""The embedding against scikit-learn and numpy on features that are pixels."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from torch import nn

from fastsc.errors import UserError
from fastsc.evaluation.questions import embedding as module
from fastsc.evaluation.questions.embedding import embedding
from fastsc.pipelines import Pipeline
from tests.fastsc.evaluation import tiny

BRIGHTNESS = (0.4, 0.0, 0.0, 0.0)
SIZES = {"a": 5, "b": 9, "c": 9, "d": 1}
B = slice(5, 14)  # rows of class b


@pytest.fixture
def noisy(tmp_path: Path) -> Pipeline:
    rng = np.random.default_rng(1)
    pixels = {name: tiny.noise(rng, n) for name, n in SIZES.items()}
    return tiny.loader(tmp_path, pixels, strengths=BRIGHTNESS)


@pytest.fixture
def no_umap(monkeypatch: pytest.MonkeyPatch) -> None:
    """UMAP takes fifteen seconds to compile."""
    monkeypatch.setattr(module, "installed", lambda name: name != "umap")


def brightened(x: Any, factors: Any) -> Any:
    """Views (n, 3·8·8) on [0, 1] where nothing but brightness changes."""
    return np.clip(x * factors[:, :1], 0, 1)


def test_equals_scikit_learn(noisy: Pipeline, no_umap: None) -> None:
    cache = tiny.Kept()
    found = embedding(tiny.flat(), noisy, views=6, cache=cache)
    assert found.class_name == "b"  # as large as c, and before it
    assert np.array_equal(found.index, np.arange(14)[B])
    assert found.image in found.index
    assert found.view_factors.shape == (6, 4)
    assert len(np.unique(found.view_factors[:, 0])) == 6
    assert (abs(found.view_factors[:, 0] - 1) <= 0.4).all()

    x = tiny.decoded(noisy).reshape(24, -1)
    views = brightened(x[[found.image]], found.view_factors)
    features = np.concatenate([x[B], views])
    np.testing.assert_allclose(cache.parts["features"]["features"], features, atol=1e-6)
    pca = PCA(2)
    np.testing.assert_allclose(found.points["PCA"], pca.fit_transform(features), atol=1e-4)
    assert found.explained == pytest.approx(pca.explained_variance_ratio_.sum(), rel=1e-5)
    # t-SNE makes much of the last bit: the same features, then.
    kept = cache.parts["features"]["features"].astype(np.float64)
    tsne = TSNE(2, perplexity=14 / 3, random_state=0).fit_transform(kept)
    np.testing.assert_array_equal(found.points["t-SNE"], tsne)


def test_spread_equals_numpy(noisy: Pipeline, no_umap: None) -> None:
    found = embedding(tiny.flat(), noisy, class_name="c", views=10)
    x = tiny.decoded(noisy).reshape(24, -1)
    (index,) = np.nonzero(noisy.index.targets == 2)
    table = found.tables["views"]
    assert np.array_equal(table.index, index)
    apart = np.linalg.norm(x[index, None] - x[index], axis=2)
    np.testing.assert_allclose(table.columns["others"], apart.sum(1) / 8, rtol=1e-5)
    # The marked image's row, from the first eight of its views.
    row, image = np.searchsorted(index, found.image), x[[found.image]]
    moved = np.linalg.norm(brightened(image, found.view_factors[:8]) - image, axis=1)
    assert table.columns["views"][row] == pytest.approx(moved.mean(), rel=1e-5)
    assert len(np.unique(table.columns["views"])) == 9
    (measure,) = found.measures
    assert (measure.name, measure.statistic, measure.columns) == (
        "spread",
        "ratio",
        ("views", "others"),
    )
    # And the view that lies furthest is the example.
    (example,) = found.examples
    moved = np.linalg.norm(brightened(image, found.view_factors) - image, axis=1)
    assert example.index == found.image
    assert example.factors == tuple(found.view_factors[moved.argmax()].tolist())
    others = np.delete(apart[row], row)
    assert example.others == (np.delete(index, row)[others.argmin()],)
    assert example.lines[0].startswith(f"{100 * (others < moved.max()).mean():.0f} % of")


def test_one_more_view_or_image_changes_none(noisy: Pipeline, no_umap: None) -> None:
    few = embedding(tiny.flat(), noisy, n=6, views=3)
    more = embedding(tiny.flat(), noisy, n=8, views=5)
    assert (len(few.index), len(more.index)) == (6, 8)
    assert set(few.index) < set(more.index)
    assert few.image == more.image
    assert np.array_equal(few.view_factors, more.view_factors[:3])


def test_views_in_several_batches_are_the_same(tmp_path: Path, no_umap: None) -> None:
    pixels = {"a": tiny.noise(np.random.default_rng(1), 6)}
    kept = []
    for size in (2, 32):
        cache = tiny.Kept()
        loader = tiny.loader(tmp_path, pixels, batch_size=size)
        embedding(tiny.flat(), loader, views=7, cache=cache)
        kept.append(cache.parts["features"]["features"])
    assert kept[0].shape == (6 + 7, 192)
    np.testing.assert_array_equal(*kept)


def test_a_seed_settles_all(noisy: Pipeline, no_umap: None) -> None:
    first, same, other = (embedding(tiny.flat(), noisy, n=6, seed=seed) for seed in (0, 0, 1))
    assert (first.image, first.index.tolist()) == (same.image, same.index.tolist())
    for name, points in first.points.items():
        assert np.array_equal(points, same.points[name]), name
        assert np.isfinite(points).all(), name
    assert first.index.tolist() != other.index.tolist()
    assert not np.array_equal(first.view_factors, other.view_factors)


def test_what_is_kept_is_not_computed_again(noisy: Pipeline, no_umap: None) -> None:
    cache = tiny.Kept()
    first = embedding(tiny.flat(), noisy, cache=cache)
    assert cache.computed == ["features", "axes", "spread"]
    second = embedding(tiny.flat(), noisy, cache=cache)
    assert len(cache.computed) == 3
    assert np.array_equal(first.points["t-SNE"], second.points["t-SNE"])
    assert first.explained == second.explained


def test_umap_gets_images_then_views(noisy: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, int]] = []

    class Fake:
        def __init__(self, **options: int) -> None:
            asked.append(options)

        def fit_transform(self, x: Any) -> Any:
            return x[:, :2]

    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=Fake))  # type: ignore[arg-type]
    found = embedding(tiny.flat(), noisy, class_name="a", views=4, seed=2**32 + 3)
    assert asked == [{"n_neighbors": 8, "random_state": 3, "n_jobs": 1}]
    assert not found.left_out
    assert list(found.points) == ["PCA", "t-SNE", "UMAP"]
    x = tiny.decoded(noisy).reshape(24, -1)
    views = brightened(x[[found.image]], found.view_factors)
    expected = np.concatenate([x[:5], views])[:, :2]
    np.testing.assert_allclose(found.points["UMAP"], expected, atol=1e-6)


@pytest.mark.slow
def test_umap_is_umap_learns(noisy: Pipeline) -> None:
    umap = pytest.importorskip("umap")
    cache = tiny.Kept()
    found = embedding(tiny.flat(), noisy, views=12, cache=cache)
    assert not found.left_out
    assert list(found.points) == ["PCA", "t-SNE", "UMAP"]
    features = cache.parts["features"]["features"]
    direct = umap.UMAP(n_neighbors=15, random_state=0, n_jobs=1).fit_transform(features)
    np.testing.assert_array_equal(found.points["UMAP"], direct)
    assert found.points["UMAP"].shape == (9 + 12, 2)


def test_without_umap_it_is_named(noisy: Pipeline, no_umap: None) -> None:
    found = embedding(tiny.flat(), noisy)
    assert list(found.points) == ["PCA", "t-SNE"]
    assert found.left_out == ("UMAP: umap-learn is not installed; pip install umap-learn",)


def test_without_scikit_learn(noisy: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "installed", lambda name: name != "sklearn")
    with pytest.raises(UserError, match="needs scikit-learn: pip install scikit-learn"):
        embedding(tiny.flat(), noisy)


def test_features_of_one_number(tmp_path: Path, no_umap: None) -> None:
    net = nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(1, 2))
    torch.nn.init.ones_(net[2].weight)  # type: ignore[arg-type]
    pixels = {"a": tiny.constant(0.1, 0.3, 0.4, 0.6, 0.9)}
    found = embedding(tiny.classifier(net), tiny.loader(tmp_path, pixels), views=2)
    assert found.explained == pytest.approx(1)
    assert not found.points["PCA"][:, 1].any()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"class_name": "e"}, "there are no images of class e; one as a, b, c"),
        ({"class_name": "d"}, "class d is shown with 1 of its 1 images, and needs at least 5"),
        ({"n": 4}, "class b is shown with 4 of its 9 images"),
    ],
)
def test_classes_that_cannot_be_shown(noisy: Pipeline, options: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        embedding(tiny.flat(), noisy, **options)


def test_only_small_classes(tmp_path: Path) -> None:
    pixels = {"a": tiny.constant(0.1, 0.3, 0.4, 0.6), "b": tiny.constant(0.5)}
    with pytest.raises(UserError, match="embedding: no class has 5 images"):
        embedding(tiny.flat(), tiny.loader(tmp_path, pixels))


def test_no_labels(noisy: Pipeline) -> None:
    noisy.index = replace(noisy.index, classes=("",) * 4)
    with pytest.raises(UserError, match="no labels"):
        embedding(tiny.flat(), noisy)


def test_features_that_have_collapsed(tmp_path: Path) -> None:
    loader = tiny.loader(tmp_path, {"a": tiny.constant(*[0.0] * 5)})  # black in any light
    with pytest.raises(UserError, match="gives all images of class a the same features"):
        embedding(tiny.flat(), loader)
