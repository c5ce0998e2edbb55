"""A run's images: where they are, their indices, and what does not decode of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastsc.config import DataConfig
from fastsc.distributed.ranks import Ranks
from fastsc.errors import UserError
from fastsc.pipelines import BetonIndex, Index, keyed, open_beton, scan
from fastsc.pipelines.decode import of_pipeline
from fastsc.pipelines.ffcv import verify as verify_samples
from fastsc.pipelines.files import TRAIN_BETON, VAL_BETON
from fastsc.pipelines.index import part_of, scan_flat
from fastsc.pipelines.lists import list_of
from fastsc.pipelines.shards import shards_of
from fastsc.pipelines.sweep import verify
from fastsc.pipelines.threads import default_workers
from fastsc.pipelines.walk import EXTENSIONS, is_system, list_files

SPLITS = ("val", "test", "train")
CLASSES_BESIDE = 3  # folders of images next to train: fewer may be val, test and masks
HELD_OUT, HELD_OUT_LEAST = 10, 2  # one image in so many, and so many at least


class Data(NamedTuple):
    """The indexed folders of a run; `val` is None where none is wanted."""

    train: Index
    val: Index | None


def open_data(config: DataConfig, *, labels: bool = True) -> Data:
    """Finds and indexes the training and validation folders.

    labels: Without, the images need no class folders and no folder train; and if no validation
    images are named or there, a keyed tenth of them are held out.

    Raises:
        UserError: A folder is missing or empty, or holds broken files that the user does not want
            skipped.
    """
    root = Path(config.data)
    if not (os.path.isdir(root) or (list_of(root) and os.path.isfile(root))):
        raise UserError(f"--data {root}: {_absent(root)}")
    if not labels:
        return _open_unlabelled(config, root)
    opened: Callable[..., Index] = partial(scan, label_key=config.label_key)
    is_beton = config.pipeline == "ffcv"
    if is_beton:
        _require_betons(root)
        train_path, opened = root / TRAIN_BETON, open_beton
    elif (part := part_of(root, "train")) is not None:
        train_path = part
    else:
        raise UserError(f"--data {root}: has no {_hint(root)}")
    val_path = _val_beton(config, root) if is_beton else _val_folder(config, root)
    train = opened(train_path)
    train.require(config.on_bad_image)
    train.require_classes()
    if val_path is None:
        return Data(train, None)
    val = opened(val_path, classes=train.classes)
    val.require(config.on_bad_image)
    return Data(train, val)


def _open_unlabelled(config: DataConfig, root: Path) -> Data:
    index, _ = scan_any(first_part(root, "train") or root, config.label_key, strays=True)
    index.require(config.on_bad_image)
    if config.val == "none":
        return Data(index, None)
    if config.val != "auto":
        named = _val_folder(config, root)
        assert named is not None
        path: Path | None = named
    else:
        path = first_part(root, "val", "test")
    if path is not None:
        val, _ = scan_any(path, config.label_key, strays=True)
        val.require(config.on_bad_image)
        require_held_out(val)
        return Data(_less(index, val, root), val)
    # By a key that no --seed changes: what one run held out, another must not learn from.
    order = keyed.order(keyed.VALIDATION_SEED, keyed.VALIDATION_EPOCH, index.usable, len(index))
    n = max(HELD_OUT_LEAST, len(order) // HELD_OUT)
    if len(order) <= n:
        raise UserError(f"--data {root}: {len(order)} images are too few to hold a tenth out")
    return Data(index.part(np.sort(order[n:])), index.part(np.sort(order[:n])))


def check_label_key(
    label_key: str | None, data: str | os.PathLike[str], parts: Iterable[Index | None]
) -> None:
    """Raises UserError where --label-key names a field of nothing."""
    if label_key is not None and not any(getattr(part, "members", None) for part in parts):
        raise UserError(
            f"--label-key names a field beside the images of tars, and {data} has none: leave it "
            "out"
        )


def require_held_out(val: Index) -> None:
    """Raises UserError where a repair cannot say what it has come to."""
    if (n := len(val.usable)) < HELD_OUT_LEAST:
        raise UserError(
            f"{val.root}: a repair needs two held-out images at least, and there is {n}; name more "
            "with --val"
        )


def _less(index: Index, val: Index, root: Path) -> Index:
    """An index without the images that `val` holds out: the folder may lie in this one's."""
    directory = cache(os.path.realpath)  # of a million files only those that are links are asked

    def place(path: str) -> str:
        if os.path.islink(path):
            return os.path.realpath(path)
        folder, name = os.path.split(path)
        return os.path.join(directory(folder), name)

    held_out = {place(val.path(i)) for i in range(len(val))}
    inside = np.array([place(index.path(i)) in held_out for i in range(len(index))], np.bool_)
    if not inside.any():
        return index
    rows = index.usable[~inside[index.usable]]
    if not len(rows):
        raise UserError(f"--data {root}: all of its images are those that {val.root} holds out")
    return index.part(rows)


def first_part(data: Path, *names: str) -> Path | None:
    """The first of these parts that a data set has, where it need not have any.

    One of CIFAR-100's classes is called train: a folder of images alone, next to several such
    folders of other names.
    """
    parts = ((name, part_of(data, name)) for name in names)
    there = (part for name, part in parts if part and not (name == "train" and _is_class(part)))
    return next(there, None)


def _is_class(part: Path) -> bool:
    if not part.is_dir() or shards_of(part):
        return False
    try:
        beside, _ = _listed(part.parent)
        others = [folder for folder in beside if folder.name != part.name]
        several = (folder for folder in others if _holds_images(_listed(Path(folder))[1]))
        return len([*islice(several, CLASSES_BESIDE)]) == CLASSES_BESIDE and not _listed(part)[0]
    except OSError:
        return False  # who reads it says so


def scan_any(
    folder: Path, label_key: str | None = None, *, strays: bool = False
) -> tuple[Index, bool]:
    """The images of a folder, tars or a list, and whether their folders are classes.

    Without class folders all are of one class without a name.

    strays: Images that lie next to folders are wanted, too; then no folder is a class.

    Raises:
        UserError: There are none.
    """
    labelled = not folder.is_dir() or bool(shards_of(folder)) or _is_labelled(folder, strays)
    return scan(folder, label_key=label_key) if labelled else scan_flat(folder), labelled


def _is_labelled(folder: Path, strays: bool) -> bool:
    """Whether there are images in folders of the folder; a UserError where there are none at all.

    Images that lie next to class folders have no class, and are left out unless they are wanted.
    """
    try:
        folders, files = _listed(folder)
        images = _holds_images(files)
        if strays and images:
            return False
        if any(list_files([entry.path]).names for entry in folders):
            return True
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from None
    if images:
        return False
    raise UserError(
        f"{folder}: no images in it ({', '.join(EXTENSIONS)}); one folder a class is expected, or "
        "images without labels"
    )


def _listed(folder: Path) -> tuple[list[os.DirEntry[str]], list[os.DirEntry[str]]]:
    """Its folders and its files, by name, but for the system's own."""
    with os.scandir(folder) as entries:
        listed = sorted(entries, key=lambda entry: entry.name)
    own = [entry for entry in listed if not is_system(entry.name)]
    return [entry for entry in own if entry.is_dir()], [entry for entry in own if entry.is_file()]


def _holds_images(files: list[os.DirEntry[str]]) -> bool:
    return any(entry.name.lower().endswith(EXTENSIONS) for entry in files)


def verified(data: Data, config: DataConfig, ranks: Ranks) -> Data:
    """The data less what does not decode: every image is decoded once, by one of the ranks.

    Raises:
        UserError: An image does not decode, and the user does not want it skipped.
    """

    def checked(index: Index) -> Index:
        share = index.usable[ranks.rank :: ranks.world_size]
        workers, timeout = workers_of(config, ranks), config.loader_timeout
        if isinstance(index, BetonIndex):
            undecodable = verify_samples(index, workers, share, timeout)
        else:
            decode = of_pipeline(config.pipeline)
            undecodable = verify(index, workers, share, timeout, decode)
        shares = ranks.gather_values(undecodable)
        broken = {i: why for share in ranks.broadcast(shares) or () for i, why in share.items()}
        index = index.without(broken) if broken else index
        with ranks.all_or_none():
            index.require(config.on_bad_image)
        return index

    train = checked(data.train)
    with ranks.all_or_none():
        train.require_classes()
    return Data(train, None if data.val is None else checked(data.val))


def _require_betons(root: Path) -> None:
    if os.path.isfile(root / TRAIN_BETON):
        return
    what = "an image folder" if os.path.isdir(root / "train") else f"has no {TRAIN_BETON}"
    raise UserError(
        f"--data {root}: {what}; --pipeline ffcv reads betons: python -m fastsc.prepare beton "
        "--data DIR --out DIR2, then --data DIR2"
    )


def _val_beton(config: DataConfig, root: Path) -> Path | None:
    if config.val == "none":
        return None
    path = root if config.val == "auto" else Path(config.val)
    path = path / VAL_BETON if path.is_dir() else path
    if path.is_file():
        return path
    raise UserError(
        f"{path}: no such file; name a validation FFCV dataset with --val FILE, or train without "
        "validation with --val none"
    )


def _val_folder(config: DataConfig, root: Path) -> Path | None:
    if config.val == "none":
        return None
    if config.val != "auto":
        path = Path(config.val)
        if not (path.is_dir() or list_of(path) or part_of(path.parent, path.name)):
            raise UserError(f"--val {path}: {_absent(path)}; --val none trains without validation")
        return path
    for name in ("val", "test"):
        if (part := part_of(root, name)) is not None:
            return part
    what, other = ("split", "LIST2.csv") if list_of(root) else ("folder", "DIR")
    raise UserError(
        f"--data {root}: has no {what} val or test; name one with --val {other}, or train without "
        "validation with --val none"
    )


def _absent(path: Path) -> str:
    if os.path.exists(path):
        return "a file, not a folder"
    if path.is_absolute():
        return "no such folder"
    # config.yaml keeps the name as it was given, for a folder that may move with its data.
    return "no such folder here; give its whole path, or start where the run was begun"


def _hint(root: Path) -> str:
    if list_of(root):
        return "rows of the split train"
    if any(root.glob("*.beton")):
        return "folder train; *.beton files are read by --pipeline ffcv"
    return "folder train; expected train/CLASS/*.jpg in it, or train/*.tar"


def workers_of(config: DataConfig, ranks: Ranks) -> int:
    """Threads of this process: the cores of a machine are shared by its processes."""
    return config.workers or default_workers(ranks.local_world_size)
