"""Which classes depend on which kind: models of which it is known, and where nothing depends."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fastsc.errors import UserError
from fastsc.evaluation.models.classifier import Classifier
from fastsc.evaluation.questions.bias import question as module
from fastsc.evaluation.questions.bias.axes import Dependence
from fastsc.evaluation.questions.bias.question import bias
from fastsc.evaluation.results.answers import Rows
from fastsc.evaluation.views import Viewer, one_kind
from fastsc.pipelines import Pipeline
from tests.fastsc.evaluation import tiny

STRENGTHS = (0.2, 0.0, 0.0, 0.1)
CLASSES = "abcd"
EACH = 12
UNKNOWN = np.full(EACH * len(CLASSES), -1)


class Tinted(nn.Module):
    """Features: the mean brightness, and how much more red than green the left half is, whatever
    its brightness; the outputs take them apart at 0.4 and at 0.55."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 3)
        with torch.no_grad():
            self.linear.weight.copy_(torch.tensor([[0.0, 0], [1, 0], [0, 100]]))
            self.linear.bias.copy_(torch.tensor([0.0, -0.4, -55]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left = x[..., : tiny.SIDE // 2].mean((2, 3))
        tint = (left[:, 0] - left[:, 1]) / left.sum(1).clamp(min=1e-3)
        logits: torch.Tensor = self.linear(torch.stack([x.mean((1, 2, 3)), tint], 1))
        return logits


def tinted(rng: np.random.Generator, level: float, red: bool) -> Any:
    """Grey noise around a level; with red, in its left half no green and a third of the blue."""
    grey = level + rng.integers(-30, 30, (tiny.SIDE, tiny.SIDE, 1))
    image = np.repeat(grey, 3, axis=2)
    if red:
        image[:, : tiny.SIDE // 2] = image[:, : tiny.SIDE // 2] * (1, 0, 1 / 3)
    return image.astype(np.uint8)


def tinted_loader(root: Path, red: str = "c", **options: Any) -> Pipeline:
    rng = np.random.default_rng(3)
    levels = np.linspace(40, 150, EACH)  # the same in every class
    pixels = {name: [tinted(rng, level, name in red) for level in levels] for name in CLASSES}
    return tiny.loader(root, pixels, **({"strengths": STRENGTHS} | options))


def model() -> Classifier:
    return tiny.classifier(Tinted(), classes=("dark", "light", "red"))


def ask(loader: Pipeline, **options: Any) -> Any:
    return bias(model(), loader, **({"labels": UNKNOWN} | options))


def test_the_one_class_that_depends_on_hue_is_found(tmp_path: Path) -> None:
    found = ask(tinted_loader(tmp_path))
    assert {(one.class_name, one.kind) for one in found.dependence if one.stands_out} == {
        ("c", "hue")
    }
    table = {(one.class_name, one.kind, one.what): one for one in found.dependence}
    assert set(table) == {
        (name, kind, what)
        for name in CLASSES
        for kind in ("brightness", "hue")
        for what in ("moved", "flipped")
    }
    assert all(table["c", "hue", what].stands_out for what in ("moved", "flipped"))
    assert table["c", "hue", "flipped"].value == 0.5  # in one direction
    assert table["c", "hue", "moved"].p < 0.001
    assert table["c", "hue", "moved"].value > 10 * table["a", "hue", "moved"].value
    assert all(one.n == EACH for one in found.dependence)

    rows = found.tables["axes"]
    assert rows.index.tolist() == list(range(len(UNKNOWN)))
    own = rows.columns["class"] == CLASSES.index("c")
    scale = rows.columns["between"].mean()
    moved = table["c", "hue", "moved"]
    assert moved.value == pytest.approx(rows.columns["moved/hue"][own].mean() / scale)
    assert moved.low < moved.value < moved.high
    flips = rows.columns["flipped/brightness"]
    assert table["a", "brightness", "flipped"].value == flips[:EACH].mean()
    assert flips.any()  # or it shows nothing


def test_figures_and_what_is_left_out(tmp_path: Path) -> None:
    found = ask(tinted_loader(tmp_path), seed=3)
    assert {m.name: (m.statistic, m.table, m.columns) for m in found.measures} == {
        "axis/brightness": ("ratio", "axes", ("moved/brightness", "between")),
        "axis/hue": ("ratio", "axes", ("moved/hue", "between")),
        "axis_flips/brightness": ("rate", "axes", ("flipped/brightness",)),
        "axis_flips/hue": ("rate", "axes", ("flipped/hue",)),
    }
    assert found["axis/hue"].n == len(UNKNOWN)
    assert (found.kinds, found.strengths) == (("brightness", "hue"), STRENGTHS)
    assert found.left_out == (
        "axis/contrast: its strength is 0",
        "axis/saturation: its strength is 0",
    )
    assert found.digits == ()


def test_the_picture_of_the_class_that_stands_out(tmp_path: Path) -> None:
    loader = tinted_loader(tmp_path)
    found = ask(loader)
    (example,) = found.examples
    rows, net = found.tables["axes"], model()
    assert loader.index.classes[loader.index.targets[example.index]] == "c"
    assert example.factors[:3] == (1, 1, 1)
    assert abs(example.factors[3]) == pytest.approx(0.1)
    overall = rows.columns["moved/hue"].mean() / rows.columns["between"].mean()
    (moved,) = [
        d for d in found.dependence if (d.class_name, d.kind, d.what) == ("c", "hue", "moved")
    ]
    assert example.lines[:2] == (
        f"hue alone moves this class by {moved.value:.2f} of the distance between images, "
        f"{overall:.2f} over all",
        "hue alone flips 50 % in this class, 12 % over all",
    )
    # No image of the class moves further in either direction, or flips where this one does not.
    viewer = Viewer(net, loader)
    own = np.flatnonzero(loader.index.targets == CLASSES.index("c"))
    steps = []
    for images in viewer.images(own, ""):
        clean = viewer.respond(images.pixels)
        for sign in (-0.1, 0.1):
            there = viewer.respond(images.pixels, one_kind("hue", sign, len(images.pixels)))
            steps += zip(
                (there.predicted != clean.predicted).tolist(),
                (there.features - clean.features).norm(dim=1).tolist(),
                own[images.rows].tolist(),
                [sign] * len(images.pixels),
            )
    flips, _, index, sign = max(steps)
    assert (example.index, np.sign(example.factors[3])) == (index, np.sign(sign))
    assert flips
    before, after = example.lines[2].split(" → ")
    assert before == "red"
    assert after in ("dark", "light")


@pytest.mark.parametrize(
    ("flipping", "row", "factor", "change"),
    [((0, 2), 2, 1.2, "red → dark"), ((), 1, 0.8, "red → the same")],
)
def test_a_picture_flips_rather_than_moves(
    tmp_path: Path, flipping: tuple[int, ...], row: int, factor: float, change: str
) -> None:
    loader = tinted_loader(tmp_path)
    index = np.array([24, 25, 26, 27, 0])  # four of c, one of a
    down, up = np.array([1.0, 5, 1, 1, 9]), np.array([2.0, 1, 3, 1, 9])
    there = np.full(5, 2)
    there[list(flipping)] = 0
    answered = {
        "moved/brightness/down": down, "predicted/brightness/down": np.full(5, 2),
        "moved/brightness/up": up, "predicted/brightness/up": there,
    }  # fmt: skip
    columns = {
        "class": np.array([2, 2, 2, 2, 0]),
        "predicted": np.full(5, 2),
        "between": np.full(5, 4.0),
        "moved/brightness": (down + up) / 2,
        "flipped/brightness": (there != 2) / 2,
    }
    table = [
        Dependence("c", "brightness", "moved", 0.5, 0.4, 0.6, 4, 0.2, stands_out=False),
        Dependence("c", "brightness", "flipped", 0.25, 0.1, 0.4, 4, 1e-4, stands_out=True),
    ]
    (found,) = module._examples(model(), loader, Rows(index, columns), answered, table)
    assert found.index == index[row]
    assert found.factors == pytest.approx((factor, 1, 1, 0))
    overall = columns["flipped/brightness"].mean()
    assert found.lines == (
        f"brightness alone flips 25 % in this class, {100 * overall:.0f} % over all", change
    )  # fmt: skip


def test_flips_come_before_movement_and_the_surer_first() -> None:
    def one(name: str, kind: str, what: Any, p: float, value: float, out: bool = True) -> Any:
        return Dependence(name, kind, what, value, value, value, 9, p, out)

    table = [
        one("a", "brightness", "moved", 1e-6, 3.0),
        one("b", "brightness", "moved", 1e-6, 2.0),
        one("c", "hue", "flipped", 1e-3, 0.5),
        one("d", "hue", "flipped", 1e-4, 0.4),
        one("d", "hue", "moved", 1e-6, 4.0),
        one("e", "contrast", "flipped", 1e-5, 0.4, out=False),
        one("f", "saturation", "flipped", 1e-4, 0.9),
    ]
    assert module._standing_out(table) == [
        ("f", "saturation"), ("d", "hue"), ("a", "brightness"), ("c", "hue"), ("b", "brightness"),
    ]  # fmt: skip


def test_where_no_class_differs_none_is_named(tmp_path: Path) -> None:
    found = ask(tinted_loader(tmp_path, red=CLASSES))
    assert not any(one.stands_out for one in found.dependence)
    assert found.examples == ()
    assert found["axis_flips/hue"].value == 0.5  # they do depend, all alike


def test_parts_and_a_cache_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = tinted_loader(tmp_path)
    whole = ask(loader)
    monkeypatch.setattr(module, "SHARE", 20)
    cache = tiny.Kept()
    first = ask(loader, cache=cache)
    assert cache.computed == ["axes-0", "axes-1", "axes-2", "classes"]
    second = ask(loader, cache=cache)
    assert len(cache.computed) == 4
    for found in (first, second):
        for name, column in whole.tables["axes"].columns.items():
            np.testing.assert_allclose(found.tables["axes"].columns[name], column, rtol=1e-5)
        for a, b in zip(found.dependence, whole.dependence, strict=True):
            assert a.value == pytest.approx(b.value, rel=1e-5)
            assert a.p == pytest.approx(b.p)
        assert [e.index for e in found.examples] == [e.index for e in whole.examples]
    assert cache.settings["axes-0"] == {"n": 48, "seed": 0, "strengths": STRENGTHS}


def test_a_bound_and_a_seed_choose_images(tmp_path: Path) -> None:
    loader = tinted_loader(tmp_path)
    first, same, other = (ask(loader, n=24, seed=s).tables["axes"].index for s in (0, 0, 1))
    assert np.bincount(loader.index.targets[first]).tolist() == [6] * 4
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)


def test_equal_features_have_flips_only(tmp_path: Path) -> None:
    pixels = {name: tiny.constant(*[0.5] * 5) for name in "ab"}
    found = ask(tiny.loader(tmp_path, pixels, strengths=STRENGTHS), labels=np.full(10, -1))
    assert "axis: the features of different images are the same" in found.left_out
    assert np.isnan(found["axis/hue"].value)
    flips = found["axis_flips/hue"]
    assert flips.value == flips.low == 0 < flips.high  # of ten images the next may flip
    assert not any(one.stands_out for one in found.dependence)


def never(*_: Any) -> Any:
    raise AssertionError("something was computed")


def test_one_image_a_class_cannot_be_asked(tmp_path: Path) -> None:
    loader = tiny.loader(tmp_path, {name: tiny.constant(0.5) for name in "abc"})
    with pytest.raises(UserError, match=r"^bias: 0 of 3 class folders have 5 images or more"):
        ask(loader, labels=np.full(3, 0), cache=never)


def test_unlabelled_images_cannot_be_asked(tmp_path: Path) -> None:
    loader = tinted_loader(tmp_path)
    loader.index = replace(loader.index, classes=("",) * 4)
    with pytest.raises(UserError, match=r"^bias: the images have no labels"):
        ask(loader, cache=never)


def test_without_scipy_a_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = tinted_loader(tmp_path)
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(UserError, match="bias needs scipy: pip install scipy"):
        ask(loader, cache=never)
