"""What lies where a data set's images are looked for: class folders, tars, or a list of files."""

from __future__ import annotations

import os
from array import array
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastsc.pipelines.batch import BadImage
from fastsc.pipelines.disk import doing
from fastsc.pipelines.errors import UserError
from fastsc.pipelines.files import Members
from fastsc.pipelines.lists import list_of, read_list
from fastsc.pipelines.shards import contents, opened, shards_of
from fastsc.pipelines.walk import EXTENSIONS, Listing, is_system, leads_up, list_files

SCAN_CHUNK = 64  # files a task
SCAN_THREADS = 8  # more than cores: on a cold disk the scan waits for reads


class Source(NamedTuple):
    """Images before their headers are read; targets (n,) are positions in `classes`."""

    classes: tuple[str, ...]
    targets: NDArray[np.int64]
    listing: Listing
    members: Members | None = None
    folder: Path | None = None
    passed_over: tuple[str, ...] = ()
    faults: tuple[BadImage, ...] = ()
    left_out: dict[int, str] = {}  # noqa: RUF012, never written


def of_folder(root: Path) -> Source:
    classes, listing, passed_over = _list_files(root)
    targets = np.repeat(np.arange(len(classes)), listing.counts)
    return Source(classes, targets, listing, passed_over=passed_over)


def of_tars(root: Path, label_key: str | None, use_cache: bool, progress: bool) -> Source | None:
    try:
        shards = opened(shards_of(root))
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from None
    if not shards:
        return None
    held = contents(root, shards, label_key, use_cache=use_cache, progress=progress)
    times = np.array([shard.time for shard in shards], np.int64)[held.shard]
    return Source(
        held.classes,
        held.targets,
        _listing(held.names, held.n_bytes, times),
        Members(shards, held.shard, held.offsets),
        passed_over=held.hidden,
        faults=held.faults,
    )


def of_list(root: Path) -> Source | None:
    """The rows of a list, in its order; one that is there already is left out."""
    if (named := list_of(root)) is None:
        return None
    path, split = named
    rows = read_list(path)
    if split is not None:
        rows = rows.of(split)
    if not rows.paths:
        raise UserError(f"{path}: no row of the split {split}")
    lines: dict[str, int] = {}
    left_out = {}
    files = [os.path.join(path.parent, name) for name in rows.paths]
    for i, (file, line) in enumerate(zip(files, rows.lines, strict=True)):
        if (first := lines.setdefault(os.path.abspath(file), line)) != line:
            left_out[i] = f"line {line} of {path.name} has it again, after line {first}"
    classes = rows.classes
    position = {name: i for i, name in enumerate(classes)}
    sizes, times, missing = _stats(files)
    return Source(
        classes,
        np.array([position[label] for label in rows.labels], np.int64),
        _listing(list(rows.paths), sizes, times),
        folder=path.parent,
        left_out=missing | left_out,
    )


def of_files(
    folder: Path, names: list[str], classes: tuple[str, ...], targets: NDArray[np.int64]
) -> Source:
    """Files that the caller names, relative to a folder, all different."""
    sizes, times, missing = _stats([os.path.join(folder, name) for name in names])
    return Source(classes, targets, _listing(names, sizes, times), folder=folder, left_out=missing)


def _stats(paths: list[str]) -> tuple[NDArray[np.int64], NDArray[np.int64], dict[int, str]]:
    """(n,) bytes, and nanoseconds of the last change; and which files cannot be had, and why."""

    def stats(chunk: list[str]) -> list[os.stat_result | OSError]:
        with doing(f"looking for files from {chunk[0]} on"):
            return [_stat(path) for path in chunk]

    chunks = [paths[at : at + SCAN_CHUNK] for at in range(0, len(paths), SCAN_CHUNK)]
    sizes, times, missing = array("q"), array("q"), dict[int, str]()
    with ThreadPoolExecutor(SCAN_THREADS) as pool:
        for i, stat in enumerate(chain.from_iterable(pool.map(stats, chunks))):
            if isinstance(stat, OSError):
                missing[i] = stat.strerror or str(stat)
                sizes.append(0)
                times.append(0)
            else:
                sizes.append(stat.st_size)
                times.append(stat.st_mtime_ns)
    return np.array(sizes, np.int64), np.array(times, np.int64), missing


def _stat(path: str) -> os.stat_result | OSError:
    try:
        return os.stat(path)
    except OSError as error:
        return error


def _listing(names: list[str], sizes: NDArray[np.int64], times: NDArray[np.int64]) -> Listing:
    listing = Listing()
    listing.names = names
    listing.sizes, listing.times = array("q", sizes.tobytes()), array("q", times.tobytes())
    return listing


def _list_files(root: Path) -> tuple[tuple[str, ...], Listing, tuple[str, ...]]:
    """The classes of a folder, the image files of each, and folders that are no class."""
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; --data wants a folder with train/CLASS/*.jpg")
    try:
        names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
        passed_over = tuple(n for n in names if is_system(n) or leads_up(str(root / n)))
        classes = tuple(sorted(set(names) - set(passed_over)))
        files = list_files([str(root / name) for name in classes], watch=doing)
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from None
    if not classes:
        raise UserError(f"{root}: no class folders in it; one folder a class is expected")
    if not files.names:
        raise UserError(f"{root}: no images in its class folders ({', '.join(EXTENSIONS)})")
    if 0 in files.counts:
        empty = root / classes[files.counts.index(0)]
        raise UserError(f"{empty}: a class folder without an image; fill or remove it")
    return classes, files, passed_over
