"""The photographs that the loaders' benchmarks read, as folders, tars and betons."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from fastsc.pipelines import Index, UserError, open_beton, scan
from fastsc.pipelines.tar_writer import write_tars

LARGE = (4000, 3000)  # pixels, width and height
MIN_FILES = 2500  # an epoch so long that its start does not count

# Ways in which a beton holds images of at most 400 pixels: the share of JPEGs, quality 90.
BETONS = {"": 1.0, "-half": 0.5, "-raw": 0.0}


@contextmanager
def mistakes(parser: argparse.ArgumentParser) -> Iterator[None]:
    """Within the context a user's mistake ends the program with one line and exit status 2."""
    try:
        yield
    except UserError as mistake:
        parser.error(str(mistake))


def add_data_argument(parser: argparse.ArgumentParser) -> None:
    """--data, which `source_folder` takes."""
    parser.add_argument("--data", type=Path, metavar="DIR", help="photographs in class folders")


def source_folder(data: Path | None, temporary: Path) -> Path:
    """--data, or the train folder in it, or photographs that packages ship."""
    if data is None:
        from fastsc.datasets.photographs import write_photographs

        data = write_photographs(temporary / "photographs")
    return data / "train" if (data / "train").is_dir() else data


def linked_folder(source: Path, target: Path, n: int | None = None) -> Path:
    """A class folder tree of links to the source's files, over and over: n, or MIN_FILES and up."""
    index = scan(source, progress=False)
    usable = index.usable.tolist()
    for k in range(n or -(-MIN_FILES // len(usable)) * len(usable)):
        copy, i = k // len(usable), usable[k % len(usable)]
        folder = target / index.classes[index.targets[i]]
        folder.mkdir(parents=True, exist_ok=True)
        file = Path(index.path(i)).resolve()
        (folder / f"{copy:03d}-{i:07d}{file.suffix}").symlink_to(file)
    return target


def enlarged(index: Index, target: Path, n: int) -> Path:
    """A class folder tree of n photographs of an index, enlarged to LARGE and with a camera's noise
    at quality 92: what people's own have, for a decoder."""
    for k in range(n):
        i = int(index.usable[k * len(index.usable) // n])
        with Image.open(index.path(i)) as file:
            pixels = np.asarray(file.convert("RGB").resize(LARGE, Image.Resampling.LANCZOS))
        noise = np.random.default_rng(k).normal(0, 2, (*pixels.shape[:2], 1))
        image = Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8))
        folder = target / index.classes[index.targets[i]]
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{k:05d}.jpg", quality=92)
    return target


def tars(index: Index, files: Path, n: int) -> Path:
    """A folder of some n tars of the photographs, packed once."""
    folder = files / "tars"
    if not folder.exists():
        write_tars(index, folder, max(1, int(index.n_bytes.sum()) // n))
    return folder


def drop_caches() -> None:
    """Has the next read of every file come from the disk; a UserError where that is not allowed."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError as error:
        raise UserError(f"the page cache cannot be dropped here ({error.strerror})") from None


def beton(index: Index, folder: Path, kind: str) -> Path:
    """A beton of an index, one of BETONS; made when it is asked for first.

    Raises:
        UserError: FFCV is not installed.
    """
    from fastsc.pipelines.beton_writer import BetonOptions, write_beton

    path = folder / f"train{kind}.beton"
    if not path.exists():
        write_beton(index, path, BetonOptions(jpeg_share=BETONS[kind]), on_bad_image="skip")
    open_beton(path)
    return path
