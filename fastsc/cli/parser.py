"""argparse as the small commands have it: a mistake is one line, and a name is written out."""

from __future__ import annotations

import argparse
import math
import reprlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from fastsc.errors import UserError

MAX_DIGITS = 20
MAX_FOLDERS = 256  # in each other: Python makes them by a function that calls itself


class Parser(argparse.ArgumentParser):
    """argparse whose mistakes are UserErrors, without the usage in front or abbreviated options."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


def folder_name(text: str) -> Path:
    """For `type=`: a path, and not an empty word, which would be the present folder."""
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError(f"{text!r} is no folder's name")
    if len(Path(text).parts) > MAX_FOLDERS:
        raise argparse.ArgumentTypeError(f"more than {MAX_FOLDERS} folders in each other")
    return Path(text)


def whole(low: int, high: int) -> Callable[[str], int]:
    """A type of argparse's: a whole number from `low` to `high`."""

    def parsed(text: str) -> int:
        digits = text.removeprefix("-")
        if digits.isdecimal() and len(digits) <= MAX_DIGITS and low <= int(text) <= high:
            return int(text)
        shown = reprlib.repr(text)
        raise argparse.ArgumentTypeError(
            f"{shown} is not a whole number of at least {low} (from {low:,} to {high:,})"
        )

    return parsed


count = whole(1, 10**9)  # of images or steps
workers = whole(1, 1024)
side = whole(1, 16_384)  # pixels


def positive(text: str) -> float:
    """A type of argparse's: a finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def seed(text: str) -> int:
    """A type of argparse's: what a random generator takes as its seed."""
    if not text.isdecimal() or len(text) > MAX_DIGITS or int(text) >= 2**64:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 2**64 - 1")
    return int(text)


def add_exact_decode(parser: argparse.ArgumentParser) -> None:
    """--exact-decode of what shrinks images."""
    parser.add_argument(
        "--exact-decode", action="store_true",
        help="decode every pixel, also of JPEGs that are shrunk to a half or less, which are else "
        "decoded at a half, a quarter or an eighth",
    )  # fmt: skip


def add_image_folder(parser: argparse.ArgumentParser, without: str, more: str = "") -> None:
    """--data and --val of what is made of an ImageFolder.

    without: What --val none leaves out. more: What else --data may be.
    """
    parser.add_argument(
        "--data", type=folder_name, required=True, metavar="DIR",
        help=f"ImageFolder: DIR/train/CLASS/*, and DIR/val/CLASS/* or DIR/test/CLASS/*{more}",
    )  # fmt: skip
    parser.add_argument(
        "--val", default="auto", metavar="DIR",
        help="validation images; auto: DIR/val, else DIR/test; none: no "
        f"{without} (default auto)",
    )  # fmt: skip
