"""A run's image folders: which they are, their indices, and what does not decode in them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from fastsc.config import DataConfig
from fastsc.distributed.ranks import Ranks
from fastsc.errors import UserError
from fastsc.pipelines import BetonIndex, Index, open_beton, scan
from fastsc.pipelines.decode import of_pipeline
from fastsc.pipelines.ffcv import verify as verify_samples
from fastsc.pipelines.files import TRAIN_BETON, VAL_BETON
from fastsc.pipelines.sweep import verify
from fastsc.pipelines.threads import default_workers


class Data(NamedTuple):
    """The indexed folders of a run; `val` is None where none is wanted."""

    train: Index
    val: Index | None


def open_data(config: DataConfig) -> Data:
    """Finds and indexes the training and validation folders.

    Raises:
        UserError: A folder is missing or empty, or holds broken files that the user does not want
            skipped.
    """
    root = Path(config.data)
    if not os.path.isdir(root):
        raise UserError(f"--data {root}: {_absent(root)}")
    is_beton = config.pipeline == "ffcv"
    if is_beton:
        _require_betons(root)
    elif not (root / "train").is_dir():
        raise UserError(f"--data {root}: has no folder train; {_hint(root)}")
    val_path = _val_beton(config, root) if is_beton else _val_folder(config, root)
    train = open_beton(root / TRAIN_BETON) if is_beton else scan(root / "train")
    train.require(config.on_bad_image)
    train.require_classes()
    if val_path is None:
        return Data(train, None)
    opened = open_beton if is_beton else scan
    val = opened(val_path, classes=train.classes)
    val.require(config.on_bad_image)
    return Data(train, val)


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
        f"{path}: no such file; name a validation beton with --val FILE, or train without "
        "validation with --val none"
    )


def _val_folder(config: DataConfig, root: Path) -> Path | None:
    if config.val == "none":
        return None
    if config.val != "auto":
        folder = Path(config.val)
        if not folder.is_dir():
            raise UserError(
                f"--val {folder}: {_absent(folder)}; --val none trains without validation"
            )
        return folder
    for name in ("val", "test"):
        if (root / name).is_dir():
            return root / name
    raise UserError(
        f"--data {root}: has no folder val or test; name one with --val DIR, or train without "
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
    if any(root.glob("*.beton")):
        return "*.beton files are read by --pipeline ffcv"
    return "expected train/CLASS/*.jpg in it"


def workers_of(config: DataConfig, ranks: Ranks) -> int:
    """Threads of this process: the cores of a machine are shared by its processes."""
    return config.workers or default_workers(ranks.local_world_size)
