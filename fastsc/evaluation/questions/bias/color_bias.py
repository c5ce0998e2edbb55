"""Color MNIST: what a classifier goes by, and what its features tell, of digits whose color lies.

See `fastsc.datasets.colormnist` for the data: the folders aligned, random and reversed hold the
same test digits in their class's color, in any, and with class k in the color of class 9 - k.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fastsc.cli.packages import installed
from fastsc.datasets.colormnist import FOLDERS, METADATA
from fastsc.errors import UserError
from fastsc.evaluation.models.classifier import Classifier
from fastsc.evaluation.results.answers import Arrays, PartCache, Rows, in_parts
from fastsc.evaluation.views import Images, Indices, Viewer, choose, shares
from fastsc.pipelines import Pipeline, keyed
from fastsc.pipelines.reading import read_json

N_COLORS = 10
CHANCE = 1 / N_COLORS  # of a digit's color, and of its shape
SIDE = 28  # of the pixels that a probe reads: the digits' own
SHARE = 2_000  # digits of a part
MAX_ITER = 5_000  # of the solver; what it finds does not depend on it
SHOWN = 4  # digits as pictures

Splits = Mapping[str, Pipeline]


@dataclass(frozen=True, eq=False)
class Digit:
    """A test digit in the three colorings.

    Attributes:
        name: Its file, in each of the folders.
        pixels: Folder -> (R, R, 3) uint8 RGB as the model sees it.
        predicted: Folder -> the class that the model predicts.
    """

    name: str
    pixels: dict[str, NDArray[np.uint8]]
    predicted: dict[str, str]


class Digits:
    """The test digits in their three folders.

    Args:
        splits: A validation loader for each of FOLDERS, with the model's preprocessing.
        n: Digits at most. None: all of them.
        seed: Of their choice.

    Attributes:
        index: (n,) dataset indices, the same in each folder.
        shape: (n,) position of the class folder.

    Raises:
        UserError: The folders do not hold the same digits, or the colors are not known.
    """

    def __init__(self, splits: Splits, n: int | None, seed: int) -> None:
        assert set(splits) == set(FOLDERS), f"splits are {', '.join(FOLDERS)}"
        self.splits, self.seed = splits, seed
        indices = [splits[name].index for name in FOLDERS]
        self.root = indices[0].root.parent
        if any(one.paths != indices[0].paths for one in indices):
            raise UserError(
                f"bias: {self.root}: its folders {', '.join(FOLDERS)} do not hold the same digits; "
                "make them again: python -m fastsc.prepare colormnist"
            )
        usable = set.intersection(*(set(one.usable.tolist()) for one in indices))
        among = np.array(sorted(usable), np.int64)
        if len(among) < 2:
            raise UserError(f"bias: {self.root} has fewer than two digits that can be read")
        self.index: Indices = choose(splits["random"], n, seed, among)
        self.paths = [indices[0].paths[i] for i in self.index]
        self.names = indices[0].classes
        self.shape = indices[0].targets[self.index]
        self._palette = _palette(self.root / METADATA)

    def settings(self) -> dict[str, object]:
        """On what the arrays of a part depend besides the model."""
        data = [self.splits[name].index.hash for name in FOLDERS]
        return {"digits": data, "n": len(self.index), "seed": self.seed}

    def colors(self, mean: NDArray[np.float64]) -> NDArray[np.int64]:
        """(n,) which of the ten colors digits have, by their mean pixel (n, 3).

        A pixel is a grey level times the color, so that the mean has the color's hue too, and
        less of the rounding than the brightest pixel: the nearest in direction.
        """
        unit = self._palette / np.linalg.norm(self._palette, axis=1, keepdims=True)
        nearest: NDArray[np.int64] = (mean @ unit.T).argmax(axis=1)
        return nearest


def _palette(path: Path) -> NDArray[np.float64]:
    """(10, 3) the colors that the metadata name."""
    try:
        colors = read_json(path, str(path))["colours"]
        texts = [colors[str(k)].removeprefix("#") for k in range(N_COLORS)]
        return np.array([list(bytes.fromhex(text)) for text in texts], np.float64).reshape(-1, 3)
    except (ValueError, LookupError, TypeError, AttributeError):  # a UserError among them
        raise UserError(
            f"bias: {path} does not name the ten colors; make the folder again: python -m "
            "fastsc.prepare colormnist"
        ) from None


def outputs_of(
    loader: Pipeline, labels: NDArray[np.int64], digits: Digits
) -> NDArray[np.int64] | str:
    """(n,) the right output of each digit, by what is right for the loader's folders; or why not.

    Args:
        labels: (len(loader.index),), -1 where it is not known.
    """
    folders = np.array(loader.index.classes)[loader.index.targets]
    right = {str(name): int(label) for name, label in zip(folders, labels) if label >= 0}
    if not set(digits.names) <= set(right):
        return "which outputs are the digits is not known; name them with --class-map"
    return np.array([right[name] for name in digits.names])[digits.shape]


# --- what it predicts ----------------------------------------------------------------------------


def predictions(model: Classifier, digits: Digits, cache: PartCache) -> dict[str, Arrays]:
    """Folder -> "predicted" (n,); of `random` also "features", "pixels" and "mean"."""
    parts, settings = shares(digits.index, SHARE), digits.settings()
    views = {folder: Viewer(model, digits.splits[folder]) for folder in FOLDERS}
    return {
        folder: in_parts(
            cache, f"digits-{folder}", parts, settings, partial(_answers_of, viewer, folder=folder)
        )
        for folder, viewer in views.items()
    }


def _answers_of(viewer: Viewer, index: Indices, folder: str) -> Arrays:
    def answer(images: Images) -> dict[str, Tensor]:
        response = viewer.respond(images.pixels)
        if folder != "random":
            return {"predicted": response.predicted}
        channels = images.pixels.permute(0, 3, 1, 2).double()
        side = min(SIDE, channels.shape[-1])
        few = F.adaptive_avg_pool2d(channels, side).round().byte()
        return {
            "predicted": response.predicted, "features": response.features,
            "pixels": few, "mean": channels.mean((2, 3)),
        }  # fmt: skip

    return viewer.columns(index, f"bias: digits in {folder} colors", answer)


def accuracy_rows(digits: Digits, answers: Mapping[str, Arrays], right: NDArray[np.int64]) -> Rows:
    """The table "colours", one row per digit: whether it is right in each folder, and "gap",
    aligned less reversed; "path" in each of the folders."""
    columns: Arrays = {
        name: (answers[name]["predicted"] == right).astype(np.float64) for name in FOLDERS
    }
    gap = columns["aligned"] - columns["reversed"]
    return Rows(digits.index, {**columns, "gap": gap, "path": np.array(digits.paths)})


def shown(model: Classifier, digits: Digits, answers: Mapping[str, Arrays]) -> list[Digit]:
    """A few digits as pictures, of each class at most one: a keyed choice, the same for every model
    and not by what it reads."""
    usable, n = digits.index, len(digits.splits["random"].index)
    order = np.searchsorted(
        usable, keyed.order(digits.seed, keyed.VALIDATION_EPOCH, usable, n)
    )  # fmt: skip
    first = np.sort(np.unique(digits.shape[order], return_index=True)[1])
    viewers = {name: Viewer(model, digits.splits[name]) for name in FOLDERS}
    return [
        Digit(
            digits.paths[row],
            {name: viewer.picture(int(usable[row])) for name, viewer in viewers.items()},
            {name: model.class_name(int(answers[name]["predicted"][row])) for name in FOLDERS},
        )
        for row in order[first][:SHOWN]
    ]


# --- what its features tell ----------------------------------------------------------------------


def probe_rows(digits: Digits, answered: Arrays, cache: PartCache) -> Rows | str:
    """The table "probes", one row per digit of the half that the probes are tested on; or why not.

    Columns "probe/colour", "probe/shape": whether a linear probe of the features of the `random`
    digits reads it; "pixels/colour", "pixels/shape": one of the pixels, at 28 px at most. "path".
    """
    if not installed("sklearn"):
        return "scikit-learn is not installed; pip install scikit-learn"
    labels = {"colour": digits.colors(answered["mean"]), "shape": digits.shape}
    train = halves(digits, labels["colour"])
    for what, label in labels.items():
        if len(np.unique(label[train])) < 2:
            return f"the {int(train.sum())} digits to learn from have one {what}"
    inputs = {
        "probe": answered["features"],
        "pixels": answered["pixels"].reshape(len(train), -1).astype(np.float32),
    }
    columns: Arrays = {}
    for name, x in inputs.items():
        columns |= cache(
            f"linear-{name}",
            digits.settings(),
            lambda name=name, x=x: {  # type: ignore[misc]
                f"{name}/{what}": probe(x, label, train) for what, label in labels.items()
            },
        )
    paths = np.array(digits.paths)[~train]
    return Rows(digits.index[~train], {**columns, "path": paths})


def halves(digits: Digits, color: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(n,) the digits to learn from: a keyed half of every shape in every color, and of all."""
    of_all = len(digits.splits["random"].index)
    draws = keyed.raw(digits.seed, keyed.VALIDATION_EPOCH, keyed.Stream.ORDER, of_all)
    order = np.lexsort((draws[digits.index], color, digits.shape))
    train = np.zeros(len(order), np.bool_)
    train[order[::2]] = True
    return train


def probe(x: NDArray, labels: NDArray[np.int64], train: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Whether a linear probe is right: scikit-learn's logistic regression, L2 with C = 1.

    Args:
        x: (n, D), standardized over the rows to learn from.
        labels: (n,).
        train: (n,) the rows to learn from; the others are tested.

    Returns:
        0 or 1 a row that is tested, in order.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=MAX_ITER))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(x[train], labels[train])
    right: NDArray[np.float64] = (model.predict(x[~train]) == labels[~train]).astype(np.float64)
    return right
