"""A list of image files: its rows are the index, in its order."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from fastsc.pipelines import UserError, build, scan
from fastsc.pipelines.index import part_of, relative
from fastsc.pipelines.lists import read_list


def write(path: Path, rows: list[list[object]]) -> Path:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


@pytest.fixture
def rows(image_folder: Path) -> list[list[object]]:
    """Every third training image, the last first, by its whole name."""
    index = scan(image_folder / "train")
    return [[index.path(i), index.classes[index.targets[i]]] for i in range(len(index))][::-3]


def test_rows_are_the_index_in_their_order(
    image_folder: Path, tmp_path: Path, rows: list[list[object]]
) -> None:
    folder = scan(image_folder / "train")
    index = scan(write(tmp_path / "LIST.csv", [["path", "label"], *rows]))
    assert [index.path(i) for i in range(len(index))] == [row[0] for row in rows]
    assert index.classes == folder.classes
    assert [index.classes[t] for t in index.targets] == [row[1] for row in rows]
    position = {folder.path(i): i for i in range(len(folder))}
    assert index.heights.tolist() == [folder.heights[position[str(row[0])]] for row in rows]
    loader = build("cpu", index, batch_size=4, resolution=16, train=False, workers=1)
    shown = torch.cat([batch.index for batch in loader])
    assert shown.tolist() == list(range(len(rows)))
    loader.close()


def test_a_list_in_parquet_is_that_in_csv(tmp_path: Path, rows: list[list[object]]) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    paths, labels = zip(*rows, strict=True)
    table = pa.table({"id": range(len(rows)), "Label": labels, "path": paths})
    parquet.write_table(table, tmp_path / "LIST.parquet")
    index = scan(tmp_path / "LIST.parquet")
    assert index.hash == scan(write(tmp_path / "LIST.csv", rows)).hash
    (tmp_path / "LIST.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"LIST\.parquet: no whole Parquet file"):
        scan(tmp_path / "LIST.parquet")
    parquet.write_table(pa.table({"file": paths}), tmp_path / "OTHER.parquet")
    with pytest.raises(UserError, match="columns path, label, split are expected"):
        scan(tmp_path / "OTHER.parquet")


def test_names_are_relative_to_the_list(folder: Path, tmp_path: Path) -> None:
    names = ["boat/00.jpg", "./apple/01.jpg", str(folder / "val" / "boat" / "00.jpg")]
    write(folder / "train" / "x.csv", [[name, i] for i, name in enumerate(names)])
    index = scan(folder / "train" / "x.csv")
    assert index.classes == ("0", "1", "2")
    assert [Path(index.path(i)).exists() for i in range(3)] == [True] * 3
    assert relative(index.path(0), index.root) == index.paths[0]
    assert relative(index.path(2), index.root) == index.paths[2]
    moved = folder.rename(tmp_path / "moved")  # the first two go with it
    again = scan(moved / "train" / "x.csv")
    assert again.paths == index.paths
    assert list(again.left_out) == [2]


def test_missing_files_and_doubled_rows_are_named(folder: Path) -> None:
    rows = [["boat/00.jpg", "b"], ["gone.jpg", "b"], ["apple/00.jpg", "a"], ["./boat/00.jpg", "a"]]
    path = write(folder / "train" / "x.csv", [*rows, ["boat", "b"], ["boat/01.jpg", "b"]])
    index = scan(path)
    assert len(index) == 6
    assert index.left_out == {
        1: "No such file or directory",
        3: "line 4 of x.csv has it again, after line 1",
        4: "Is a directory",
    }
    with pytest.raises(UserError, match=r"train/gone\.jpg: No such file .*\(and 2 more\)"):
        index.require("raise")
    loader = build("cpu", index, batch_size=3, resolution=16, on_bad_image="skip", workers=1)
    (batch,) = loader
    assert sorted(batch.index.tolist()) == [0, 2, 5]
    loader.close()


def test_an_absolute_path_doubles_a_relative_one(folder: Path) -> None:
    whole = str(folder / "train" / "boat" / "00.jpg")
    index = scan(write(folder / "train" / "x.csv", [["boat/00.jpg", "b"], [whole, "a"]]))
    assert index.left_out == {1: "line 2 of x.csv has it again, after line 1"}


def test_a_split_of_numbers_in_a_list_of_names_has_names(folder: Path) -> None:
    rows = [["boat/00.jpg", "1", "train"], ["boat/01.jpg", "cat", "train"]]
    path = write(folder / "train" / "x.csv", [*rows, ["boat/02.jpg", "1", "val"]])
    train = scan(path / "train")
    assert train.classes == ("1", "cat")
    val = scan(path / "val", classes=train.classes)
    assert (val.classes, val.targets.tolist()) == (("1", "cat"), [0])


def test_labels_that_are_filled_up_with_zeros_are_names(folder: Path) -> None:
    rows = [["boat/00.jpg", "002"], ["boat/01.jpg", "010"], ["boat/02.jpg", "002"]]
    index = scan(write(folder / "train" / "x.csv", rows))
    assert (index.classes, index.targets.tolist()) == (("002", "010"), [0, 1, 0])
    rows = [["boat/00.jpg", "007"], ["boat/01.jpg", "7"], ["boat/02.jpg", "bond"]]
    index = scan(write(folder / "train" / "x.csv", rows))
    assert (index.classes, index.targets.tolist()) == (("007", "7", "bond"), [0, 1, 2])


def test_a_number_that_no_image_has_need_not_be_among_trainings_classes(folder: Path) -> None:
    rows = [["boat/00.jpg", "2"], ["boat/01.jpg", "4"]]
    path = write(folder / "train" / "x.csv", rows)
    index = scan(path, classes=("1", "2", "3", "4"))
    assert index.targets.tolist() == [1, 3]
    assert scan(path, classes=("001", "002", "004")).targets.tolist() == [1, 2]
    with pytest.raises(UserError, match=r"x\.csv: class 4 is not among the training classes"):
        scan(path, classes=("1", "2", "3"))


def test_splits(folder: Path) -> None:
    rows: list[list[object]] = [["train", "a/0.jpg", "03"], ["Validation", "b/0.jpg", "1"]]
    rows += [["train", "a/1.jpg", "0"], ["extra", "a/2.jpg", "2"]]
    path = write(folder / "x.csv", [["split", "path", "label", "note"], *([*r, ""] for r in rows)])
    assert part_of(path, "train") == path / "train"
    assert part_of(path, "val") == path / "val"
    assert part_of(path, "test") is None
    train = scan(path / "train")
    assert (train.paths, train.classes) == (("a/0.jpg", "a/1.jpg"), ("0", "1", "2", "3"))
    assert train.targets.tolist() == [3, 0]
    assert scan(path / "val", classes=train.classes).targets.tolist() == [1]
    with pytest.raises(UserError, match="no row of the split test"):
        scan(path / "test")
    write(path, [["a/0.jpg", "0"]])
    assert part_of(path, "train") == path
    assert part_of(path, "val") is None


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no row in it; columns path, label, split are expected"),
        (b"path,label\n\n", "no row in it"),
        (b"a.jpg\n", "line 1 has 1 columns, and not path, label and, if it has parts, split"),
        (b"a,b,c,d\n", "line 1 has 4 columns"),
        (b"a.jpg,0\nb.jpg\n", "line 2: ['b.jpg'] has no path, label"),
        (b"path,label,split\na.jpg,0\n", "line 2: ['a.jpg', '0'] has no path, label, split"),
        (b"a.jpg,0\n,1\n", "line 2: ['', '1'] has no path, label"),
        (b'a.jpg,"0\n', "unexpected end of data"),
        (b"\xff\xfe\x00", "not a text file"),
        (b"a\0.jpg,0\n", "is no file's name"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_list(path)
    assert said in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_missing_list(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"x\.csv: cannot be read \(No such file"):
        scan(tmp_path / "x.csv")
