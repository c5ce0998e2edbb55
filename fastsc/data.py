"""From a run's options to its loaders: which folders, which files, which pipeline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from fastsc.config import DataConfig, TrainConfig
from fastsc.pipelines import BadImage, Index, Pipeline, build, scan
from fastsc.pipelines.cpu import default_workers
from fastsc.pipelines.errors import UserError
from fastsc.pipelines.sweep import verify
from fastsc.ranks import Ranks


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
    if not root.is_dir():
        raise UserError(f"--data {root}: {_absent(root)}")
    if not (root / "train").is_dir():
        hint = _beton_hint(root)
        raise UserError(f"--data {root}: has no folder train; {hint}")
    folder = _val_folder(config, root)
    train = scan(root / "train")
    train.require(config.on_bad_image)
    if folder is None:
        return Data(train, None)
    val = scan(folder, classes=train.classes)
    val.require(config.on_bad_image)
    return Data(train, val)


def verified(data: Data, config: DataConfig, ranks: Ranks) -> Data:
    """The data less what does not decode: every image is decoded once, by one of the ranks.

    Raises:
        UserError: An image does not decode, and the user does not want it skipped.
    """

    def checked(index: Index) -> Index:
        share = index.usable[ranks.rank :: ranks.world_size]
        shares = ranks.gather_values(verify(index, workers_of(config, ranks), share))
        broken = {i: why for share in ranks.broadcast(shares) or () for i, why in share.items()}
        index = index.without(broken) if broken else index
        ranks.together(lambda: index.require(config.on_bad_image))
        return index

    return Data(checked(data.train), None if data.val is None else checked(data.val))


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
    return "a file, not a folder" if path.exists() else "no such folder"


def _beton_hint(root: Path) -> str:
    if any(root.glob("*.beton")):
        return "*.beton files are not an image folder"
    return "expected train/CLASS/*.jpg in it"


def workers_of(config: DataConfig, ranks: Ranks) -> int:
    """Threads of this process: the cores of a machine are shared by its processes."""
    return config.workers or max(1, default_workers() // ranks.local_world_size)


def build_loaders(
    config: TrainConfig,
    data: Data,
    device: torch.device,
    dtype: torch.dtype,
    report: Callable[[BadImage], None],
    ranks: Ranks,
) -> tuple[Pipeline, Pipeline | None]:
    """This rank's training loader, in `dtype`, and its validation loader, in float32."""
    d = config.data
    workers = workers_of(d, ranks)

    def loader(index: Index, *, train: bool) -> Pipeline:
        return build(
            d.pipeline,
            index,
            batch_size=config.optim.batch_size,
            resolution=d.resolution if train else d.val_resolution or d.resolution,
            train=train,
            crop=d.crop,
            flip=d.flip,
            val_crop=d.val_crop,
            strengths=d.strengths,
            seed=config.run.seed,
            device=device,
            dtype=dtype if train else torch.float32,
            workers=workers,
            on_bad_image=d.on_bad_image,
            report=report,
            paired_fraction=config.method.paired_fraction,
            rank=ranks.rank,
            world_size=ranks.world_size,
        )

    train = loader(data.train, train=True)
    return train, None if data.val is None else loader(data.val, train=False)
