"""Color MNIST: real digits whose color tells their class while training, and lies afterwards.

Ten colors, one per class. A digit's stroke has the color, its grey level is the intensity, and the
background stays black: so in Nam et al., "Learning from failure" (arXiv 2007.02561), in Kim et al.,
"Learning not to learn" (arXiv 1812.10352), and, with two colors, in Arjovsky et al., "Invariant
risk minimization" (arXiv 1907.02893); Bahng et al. (arXiv 1910.02806) color the background. With
the stroke colored, color and shape lie in the same pixels, and black stays black under every
perturbation but contrast.

    train     the class's color with probability P, else one of the other nine
    val       other digits, colored the same way: what one would validate on, and be fooled by
    aligned   the test digits in their class's color
    random    the same test digits, each in any of the ten colors
    reversed  the same test digits, class k in the color of class 9 - k

A classifier of shapes has equal accuracy on the last three; one of colors has 1, 0.1 and 0.

The images keep the digits' own 28 x 28 pixels: nothing is resized, no border is invented, and the
`memory` pipeline gathers them as they are.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
from contextlib import ExitStack
from enum import IntEnum
from glob import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastsc.cli.leftovers import claimed, remove_stale, require_free
from fastsc.cli.parser import folder_name
from fastsc.datasets.digits import CLASSES, PACKAGED, Digits, Labels, read_digits
from fastsc.errors import UserError
from fastsc.pipelines import keyed
from fastsc.pipelines.progress import MIN_FILES, tracked
from fastsc.pipelines.reading import read_json

# Lightness 0.74 and hues of 20 + 36 k degrees in OKLCh (Ottosson, "A perceptual color space for
# image processing", 2020), each with the largest chroma that sRGB has there. All are equally
# bright, so that no grey level betrays a class, and neighbours on the circle look different.
COLORS = (
    (255, 125, 129),
    (254, 134, 0),
    (205, 166, 2),
    (135, 192, 2),
    (6, 201, 144),
    (8, 194, 202),
    (24, 184, 255),
    (142, 165, 255),
    (201, 137, 255),
    (255, 108, 202),
)

# 1 in 100 digits contradicts the color, in the middle of the literature's 0.95 to 0.995 (Nam et
# al.): few enough that plain cross-entropy goes by the color, enough that shape pays at all.
CORRELATION = 0.99
TEST_SHARE = 5  # a fifth of each class, where the source has no test digits of its own
VAL_SHARE = 10  # a tenth of each class's other digits
METADATA = "colormnist.json"
FOLDERS = ("aligned", "random", "reversed")  # of test digits
SEED = 0  # of the data that demos and studies make
FORMAT = 1  # of the folder; another number means that equal settings give other bytes

# The draws are rows of the pipelines' counter-based generator, at an epoch that no training has.
EPOCH = 2**48


class Draw(IntEnum):
    """One stream for every choice; its row i belongs to digit i of the source."""

    TEST = 0
    VAL = 1
    UNTIED = 2
    OTHER = 3
    RANDOM = 4


class Split(NamedTuple):
    """One folder: which digits, and in which of the ten colors."""

    digits: NDArray[np.int64]  # (n,) positions in the source, ascending
    colors: NDArray[np.int64]  # (n,) 0 to 9


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `fastsc.prepare colormnist`."""
    parser.add_argument(
        "--out", type=folder_name, required=True, metavar="DIR", help="folder to make"
    )
    parser.add_argument(
        "--correlation",
        type=float,
        default=CORRELATION,
        metavar="P",
        help="share of training and validation digits in their class's color (default: "
        "%(default)s); 0.1 says nothing about the class, 1 everything",
    )
    parser.add_argument(
        "--digits",
        type=Path,
        metavar="PATH",
        help="a folder with MNIST's IDX files, or an .npz like Keras' mnist.npz (default: the "
        f"5,000 MNIST digits of the package {PACKAGED})",
    )
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")


def run(args: argparse.Namespace) -> str:
    """Does what the options ask for; returns what to tell the user."""
    metadata = prepare(args.out, args.correlation, args.digits, args.seed)
    counts = ", ".join(f"{name} {split['n']}" for name, split in metadata["splits"].items())
    return f"{args.out}: {counts} images; {METADATA} has the settings and the ten colors"


def prepare(
    out: Path, correlation: float = CORRELATION, digits: Path | None = None, seed: int = 0
) -> dict[str, Any]:
    """Writes OUT/{train,val,aligned,random,reversed}/CLASS/NNNNN.png and OUT/colormnist.json.

    The same arguments and digits give the same bytes. NNNNN is the digit's position in its source,
    so that a digit has the same name in the three test folders. OUT appears whole or not at all.

    Args:
        out: A folder that does not exist or is empty.
        correlation: In [0, 1]; round((1 - correlation) * n) digits of `train`, and of `val`, have
            one of the other nine colors.
        digits: See `read_digits`.
        seed: Of the split and of the colors.

    Returns:
        The metadata that colormnist.json holds.

    Raises:
        UserError: An argument is wrong, the digits cannot be had, or OUT cannot be written.
    """
    if not (math.isfinite(correlation) and 0 <= correlation <= 1):
        raise UserError(f"--correlation must be a number from 0 to 1, not {correlation:g}")
    if not 0 <= seed < 2**63:
        raise UserError(f"--seed must be from 0 to 2**63 - 1, not {seed}")
    # Next to it, since a rename is whole only within one file system; but a mount point, whose name
    # nothing else can take, is filled, the metadata last.
    mounted = os.path.ismount(out)
    unfinished = (out if mounted else out.parent) / f".{out.name}.{os.getpid()}.part"
    remove_stale(unfinished.parent.glob(f".{escape(out.name)}.*.part"))
    require_free(out)
    original = read_digits(digits)
    splits = split_and_color(original.labels, original.n_train, correlation, seed)
    metadata = describe(original, splits, correlation, seed)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with claimed(unfinished, folder=True), ExitStack() as rollback:
            # No longer there after the rename.
            rollback.callback(shutil.rmtree, unfinished, ignore_errors=True)
            write_images(unfinished, original, splits)
            text = json.dumps(metadata, indent=1) + "\n"
            (unfinished / METADATA).write_text(text, encoding="utf-8")
            if mounted:
                for part in sorted(unfinished.iterdir(), key=lambda path: path.name == METADATA):
                    part.rename(out / part.name)
            else:
                unfinished.rename(out)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror})") from None
    return metadata


def prepared(out: Path, correlation: float, digits: Path | None) -> dict[str, Any]:
    """`prepare` with SEED, or the metadata of what lies there with the same settings.

    Raises:
        UserError: Something else lies there.
    """
    if not out.exists():
        return prepare(out, correlation, digits, SEED)
    try:
        metadata: dict[str, Any] = read_json(out / METADATA, str(out / METADATA))
        made = [metadata[key] for key in ("format", "seed", "correlation")]
        source = metadata["digits"]["source"]
    except (ValueError, LookupError, TypeError):  # a UserError among them
        raise UserError(f"{out} exists and is not the demo's: choose another --out") from None
    if (*made, source) != (FORMAT, SEED, correlation, str(digits or PACKAGED)):
        raise UserError(
            f"{out} was made with other settings (see its {METADATA}): remove it, or choose "
            "another --out"
        )
    return metadata


def colormnist_splits(data: Path) -> dict[str, Path] | None:
    """The three folders of test digits, where `data` is what `prepare` makes; else None."""
    folders = {name: data / name for name in FOLDERS}
    if (data / METADATA).is_file() and all(folder.is_dir() for folder in folders.values()):
        return folders
    return None


def split_and_color(
    labels: Labels, n_train: int | None, correlation: float, seed: int
) -> dict[str, Split]:
    """Which digits each folder has, and in which colors.

    A choice about a digit depends on the seed and its position alone. With a smaller correlation
    the same digits have other colors as before, and some more of them.

    Args:
        labels: (N,) 0 to 9.
        n_train: Digits from here on are the test digits; None: a fifth of each class is drawn.
        correlation: See `prepare`.
        seed: Of all draws.
    """

    def draw(kind: Draw) -> NDArray[np.uint64]:
        return keyed.raw(seed, EPOCH, kind, len(labels))

    if n_train is None:
        test = _first_of_each_class(np.arange(len(labels)), labels, draw(Draw.TEST), TEST_SHARE)
    else:
        test = np.arange(n_train, len(labels))
    rest = np.setdiff1d(np.arange(len(labels)), test)
    val = _first_of_each_class(rest, labels, draw(Draw.VAL), VAL_SHARE)
    train = np.setdiff1d(rest, val)

    other = (labels + 1 + (draw(Draw.OTHER) % np.uint64(CLASSES - 1)).astype(np.int64)) % CLASSES

    def tied(digits: NDArray[np.int64]) -> NDArray[np.int64]:
        # An exact count: at 0.99 of a few thousand digits, chance would change the task by a fifth.
        n_untied = round((1 - correlation) * len(digits))
        colors = labels[digits]
        rows = np.argsort(draw(Draw.UNTIED)[digits], kind="stable")[:n_untied]
        colors[rows] = other[digits[rows]]
        return colors

    any_of_ten = (draw(Draw.RANDOM) % np.uint64(CLASSES)).astype(np.int64)
    return {
        "train": Split(train, tied(train)),
        "val": Split(val, tied(val)),
        "aligned": Split(test, labels[test]),
        "random": Split(test, any_of_ten[test]),
        "reversed": Split(test, CLASSES - 1 - labels[test]),
    }


def color_digit(grey: NDArray[np.uint8], rgb: tuple[int, int, int]) -> NDArray[np.uint8]:
    """(H, W) grey levels -> (H, W, 3): the color times grey / 255, rounded; black stays black."""
    return ((grey[..., None].astype(np.uint16) * np.array(rgb, np.uint16) + 127) // 255).astype(
        np.uint8
    )


def write_images(folder: Path, digits: Digits, splits: dict[str, Split]) -> None:
    """folder/SPLIT/CLASS/NNNNN.png; a bar on a terminal where there are many."""
    todo = [
        (name, int(digit), COLORS[color])
        for name, split in splits.items()
        for digit, color in zip(split.digits, split.colors, strict=True)
    ]
    for name in splits:
        for label in range(CLASSES):
            (folder / name / str(label)).mkdir(parents=True)
    images = tracked(todo, "Coloring", len(todo)) if len(todo) >= MIN_FILES else todo
    for name, digit, rgb in images:
        file = folder / name / str(digits.labels[digit]) / f"{digit:05d}.png"
        Image.fromarray(color_digit(digits.images[digit], rgb)).save(file)


def describe(
    digits: Digits, splits: dict[str, Split], correlation: float, seed: int
) -> dict[str, Any]:
    """What colormnist.json says: everything that the images depend on, and the counts."""
    height, width = digits.images.shape[1:]
    return {
        "format": FORMAT,
        "seed": seed,
        "correlation": correlation,
        "digits": {
            "source": digits.source,
            "n": len(digits.labels),
            "height": height,
            "width": width,
            "sha256": digits.sha256(),
        },
        "colours": {str(k): "#{:02x}{:02x}{:02x}".format(*rgb) for k, rgb in enumerate(COLORS)},
        "splits": {
            name: {
                "n": len(split.digits),
                "n_in_own_colour": int((split.colors == digits.labels[split.digits]).sum()),
            }
            for name, split in splits.items()
        },
    }


def _first_of_each_class(
    digits: NDArray[np.int64], labels: Labels, draws: NDArray[np.uint64], share: int
) -> NDArray[np.int64]:
    """The 1 / share of each class with the smallest draws, at least one; ascending positions."""
    chosen = []
    for label in range(CLASSES):
        of_class = digits[labels[digits] == label]
        order = np.argsort(draws[of_class], kind="stable")
        chosen.append(of_class[order[: max(1, len(of_class) // share)]])
    return np.sort(np.concatenate(chosen))
