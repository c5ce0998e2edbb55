"""Another labelled data set in two parts, to learn from and to test on: `--transfer-data DIR`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastsc.datasets.folders import first_part
from fastsc.errors import UserError
from fastsc.evaluation.data import checked
from fastsc.pipelines import Index, keyed, scan
from fastsc.pipelines.index import part_of
from fastsc.pipelines.lists import list_of

TESTS = ("val", "test")


def transfer_splits(
    data: str | Path,
    seed: int = 0,
    on_bad_image: str = "raise",
    pipeline: str = "cpu",
    label_key: str | None = None,
) -> tuple[Index, Index]:
    """The two parts of a labelled data set, with the same classes.

    Args:
        data: A folder with train/, and val/ or test/ (the first that is there is taken), in each of
            which is one folder per class. Or with one of the three, or with the class folders
            themselves: half of each class's images, drawn by `seed`, is then the training part, of
            an odd number the larger half; an only image is in it, too.
        seed: Of the halves.
        on_bad_image: "raise": a file whose header is broken is a mistake; "skip": every image is
            decoded once, and those that do not decode are left out.
        pipeline: The one that will decode them.
        label_key: Of WebDataset's tars: the field of a KEY.json that is the label.

    Raises:
        UserError: There is no such folder, it holds no class folders or no images, its test part
            has a class that its training part has not; or an image is broken and is not to be
            skipped, or one image a class leaves nothing to test on.
    """
    data = Path(data)
    if not (data.is_dir() or list_of(data)):
        what = "a file, not a folder" if data.exists() else "no such folder"
        raise UserError(f"--transfer-data {data}: {what}; it wants a folder of labelled images")
    test = next((part for name in TESTS if (part := part_of(data, name)) is not None), None)
    learned = first_part(data, "train")
    if test is None or learned is None:
        index = scan(learned or test or data, label_key=label_key)
        return _halves(checked(index, on_bad_image, pipeline), seed)
    train = scan(learned, label_key=label_key)
    indices = train, scan(test, classes=train.classes, label_key=label_key)
    train, tested = (checked(index, on_bad_image, pipeline) for index in indices)
    return train, tested


def _halves(index: Index, seed: int) -> tuple[Index, Index]:
    """Each class in two; what is left out of the index is in neither half."""
    ranks, counts = ranks_in_class(index, seed), np.bincount(index.targets[index.usable])
    usable = index.usable
    learned = ranks[usable] < (counts[index.targets[usable]] + 1) // 2
    if learned.all():
        raise UserError(
            f"--transfer-data {index.root}: it has one image a class, and none to test on; take a "
            "data set with several"
        )
    return index.part(usable[learned]), index.part(usable[~learned])


def ranks_in_class(index: Index, seed: int) -> NDArray[np.int64]:
    """(n,) an image's keyed place among the usable ones of its class, from 0; -1 if left out."""
    order = keyed.order(seed, keyed.VALIDATION_EPOCH, index.usable, len(index))
    ranks = np.full(len(index), -1, np.int64)
    for label in np.unique(index.targets[order]):
        own = order[index.targets[order] == label]
        ranks[own] = np.arange(len(own))
    return ranks
