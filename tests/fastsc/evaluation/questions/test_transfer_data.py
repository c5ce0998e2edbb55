"""The images of transfer: the parts of a folder, or its keyed halves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastsc.errors import UserError
from fastsc.evaluation.transfer_data import ranks_in_class, transfer_splits
from tests.fastsc.evaluation import tiny
from tests.pipelines.tar_files import PHOTO, write

pytestmark = pytest.mark.heavy


def folder(root: Path, sizes: dict[str, int], seed: int = 0) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    tiny.loader(root, {name: tiny.noise(rng, n) for name, n in sizes.items()})
    return root


@pytest.mark.parametrize(("other", "taken"), [(("val", "test"), "val"), (("test",), "test")])
def test_two_parts_of_a_folder(tmp_path: Path, other: Any, taken: str) -> None:
    folder(tmp_path / "train", {"a": 3, "b": 2})
    for name in other:
        folder(tmp_path / name, {"b": 2})
    train, test = transfer_splits(tmp_path)
    assert train.root == tmp_path / "train"
    assert test.root == tmp_path / taken
    assert train.classes == test.classes == ("a", "b")
    assert test.targets.tolist() == [1, 1]
    folder(tmp_path / taken, {"c": 1})
    with pytest.raises(UserError, match="class c is not among the training classes"):
        transfer_splits(tmp_path)


def test_labels_of_tars_in_another_field(tmp_path: Path) -> None:
    for part in ("train", "val"):
        members = {f"{i}.jpg": PHOTO for i in range(4)}
        members |= {f"{i}.json": b'{"kind": %d}' % (i % 2) for i in range(4)}
        write(tmp_path / f"{part}-0.tar", members)
    train, test = transfer_splits(tmp_path, label_key="kind")
    assert train.targets.tolist() == test.targets.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("below", ["", "train", "test"])
def test_halves_of_one_folder(tmp_path: Path, below: str) -> None:
    sizes = {"a": 7, "b": 4, "c": 1, "d": 2}
    whole = folder(tmp_path / below, sizes)
    train, test = transfer_splits(tmp_path, seed=3)
    assert {train.root, test.root} == {whole}
    assert np.bincount(train.targets).tolist() == [4, 2, 1, 1]
    assert np.bincount(test.targets, minlength=4).tolist() == [3, 2, 0, 1]
    assert not set(train.paths) & set(test.paths)
    assert len(set(train.paths) | set(test.paths)) == 14
    for half in (train, test):
        assert all(p.split("/")[0] == "abcd"[t] for p, t in zip(half.paths, half.targets))
        assert (half.heights == tiny.SIDE).all()
        assert half.paths == tuple(sorted(half.paths))
    again = transfer_splits(tmp_path, seed=3)
    assert again[0].paths == train.paths
    assert transfer_splits(tmp_path, seed=4)[0].paths != train.paths


def test_broken_images(tmp_path: Path) -> None:
    folder(tmp_path, {"a": 4, "b": 4})
    (tmp_path / "a" / "00.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"00\.png"):
        transfer_splits(tmp_path)
    train, test = transfer_splits(tmp_path, on_bad_image="skip")
    assert np.bincount(train.targets).tolist() == [2, 2]
    assert np.bincount(test.targets).tolist() == [1, 2]
    assert "a/00.png" not in train.paths + test.paths
    # One that only decoding shows.
    good = (tmp_path / "b" / "00.png").read_bytes()
    (tmp_path / "b" / "00.png").write_bytes(good[:60] + b"\0" * 40 + good[100:])
    halves = transfer_splits(tmp_path, on_bad_image="skip")
    assert "b/00.png" not in halves[0].paths + halves[1].paths


def test_folders_that_will_not_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^--transfer-data .*none: no such folder"):
        transfer_splits(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"^--transfer-data .*file: a file, not a folder"):
        transfer_splits(tmp_path / "file")
    with pytest.raises(UserError, match="one image a class, and none to test on"):
        transfer_splits(folder(tmp_path / "single", {"a": 1, "b": 1}))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no class folders"):
        transfer_splits(tmp_path / "empty")


def test_ranks_skip_what_is_left_out(tmp_path: Path) -> None:
    index = tiny.loader(tmp_path, {"a": tiny.noise(np.random.default_rng(0), 6)}).index
    every, without = ranks_in_class(index, 0), ranks_in_class(index.without({2: "broken"}), 0)
    assert sorted(every) == list(range(6))
    assert without[2] == -1
    assert np.argsort(without)[1:].tolist() == [i for i in np.argsort(every) if i != 2]
