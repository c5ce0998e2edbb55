"""`fastsc.prepare tar`: a folder, or Parquet, as tars, which training reads without unpacking."""

from __future__ import annotations

import argparse
import os
import re
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastsc.cli.leftovers import LOCK, claimed, remove_stale, require_free
from fastsc.cli.lock import locked
from fastsc.cli.packages import needed
from fastsc.cli.parser import add_exact_decode, add_image_folder, folder_name, workers
from fastsc.errors import UserError
from fastsc.pipelines.fields import shown

if TYPE_CHECKING:
    from fastsc.pipelines import Index

PREFIX = "hf:"  # of --data: Parquet, as Hugging Face writes it
_UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options; see --help."""
    add_image_folder(
        parser,
        "val",
        f"; or {PREFIX}DIR, a snapshot of a Hugging Face data set with "
        "DIR/data/train-*.parquet and validation-*",
    )
    parser.add_argument(
        "--out", type=folder_name, required=True, metavar="DIR2",
        help="empty or new folder for train/*.tar and val/*.tar",
    )  # fmt: skip
    parser.add_argument(
        "--label-column", metavar="NAME",
        help=f"of {PREFIX}DIR; default: label, labels, or the only one with class names",
    )  # fmt: skip
    parser.add_argument(
        "--shard-size", type=_size, default=10**9, metavar="SIZE",
        help="of a tar at most, as 500MB or 1GB (default 1GB)",
    )  # fmt: skip
    parser.add_argument(
        "--resize", type=int, metavar="PIXELS",
        help="longer side at most; larger images are shrunk by area, to JPEGs, or PNGs if they are "
        "such (default: every file is packed as it is)",
    )  # fmt: skip
    parser.add_argument(
        "--quality", type=int, metavar="Q", help="of these JPEGs, 1 to 100 (default 90)"
    )
    add_exact_decode(parser)
    parser.add_argument(
        "--on-bad-image", choices=("raise", "skip"), default="raise",
        help="a file that is no whole image: stop and name it, or go on: it is packed as it is, "
        "and left out if it cannot be read, or be shrunk (default raise)",
    )  # fmt: skip
    parser.add_argument(
        "--workers", type=workers, metavar="N", help="threads; default: one per core"
    )


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,3})?)([kmgt]b)?", text.lower())
    size = round(float(match[1]) * _UNITS[match[2] or ""]) if match else 0
    if not size:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; say 500MB or 1GB")
    return size


def run(args: argparse.Namespace) -> str:
    """Writes the tars, and gives them their names when all of them have been read back.

    Raises:
        UserError: A mistake in the options, the data or the place; nothing is left.
    """
    _check(args)
    remove_stale(args.out.glob(".tars.*.tmp"))
    require_free(args.out, but=(LOCK,))
    from fastsc.pipelines.tar_writer import Shrink

    shrink = Shrink(args.resize, args.quality or 90, args.exact_decode) if args.resize else None
    is_hugging_face = str(args.data).startswith(PREFIX)
    parts = _of_hugging_face(args) if is_hugging_face else _of_folder(args)
    lines = []
    with locked(args.out), ExitStack() as rollback:
        # Next to what it becomes: a rename is whole only within one file system.
        unfinished = args.out / f".tars.{os.getpid()}.tmp"
        rollback.callback(shutil.rmtree, unfinished, ignore_errors=True)
        try:
            rollback.enter_context(claimed(unfinished, folder=True))
        except OSError as error:
            raise UserError(f"--out {args.out}: cannot be written ({error.strerror})") from None
        for name, write in parts.items():
            n, skipped = write(
                unfinished / name,
                args.shard_size,
                shrink=shrink,
                on_bad_image=args.on_bad_image,
                workers=args.workers,
                title=f"Writing {args.out / name}",
            )
            lines.append(_summary(unfinished / name, args.out / name, n))
            if skipped:
                lines[-1] += f"; left out {len(skipped)}: {skipped[0]}"
                lines[-1] += ", …" if len(skipped) > 1 else ""
        if is_hugging_face:
            _require_known(unfinished)
        _rename(unfinished, args.out)
    return "\n".join(lines)


def _check(args: argparse.Namespace) -> None:
    if not args.val:
        raise UserError("--val is empty; name a folder, or none")
    if args.resize is None:
        for option, given in (("--quality", args.quality), ("--exact-decode", args.exact_decode)):
            if given not in (None, False):
                raise UserError(f"{option} belongs to --resize: add it")
    elif not 8 <= args.resize <= 65_535:
        raise UserError(f"--resize must be from 8 to 65535, not {shown(args.resize)}")
    elif args.quality is not None and not 1 <= args.quality <= 100:
        raise UserError(f"--quality must be from 1 to 100, not {shown(args.quality)}")


# Writes a part into a folder, with what `write_tars` takes: how many images there are, and of what
# is left out, what it is and why.
_Write = Callable[..., tuple[int, list[str]]]


def _of_folder(args: argparse.Namespace) -> dict[str, _Write]:
    from fastsc.config import DataConfig
    from fastsc.datasets.folders import open_data
    from fastsc.pipelines.tar_writer import write_tars

    if args.label_column is not None:
        raise UserError(f"--label-column belongs to --data {PREFIX}DIR")
    data = open_data(
        DataConfig(
            data=str(args.data), val=args.val, pipeline="cpu", on_bad_image=args.on_bad_image
        )
    )

    def write(index: Index, *to: Any, **options: Any) -> tuple[int, list[str]]:
        skipped = write_tars(index, *to, **options)
        if index is data.train:
            _require_classes(index, skipped)
        lines = [f"{index.path(i)} ({why})" for i, why in sorted(skipped.items())]
        return len(index) - len(lines), lines

    indices = zip(data._fields, data, strict=True)
    return {name: partial(write, index) for name, index in indices if index is not None}


def _require_classes(train: Index, skipped: dict[int, str]) -> None:
    """Raises UserError where a class is lost: those behind it would get other numbers."""
    import numpy as np

    written = np.delete(train.targets, list(skipped))
    for label in np.setdiff1d(train.targets, written):
        raise UserError(
            f"{train.root}: none of the images of class {train.classes[label]} can be written; "
            "mend them, or remove its folder"
        )


def _of_hugging_face(args: argparse.Namespace) -> dict[str, _Write]:
    needed("pyarrow", f"--data {PREFIX}DIR", "hf")
    from fastsc.pipelines.parquet import Table, files_of
    from fastsc.pipelines.tar_writer import write_table

    if args.val not in ("auto", "none"):
        raise UserError(f"--val {args.val}: of --data {PREFIX}DIR it is auto or none")
    root = Path(str(args.data).removeprefix(PREFIX))
    if not root.is_dir():
        raise UserError(f"--data {args.data}: no such folder; it wants a snapshot on disk")
    parts: dict[str, _Write] = {}
    for name in ("train", "val") if args.val == "auto" else ("train",):
        if not (files := files_of(root, name)):
            more = "" if name == "train" else ", -val or -test; --val none packs none"
            file = "train" if name == "train" else "validation"
            raise UserError(f"--data {args.data}: has no data/{file}-*.parquet{more}")
        table = Table(files, args.label_column)
        parts[name] = partial(write_table, table, every_class=name == "train")
    return parts


def _require_known(unfinished: Path) -> None:
    """Raises UserError where validation has classes that training has not."""
    from fastsc.pipelines import scan

    if (unfinished / "val").is_dir():
        known = scan(unfinished / "train", use_cache=False, progress=False).classes
        own = scan(unfinished / "val", use_cache=False, progress=False).classes
        if unknown := sorted(set(own) - set(known)):
            raise UserError(f"class {unknown[0]} has images of validation, and none to train on")


def _summary(written: Path, folder: Path, n: int) -> str:
    sizes = [path.stat().st_size for path in written.iterdir()]
    tars = "1 tar" if len(sizes) == 1 else f"{len(sizes)} tars"
    return f"wrote {folder}: {n} images in {tars}, {sum(sizes) / 1e6:.1f} MB"


def _rename(unfinished: Path, out: Path) -> None:
    """Gives the folders their names, train's last: where that is, all is."""
    named = []
    try:
        for folder in sorted(unfinished.iterdir(), reverse=True):
            folder.rename(out / folder.name)
            named.append(out / folder.name)
    except OSError as error:
        for folder in named:
            shutil.rmtree(folder, ignore_errors=True)
        raise UserError(f"--out {out}: cannot be written ({error.strerror})") from None
