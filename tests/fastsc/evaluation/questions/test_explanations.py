"""Explanations of small models, part by part; and the page on them."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from captum.attr import IntegratedGradients, LayerAttribution, LayerGradCam
from scipy.ndimage import gaussian_filter
from scipy.stats import spearmanr
from torch import nn

from fastsc.errors import UserError
from fastsc.evaluation.questions.explanations import agreement, explainer
from fastsc.evaluation.questions.explanations import question as module
from fastsc.evaluation.questions.explanations.attribution import Explained, randomized
from fastsc.evaluation.questions.explanations.question import Explanations, explanations
from fastsc.evaluation.report import sections
from fastsc.evaluation.report.page import render
from fastsc.evaluation.report.pictures import data_uri
from fastsc.evaluation.report.questions.explanations import overlaid
from fastsc.evaluation.results.evaluated import Evaluated, Evaluation
from fastsc.kernels.color import color_jitter
from fastsc.pipelines import Pipeline, keyed
from tests.fastsc.evaluation import tiny

pytestmark = pytest.mark.heavy

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
N = 7
METHODS = ("IG", "Grad-CAM", "LIME")
QUICK: Any = {"steps": 5, "samples": 20}


@pytest.fixture
def noisy(tmp_path: Path) -> Pipeline:
    pixels = {"a": tiny.noise(np.random.default_rng(1), N, 20, 230)}
    return tiny.loader(tmp_path, pixels, mean=MEAN, std=STD, strengths=(0.4, 0.3, 0.5, 0.1))


def curved(scale: float = 10.0) -> Any:
    torch.manual_seed(3)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.Tanh(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 4),
    )
    with torch.no_grad():
        net[5].weight.mul_(scale)  # type: ignore[operator]
        net[5].bias.zero_()  # type: ignore[operator]
    return tiny.classifier(net)


def numbers(found: Any, table: str) -> dict[str, Any]:
    return dict(found.tables[table].columns)


def views(loader: Pipeline) -> tuple[torch.Tensor, torch.Tensor]:
    """(n, 3, 8, 8) on [0, 1]: the images, and in other colors by the reference."""
    x = torch.from_numpy(tiny.decoded(loader))
    return x.float(), color_jitter(x, torch.from_numpy(loader.plan().factors)).float()


def following(n: int = N) -> Any:
    cycle = keyed.cycle(np.arange(n), n)
    found = np.empty(n, int)
    found[cycle] = np.roll(cycle, -1)
    return found


def test_every_column_by_captum(noisy: Pipeline) -> None:
    model = curved()
    found = explanations(model, noisy, n=None, n_lime=0, **QUICK)
    net = Explained(model, MEAN, STD)
    x, y = views(noisy)
    target = net(x)[1].argmax(1)
    changed = (net(y)[1].argmax(1) != target).double().numpy()
    maps: dict[str, Any] = {"IG": [], "Grad-CAM": []}
    drawn = randomized(net, x, 0)
    for one, view in ((net, x), (net, y), (drawn, x)):
        whole = IntegratedGradients(lambda v, one=one: one(v)[1]).attribute(
            view, 0.0, target, n_steps=QUICK["steps"]
        )
        maps["IG"].append(whole.sum(1).detach().numpy())
        layer = one.net[2]  # type: ignore[index]
        cam = LayerGradCam(lambda v, one=one: one(v)[1], layer).attribute(
            view, target, relu_attributions=True
        )
        cam = LayerAttribution.interpolate(cam, (8, 8), "bilinear")
        maps["Grad-CAM"].append(cam[:, 0].detach().numpy())
    assert found.layer == "2"
    for method, (a, b, c) in maps.items():
        columns = numbers(found, method)
        other = a[following()]
        for name, of in (
            ("rank", lambda u, v: spearmanr(u.ravel(), v.ravel()).statistic),
            ("ssim", agreement.similarity),
            ("overlap", agreement.overlap),
        ):
            for column, second in (
                (name, b),
                (f"{name}_other", other),
                (f"{name}_random", c),
            ):
                expected = [of(u, v) for u, v in zip(a, second, strict=True)]
                np.testing.assert_allclose(columns[column], expected, atol=2e-3, err_msg=column)
        np.testing.assert_allclose(
            columns["entropy"], [agreement.entropy(one) for one in a], rtol=1e-4
        )
        np.testing.assert_allclose(columns["gini"], [agreement.gini(one) for one in a], rtol=1e-3)
        assert np.array_equal(columns["changed"], changed)
        assert np.array_equal(columns["predicted"], target.numpy())
        moved = (net(x)[0] - net(y)[0]).norm(dim=1).detach().numpy()
        np.testing.assert_allclose(columns["moved"], moved, rtol=1e-3, atol=1e-5)
    z = net(x)[1].gather(1, target[:, None])[:, 0] - net(0 * x)[1].gather(1, target[:, None])[:, 0]
    gap = np.abs(maps["IG"][0].sum((1, 2)) - z.detach().numpy())
    np.testing.assert_allclose(numbers(found, "IG")["gap"], gap, atol=1e-4)
    expected = gap.mean() / z.abs().mean().item()
    assert found["completeness_error/IG"].value == pytest.approx(expected, abs=1e-3)
    assert found["rank/IG"].value == pytest.approx(numbers(found, "IG")["rank"].mean())
    assert numbers(found, "IG")["rank"].min() < 0.999  # or it shows nothing


def test_insertion_and_deletion_by_hand(noisy: Pipeline) -> None:
    model = curved()
    found = explanations(model, noisy, n=None, n_lime=0, **QUICK)
    net = Explained(model, MEAN, STD)
    x, _ = views(noisy)
    target = net(x)[1].argmax(1)
    one = IntegratedGradients(lambda v: net(v)[1]).attribute(x, 0.0, target, n_steps=QUICK["steps"])
    i = 2
    order = one[i].sum(0).detach().flatten().argsort(descending=True)
    blurred = torch.from_numpy(gaussian_filter(x[i].numpy(), (0, 0.5, 0.5)))
    areas = []
    for start, end in ((blurred, x[i]), (x[i], torch.tensor(MEAN)[:, None, None].expand(3, 8, 8))):
        seen = []
        for count in range(0, 65, 8):
            image = start.clone().flatten(1)
            image[:, order[:count]] = end.reshape(3, 64)[:, order[:count]]
            seen.append(net(image.view(1, 3, 8, 8))[1].softmax(1)[0, target[i]].item())
        areas.append((sum(seen) - (seen[0] + seen[-1]) / 2) / 8)
    columns = numbers(found, "IG")
    assert columns["insertion"][i] == pytest.approx(areas[0], abs=1e-3)
    assert columns["deletion"][i] == pytest.approx(areas[1], abs=1e-3)
    assert abs(areas[0] - areas[1]) > 0.02


def test_lime_explains_a_few(noisy: Pipeline) -> None:
    found = explanations(curved(), noisy, n=6, n_lime=3, **QUICK)
    few, all_of_them = found.tables["LIME"].index, found.tables["IG"].index
    assert (len(few), len(all_of_them)) == (3, 6)
    assert set(few.tolist()) <= set(all_of_them.tolist())
    assert {example.index for example in found.examples} == set(few.tolist())
    ranks = found.tables["IG"].take(few).columns["rank"]
    order = few[np.argsort(ranks)]
    assert [example.index for example in found.examples] == order.tolist()
    for method in METHODS:
        assert found.maps[method].shape == (3, 2, 8, 8)
        assert found.maps[method].dtype == np.float16
        assert np.abs(found.maps[method]).max() == 1
    rank = found.tables["IG"].take(order[:1]).columns["rank"][0]
    assert (
        found.examples[0]
        .lines[0]
        .startswith(f"rank correlation of the two maps: IG {rank:.2f}, Grad-CAM ")
    )
    assert found.examples[0].factors == tuple(noisy.plan().factors[order[0]].tolist())


def test_views_without_change_have_the_same_maps(tmp_path: Path) -> None:
    pixels = {"a": tiny.noise(np.random.default_rng(1), 5)}
    loader = tiny.loader(tmp_path, pixels, strengths=(0, 0, 0, 0))
    found = explanations(curved(), loader, **QUICK)
    for method in METHODS:
        for name in ("rank", "ssim", "overlap"):
            np.testing.assert_allclose(numbers(found, method)[name], 1, atol=1e-6)
            assert (numbers(found, method)[f"{name}_random"] < 1).all()
        np.testing.assert_array_equal(found.maps[method][:, 0], found.maps[method][:, 1])
    assert np.isnan(found.with_ds["IG"].value)  # nothing moves: there is no order
    assert "changed: there is no image whose prediction is changed" in found.left_out


def test_a_linear_model_keeps_its_map_under_brightness(tmp_path: Path) -> None:
    # weight × x: nothing is clamped, and a factor leaves the order of pixels as it is.
    pixels = {"a": tiny.noise(np.random.default_rng(2), 4, 0, 180)}
    loader = tiny.loader(tmp_path, pixels, mean=MEAN, std=STD, strengths=(0.4, 0, 0, 0))
    found = explanations(tiny.flat(), loader, n_lime=0, **QUICK)
    np.testing.assert_allclose(numbers(found, "IG")["rank"], 1, atol=1e-4)
    assert found.left_out[:2] == (
        "Grad-CAM: no module of the model has a map of positions",
        "LIME: no images were asked for",
    )
    assert set(found.maps) == {"IG"}
    assert found.layer is None
    assert found["completeness_error/IG"].value < 1e-4


def test_kept_and_changed(tmp_path: Path) -> None:
    pixels = {"a": tiny.noise(np.random.default_rng(5), 12, 90, 160)}
    loader = tiny.loader(tmp_path, pixels, mean=MEAN, std=STD, strengths=(0.9, 0.9, 0.9, 0.5))
    found = explanations(curved(), loader, n_lime=0, **QUICK)
    columns = numbers(found, "Grad-CAM")
    changed = columns["changed"] == 1
    assert 0 < changed.sum() < 12
    for which, rows in (("kept", ~changed), ("changed", changed)):
        one = found[f"rank/Grad-CAM/{which}"]
        assert one.value == pytest.approx(columns["rank"][rows].mean())
        assert one.n == rows.sum()
    ds = found.with_ds["IG"]
    of_ig = numbers(found, "IG")
    assert ds.value == pytest.approx(spearmanr(of_ig["rank"], of_ig["moved"]).statistic)
    assert -1 <= ds.low <= ds.value <= ds.high <= 1
    assert ds.n == 12


def test_parts_batches_and_a_cache_change_little(
    noisy: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = explanations(curved(), noisy, n=6, n_lime=4, **QUICK)
    again = explanations(curved(), noisy, n=6, n_lime=4, **QUICK)
    monkeypatch.setattr(module, "SMALLEST_PART", 3)
    monkeypatch.setattr(module, "LARGEST_PART", 3)
    monkeypatch.setattr(explainer, "AT_ONCE", 3 * (8 / 224) ** 2)
    cache = tiny.Kept()
    first = explanations(curved(), noisy, n=6, n_lime=4, cache=cache, **QUICK)
    assert cache.computed == ["IG-0", "IG-1", "Grad-CAM-0", "Grad-CAM-1", "LIME-0", "LIME-1"]
    second = explanations(curved(), noisy, n=6, n_lime=4, cache=cache, **QUICK)
    assert len(cache.computed) == 6
    for method in METHODS:
        for name, column in numbers(whole, method).items():
            assert np.array_equal(numbers(again, method)[name], column), name
            assert np.array_equal(numbers(second, method)[name], numbers(first, method)[name])
            if "other" not in name and name != "between":  # of the images of a part
                found = numbers(first, method)[name]
                np.testing.assert_allclose(found, column, atol=5e-3, err_msg=name)


def test_all_is_computed_in_float32(noisy: Pipeline, tmp_path: Path) -> None:
    options: Any = {"mean": MEAN, "std": STD, "strengths": (0.4, 0.3, 0.5, 0.1)}
    half = tiny.loader(tmp_path, {}, dtype=torch.bfloat16, **options)
    a, b = (explanations(curved(), loader, n_lime=0, **QUICK) for loader in (noisy, half))
    for name, column in numbers(a, "IG").items():
        assert np.array_equal(numbers(b, "IG")[name], column), name


def test_a_seed_chooses_images(noisy: Pipeline) -> None:
    found = [explanations(curved(), noisy, n=4, n_lime=2, seed=seed, **QUICK) for seed in (0, 0, 5)]
    first, same, other = (one.tables["IG"].index.tolist() for one in found)
    assert first == same != other


def test_parts_have_two_images_and_a_size() -> None:
    index = np.arange(9)
    assert [len(part) for part in module._shares(index, 8, 224)] == [5, 4]
    assert [len(part) for part in module._shares(index, 8, 640)] == [3, 3, 3]
    assert [len(part) for part in module._shares(np.arange(500), 8, 32)] == [63] * 4 + [62] * 4
    assert [len(part) for part in module._shares(index[:2], 8, 224)] == [2]


# --- what cannot be answered ---------------------------------------------------------------------


def refuse(*_: object) -> Any:
    raise AssertionError("nothing is to be computed")


def test_one_image(tmp_path: Path) -> None:
    loader = tiny.loader(tmp_path, {"a": tiny.constant(0.5)})
    with pytest.raises(UserError, match=r"explanations: .* give two images"):
        explanations(curved(), loader, cache=refuse)


@pytest.mark.parametrize(
    ("package", "named"),
    [("captum", "captum"), ("sklearn", "scikit-learn"), ("skimage", "scikit-image")],
)
def test_a_missing_package(
    noisy: Pipeline, monkeypatch: pytest.MonkeyPatch, package: str, named: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"explanations: .*pip install {named}"):
        explanations(curved(), noisy, cache=refuse)


def test_no_gradient(noisy: Pipeline) -> None:
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(192, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x.detach().flatten(1))

    with pytest.raises(UserError, match="explanations: model tiny lets no gradient through"):
        explanations(tiny.classifier(Cut()), noisy, cache=refuse)


# --- the page ------------------------------------------------------------------------------------


def test_overlaid() -> None:
    pixels = np.full((4, 4, 3), 100, np.uint8)
    drawn = np.zeros((4, 4), np.float16)
    drawn[0, 0], drawn[1, 1], drawn[2, 2] = 1, -1, 0.5
    found = overlaid(pixels, drawn)
    assert found[0, 0].tolist() == [213, 94, 0]
    assert found[1, 1].tolist() == [0, 114, 178]
    assert found[3, 3].tolist() == [178, 178, 178]  # half-way to white, 177.5
    np.testing.assert_allclose(found[2, 2], (177.5 + np.array([213, 94, 0])) / 2, atol=0.5)
    assert overlaid(np.zeros((8, 8, 3), np.uint8), drawn).shape == (8, 8, 3)


def evaluation(loader: Pipeline, *answers: Explanations) -> Evaluation:
    pixels = (tiny.decoded(loader).transpose(0, 2, 3, 1) * 255).round().astype(np.uint8)

    def picture(index: int, factors: Any) -> Any:
        x = torch.from_numpy(pixels[index] / 255).permute(2, 0, 1)[None]
        if factors is not None:
            x = color_jitter(x, torch.tensor([factors], dtype=x.dtype))
        return (F.interpolate(x, size=(8, 8))[0].permute(1, 2, 0) * 255).round().byte().numpy()

    models = tuple(
        Evaluated(
            name=f"model {place}",
            answers={"explanations": answer},
            left_out={},
            picture=picture,
            facts={},
        )
        for place, answer in enumerate(answers)
    )
    return Evaluation(models, (), {}, lambda i: f"{i}.png", lambda i: "a")


@pytest.mark.usefixtures("undrawn")
def test_the_page(noisy: Pipeline) -> None:
    found = explanations(curved(), noisy, n=6, n_lime=4, **QUICK)
    (shown,) = sections.sections(evaluation(noisy, found))
    first = shown.statements[0].sentences[0].replace("\u00a0", " ")
    assert first.startswith(
        "Integrated gradients of the same picture in other colors agree with a rank correlation "
    )
    assert "n = 6); another image’s map reaches " in first
    assert ", random weights " in first
    assert [
        sentence.split(" maps of it:")[0] for sentence in shown.statements[0].sentences[1:]
    ] == [
        "Grad-CAM",
        "LIME",
    ]
    more = " ".join(shown.statements[0].more)
    assert "With 5 steps the sum of integrated gradients misses" in more
    assert "representation moves" in more
    (gallery,) = shown.galleries
    captions = [shot.caption for shot in gallery.cards[0].shots]
    assert captions == [
        "unchanged", "in other colors",
        "integrated gradients, unchanged", "integrated gradients, in other colors",
        "Grad-CAM, unchanged", "Grad-CAM, in other colors",
        "LIME, unchanged", "LIME, in other colors",
    ]  # fmt: skip
    assert len({shot.uri for shot in gallery.cards[0].shots}) == 8
    of = evaluation(noisy, found)
    for place, (example, card) in enumerate(zip(found.examples, gallery.cards, strict=True)):
        for at, method in enumerate(METHODS):
            for view, factors in enumerate((None, example.factors)):
                picture = of.models[0].picture(example.index, factors)
                expected = data_uri(overlaid(picture, found.maps[method][place][view]))
                assert card.shots[2 + 2 * at + view].uri == expected
    assert [len(group.charts) for group in shown.charts] == [3, 6, 4]
    html = render(evaluation(noisy, found, replace(found)))
    assert "Where the explanations agree least: model 1" in html
    text = html[html.index("<main>") :]
    assert not any(word in text for word in (">nan", " nan", "NaN "))


@pytest.mark.usefixtures("undrawn")
def test_the_page_of_a_model_without_maps(noisy: Pipeline) -> None:
    found = explanations(tiny.flat(), noisy, n_lime=0, **QUICK)
    (shown,) = sections.sections(evaluation(noisy, found))
    assert len(shown.statements[0].sentences) == 1
    assert [len(group.charts) for group in shown.charts] == [1, 2, 4]
    assert "no module of the model has a map of positions" in render(evaluation(noisy, found))
