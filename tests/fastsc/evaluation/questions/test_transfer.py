"""Transfer against scikit-learn on features made by hand: the pixels of `tiny.flat`."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fastsc.errors import UserError
from fastsc.evaluation.questions.transfer import fine_tuning
from fastsc.evaluation.questions.transfer import question as module
from fastsc.evaluation.questions.transfer.probing import CHOICES, folds_of
from fastsc.evaluation.questions.transfer.question import transfer
from fastsc.evaluation.report import sections
from fastsc.evaluation.report.page import render
from fastsc.evaluation.report.parts import questions
from fastsc.evaluation.results.evaluated import Evaluated, Evaluation
from fastsc.evaluation.transfer_data import ranks_in_class
from fastsc.kernels.color import color_jitter
from fastsc.pipelines import Pipeline, keyed
from tests.fastsc.evaluation import tiny

pytestmark = pytest.mark.heavy

STRENGTHS = (0.4, 0.4, 0.4, 0.1)
SIZES = {"a": 14, "b": 9, "c": 7}


def tinted(rng: np.random.Generator, n: int, channel: int, lift: int = 40) -> Any:
    """Noise in which a channel is somewhat lighter: classes that overlap."""
    images = rng.integers(0, 256 - lift, (n, tiny.SIDE, tiny.SIDE, 3))
    images[..., channel] += rng.integers(0, lift, (n, 1, 1))
    return list(images.astype(np.uint8))


def parts(
    root: Path, train: Any, test: Any, *, strengths: Any = STRENGTHS, **options: Any
) -> tuple[Pipeline, Pipeline]:
    """Loaders of images by class."""
    loaders = []
    for name, pixels in (("train", train), ("test", test)):
        (root / name).mkdir(parents=True, exist_ok=True)
        loaders.append(tiny.loader(root / name, pixels, strengths=strengths, **options))
    return loaders[0], loaders[1]


@pytest.fixture
def blurred(tmp_path: Path) -> tuple[Pipeline, Pipeline]:
    """Three classes that can be told apart now and then."""
    rng = np.random.default_rng(1)
    train = {name: tinted(rng, n, i) for i, (name, n) in enumerate(SIZES.items())}
    test = {name: tinted(rng, 8, i) for i, name in enumerate(SIZES)}
    return parts(tmp_path, train, test)


def features(loader: Pipeline, *, recolored: bool = False) -> Any:
    """(n, 192) pixels in the order of the index, in validation's colors by the reference."""
    x = torch.from_numpy(tiny.decoded(loader))
    if recolored:
        x = color_jitter(x, torch.from_numpy(loader.plan().factors).double())
    return x.flatten(1).numpy().astype(np.float32)


def folds_by_hand(loader: Pipeline, seed: int = 0) -> Any:
    """Each class's images in their keyed order, dealt to three folds in turn."""
    order = keyed.order(seed, keyed.VALIDATION_EPOCH, loader.index.usable, len(loader.index))
    found, dealt = np.zeros(len(order), int), dict.fromkeys(range(9), 0)
    for i in order:
        label = int(loader.index.targets[i])
        found[i], dealt[label] = dealt[label] % 3, dealt[label] + 1
    return found


def searched(loader: Pipeline, seed: int = 0) -> Any:
    """Scikit-learn's own search, over the training part alone."""
    pipe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    grid = {"logisticregression__C": list(CHOICES)}
    search = GridSearchCV(pipe, grid, cv=PredefinedSplit(folds_by_hand(loader, seed)))
    return search.fit(features(loader).astype(np.float64), loader.index.targets)


def voted(k: int, x: Any, y: Any, others: Any) -> list[int]:
    """The k nearest by angle, by hand."""
    a = others / np.linalg.norm(others, axis=1, keepdims=True)
    b = x / np.linalg.norm(x, axis=1, keepdims=True)
    near = np.argsort(-(a @ b.T), axis=1)[:, :k]
    return [int(np.bincount(y[row]).argmax()) for row in near]


def test_scikit_learn_on_features_by_hand(blurred: tuple[Pipeline, Pipeline]) -> None:
    train, test = blurred
    found = transfer(tiny.flat(), train, test, n=None, seed=2)
    search = searched(train, seed=2)
    scores = search.cv_results_["mean_test_score"]
    assert len(set(scores)) > 2  # or the choice shows nothing
    assert found.c == search.best_params_["logisticregression__C"]
    columns, label = found.tables["test"].columns, test.index.targets
    views = {"": features(test), "_perturbed": features(test, recolored=True)}
    for suffix, x in views.items():
        expected = search.predict(x.astype(np.float64))
        assert columns[f"predicted/probe{suffix}"].tolist() == expected.tolist()
        assert found[f"probe/accuracy{suffix}"].value == (expected == label).mean()
        for k in (5, 20):
            near = np.array(voted(k, features(train), train.index.targets, x))
            assert columns[f"predicted/knn{k}{suffix}"].tolist() == near.tolist()
            assert found[f"knn{k}/accuracy{suffix}"].value == (near == label).mean()
    flips = search.predict(views[""]) != search.predict(views["_perturbed"])
    assert found["probe/flips"].value == flips.mean()
    assert 0 < flips.mean() < 1
    assert 0.4 < found["probe/accuracy"].value < 1
    assert found["majority/accuracy"].value == 8 / 24
    assert (found.learned, found.chance, found.classes) == (30, 1 / 3, ("a", "b", "c"))
    assert columns["path"].tolist() == list(test.index.paths)
    assert all(found[m.name].n == 24 and found[m.name].method == "Wilson" for m in found.measures)
    assert [m.name for m in found.measures] == [
        *(f"{r}/accuracy{s}" for r in ("probe", "knn5", "knn20") for s in ("", "_perturbed")),
        "probe/flips",
        "majority/accuracy",
    ]
    assert not found.left_out


def test_what_can_be_told_apart_is(tmp_path: Path) -> None:
    def plain(color: Any, n: int) -> Any:
        rng = np.random.default_rng(n)
        return [
            np.uint8(np.array(color) + rng.integers(0, 9, (tiny.SIDE, tiny.SIDE, 3)))
            for _ in range(n)
        ]

    train = {"red": plain((200, 20, 20), 6), "green": plain((20, 200, 20), 5)}
    test = {"red": plain((190, 30, 30), 7), "green": plain((30, 190, 30), 9)}
    still = parts(tmp_path, train, test, strengths=(0.4, 0.4, 0.0, 0.0))
    found = transfer(tiny.flat(), *still)
    for name in ("probe", "knn5"):
        assert found[f"{name}/accuracy"].value == found[f"{name}/accuracy_perturbed"].value == 1
    assert found["probe/flips"].value == 0
    # "green" comes first, and "red" has more images to learn from.
    assert found["majority/accuracy"].value == 7 / 16
    scores = searched(still[0]).cv_results_["mean_test_score"]
    assert (scores == 1).sum() > 1
    assert found.c == CHOICES[int((scores == 1).argmax())]  # of equals the smallest
    assert found.left_out == ("knn20: there are 11 images to learn from",)


def test_random_labels_are_guessed(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    train, test = ({name: tiny.noise(rng, 25) for name in "abcd"} for _ in range(2))
    loaders = parts(tmp_path, train, test)
    found = transfer(tiny.flat(), *loaders, n=None)
    expected = searched(loaders[0]).predict(features(loaders[1]).astype(np.float64))
    assert found["probe/accuracy"].value == (expected == loaders[1].index.targets).mean()
    for name in ("probe", "knn5", "knn20"):  # four standard errors
        assert abs(found[f"{name}/accuracy"].value - found.chance) < 4 * math.sqrt(3 / 16 / 100)
    again = transfer(tiny.flat(), *loaders, n=None)
    assert again.estimates == found.estimates


def test_nothing_of_the_test_part_leaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    train = {name: tinted(rng, n, i) for i, (name, n) in enumerate(SIZES.items())}
    unsure = {name: tiny.noise(rng, 60) for name in SIZES}
    # More images of the last class whose one half is black: a mean or a spread that knew of them
    # would weigh the halves differently.
    dark = np.array(tiny.noise(rng, 150))
    dark[:, :, 4:] = 0
    seen = []
    kept = module.fold_accuracy

    def fold_accuracy(c: float, x: Any, y: Any, folds: Any) -> Any:
        seen.append((x, y))
        return kept(c, x, y, folds)

    monkeypatch.setattr(module, "fold_accuracy", fold_accuracy)
    learned, few = parts(tmp_path, train, unsure)
    _, many = parts(tmp_path / "more", train, unsure | {"c": [*unsure["c"], *dark]})
    one, other = (transfer(tiny.flat(), learned, test, n=None) for test in (few, many))
    assert other.c == one.c
    for name in ("probe", "knn5", "knn20"):
        a, b = (
            dict(zip(columns["path"], columns[f"predicted/{name}"], strict=True))
            for columns in (found.tables["test"].columns for found in (one, other))
        )
        assert a.items() <= b.items(), name
    assert len(other.tables["test"]) == 330
    assert len(seen) == 2 * len(CHOICES)
    for x, y in seen:
        np.testing.assert_allclose(x, features(learned), atol=1e-6)
        assert y.tolist() == learned.index.targets.tolist()


def test_standardization_is_cross_validated_too(blurred: tuple[Pipeline, Pipeline]) -> None:
    train, _ = blurred
    x, y = features(train).astype(np.float64), train.index.targets
    folds = folds_of(ranks_in_class(train.index, 0), y)
    assert folds.tolist() == folds_by_hand(train).tolist()
    x[folds == 1] *= 50  # images that the mean of the other folds must not know of
    expected = []
    for fold in range(3):
        there, here = folds != fold, folds == fold
        mean, std = x[there].mean(0), x[there].std(0)
        fit = LogisticRegression(C=0.1, max_iter=2000).fit((x[there] - mean) / std, y[there])
        expected.append(fit.score((x[here] - mean) / std, y[here]))
    found = module.fold_accuracy(0.1, x.astype(np.float32), y, folds)["accuracy"]
    assert found.tolist() == pytest.approx(expected)


def test_only_images_are_never_judged() -> None:
    targets = np.array([0, 0, 1, 0, 2, 0, 2])
    ranks = np.array([0, 2, 0, 3, 1, 1, 0])
    assert folds_of(ranks, targets).tolist() == [0, 2, -1, 0, 1, 1, 0]


def test_one_image_a_class_leaves_no_choice(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    train = {name: tiny.noise(rng, 1) for name in "abc"}
    cache = tiny.Kept()
    found = transfer(tiny.flat(), *parts(tmp_path, train, train), cache=cache)
    assert found.c == 1e-2
    assert not [part for part in cache.computed if part.startswith("folds")]
    assert found["probe/accuracy"].value == 1
    assert [line.split(":")[0] for line in found.left_out] == ["knn5", "knn20"]


def test_a_probe_that_does_not_converge_is_named(
    blurred: tuple[Pipeline, Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastsc.evaluation.questions.transfer.probing.MAX_ITER", 1)
    found = transfer(tiny.flat(), *blurred)
    assert found.left_out[0].startswith("probe: it is not at its optimum after")


def test_classes_go_by_name(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    train = {name: tinted(rng, 8, i, 90) for i, name in enumerate("abc")}
    loaders = parts(tmp_path, train, {name: train[name] for name in "bc"})
    assert loaders[1].index.classes == ("b", "c")
    found = transfer(tiny.flat(), *loaders)
    assert found.tables["test"].columns["label"].tolist() == [1] * 8 + [2] * 8
    assert found["probe/accuracy"].value > 0.9
    assert found.chance == 1 / 3


# --- which images --------------------------------------------------------------------------------


def test_classes_get_equally_many_images(
    blurred: tuple[Pipeline, Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    train, test = blurred
    ranks = ranks_in_class(train.index, 0)

    def chosen(n: int | None) -> Any:
        index = module._balanced(train, ranks, n)
        assert np.array_equal(index, np.sort(index))
        return set(index.tolist()), np.bincount(train.index.targets[index]).tolist()

    assert chosen(None)[1] == [14, 9, 7]
    assert chosen(1)[1] == [5, 5, 5]
    assert chosen(21)[1] == [7, 7, 7]
    assert chosen(25)[1] == [9, 9, 7]
    assert chosen(1)[0] < chosen(21)[0] < chosen(25)[0]
    monkeypatch.setattr(module, "A_CLASS", 1)
    assert chosen(4)[1] == [2, 1, 1]
    found = transfer(tiny.flat(), train, test, n=6)
    assert found.learned == 6
    assert len(found.tables["test"]) == 6
    other = transfer(tiny.flat(), train, test, n=6, seed=1)
    assert other.tables["test"].index.tolist() != found.tables["test"].index.tolist()


def test_parts_and_a_cache_change_nothing(
    blurred: tuple[Pipeline, Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = transfer(tiny.flat(), *blurred, n=None)
    monkeypatch.setattr(module, "PART", 13)
    cache = tiny.Kept()
    first = transfer(tiny.flat(), *blurred, n=None, cache=cache)
    assert cache.computed == [
        "train-0", "train-1", "train-2", "test-0", "test-1",
        *(f"folds-{c}" for c in ("0.0001", "0.001", "0.01", "0.1", "1")), "probe", "knn5", "knn20",
    ]  # fmt: skip
    second = transfer(tiny.flat(), *blurred, n=None, cache=cache)
    assert len(cache.computed) == 13
    for found in (first, second):
        assert found.estimates == whole.estimates
        assert found.c == whole.c
    hashes = {blurred[0].index.hash, blurred[1].index.hash}
    for settings in cache.settings.values():
        assert {settings["train"], settings["test"]} == hashes
        assert settings["strengths"] == STRENGTHS


def test_one_class_is_a_mistake_before_anything_is_computed(tmp_path: Path) -> None:
    pixels = {"a": tiny.noise(np.random.default_rng(0), 4)}
    cache = tiny.Kept()
    with pytest.raises(UserError, match=r"^transfer: .*train has images of one class"):
        transfer(tiny.flat(), *parts(tmp_path, pixels, pixels), cache=cache)
    assert not cache.computed


def test_what_cannot_be_learned_is_a_mistake(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    train = {name: tiny.noise(rng, 2) for name in "ab"}
    test = {name: tiny.noise(rng, 2) for name in "bcdefg"}
    cache = tiny.Kept()
    with pytest.raises(UserError, match=r"^transfer: c, d, e, … of the test part .* are not in"):
        transfer(tiny.flat(), *parts(tmp_path, train, test), cache=cache)
    two, other = parts(tmp_path / "more", train, {"b": test["b"], "c": test["c"]})
    with pytest.raises(UserError, match=r"^transfer: c of the test part .* is not in"):
        transfer(tiny.flat(), two, other, cache=cache)
    # A class none of whose images can be used is not there either; of the test part it is no harm.
    other.index = other.index.without({2: "broken", 3: "broken"})
    transfer(tiny.flat(), two, other, cache=tiny.Kept())
    two.index = two.index.without({2: "broken", 3: "broken"})
    with pytest.raises(UserError, match="images of one class"):
        transfer(tiny.flat(), two, other, cache=cache)
    assert not cache.computed


def test_without_scikit_learn_a_line_says_what_to_install(
    blurred: tuple[Pipeline, Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    cache = tiny.Kept()
    with pytest.raises(UserError, match=r"^transfer: .*; pip install scikit-learn$"):
        transfer(tiny.flat(), *blurred, cache=cache)
    assert not cache.computed


# --- the page ------------------------------------------------------------------------------------


def test_what_the_page_says(
    blurred: tuple[Pipeline, Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fine_tuning, "EPOCHS", 1)
    answers = {
        "one": transfer(tiny.flat(), *blurred, n=None, fine_tune=True),
        "two": transfer(tiny.flat(scale=2), *blurred, n=10),
    }
    models = tuple(
        Evaluated(name, {"transfer": answer}, {}, lambda *_: np.zeros((8, 8, 3), np.uint8), {})
        for name, answer in answers.items()
    )
    of = Evaluation(models, (), {}, lambda i: "", lambda i: "")
    (question,) = questions(of)
    section = sections.section(question)
    said = [text.replace("\u00a0", " ") for text in section.statements[0].sentences]
    right = 100 * answers["one"]["probe/accuracy"].value
    assert said[0].startswith("A linear probe of the frozen features is right on ")
    assert abs(float(said[0].split(" right on ")[1].split(" %")[0]) - right) < 6
    folder = blurred[0].index.root.parent.name
    assert f", n = 24) of the images of 3 classes of {folder}, and on " in said[0]
    assert "in other colors; " in said[0]
    assert said[1].startswith("By the nearest images it is ")
    assert said[1].endswith(" by 20.")
    assert said[2].startswith("Fine-tuned as a whole, it is right on ")
    assert len(section.statements[1].sentences) == 2
    assert section.statements[0].more[0] == (
        f"Learned from 30 images; the probe’s C is {answers['one'].c:g}, chosen by "
        "cross-validation among them."
    )
    assert section.reference.startswith("Guessing would be right on 33.3")
    words = {row[-1].text: row[0].text for table in section.tables for row in table.rows}
    assert words["probe/accuracy_perturbed"] == "linear probe, right in other colors"
    assert words["knn5/accuracy"] == "5 nearest, right"
    assert set(words) == {m.name for a in answers.values() for m in a.measures}
    charts = section.charts[0].charts
    assert [chart.title for chart in charts] == ["Unchanged", "In other colors"]
    assert "fine-tuned" in charts[0].svg
    html = render(of)
    assert "Right answers on other classes" in html
