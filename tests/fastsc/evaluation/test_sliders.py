"""The sliders' grids against a linear model in numpy, and the section's HTML."""

from __future__ import annotations

import base64
import html.parser
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from torch import nn

from fastsc.errors import UserError
from fastsc.evaluation.models.classifier import Classifier
from fastsc.evaluation.report.sliders import label, sliders_section
from fastsc.evaluation.results.answers import Arrays
from fastsc.evaluation.sliders import FULL, QUICK, combinations, grids, unchanged
from fastsc.evaluation.views import Viewer
from fastsc.kernels.color import IDENTITY
from fastsc.loading.preprocessing import Preprocessing
from fastsc.pipelines import Pipeline, build, scan
from tests.fastsc.evaluation import slider_cases
from tests.fastsc.evaluation.slider_cases import NASTY
from tests.pipelines.conftest import undecodable

MEAN, STD, SIDE = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25), 32
FEW = ((0.4, 1.0, 2.5), (0.5, 1.0), (0.0, 1.0, 2.0), (-0.3, 0.0, 0.1))  # 54 combinations


def classifier(n: int = 7, classes: tuple[str, ...] | None = None) -> Classifier:
    """Features are the normalized colors of 4 x 4 places, logits a fixed linear map of them."""
    torch.manual_seed(n)
    net = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, n))
    return Classifier(net, "toy", Preprocessing(SIDE, SIDE, MEAN, STD), classes=classes)


def loader_of(folder: Path, batch_size: int = 20) -> Pipeline:
    return build(
        "cpu",
        scan(folder),
        batch_size=batch_size,
        resolution=SIDE,
        train=False,
        mean=MEAN,
        std=STD,
        workers=1,
    )


@pytest.fixture
def loader(image_folder: Path) -> Pipeline:
    return loader_of(image_folder / "val")


def test_answers_are_those_of_torchvisions_colors(loader: Pipeline) -> None:
    model = classifier()
    (_, grid) = grids(model, loader, np.array([2, 7]), positions=FEW, between=2.5)
    assert grid.index == 7
    batches = list(loader.decoded(np.array([7])))
    assert np.array_equal(grid.pixels, batches[0].images[0].numpy())

    image = torch.from_numpy(grid.pixels).permute(2, 0, 1).double() / 255
    features = []
    for brightness in FEW[0]:
        for contrast in FEW[1]:
            for saturation in FEW[2]:
                for hue in FEW[3]:
                    x = tv.adjust_contrast(tv.adjust_brightness(image, brightness), contrast)
                    x = tv.adjust_hue(tv.adjust_saturation(x, saturation), hue)
                    x = tv.normalize(x, list(MEAN), list(STD))
                    features.append(x.unflatten(1, (4, 8)).unflatten(3, (4, 8)).mean((2, 4)))
    f = torch.stack(features).flatten(1).numpy()  # (54, 48)
    linear: Any = model.net[2]  # type: ignore[index]
    logits = f @ linear.weight.double().numpy().T + linear.bias.double().numpy()
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    clean = f[1 * 18 + 1 * 9 + 1 * 3 + 1]

    assert grid.unchanged == 31
    assert grid.factors[31].tolist() == list(IDENTITY)
    assert grid.top.shape == (54, 3)
    np.testing.assert_allclose(
        grid.ds_relative, np.linalg.norm(f - clean, axis=1) / 2.5, rtol=1e-3, atol=1e-4
    )
    np.testing.assert_allclose(grid.confidence, -np.sort(-shares, axis=1)[:, :3], atol=1e-3)
    found = np.take_along_axis(shares, grid.top, 1)
    np.testing.assert_allclose(grid.confidence, found, atol=1e-3)
    assert len(np.unique(grid.top[:, 0])) > 1, "no flip: the comparison would say little"


def test_unchanged_is_the_clean_answer_itself(loader: Pipeline) -> None:
    model = classifier()
    (grid,) = grids(model, loader, np.array([4]), positions=QUICK, between=1.0)
    assert len(grid.top) == 625
    row = grid.unchanged
    assert grid.ds_relative[row] == 0
    assert (np.delete(grid.ds_relative, row) > 0).all()
    pixels = torch.from_numpy(grid.pixels).expand(20, -1, -1, -1)
    clean = Viewer(model, loader).respond(pixels)  # a batch as long as the grid's
    best = clean.logits[row % 20].softmax(0).sort(descending=True)
    assert grid.top[row].tolist() == best.indices[:3].tolist()
    assert grid.confidence[row].tolist() == best.values[:3].tolist()


def test_batch_size_does_not_matter(image_folder: Path, loader: Pipeline) -> None:
    model, other = classifier(), loader_of(image_folder / "val", batch_size=54)
    (a,) = grids(model, loader, np.array([5]), positions=FEW, between=1.0)
    (b,) = grids(model, other, np.array([5]), positions=FEW, between=1.0)
    assert np.array_equal(a.top, b.top)
    np.testing.assert_allclose(a.ds_relative, b.ds_relative, rtol=1e-4, atol=1e-6)


def test_fewer_classes_than_three_and_their_names(loader: Pipeline) -> None:
    index = np.array([1])
    named = classifier(2, ("hot", NASTY))
    (grid,) = grids(named, loader, index, positions=FEW, between=1.0)
    assert grid.top.shape == grid.confidence.shape == (54, 2)
    np.testing.assert_allclose(grid.confidence.sum(1), 1, rtol=1e-6)
    assert grid.names == {0: "hot", 1: NASTY}
    (grid,) = grids(classifier(2), loader, index, positions=FEW, between=1.0)
    assert grid.names == {0: "class 0", 1: "class 1"}
    (grid,) = grids(named, loader, index, positions=FEW, between=1.0, class_names=("warm", "cold"))
    assert grid.names == {0: "warm", 1: "cold"}


def test_equal_logits_and_features_that_stay(loader: Pipeline) -> None:
    model = classifier()
    for value in model.net.parameters():
        value.zero_()
    pool: Any = model.net[0]  # type: ignore[index]
    pool.register_forward_hook(lambda module, args, output: output * 0)
    (grid,) = grids(model, loader, np.array([0]), positions=FEW, between=0.0)
    assert (grid.top == [0, 1, 2]).all()
    assert (grid.ds_relative == 0).all()


def test_one_kept_part_an_image_serves_any_scale(loader: Pipeline) -> None:
    kept: dict[str, Arrays] = {}
    settings_of: dict[str, Any] = {}

    def cache(part: str, settings: Mapping[str, object], compute: Callable[[], Arrays]) -> Arrays:
        settings_of[part] = json.loads(json.dumps(settings))
        if part not in kept:
            kept[part] = compute()
        return kept[part]

    model, index = classifier(), np.array([3, 8])
    first = grids(model, loader, index, positions=FEW, between=1.0, cache=cache)
    assert list(kept) == ["sliders/3", "sliders/8"]
    assert settings_of["sliders/3"]["positions"] == [list(values) for values in FEW]
    loader.decoded = None  # type: ignore[assignment, method-assign]
    again = grids(model, loader, index, positions=FEW, between=4.0, cache=cache)
    for one, other in zip(first, again, strict=True):
        assert np.array_equal(one.pixels, other.pixels)
        assert np.array_equal(one.ds_relative, 4 * other.ds_relative)


@pytest.mark.parametrize(
    ("positions", "words"),
    [
        (FEW[:3], "not 3 of them"),
        (((0.5, 2.0), *FEW[1:]), "brightness must ascend and hold 1"),
        ((*FEW[:1], (2.0, 1.0), *FEW[2:]), "contrast must ascend"),
        ((*FEW[:1], (1.0, 1.0), *FEW[2:]), "contrast must ascend"),
        ((*FEW[:2], (-0.1, 1.0), FEW[3]), "saturation must be from 0"),
        ((*FEW[:2], (1.0, float("inf")), FEW[3]), "saturation must be from 0"),
        ((*FEW[:3], (0.0, 0.6)), "hue must be from -0.5 to 0.5"),
    ],
)
def test_positions_that_are_no_sliders(loader: Pipeline, positions: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        grids(classifier(), loader, np.array([0]), positions=positions, between=1.0)


def test_a_broken_image_is_named(image_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(image_folder / "val", tmp_path / "val")
    (tmp_path / "val" / "apple" / "hole.png").write_bytes(undecodable())
    loader = loader_of(tmp_path / "val")
    at = loader.index.paths.index("apple/hole.png")
    with pytest.raises(UserError, match=r"apple/hole\.png"):
        grids(classifier(), loader, np.array([at]), positions=FEW, between=1.0)


@pytest.mark.parametrize("positions", [QUICK, FULL])
def test_positions_of_the_budgets(positions: Any) -> None:
    table = combinations(positions)
    assert table[unchanged(positions)].tolist() == list(IDENTITY)
    assert len(np.unique(table, axis=0)) == len(table) == len(positions[0]) ** 4


# --- the section ---------------------------------------------------------------------------------


class Reader(html.parser.HTMLParser):
    """Every tag's name and attributes, the text outside scripts, and the scripts' text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.scripts = "", list[str]()
        self.feed(str(text))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.lasttag == "script" and self.cdata_elem:
            self.scripts[-1] += data
        else:
            self.text += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def unpacked(text: str, dtype: str) -> Any:
    return np.frombuffer(base64.b64decode(text), dtype)


def test_the_section_holds_the_grids() -> None:
    evaluation = slider_cases.two_models()
    part = sliders_section(evaluation)
    assert part is not None
    reader = Reader(part.html)
    (script,) = reader.scripts
    data = json.loads(script)
    assert data["positions"] == [list(values) for values in QUICK]
    for image, grid in zip(data["images"], evaluation.models[0].grids, strict=True):
        pixels = unpacked(image["rgb"], "u1").reshape(image["side"], image["side"], 3)
        assert np.array_equal(pixels, grid.pixels)
    for model, shown in zip(evaluation.models, data["models"], strict=True):
        assert shown["name"] == model.name
        for grid, arrays in zip(model.grids, shown["grids"], strict=True):
            names = [grid.names[number] for number in grid.top.flat]
            assert [shown["names"][at] for at in unpacked(arrays["top"], "<u2")] == names
            assert np.array_equal(unpacked(arrays["confidence"], "<f4"), grid.confidence.flat)
            assert np.array_equal(unpacked(arrays["ds"], "<f4"), grid.ds_relative)
    ranges = [tag for tag in reader.of("input") if tag["type"] == "range"]
    assert [(tag["min"], tag["max"], tag["value"]) for tag in ranges] == [("0", "4", "2")] * 4
    labelled = {tag["for"] for tag in reader.of("label") if "for" in tag}
    assert labelled == {tag["id"] for tag in ranges}


def test_names_are_text() -> None:
    part = sliders_section(slider_cases.two_models())
    assert part is not None
    reader = Reader(part.html)
    assert [tag["type"] for tag in reader.of("script")] == ["application/json"]
    assert NASTY in reader.text
    assert not reader.of("b")[2:]  # the two marks of the bars; none from a class's name
    assert "innerHTML" not in part.js
    assert "</script" not in part.js
    assert not any(name.startswith("on") for _, tag in reader.tags for name in tag)


def test_nothing_is_loaded() -> None:
    part = sliders_section(slider_cases.two_models())
    assert part is not None
    assert "url(" not in part.css
    assert "@import" not in part.css
    for attributes in (tag for _, tag in Reader(part.html).tags):
        assert not {"src", "href"} & set(attributes)
    assert not any(word in part.js for word in ("fetch", "XMLHttpRequest", "import(", "eval"))


def test_only_what_every_model_has() -> None:
    rng = np.random.default_rng(0)
    grid = [slider_cases.made_up_grid(rng, index, 8) for index in range(4)]
    made = slider_cases.evaluated
    bare = made("bare", ())
    assert sliders_section(slider_cases.evaluation(bare)) is None
    apart = slider_cases.evaluation(made("a", (grid[0],)), made("b", (grid[1],)))
    assert sliders_section(apart) is None

    part = sliders_section(
        slider_cases.evaluation(
            made("a", (grid[3], grid[0], grid[2])), bare, made("b", (grid[2], grid[1], grid[3]))
        )
    )
    assert part is not None
    reader = Reader(part.html)
    data = json.loads(reader.scripts[0])
    assert [model["name"] for model in data["models"]] == ["a", "b"]
    assert [image["caption"][-7:-4] for image in data["images"]] == ["003", "002"]
    assert "Without sliders: bare." in reader.text


def test_figures_that_are_not_finite_stay_json() -> None:
    rng = np.random.default_rng(0)
    grid = slider_cases.made_up_grid(rng, 0, 8)
    grid.ds_relative[5:7] = np.nan, np.inf
    part = sliders_section(slider_cases.evaluation(slider_cases.evaluated("a", (grid,))))
    assert part is not None

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    data = json.loads(Reader(part.html).scripts[0], parse_constant=refuse)
    assert data["farthest"] == pytest.approx(np.delete(grid.ds_relative, [5, 6]).max())


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        ("brightness", 0.3, "30\u00a0%"),
        ("saturation", 0.0, "0\u00a0%"),
        ("contrast", 1.125, "112.5\u00a0%"),
        ("hue", 0.0, "0°"),
        ("hue", 0.1, "+36°"),
        ("hue", -0.25, "\u221290°"),
    ],
)
def test_positions_have_units(kind: str, value: float, text: str) -> None:
    assert label(kind, value) == text
