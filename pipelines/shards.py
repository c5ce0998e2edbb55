"""Images in tars: which shards a data set has, and what their headers say of its images.

Two layouts are read: class folders (CLASS/photo.jpg, as `fastsc.prepare tar` writes them; or, as
ImageNet's own, CLASS_photo.jpg in CLASS.tar), and WebDataset's, where KEY.cls or KEY.json is the
label of KEY.jpg.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsc.pipelines import cache
from fastsc.pipelines.batch import BadImage
from fastsc.pipelines.disk import doing
from fastsc.pipelines.errors import UserError
from fastsc.pipelines.fields import Fields
from fastsc.pipelines.files import MAX_OPEN, Shard
from fastsc.pipelines.lists import is_number
from fastsc.pipelines.progress import tracked
from fastsc.pipelines.reading import (
    MAX_JSON,
    blamed,
    is_file,
    parse_json,
    read_text,
)
from fastsc.pipelines.tar import TarError
from fastsc.pipelines.tar_walk import Label, Walked, companions, key_of, label_of, walk
from fastsc.pipelines.walk import EXTENSIONS, is_system

VERSION = 2  # of the cache: what a sample's images and labels are
CLASS_NAMES = "classes.txt"  # a line per class, beside the shards or in the folder above
MANY = 16  # shards whose walk takes so long that a bar is shown
_THREADS = 8  # they wait for the disk
_TAR = r"\.(tar(\.(gz|bz2|xz|zst))?|tgz)"
_UNPACK = {".bz2": "bunzip2", ".xz": "unxz", ".zst": "unzstd"}  # else gunzip
_PARTS = {"val": "val|validation", "test": "test", "train": "train"}


# --- which shards ---------------------------------------------------------------------------------


def shards_of(root: Path) -> list[Path]:
    """The tars that hold a data set's images, sorted: those in a folder without class folders, or
    where no such folder is, NAME-000.tar, NAME-001.tar, … beside each other.

    Raises:
        UserError: They are compressed.
        OSError: The folder cannot be read.
    """
    tars = _beside(root)
    if root.is_dir():
        with os.scandir(root) as entries:
            listed = sorted(entry.name for entry in entries if not is_system(entry.name))
        tars = [root / name for name in listed if re.search(rf"{_TAR}$", name)]
        if tars and any((root / name).is_dir() for name in listed):
            return []
    for path in tars:
        if path.suffix != ".tar":
            raise UserError(
                f"{path}: compressed, and images are read in any order; unpack it once: "
                f"{_UNPACK.get(path.suffix, 'gunzip')} {path}"
            )
    return tars


def _beside(root: Path) -> list[Path]:
    """NAME-000.tar, …, where no folder is there. Another name may stand in front of NAME."""
    if root.exists():
        return []
    pattern = _name_pattern(root)
    try:
        listed = sorted(entry.name for entry in os.scandir(root.parent))
    except OSError:
        return []
    return [root.parent / name for name in listed if pattern(name) and not is_system(name)]


def _name_pattern(root: Path) -> Any:
    name = _PARTS.get(root.name, re.escape(root.name))
    return re.compile(rf"(.*[-_.])?({name})[-_.]\d+{_TAR}").fullmatch


def relative_in(name: str, root: Path) -> str | None:
    """`index.relative` in a folder of images or of tars, or in tars beside each other."""
    if name.startswith(f"{root}{os.sep}"):
        return re.sub(r"^[^/]+\.tar/", "", name[len(f"{root}{os.sep}") :])
    shard, is_inside, key = name.partition(".tar/")
    belongs = os.path.dirname(shard) == str(root.parent) and _name_pattern(root)(
        f"{os.path.basename(shard)}.tar"
    )
    return key if is_inside and belongs else None


# --- what they hold -------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Contents:
    """The images of a data set's shards, class after class, sorted by name within each.

    Attributes:
        classes: Their names.
        names: (n,) members' names, in each class folder's case beginning with the class.
        targets: (n,) int64, positions in `classes`.
        shard: (n,) int32, positions in the list of shards.
        offsets, n_bytes: (n,) int64, of the image in its shard.
        faults: What is in no row: damaged shards, and members that are of no use.
        hidden: Names that are an operating system's, which are passed over.
    """

    classes: tuple[str, ...]
    names: list[str]
    targets: NDArray[np.int64]
    shard: NDArray[np.int32]
    offsets: NDArray[np.int64]
    n_bytes: NDArray[np.int64]
    faults: tuple[BadImage, ...]
    hidden: tuple[str, ...]


def opened(paths: list[Path]) -> tuple[Shard, ...]:
    """The shards as they are now.

    Raises:
        OSError: One is gone.
    """
    shards = []
    for i, path in enumerate(paths):
        with doing(f"looking for {path}"):
            stat = os.stat(path)
        shard = Shard(str(path), stat.st_size, stat.st_mtime_ns, stays_open=i < MAX_OPEN)
        shards.append(shard)
    return tuple(shards)


def contents(
    root: Path, shards: tuple[Shard, ...], label_key: str | None, *, use_cache: bool, progress: bool
) -> Contents:
    """What the shards hold, from the user's cache while they have not changed.

    Args:
        root: Of the data set, for messages and for the cache.
        shards: Of `opened`.
        label_key: Field of a KEY.json with the label; None: KEY.cls, else LABEL_KEY.
        use_cache: Whether to look there, and to leave it there.
        progress: Show a bar on a terminal while many are read.

    Raises:
        UserError: They hold no image, or labels that are numbers here and names there; or there is
            a `label_key`, and their images lie in class folders.
    """
    class_names = _class_names(root)
    digest = hashlib.sha256(json.dumps([label_key, class_names, VERSION]).encode())
    for shard in shards:
        digest.update(
            os.fsencode(f"{os.path.basename(shard.path)}\0{shard.n_bytes}\0{shard.time}\0")
        )
    key = digest.hexdigest()
    most = sum(shard.n_bytes for shard in shards) + MAX_JSON  # a member takes two blocks or more
    if use_cache and (stored := _load(root, key, most, shards)) is not None:
        return stored
    walked, is_passing = _walk_all(root, shards, label_key, progress)
    made = _sorted(root, shards, walked, label_key, class_names)
    if use_cache and not is_passing:
        _store(root, key, made)
    return made


def _class_names(root: Path) -> list[str] | None:
    for folder in (root, root.parent):
        if is_file(path := folder / CLASS_NAMES):
            lines = [line.strip() for line in read_text(path, str(path)).splitlines()]
            names = lines[: -1 if lines and not lines[-1] else None]
            if not all(names) or len(set(names)) < len(names):
                raise UserError(f"{path}: a line per class, each with another name, is expected")
            return names
    return None


def _walk_all(
    root: Path, shards: tuple[Shard, ...], label_key: str | None, progress: bool
) -> tuple[Walked, bool]:
    """What all shards hold; and whether one could not be read, for a reason that may pass."""
    whole, is_passing = Walked(), False

    def walk_one(i: int) -> Walked | OSError:
        try:
            return walk(i, shards[i], label_key)
        except OSError as error:
            return error

    with ThreadPoolExecutor(_THREADS) as pool:
        done: Iterable[Walked | OSError] = pool.map(walk_one, range(len(shards)))
        if progress and len(shards) >= MANY:
            done = tracked(done, f"Reading headers of {root}", len(shards))
        for i, part in enumerate(done):
            if isinstance(part, OSError):
                whole.faults.append((i, "", f"cannot be read ({part.strerror})"))
                is_passing = True
                continue
            for name in ("names", "shards", "offsets", "sizes", "faults", "hidden"):
                getattr(whole, name).extend(getattr(part, name))
            whole.labels |= part.labels
    return whole, is_passing


# --- labels and order -----------------------------------------------------------------------------


def _sorted(
    root: Path,
    shards: tuple[Shard, ...],
    walked: Walked,
    label_key: str | None,
    class_names: list[str] | None,
) -> Contents:
    """The rows with their classes, in the order in which a folder has them."""
    faults, labels, kept = list(walked.faults), list[Label](), list[int]()
    first: dict[str, int] = {}
    beside = _labels_beside(walked, shards)
    if beside is None and label_key is not None and walked.names:
        raise UserError(
            f"{root}: --label-key names a field beside the images of tars, and few or none of its "
            "images have one: leave it out"
        )
    parts, unclear = (set[int](), set[int]()) if beside is None else companions(walked)
    hidden = list(walked.hidden)
    for row, name in enumerate(walked.names):
        i = walked.shards[row]
        if (before := first.setdefault(name, row)) != row:
            where = os.path.basename(shards[walked.shards[before]].path)
            faults.append((i, name, f"there is another of this name, in {where}"))
            continue
        if row in parts:
            hidden.append(name)
            continue
        if row in unclear:
            wanted = f"{os.path.basename(key_of(name))}.jpg"
            why = f"its sample has several images: name the one that is meant {wanted}"
            faults.append((i, name, why))
            continue
        label = _folder_of(walked, row, shards[i]) if beside is None else beside[row]
        if label is None or isinstance(label, TarError):
            neither = "in no class folder", "it has neither KEY.cls nor KEY.json"
            faults.append((i, name, str(label or neither[beside is not None])))
            continue
        kept.append(row)
        labels.append(label)
    classes, numbers = _classes(root, labels, class_names)
    for row, number in zip(kept, numbers, strict=True):
        if number >= len(classes):
            what = f"its label is {number}, and {CLASS_NAMES} has {len(classes)} lines"
            faults.append((walked.shards[row], walked.names[row], what))
    rows = [(n, walked.names[row], row) for n, row in zip(numbers, kept, strict=True)]
    rows = sorted(row for row in rows if row[0] < len(classes))
    bad = tuple(
        BadImage(os.path.join(shards[i].path, name) if name else shards[i].path, reason)
        for i, name, reason in sorted(faults)
    )
    if not rows:
        why = f"; {bad[0].path}: {bad[0].reason}" if bad else f" ({', '.join(EXTENSIONS)})"
        raise UserError(f"{root}: no images in its {len(shards)} tars{why}")
    order = np.array([row for _, _, row in rows])
    return Contents(
        classes,
        [name for _, name, _ in rows],
        np.array([number for number, _, _ in rows], np.int64),
        np.array(walked.shards, np.int32)[order],
        np.array(walked.offsets, np.int64)[order],
        np.array(walked.sizes, np.int64)[order],
        bad,
        tuple(sorted(hidden)),
    )


def _labels_beside(
    walked: Walked, shards: tuple[Shard, ...]
) -> list[Label | TarError | None] | None:
    """Every image's own label; None where they lie in class folders, whatever JSON lies there."""
    if not walked.labels:
        return None
    n = len(walked.names)
    beside = [label_of(walked, row) for row in range(n)]
    n_labelled = n - beside.count(None)
    if 2 * n_labelled >= n > 0:
        return beside
    in_folders = any(_folder_of(walked, row, shards[walked.shards[row]]) for row in range(n))
    return None if in_folders or not n_labelled else beside


def _folder_of(walked: Walked, row: int, shard: Shard) -> str | None:
    """An image's class folder. ImageNet's own tars have none: CLASS.tar holds CLASS_photo.jpg."""
    name = walked.names[row]
    if "/" in name:
        return name.split("/", 1)[0]
    stem = os.path.splitext(os.path.basename(shard.path))[0]
    return stem if name.startswith(f"{stem}_") else None


def _classes(
    root: Path, labels: list[Label], class_names: list[str] | None
) -> tuple[tuple[str, ...], list[int]]:
    """The classes' names, and every label as a position among them, or behind them."""
    if class_names or any(isinstance(label, int) for label in labels):
        # Others may be numbers in a JSON's quotes.
        labels = [int(x) if isinstance(x, str) and is_number(x) else x for x in labels]
    numbers = [label for label in labels if isinstance(label, int)]
    if not numbers:
        names = sorted({label for label in labels if isinstance(label, str)})
        position = {name: i for i, name in enumerate(names)}
        return tuple(names), [position[str(label)] for label in labels]
    if len(numbers) < len(labels):
        name = next(label for label in labels if isinstance(label, str))
        raise UserError(f"{root}: labels are numbers ({numbers[0]}) and names ({name})")
    names = class_names or [str(number) for number in range(max(numbers) + 1)]
    return tuple(names), numbers


# --- cache ----------------------------------------------------------------------------------------


def _store(root: Path, key: str, made: Contents) -> None:
    text = {
        "classes": made.classes,
        # Relative: the cache's key has the shards' names, and not their place.
        "faults": [[os.path.relpath(bad.path, root.parent), bad.reason] for bad in made.faults],
        "hidden": made.hidden,
    }
    arrays = {name: getattr(made, name) for name in ("targets", "shard", "offsets", "n_bytes")}
    names = np.frombuffer(os.fsencode("\0".join(made.names)), np.uint8)
    cache.store_arrays("tars", root, key, text=np.array(json.dumps(text)), names=names, **arrays)


def _load(root: Path, key: str, most: int, shards: tuple[Shard, ...]) -> Contents | None:
    try:
        with blamed("the cache"):
            stored = cache.load_stored("tars", root, key, most)
            return None if stored is None else _checked(root, stored, shards)
    except UserError:
        return None


def _checked(root: Path, stored: dict[str, NDArray[Any]], shards: tuple[Shard, ...]) -> Contents:
    """The contents, if they are some of these shards; else whatever their values lead to."""
    text = Fields(parse_json(str(stored["text"]), "text"), "text")
    names = [os.fsdecode(name) for name in stored["names"].tobytes().split(b"\0")]
    targets, shard = stored["targets"], stored["shard"]
    offsets, n_bytes = stored["offsets"], stored["n_bytes"]
    classes, n = text.texts("classes"), len(names)
    for column, kind in ((targets, "i8"), (shard, "i4"), (offsets, "i8"), (n_bytes, "i8")):
        if column.shape != (n,) or column.dtype != kind or column.min(initial=0) < 0:
            raise ValueError("of other images")
    sizes = np.array([file.n_bytes for file in shards])
    if targets.max() >= len(classes) or shard.max() >= len(shards):
        raise ValueError("of other shards")
    if (offsets > sizes[shard]).any() or (n_bytes > sizes[shard] - offsets).any():
        raise ValueError("of other shards")
    faults = tuple(
        BadImage(os.path.join(root.parent, path), reason) for path, reason in text.values["faults"]
    )
    return Contents(classes, names, targets, shard, offsets, n_bytes, faults, text.texts("hidden"))
