"""The first images of a large folder: a study's share of a data set, or a trial's few."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import zip_longest
from pathlib import Path

from fastsc.errors import UserError
from fastsc.pipelines import Index, scan
from fastsc.pipelines.index import part_of


def share(
    data: Path, out: Path, n: int, *, val: bool = True, held_out: int = 0
) -> tuple[Path, str]:
    """OUT/images/{train,val}: links to the first n training images, dealt over the classes by their
    names, and to all validation images of these classes.

    Args:
        data, out: From where, to where.
        n: Training images.
        val: False where the validation images are not those of `data`.
        held_out: So many of the next training images in place of the validation images, if any.

    Returns:
        The folder and a line that says what was done.
    """
    train, tested = _opened(data)
    if val and not held_out and tested is None:
        raise UserError(f"--data {data}: has no folder val or test, which a study needs")
    dealt = list(_dealt(train, n + held_out))
    chosen, rest = dealt[:n], dealt[n:]
    if len(rest) < held_out:
        raise UserError(
            f"--data {data}: the study takes {n:,} training images and {held_out:,} others, and "
            f"there are {len(dealt):,}"
        )
    root = out / "images"
    _link(root / "train", train.root, chosen)
    if held_out:
        _link(root / "val", train.root, _of_classes(rest, chosen))
    elif val and tested is not None:
        _link(root / "val", tested.root, _of_classes(map(str, tested.paths), chosen))
    line = f"the first {n:,} of {len(train.usable):,} training images, dealt over the classes"
    return root, line + f"; validated on the next {held_out:,}" * (held_out > 0)


def limited(data: Path, out: Path, n: int) -> tuple[Path, str]:
    """OUT/images/{train,val}, links to the first n images of each, one class after the other.

    Where there is no folder of validation images, the training ones serve again: a trial is no
    result. Returns the folder and a line that says what was done.
    """
    train, val = _opened(data)
    chosen = list(_dealt(train, n))
    tested = chosen if val is None else _of_classes(_dealt(val, n), chosen)
    root = out / "images"
    _link(root / "train", train.root, chosen)
    _link(root / "val", (train if val is None else val).root, tested)
    line = f"{len(chosen)} training and {len(tested)} validation images"
    return root, line if val is not None else f"{line}, which are the same: there is no val"


def _opened(data: Path) -> tuple[Index, Index | None]:
    """Training images, and those of validation where there are any."""
    if (part := part_of(data, "train")) is None:
        raise UserError(f"--data {data}: has no folder train")
    train = scan(part)
    if train.members is not None:
        raise UserError(f"--data {data}: tars; files are linked here, so unpack them")
    folder = next((data / name for name in ("val", "test") if (data / name).is_dir()), None)
    return train, None if folder is None else scan(folder, classes=train.classes)


def _of_classes(paths: Iterable[str], chosen: Iterable[str]) -> list[str]:
    """A class without training images has no output."""
    kept = {path.split("/")[0] for path in chosen}
    return [path for path in paths if path.split("/")[0] in kept]


def _dealt(index: Index, n: int) -> Iterator[str]:
    """The first n usable paths: the first of each class, the second of each, …"""
    classes: dict[int, list[str]] = {}
    for i in index.usable:
        classes.setdefault(int(index.targets[i]), []).append(str(index.paths[i]))
    dealt = (path for row in zip_longest(*classes.values()) for path in row if path is not None)
    yield from (path for path, _ in zip(dealt, range(n)))


def _link(folder: Path, source: Path, paths: list[str]) -> None:
    """Exactly these links in the folder; those of an earlier trial are removed, files never."""
    wanted = {folder / path: str((source / path).resolve()) for path in paths}
    try:
        for link in [*folder.glob("*/*")]:
            if not link.is_symlink():
                raise UserError(f"{link} is no link of an earlier trial: choose another --out")
            if wanted.get(link) != os.readlink(link):
                link.unlink()
        for link, target in wanted.items():
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.is_symlink():
                os.symlink(target, link)
        for sub in [*folder.glob("*")]:
            if not any(sub.iterdir()):
                sub.rmdir()
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from None
