"""An ImageFolder of real JPEG files, written from photographs that packages ship.

A photograph is a class, its images are random crops of it. Enough to see a program work where there
is no data set; no measure of a model.
"""

from __future__ import annotations

import importlib.util
import math
import os
import shutil
from contextlib import ExitStack
from glob import escape
from pathlib import Path

import numpy as np
from PIL import Image

from fastsc.cli.leftovers import claimed, remove_stale
from fastsc.errors import UserError

# Class, package, file inside the package.
PHOTOGRAPHS = (
    ("astronaut", "skimage", "data/astronaut.png"),
    ("cat", "skimage", "data/chelsea.png"),
    ("coffee", "skimage", "data/coffee.png"),
    ("dahlia", "sklearn", "datasets/images/flower.jpg"),
    ("galaxies", "skimage", "data/hubble_deep_field.jpg"),
    ("motorcycle", "skimage", "data/motorcycle_left.png"),
    ("retina", "skimage", "data/retina.jpg"),
    ("rocket", "skimage", "data/rocket.jpg"),
    ("temple", "sklearn", "datasets/images/china.jpg"),
    ("tissue", "skimage", "data/ihc.png"),
)
PER_CLASS = {"train": 24, "val": 8}
CROP_AREA = (0.25, 1.0)  # share of the photograph
CROP_ASPECT = (3 / 4, 4 / 3)
LONG_SIDE = (140, 321)  # px of the JPEG files, upper end excluded
JPEG_QUALITY = 90
MARKER = "made-by-fastsc-demo"
SEED = 0


def write_photographs(folder: Path) -> Path:
    """folder/{train,val}/CLASS/NN.jpg, the same bytes every time; kept when it is there.

    Raises:
        UserError: A package with photographs is missing, or `folder` holds something else.
    """
    if (folder / MARKER).is_file():
        return folder
    if folder.exists():
        raise UserError(f"{folder} exists and is not the demo's: choose another --out")
    sources = [(name, packaged(package, file)) for name, package, file in PHOTOGRAPHS]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = folder.with_name(f".{folder.name}.{os.getpid()}.part")
        remove_stale(folder.parent.glob(f".{escape(folder.name)}.*.part"))
        with claimed(unfinished, folder=True), ExitStack() as rollback:
            rollback.callback(shutil.rmtree, unfinished, ignore_errors=True)
            for key, (name, source) in enumerate(sources):
                with Image.open(source) as image:
                    photograph = image.convert("RGB")
                for split_key, (split, n) in enumerate(PER_CLASS.items()):
                    (unfinished / split / name).mkdir(parents=True)
                    rng = np.random.default_rng([SEED, split_key, key])
                    for i in range(n):
                        file = unfinished / split / name / f"{i:02d}.jpg"
                        random_crop(photograph, rng).save(file, quality=JPEG_QUALITY)
            (unfinished / MARKER).touch()
            unfinished.rename(folder)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}; choose another --out") from None
    return folder


def packaged(package: str, file: str) -> Path:
    """A file inside an installed package, found without importing it."""
    spec = importlib.util.find_spec(package)
    for folder in (spec and spec.submodule_search_locations) or ():
        if (path := Path(folder, file)).is_file():
            return path
    raise UserError(f"{package} with its {file} is missing: pip install 'fastsc[eval]'")


def random_crop(photograph: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A crop of random area, aspect and place, resized to a random size (never enlarged)."""
    area = photograph.width * photograph.height * rng.uniform(CROP_AREA[0], CROP_AREA[1])
    aspect = math.exp(rng.uniform(math.log(CROP_ASPECT[0]), math.log(CROP_ASPECT[1])))
    width = min(photograph.width, round(math.sqrt(area * aspect)))
    height = min(photograph.height, round(math.sqrt(area / aspect)))
    x = int(rng.integers(photograph.width - width + 1))
    y = int(rng.integers(photograph.height - height + 1))
    crop = photograph.crop((x, y, x + width, y + height))
    side = int(rng.integers(*LONG_SIDE))
    crop.thumbnail((side, side), Image.Resampling.LANCZOS)
    return crop


def free_name(path: Path) -> Path:
    """`path`, or the first of path-2, path-3, … that does not exist: no run is overwritten."""
    candidates = (path if i == 1 else path.with_name(f"{path.name}-{i}") for i in range(1, 10_000))
    return next(candidate for candidate in candidates if not candidate.exists())
