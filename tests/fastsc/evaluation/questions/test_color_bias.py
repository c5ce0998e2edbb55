"""Color MNIST: models that read the color or the shape alone, and scikit-learn called directly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from fastsc.datasets.colormnist import COLORS, FOLDERS
from fastsc.evaluation.models.classifier import Classifier
from fastsc.evaluation.questions.bias import color_bias as module
from fastsc.evaluation.questions.bias.question import bias
from fastsc.evaluation.views import choose
from fastsc.loading.preprocessing import Preprocessing
from tests.fastsc.evaluation import tiny
from tests.fastsc.evaluation.questions.drawn_digits import (
    SIDE,
    Reader,
    ask,
    classifier,
    color,
    data,
    shape,
    shown_by,
    splits_of,
)

pytestmark = pytest.mark.heavy

__all__ = ["data"]  # a fixture

PROBED = ("probe/colour", "probe/shape", "pixels/colour", "pixels/shape")


def truth(data: Path) -> dict[str, tuple[int, int, NDArray[np.uint8]]]:
    """Path in `random` -> shape, color, pixels: from the files alone."""
    found = {}
    for path in sorted((data / "random").glob("*/*.png")):
        with Image.open(path) as image:
            pixels = np.asarray(image)
        brightest = pixels.reshape(-1, 3)[pixels.sum(axis=2).argmax()].astype(float)
        apart = [np.linalg.norm(brightest / brightest.max() - np.array(c) / max(c)) for c in COLORS]
        found[f"{path.parent.name}/{path.name}"] = (
            int(path.parent.name), int(np.argmin(apart)), pixels,
        )  # fmt: skip
    return found


@pytest.fixture(scope="module")
def of_colors(data: Path) -> Any:
    return ask(Reader(color), data)


@pytest.fixture(scope="module")
def of_shapes(data: Path) -> Any:
    return ask(Reader(shape), data)


# --- what it goes by -----------------------------------------------------------------------------


def test_a_model_of_colors(data: Path, of_colors: Any) -> None:
    found = of_colors
    files = truth(data)
    own = np.mean([label == of for label, of, _ in files.values()])
    assert 0 < own < 0.3
    values = {name: found[name].value for name in found.estimates}
    assert [values[f"accuracy/{name}"] for name in FOLDERS] == [1, own, 0]
    assert values["gap"] == 1
    assert values["probe/colour"] == 1
    assert values["probe/shape"] < 0.25
    assert {m.name: (m.statistic, m.table, m.columns) for m in found.measures} == {
        **{f"accuracy/{name}": ("share", "colours", (name,)) for name in FOLDERS},
        "gap": ("mean", "colours", ("gap",)),
        **{name: ("share", "probes", (name,)) for name in PROBED},
    }
    assert found["gap"].n == len(files) == 120
    assert found["probe/colour"].n == 60
    assert found.left_out == ("axes: the strengths are 0, and nothing changes; take others: "
                              "--strengths",)  # fmt: skip


def test_a_model_of_shapes(of_shapes: Any) -> None:
    found = of_shapes
    assert [found[f"accuracy/{name}"].value for name in FOLDERS] == [1, 1, 1]
    assert found["gap"].value == 0
    assert found["probe/shape"].value == 1
    assert found["probe/colour"].value < 0.25


def test_rows_are_paired_over_digits(data: Path) -> None:
    """A model of colors, wrong where there are few bright pixels: each row by hand."""

    def some(x: torch.Tensor) -> torch.Tensor:
        return torch.where(shape(x) < 3, 0, color(x))

    found = ask(Reader(some), data)
    files = truth(data)
    rows = found.tables["colours"]
    assert rows.columns["path"].tolist() == list(files)
    for row, (label, of, _) in enumerate(files.values()):
        read = [0, 0, 0] if label < 3 else [label, of, 9 - label]
        right = [float(one == label) for one in read]
        assert [rows.columns[name][row] for name in FOLDERS] == right
        assert rows.columns["gap"][row] == right[0] - right[2]


def test_outputs_are_the_labels_of_the_folders(data: Path) -> None:
    order = np.roll(np.arange(10), 3)  # output i is digit order[i]
    loader = shown_by(data, "val")
    labels = np.argsort(order)[loader.index.targets]
    found = ask(Reader(shape, order), data, labels=labels)
    assert found["accuracy/reversed"].value == 1
    assert ask(Reader(shape, order), data)["accuracy/reversed"].value == 0


def test_pictures_are_of_the_same_digits_for_every_model(
    data: Path, of_colors: Any, of_shapes: Any
) -> None:
    by_color, by_shape = of_colors.digits, of_shapes.digits
    names = [digit.name for digit in by_color]
    assert names == [digit.name for digit in by_shape]
    assert len({name.split("/")[0] for name in names}) == len(names) == module.SHOWN
    files = truth(data)
    for one, other in zip(by_color, by_shape, strict=True):
        label, of, pixels = files[one.name]
        assert np.array_equal(one.pixels["random"], pixels)
        assert not np.array_equal(one.pixels["reversed"], one.pixels["aligned"])
        assert one.predicted == {
            "aligned": f"class {label}", "random": f"class {of}", "reversed": f"class {9 - label}",
        }  # fmt: skip
        assert set(other.predicted.values()) == {f"class {label}"}


# --- probes --------------------------------------------------------------------------------------


class Blurred(nn.Module):
    """Features: means over 4 x 4 pixels, from which neither is read surely."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(27, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.net(x)
        return logits


def test_probes_are_scikit_learns(data: Path) -> None:
    found = ask(Blurred(), data).tables["probes"]
    files = truth(data)
    names = np.array(list(files))
    test = np.isin(names, found.columns["path"])
    assert names[test].tolist() == found.columns["path"].tolist()
    pixels = np.stack([image for _, _, image in files.values()]).astype(np.float64)
    means = pixels.reshape(-1, 3, 4, 3, 4, 3).mean((2, 4)).reshape(len(names), -1)
    inputs = {"pixels": pixels.reshape(len(names), -1), "probe": means / 255}
    right = []
    for what, place in (("shape", 0), ("colour", 1)):
        labels = np.array([one[place] for one in files.values()])
        for name, x in inputs.items():
            scaler = StandardScaler().fit(x[~test])
            model = LogisticRegression(max_iter=10_000).fit(
                scaler.transform(x[~test]), labels[~test]
            )
            expected = model.predict(scaler.transform(x[test])) == labels[test]
            column = found.columns[f"{name}/{what}"]
            assert np.mean(column != expected) <= 0.02, (name, what)  # of near ties, one of 60
            right.append(column.mean())
    assert 0.1 < np.mean(right) < 1  # or it shows nothing


def test_halves_have_every_shape_and_color_alike(data: Path, of_shapes: Any) -> None:
    found = of_shapes.tables["probes"]
    files = truth(data)
    names = set(found.columns["path"].tolist())
    for place, most in ((0, 1), (1, 10)):
        counts = np.zeros((2, 10), int)
        for name, one in files.items():
            counts[int(name in names), one[place]] += 1
        assert (abs(counts[0] - counts[1]) <= most).all()
        assert counts.sum(axis=1).tolist() == [60, 60]
    again, other = (ask(Reader(shape), data, seed=s).tables["probes"] for s in (0, 1))
    assert np.array_equal(again.index, found.index)
    assert not np.array_equal(other.index, found.index)


@pytest.mark.parametrize("resolution", [SIDE, 9, 40])
def test_colors_are_told_from_pixels_at_any_size(data: Path, resolution: int) -> None:
    digits = module.Digits(splits_of(data, resolution=resolution), None, 0)
    pixels = [batch.images.numpy() for batch in digits.splits["random"].decoded(digits.index)]
    mean = np.concatenate(pixels).mean((1, 2), dtype=np.float64)
    files = truth(data)
    assert digits.colors(mean).tolist() == [of for _, of, _ in files.values()]
    assert digits.shape.tolist() == [label for label, _, _ in files.values()]


def test_pixels_of_large_images_are_averaged(data: Path) -> None:
    wide = {"resolution": 56}
    net = Classifier(
        nn.Sequential(nn.AvgPool2d(14), nn.Flatten(), nn.Linear(48, 10)),
        "wide",
        Preprocessing(resolution=56, resize=56),
    )
    digits = module.Digits(splits_of(data, **wide), None, 0)
    cache = tiny.Kept()
    found = module.predictions(net, digits, cache)["random"]
    assert found["pixels"].shape == (120, 3, 28, 28)
    pixels = [batch.images.numpy() for batch in digits.splits["random"].decoded(digits.index)]
    blocks = np.concatenate(pixels).reshape(120, 28, 2, 28, 2, 3).mean((2, 4))
    np.testing.assert_allclose(found["pixels"], blocks.transpose(0, 3, 1, 2), atol=0.5)


# --- parts and choices ---------------------------------------------------------------------------


def test_parts_and_a_cache_change_nothing(
    data: Path, of_colors: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SHARE", 70)
    cache = tiny.Kept()
    found = ask(Reader(color), data, cache=cache)
    assert cache.computed == [
        *(f"digits-{folder}-{part}" for folder in FOLDERS for part in (0, 1)),
        "linear-probe",
        "linear-pixels",
    ]
    again = ask(Reader(color), data, cache=cache)
    assert len(cache.computed) == 8
    for answer in (found, again):
        for table in ("colours", "probes"):
            for name, column in of_colors.tables[table].columns.items():
                assert np.array_equal(answer.tables[table].columns[name], column), name
    hashes = [shown_by(data, name).index.hash for name in FOLDERS]
    assert cache.settings["linear-probe"] == {"digits": hashes, "n": 120, "seed": 0}


def test_a_bound_chooses_digits(data: Path) -> None:
    found = ask(Reader(color), data, n=50, seed=2)
    rows = found.tables["colours"]
    assert rows.index.tolist() == choose(shown_by(data, "random"), 50, 2).tolist()
    assert len(found.tables["probes"]) == 25
    assert set(found.tables["probes"].index) <= set(rows.index)


def test_a_model_with_more_outputs_is_judged_by_what_is_right_there(
    data: Path, of_colors: Any
) -> None:
    class Later(Reader):
        """Output 0 is something else, and the digits follow."""

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = nn.functional.pad(super().forward(x), (1, 0), value=-1e9)
            return logits

    labels = shown_by(data, "val").index.targets + 1
    found = ask(Later(color), data, labels=labels)
    assert not any(line.startswith("accuracy") for line in found.left_out)
    for name in ("accuracy/aligned", "accuracy/random", "accuracy/reversed", "gap"):
        assert found[name] == of_colors[name]


def test_axes_and_digits_together(data: Path) -> None:
    loader = shown_by(data, "train", strengths=(0, 0, 0, 0.1))
    options: Any = {"labels": loader.index.targets, "splits": splits_of(data)}
    found = bias(classifier(Reader(shape)), loader, n=100, **options)
    assert set(found.tables) == {"colours", "probes", "axes"}
    assert found["axis_flips/hue"].value == 0
    assert found.left_out == tuple(
        f"axis/{kind}: its strength is 0" for kind in ("brightness", "contrast", "saturation")
    )
