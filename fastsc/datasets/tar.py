"""`fastsc.prepare tar`: an image folder as some tars, which training reads without unpacking."""

from __future__ import annotations

import argparse
import os
import re
import shutil
from contextlib import ExitStack
from typing import TYPE_CHECKING

from fastsc.cli.leftovers import claimed, require_free
from fastsc.cli.lock import locked
from fastsc.cli.parser import add_exact_decode, add_image_folder, folder_name, workers
from fastsc.errors import UserError
from fastsc.pipelines.fields import shown

if TYPE_CHECKING:
    from pathlib import Path

_UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options; see --help."""
    add_image_folder(parser, "val")
    parser.add_argument(
        "--out", type=folder_name, required=True, metavar="DIR2",
        help="empty or new folder for train/*.tar and val/*.tar",
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
    require_free(args.out)
    from fastsc.config import DataConfig
    from fastsc.datasets.folders import open_data
    from fastsc.pipelines.tar_writer import Shrink, write_tars

    data = open_data(
        DataConfig(
            data=str(args.data), val=args.val, pipeline="cpu", on_bad_image=args.on_bad_image
        )
    )
    shrink = Shrink(args.resize, args.quality or 90, args.exact_decode) if args.resize else None
    lines = []
    with locked(args.out), ExitStack() as rollback:
        # Next to what it becomes: a rename is whole only within one file system.
        unfinished = args.out / f".tars.{os.getpid()}.tmp"
        rollback.callback(shutil.rmtree, unfinished, ignore_errors=True)
        try:
            rollback.enter_context(claimed(unfinished, folder=True))
        except OSError as error:
            raise UserError(f"--out {args.out}: cannot be written ({error.strerror})") from None
        for name, index in zip(data._fields, data, strict=True):
            if index is None:
                continue
            skipped = write_tars(
                index,
                unfinished / name,
                args.shard_size,
                shrink=shrink,
                on_bad_image=args.on_bad_image,
                workers=args.workers,
                title=f"Writing {args.out / name}",
            )
            lines.append(_summary(unfinished / name, args.out / name, len(index) - len(skipped)))
            if skipped:
                first = min(skipped)
                lines[-1] += f"; left out {len(skipped)}: {index.path(first)} ({skipped[first]})"
                lines[-1] += ", …" if len(skipped) > 1 else ""
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
