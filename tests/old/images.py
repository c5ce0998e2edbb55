"""The images of the old runs in this folder: the same bytes on every machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("even", "odd")


def write_images(root: Path) -> Path:
    """ROOT/{train,val}/CLASS/*.bmp: 2 classes, 8 and 4 images of 12 to 19 pixels a side.

    By a formula and without compression, so that no generator and no encoder has a say in them.
    """
    for split, per_class in (("train", 8), ("val", 4)):
        for label, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(per_class):
                seed = 2 * i + label + (100 if split == "val" else 0)
                height, width = 12 + seed % 8, 12 + (5 * seed) % 8
                y, x, c = np.ogrid[:height, :width, :3]
                wave = (3 + label) * y * y + (7 - 2 * label) * x + 60 * c + 31 * seed
                Image.fromarray((wave % 251).astype(np.uint8)).save(folder / f"{i}.bmp")
    return root
