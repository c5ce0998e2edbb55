"""The images to ask about: which folder of a data set, and whether its folders are labels."""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastsc.cli.console import printable
from fastsc.datasets.folders import SPLITS, first_part, scan_any
from fastsc.errors import UserError
from fastsc.pipelines import Index, Pipeline
from fastsc.pipelines.decode import of_pipeline
from fastsc.pipelines.index import part_of
from fastsc.pipelines.lists import list_of, read_list
from fastsc.pipelines.sweep import verify


def some(names: Iterable[str], most: int = 3) -> str:
    """ "a, b, c, …": the first of many names."""
    every = list(names)
    return ", ".join(every[:most]) + ", …" * (len(every) > most)


@dataclass(frozen=True, eq=False)
class Split:
    """Images on disk.

    Attributes:
        index: Theirs.
        labelled: Whether its classes are those of the images; else it has one, the folder itself.
    """

    index: Index
    labelled: bool


def open_split(
    data: str | Path,
    split: str | None = None,
    on_bad_image: str = "raise",
    pipeline: str = "cpu",
    label_key: str | None = None,
) -> Split:
    """Indexes the images of a data set.

    Args:
        data: A folder with a folder val, test or train (the first that is there is taken), or with
            the images themselves: in one folder per class, in tars, or in neither, unlabelled. Or a
            list (.csv, .parquet).
        split: The folder in `data` to take instead.
        on_bad_image: "raise": a file whose header is broken is a mistake; "skip": every image is
            decoded once, and those that do not decode are left out.
        pipeline: The one that will decode them.
        label_key: See `pipelines.scan`.

    Raises:
        UserError: A folder is missing or holds no images, or an image is broken and is not to be
            skipped.
    """
    folder = _folder(Path(data), split)
    index, labelled = scan_any(folder, label_key)
    return Split(checked(index, on_bad_image, pipeline), labelled)


def checked(index: Index, on_bad_image: str, pipeline: str) -> Index:
    """The index, as `open_split` has it, without what its pipeline does not decode.

    Its class names are text, which fonts can draw: those of the model are (`sources`), too.
    """
    index.require(on_bad_image)
    if on_bad_image == "skip" and (broken := verify(index, decode=of_pipeline(pipeline))):
        index = index.without(broken)
        index.require(on_bad_image)
    return replace(index, classes=tuple(map(printable, index.classes)))


def _folder(data: Path, split: str | None) -> Path:
    is_list = list_of(data) is not None
    if not (data.is_dir() or (is_list and data.is_file())):
        what = "a file, not a folder" if data.exists() else "no such folder"
        raise UserError(
            f"--data {data}: {what}; it wants a folder of images, or a list (.csv, .parquet)"
        )
    if split is not None:
        if (part := part_of(data, split)) is not None:
            return part
        if is_list:
            there = sorted(set(read_list(data).splits or ()))
        else:
            there = sorted(entry.name for entry in data.iterdir() if entry.is_dir())
        known = some(there, 5) or "none at all"
        what = "split" if is_list else "folder"
        raise UserError(f"--split {split}: {data} has no such {what}, but {known}")
    return first_part(data, *SPLITS) or data


def even_share(counts: NDArray[np.int64], n: int) -> int:
    """The most images per class, where it has so many, that are at most n altogether."""
    up_to = range(int(counts.max()) + 1)
    return bisect.bisect_right(up_to, n, key=lambda m: int(np.minimum(counts, m).sum())) - 1


def class_images(loader: Pipeline) -> dict[int, NDArray[np.int64]]:
    """Class -> its usable dataset indices, sorted; a class without a name holds unlabelled ones."""
    usable = loader.index.usable
    targets = loader.index.targets[usable]
    order = np.argsort(targets, kind="stable")
    labels, starts = np.unique(targets[order], return_index=True)
    shares = np.split(usable[order], starts[1:])
    names = loader.index.classes
    return {int(c): own for c, own in zip(labels, shares, strict=True) if c >= 0 and names[c]}
