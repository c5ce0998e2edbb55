"""Pairs of real pictures of the same thing: `--pairs FILE.csv`."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastsc.errors import UserError
from fastsc.evaluation.data import Split, checked
from fastsc.pipelines.fields import shown
from fastsc.pipelines.index import scan_files
from fastsc.pipelines.reading import blamed, read_text
from fastsc.pipelines.walk import EXTENSIONS

MAX_BYTES = 2**28
LEAST = 2  # pairs, and first pictures: the scale is a distance between different ones


@dataclass(frozen=True, eq=False)
class Pairs:
    """The pairs of a list.

    Attributes:
        split: Their files, each once.
        first, second: (m,) dataset indices, of the pairs whose files both decode.
        numbers: (m,) int64, the pairs' numbers in the list, from 0.
        left_out: The other pairs by name, one line each.
    """

    split: Split
    first: NDArray[np.int64]
    second: NDArray[np.int64]
    numbers: NDArray[np.int64]
    left_out: tuple[str, ...]


def open_pairs(path: Path, pipeline: str = "cpu") -> Pairs:
    """Reads the list and decodes every file once.

    Args:
        path: A CSV of two files a line, relative to its folder, and an optional label. A first line
            in which neither ends as an image does is a heading; a pair that is there twice counts
            once.
        pipeline: The one that will decode them.

    Raises:
        UserError: The list cannot be read, a line is no pair, or fewer than two pairs are whole, or
            all have the same first picture.
    """
    rows = _read(path)
    names: dict[str, int] = {}
    labels: dict[str, str] = {}
    for line, (*both, label) in rows:
        for name in both:
            names.setdefault(name, len(names))
            if labels.setdefault(name, label) != label:
                raise UserError(f"{path}: line {line} calls {name} {shown(label)}, after another")
    classes = tuple(sorted(set(labels.values())))
    targets = np.array([classes.index(labels[name]) for name in names], np.int64)
    index = checked(scan_files(path, list(names), classes, targets), "skip", pipeline)
    numbers, left_out, seen = [], [], set[tuple[str, str]]()
    for number, (_, (a, b, _label)) in enumerate(rows):
        if (a, b) in seen:
            continue
        seen.add((a, b))
        broken = [name for name in (a, b) if names[name] in index.left_out]
        if broken:
            why = index.left_out[names[broken[0]]]
            left_out.append(f"{a} and {b}: {broken[0]}: {why}")
        else:
            numbers.append(number)
    if len(numbers) < LEAST:
        more = f"; {left_out[0]}" if left_out else ""
        raise UserError(f"--pairs {path}: {len(numbers)} whole pairs, and not two{more}")
    if len({rows[i][1][0] for i in numbers}) < LEAST:
        raise UserError(
            f"--pairs {path}: every pair begins with {rows[numbers[0]][1][0]}, and ds_relative is "
            "in distances between different first pictures: add a pair of another"
        )
    columns = [[names[rows[i][1][side]] for i in numbers] for side in (0, 1)]
    used, places = np.unique(np.array(columns, np.int64), return_inverse=True)
    first, second = places.reshape(2, -1)
    split = Split(index.part(used), classes != ("",))
    return Pairs(split, first, second, np.array(numbers), tuple(left_out))


def _read(path: Path) -> list[tuple[int, tuple[str, str, str]]]:
    """Line number and (first, second, label) of every pair."""
    what = f"--pairs {path}"
    text = read_text(path, what, MAX_BYTES).removeprefix("\ufeff")
    pairs: list[tuple[int, tuple[str, str, str]]] = []
    is_first = True
    with blamed(what):
        rows = csv.reader(io.StringIO(text, newline=""), strict=True)
        for row in rows:
            cells = [cell.strip() for cell in row]
            if not any(cells):
                continue
            is_heading = is_first and not any(c.lower().endswith(EXTENSIONS) for c in cells[:2])
            is_first = False
            if is_heading:
                continue
            whole = len(cells) in (2, 3) and cells[0] and cells[1]
            if not whole or "\0" in cells[0] + cells[1]:
                raise UserError(
                    f"{what}: line {rows.line_num}: {shown(row)} is not two files and an optional "
                    "label"
                )
            pairs.append((rows.line_num, (cells[0], cells[1], "".join(cells[2:]))))
    if not pairs:
        raise UserError(f"{what}: no pair in it; two files a line are expected")
    return pairs
