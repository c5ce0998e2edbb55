"""`fastsc.prepare beton`: an image folder as betons, FFCV's files, for `--pipeline ffcv`."""

from __future__ import annotations

import argparse
import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from fastsc.cli.leftovers import claimed
from fastsc.cli.lock import locked
from fastsc.cli.parser import add_exact_decode, add_image_folder, folder_name
from fastsc.errors import UserError
from fastsc.pipelines.files import TRAIN_BETON, VAL_BETON

if TYPE_CHECKING:
    from fastsc.pipelines import Index
    from fastsc.pipelines.beton_writer import BetonOptions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options; see --help."""
    add_image_folder(parser, "val.beton")
    parser.add_argument(
        "--label-key", metavar="NAME",
        help="of WebDataset's tars: the field of KEY.json that is the label",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=folder_name, required=True, metavar="DIR2",
        help="folder for train.beton and val.beton",
    )  # fmt: skip
    parser.add_argument(
        "--resolution", type=int, default=400, metavar="PIXELS",
        help="longer side at most; larger images are shrunk by area; 0: none is (default 400)",
    )  # fmt: skip
    parser.add_argument(
        "--quality", type=int, default=90, metavar="Q",
        help="of the JPEGs, 1 to 100 (default 90)",
    )  # fmt: skip
    parser.add_argument(
        "--jpeg-share", type=float, default=1.0, metavar="P",
        help="part of the images that are stored as JPEGs, the others as raw pixels, which take "
        "five times the disk and no decoding; keyed by the image (default 1)",
    )  # fmt: skip
    parser.add_argument(
        "--on-bad-image", choices=("raise", "skip"), default="raise",
        help="an image that does not decode: stop and name it, or leave it out (default raise)",
    )  # fmt: skip
    add_exact_decode(parser)
    parser.add_argument("--workers", type=int, metavar="N", help="threads; default: one per core")
    parser.add_argument("--force", action="store_true", help="replace FFCV datasets that are there")


def run(args: argparse.Namespace) -> str:
    """Writes the FFCV datasets, each whole and read back before it gets its name, or none.

    Raises:
        UserError: A mistake in the options, the data or the place; nothing is left.
    """
    _check(args)
    targets = [args.out / name for name in (TRAIN_BETON, VAL_BETON)]
    _require_free(args.out, targets, args)
    from fastsc.config import DataConfig
    from fastsc.datasets.folders import check_label_key, open_data
    from fastsc.pipelines.beton import require_ffcv
    from fastsc.pipelines.beton_writer import BetonOptions

    require_ffcv()
    data = open_data(
        DataConfig(
            data=str(args.data),
            val=args.val,
            label_key=args.label_key,
            pipeline="cpu",
            on_bad_image=args.on_bad_image,
        )
    )
    check_label_key(args.label_key, args.data, data)
    indices = [index for index in data if index is not None]
    options = BetonOptions(
        args.resolution or None, args.quality, args.jpeg_share, args.exact_decode
    )
    with locked(args.out), ExitStack() as rollback:
        _require_free(args.out, targets, args)  # of what another has written in the meantime
        written = [
            _write(index, target, options, args, rollback)
            for index, target in zip(indices, targets, strict=False)
        ]
        for temporary, target, _ in written:
            try:
                os.replace(temporary, target)
            except OSError as error:
                raise UserError(f"{target}: cannot be written ({error.strerror})") from None
        rollback.pop_all()
    return "\n".join(message for _, _, message in written)


def _check(args: argparse.Namespace) -> None:
    if not args.val:
        raise UserError("--val is empty; name a folder, or none")
    if args.resolution != 0 and not 8 <= args.resolution <= 65_535:
        raise UserError(f"--resolution must be 0 or from 8 to 65535, not {args.resolution}")
    if not 1 <= args.quality <= 100:
        raise UserError(f"--quality must be from 1 to 100, not {args.quality}")
    if not 0 <= args.jpeg_share <= 1:
        raise UserError(f"--jpeg-share must be from 0 to 1, not {args.jpeg_share}")
    if args.workers is not None and not 1 <= args.workers <= 1024:
        raise UserError(f"--workers must be from 1 to 1024, not {args.workers}")


def _require_free(out: Path, targets: list[Path], args: argparse.Namespace) -> None:
    if os.path.exists(out) and not os.path.isdir(out):
        raise UserError(f"--out {out}: is no folder; name another")
    for target in targets:
        if os.path.isdir(target):
            raise UserError(f"{target}: is a folder; name another --out")
        if os.path.exists(target) and not args.force:
            raise UserError(f"{target}: is there already; name another --out, or --force")
    if args.val == "none" and os.path.exists(targets[1]):
        raise UserError(
            f"{targets[1]}: would be of other data than train.beton; remove it, or name another "
            "--out"
        )


def _write(
    index: Index, target: Path, options: BetonOptions, args: argparse.Namespace, rollback: ExitStack
) -> tuple[Path, Path, str]:
    """Writes and reads back under a temporary name: that name, the final one, what to say."""
    from fastsc.pipelines.beton_writer import verify_beton, write_beton

    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    rollback.callback(temporary.unlink, missing_ok=True)
    try:
        rollback.enter_context(claimed(temporary))
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror})") from None
    broken = write_beton(
        index,
        temporary,
        options,
        on_bad_image=args.on_bad_image,
        workers=args.workers,
        title=f"Writing {target}",
    )
    index = index.without(broken)
    verify_beton(temporary, index)
    message = f"wrote {target}: {len(index.usable)} images, {temporary.stat().st_size / 1e6:.1f} MB"
    if index.left_out:
        bad = index.bad_images()
        message += f"; left out {len(bad)}: " + "; ".join(f"{b.path} ({b.reason})" for b in bad[:5])
        message += "; …" if len(bad) > 5 else ""
    return temporary, target, message
