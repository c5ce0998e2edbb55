"""The index of images: name, class, place, height and width of every one, from headers alone.

Made once, cached, and renewed when the folder changes. All that later depends on a sample (its
crops, its factors, its place in the order) is keyed by its position here, the dataset index, which
counts the folder's sorted files before any is left out.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from fastsc.pipelines import cache
from fastsc.pipelines.batch import BadImage
from fastsc.pipelines.decode import header_parser
from fastsc.pipelines.disk import doing
from fastsc.pipelines.errors import UserError
from fastsc.pipelines.files import Members, Place
from fastsc.pipelines.headers import Header, Parser, read_header
from fastsc.pipelines.lists import list_of, read_list
from fastsc.pipelines.progress import MIN_FILES, tracked
from fastsc.pipelines.shards import relative_in, shards_of
from fastsc.pipelines.sources import (
    SCAN_CHUNK,
    SCAN_THREADS,
    Source,
    of_files,
    of_folder,
    of_list,
    of_tars,
)
from fastsc.pipelines.walk import EXTENSIONS, Listing, list_files

SHOWN = 5  # names in a message


@dataclass(frozen=True, eq=False)
class Index:
    """A folder's images, or those of tars, in sorted order; rows are dataset indices.

    Attributes:
        root: The folder that holds one folder per class, or tars; or what such a folder's name
            would be, where tars of that name lie beside each other; or a list, or LIST.csv/SPLIT.
        classes: Class names, sorted.
        paths: (n,) file names relative to root, or the names that members of tars have.
        targets: (n,) int64, positions in `classes`.
        heights, widths: (n,) int32 pixels, EXIF orientation ignored; 0 for a file left out.
        n_bytes: (n,) int64, size of each file at the time of the scan.
        left_out: Dataset index -> why the file cannot be used.
        by_pillow: Dataset indices of the files that are no JPEG or PNG that all decoders read
            alike: Pillow decodes them, in every pipeline.
        passed_over: Folders and files, relative to root, that are hidden or an operating
            system's, and folders beside the classes that are links to one that they lie in.
        members: Where the images lie in tars; None: each is a file.
        folder: What `paths` are relative to, where it is not root: a list's.
        faults: Damaged tars, and members of no use, which have no row.
    """

    root: Path
    classes: tuple[str, ...]
    paths: tuple[str, ...]
    targets: NDArray[np.int64]
    heights: NDArray[np.int32]
    widths: NDArray[np.int32]
    n_bytes: NDArray[np.int64]
    left_out: dict[int, str] = field(default_factory=dict)
    by_pillow: frozenset[int] = frozenset()
    passed_over: tuple[str, ...] = ()
    members: Members | None = None
    folder: Path | None = None
    faults: tuple[BadImage, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, index: int) -> str:
        """What a person is told of a dataset index: its file, or its shard and its name there."""
        if self.members is not None:
            return os.path.join(self.place(index).path, self.paths[index])
        return os.path.join(self.folder or self.root, self.paths[index])

    def place(self, index: int) -> Place:
        """Where the bytes of a dataset index are."""
        n_bytes = int(self.n_bytes[index])
        if self.members is None:
            return Place(self.path(index), n_bytes)
        return self.members.place(index, n_bytes)

    @property
    def is_there(self) -> bool:
        """Whether its folder still is: else no file is at fault."""
        if self.members is not None:
            return self.members.shards[0].is_there
        return (self.folder or self.root).exists()

    @property
    def usable(self) -> NDArray[np.int64]:
        """Sorted dataset indices of the files that were not left out."""
        keep = np.ones(len(self), np.bool_)
        keep[list(self.left_out)] = False
        return np.flatnonzero(keep)

    @property
    def hash(self) -> str:
        """Names the data: equal for equal files, sizes, classes and omissions, on any machine."""
        digest = hashlib.sha256(os.fsencode("\0".join((*self.classes, "", *self.paths))))
        for column in (self.targets, self.heights, self.widths, self.n_bytes):
            digest.update(np.ascontiguousarray(column).tobytes())
        return digest.hexdigest()[:16]

    def bad_images(self) -> list[BadImage]:
        """The files left out, as the log has them."""
        left_out = (BadImage(self.path(i), why) for i, why in sorted(self.left_out.items()))
        return [*self.faults, *left_out]

    def passed_over_line(self) -> str | None:
        """What is to be said of `passed_over`, or None."""
        if not self.passed_over:
            return None
        shown, n = self.passed_over[:SHOWN], len(self.passed_over)
        more = f" and {n - len(shown):,} more" if n > len(shown) else ""
        return f"{self.root}: passed over {', '.join(shown)}{more}"

    def without(self, broken: dict[int, str]) -> Self:
        """The same index with further files left out."""
        keep = np.ones(len(self), np.int32)
        keep[list(broken)] = 0
        return replace(
            self,
            heights=self.heights * keep,
            widths=self.widths * keep,
            left_out={**self.left_out, **broken},
        )

    def part(self, rows: NDArray[np.int64]) -> Self:
        """Usable images alone, as an index of their own."""
        return replace(
            self,
            paths=tuple(self.paths[i] for i in rows),
            targets=self.targets[rows],
            heights=self.heights[rows],
            widths=self.widths[rows],
            n_bytes=self.n_bytes[rows],
            left_out={},
            by_pillow=frozenset(np.flatnonzero(np.isin(rows, list(self.by_pillow))).tolist()),
            members=None if self.members is None else self.members.part(rows),
            faults=(),
        )

    def require(self, on_bad_image: str) -> None:
        """Raises UserError where no file is usable, or where one is not and the user said raise."""
        if on_bad_image == "raise" and (bad := self.bad_images()):
            first, more = bad[0], f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
            raise UserError(
                f"{first.path}: {first.reason}{more}; mend or remove it, or leave such files out "
                "with --on-bad-image skip"
            )
        if len(self.left_out) == len(self):
            raise UserError(f"{self.root}: none of its {len(self)} images can be used")

    def require_classes(self) -> None:
        """Raises UserError where a class has images and none of them can be used."""
        usable = np.bincount(self.targets[self.usable], minlength=len(self.classes))
        for label in np.unique(self.targets):
            if not usable[label]:
                raise UserError(
                    f"{self.root}: class {self.classes[label]} has no image that can be used; mend "
                    "its files, or remove its folder"
                )


def scan(
    root: str | os.PathLike[str],
    *,
    classes: Sequence[str] | None = None,
    label_key: str | None = None,
    use_cache: bool = True,
    progress: bool = True,
) -> Index:
    """Indexes a folder of `CLASS/**/*.jpg`, or of tars with such images, reading headers only.

    Args:
        root: The folder; each folder in it is a class, whatever lies below belongs to it. Or a
            folder of tars, or the name that tars beside each other begin with (`shards`); or a
            list, LIST.csv, or one of its splits, LIST.csv/SPLIT (`lists`).
        classes: Class names that set the targets (training's, for a validation folder). Default:
            the folder's own, sorted.
        label_key: Of WebDataset's tars: the field of a KEY.json that is the label.
        use_cache: Take the result from the user's cache while the folder has not changed.
        progress: Show a bar on a terminal while many files are read.

    Raises:
        UserError: The folder is missing, holds no class folders or no images, has a class without
            an image, or one that is not among `classes`.
    """
    root = Path(root)
    source = of_list(root) or of_tars(root, label_key, use_cache, progress) or of_folder(root)
    names = tuple(classes) if classes is not None else source.classes
    targets = known_targets(root, source.classes, source.targets, names)
    source = source._replace(classes=names, targets=targets)
    index = _indexed(root, source, use_cache=use_cache, progress=progress)
    return index.without(source.left_out) if source.left_out else index


def part_of(data: Path, name: str) -> Path | None:
    """What `scan` takes for a part of a data set: a folder's, tars' or a list's, if there is one.

    Args:
        data: A folder, or a list (.csv, .parquet).
        name: "train", "val", "test", or what else a folder or a split of the list is called.

    Raises:
        UserError: The list cannot be read.
    """
    if (listed := list_of(data)) is None:
        return data / name if (data / name).is_dir() or shards_of(data / name) else None
    splits = read_list(listed[0]).splits
    if splits is None:
        return data if name == "train" else None
    return data / name if name in splits else None


def relative(name: str, root: Path) -> str | None:
    """What an index of this root has in `paths` for an image that its `path` has called `name`;
    None for one of another folder."""
    if (listed := list_of(root)) is not None:
        return name.removeprefix(f"{listed[0].parent}{os.sep}")
    return relative_in(name, root)


def scan_flat(folder: str | os.PathLike[str]) -> Index:
    """Indexes all images in a folder as one class without a name, reading headers only.

    Raises:
        UserError: The folder is missing or holds no images.
    """
    folder = Path(os.path.abspath(folder))
    try:
        listing = list_files([str(folder)], classes=False, watch=doing)
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from None
    if not listing.names:
        raise UserError(f"{folder}: no images in it ({', '.join(EXTENSIONS)})")
    targets = np.zeros(len(listing.names), np.int64)
    inside = len(folder.name) + len(os.sep)  # of names that begin with the folder's
    listing.names = [name[inside:] for name in listing.names]
    listing.hidden = [name[inside:] for name in listing.hidden]
    return _indexed(folder, Source(("",), targets, listing))


def scan_files(
    root: Path, names: list[str], classes: tuple[str, ...], targets: NDArray[np.int64]
) -> Index:
    """Indexes the files that `root`, a list of them, names, reading headers only.

    Args:
        root: The list; names are relative to its folder.
        names: Of the files, all different.
        classes: Names of classes.
        targets: (n,) positions in them.
    """
    source = of_files(root.parent, names, classes, targets)
    index = _indexed(root, source, use_cache=False)
    return index.without(source.left_out) if source.left_out else index


def _indexed(root: Path, source: Source, *, use_cache: bool = True, progress: bool = True) -> Index:
    """The index of listed images, whose headers come from the cache or are read."""
    listing, members, n = source.listing, source.members, len(source.listing.names)
    decoder, parse = header_parser()
    key = _fingerprint(decoder, listing)
    table = cache.load(root, key, n) if use_cache else None
    sides = np.zeros(n, np.int32)
    index = Index(
        root,
        source.classes,
        tuple(listing.names),
        source.targets,
        sides,
        sides,
        np.array(listing.sizes, np.int64),
        passed_over=(*source.passed_over, *sorted(listing.hidden)),
        members=members,
        folder=source.folder,
        faults=source.faults,
    )
    if table is None:
        # In the order in which they lie on the disk.
        order = range(n) if members is None else np.lexsort((members.offsets, members.shard))
        places = [index.place(int(i)) for i in order]
        title = f"Reading headers of {root}" if progress else None
        read = dict(zip(order, _read_headers(places, parse, title), strict=True))
        headers = [read[i] for i in range(n)]
        table = cache.Table.of(headers)
        if use_cache and not any(header.passing for header in headers):
            cache.store(root, key, table)
    return replace(
        index,
        heights=table.heights,
        widths=table.widths,
        left_out=table.reasons,
        by_pillow=table.by_pillow,
    )


def _fingerprint(decoder: str, files: Listing) -> str:
    """The cache's key: another for other names, sizes or times, or by another decoder."""
    digest = hashlib.sha256(os.fsencode("\0".join((decoder, *files.names))))
    digest.update(files.sizes)
    digest.update(files.times)
    return digest.hexdigest()


def known_targets(
    root: Path, own: Sequence[str], targets: NDArray[np.int64], names: Sequence[str]
) -> NDArray[np.int64]:
    """Positions among a data set's own classes as positions among training's, `names`.

    Raises:
        UserError: An image is of a class that is not among these; one line. Numbers up to the
            largest are classes whether an image has them or not.
    """
    position = {name: i for i, name in enumerate(names)}
    numbers = {number: i for name, i in position.items() if (number := _number(name)) is not None}
    if len(numbers) == len(names):  # 1, of a list, and 001, of a folder, are one class
        position |= {name: numbers[n] for name in own if (n := _number(name)) in numbers}
    of_class = np.array([position.get(name, -1) for name in own], np.int64)
    if (unknown := np.flatnonzero(of_class[np.unique(targets)] < 0)).size:
        name = own[np.unique(targets)[unknown[0]]]
        raise UserError(
            f"{root}: class {name} is not among the training classes; rename or remove it"
        )
    return of_class[targets]


def _number(name: str) -> int | None:
    return int(name) if name.isdecimal() and len(name) < 20 else None


def _read_headers(places: list[Place], parse: Parser | None, title: str | None) -> list[Header]:
    def read_one(place: Place) -> Header:
        source = place.path if place.shard is None else place.open()
        return read_header(source, place.n_bytes, parse)

    def read(chunk: list[Place]) -> list[Header]:
        with doing(f"reading headers from {chunk[0].path} on"):
            return [read_one(place) for place in chunk]

    # In chunks, since a task of the pool costs more memory than a row of the index.
    chunks = [places[at : at + SCAN_CHUNK] for at in range(0, len(places), SCAN_CHUNK)]
    # The filter is the process's, so that it is set once and not by the threads: PIL warns about
    # sizes that are judged here by one rule for all decoders.
    with warnings.catch_warnings(), ThreadPoolExecutor(SCAN_THREADS) as pool:
        warnings.simplefilter("ignore")
        done: Iterable[list[Header]] = pool.map(read, chunks)
        if title is not None and len(places) >= MIN_FILES:
            done = tracked(done, title, len(chunks))
        return [header for chunk in done for header in chunk]
