"""Hugging Face's Parquet files and data sets: which columns and rows they have, and what is wrong.

What `prepare tar` makes of them is in tests/fastsc/datasets/test_prepare_hf.py.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fastsc.pipelines import UserError, build, from_dataset
from fastsc.pipelines.arrow import Columns, Row, RowError, columns_of
from fastsc.pipelines.files import read_file
from fastsc.pipelines.parquet import Keys, Table, files_of
from tests.pipelines.conftest import as_dataset, encoded, photograph

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
PHOTO = encoded(photograph(0))


def table(images: list[Any], labels: list[Any], names: list[str] | None = None, **more: Any) -> Any:
    """A pyarrow.Table as `datasets` writes it."""
    columns = {"image": pa.array(images, IMAGE), "label": pa.array(labels), **more}
    features: dict[str, Any] = {"image": {"_type": "Image"}}
    if names is not None:
        features["label"] = {"_type": "ClassLabel", "names": names}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.table(columns).replace_schema_metadata(metadata)


def image(seed: int = 0, path: str | None = None, **options: Any) -> dict[str, Any]:
    return {"bytes": encoded(photograph(seed), **options), "path": path}


def write(path: Path, content: Any, group: int = 2) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(content, path, row_group_size=group)
    return path


# ---- columns -------------------------------------------------------------------------------------


def columns(kinds: dict[str, Any], label: str | None = None) -> Columns:
    """Of a table with columns of these names: "image", a list of class names, or a pyarrow type."""
    schema = pa.schema(
        {k: IMAGE if v == "image" else pa.int64() if isinstance(v, list) else v
         for k, v in kinds.items()}
    )  # fmt: skip
    features = {
        k: {"_type": "Image"} if v == "image" else {"_type": "ClassLabel", "names": v}
        for k, v in kinds.items()
        if v == "image" or isinstance(v, list)
    }
    return columns_of(features, schema, label, "x")


def test_which_columns_are_read() -> None:
    image, a, b = "image", ["a"], ["a", "b"]
    assert columns({"image": image, "label": a}) == ("image", "label", ("a",))
    assert columns({"img": image, "animal": b}) == ("img", "animal", ("a", "b"))
    two = {"image": image, "mask": image, "label": pa.int32()}
    assert columns(two) == ("image", "label", None)
    fine = {"image": image, "fine": a, "coarse": b}
    assert columns(fine, "coarse") == ("image", "coarse", ("a", "b"))
    assert columns({"image": image, "label": a, "id": pa.string()}, "id") == ("image", "id", None)
    bare = pa.schema({"x": IMAGE, "label": pa.int8()})
    assert columns_of({}, bare, None, "x") == ("x", "label", None)


@pytest.mark.parametrize(
    ("label", "kinds", "said"),
    [
        (None, {"a": "image", "b": "image", "label": ["x"]}, "columns of images: a, b; keep one"),
        (None, {"photo": pa.binary(), "label": ["x"]}, "no column of images, structs of bytes and"),
        (None, {"image": "image", "fine": ["x"], "coarse": ["y"]}, "names one of: fine, coarse"),
        (None, {"image": "image", "id": pa.int64()}, "no telling which column is the label; --la"),
        ("lable", {"image": "image", "label": ["x"]}, "no column lable; --label-column names one"),
        (None, {"image": "image", "label": ["x", "x"]}, "the class names of its column label are"),
        (None, {"image": "image", "label": ["\ud800"]}, "the class names of its column label are"),
    ],
)
def test_columns_that_are_not_clear(label: str | None, kinds: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=r"^x: ") as mistake:
        columns(kinds, label)
    assert said in str(mistake.value)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"info": 3}', '{"info": {"features": [1]}}'])
def test_metadata_that_say_nothing(tmp_path: Path, text: str) -> None:
    content = table([image()], [3]).replace_schema_metadata({"huggingface": text})
    assert Table([write(tmp_path / "x.parquet", content)], None).columns == ("image", "label", None)


# ---- rows and their keys -------------------------------------------------------------------------


def key_of(row: Row, names: tuple[str, ...] | None = ("cat", "dog")) -> str:
    return Keys(Columns("image", "label", names), "x")(row)


@pytest.mark.parametrize(
    ("path", "content", "key"),
    [
        ("train/cat/a.b.JPEG", PHOTO, "cat/a.b.JPEG"),
        ("C:\\photos\\a.PNG", PHOTO, "cat/a.PNG"),
        ("a", PHOTO, "cat/a.jpg"),
        ("a.gif", encoded(photograph(), "WEBP"), "cat/a.gif.webp"),
        (None, PHOTO, "cat/000000007.jpg"),
        ("", encoded(photograph(), "PNG"), "cat/000000007.png"),
        ("..", encoded(photograph(), "TIFF"), "cat/000000007.tif"),
        (".hidden.jpg", encoded(photograph(), "BMP"), "cat/000000007.jpg"),
        ("a\0b.jpg", PHOTO, "cat/000000007.jpg"),
        (None, encoded(photograph(), "PPM"), "cat/000000007.ppm"),
        (None, None, "cat/000000007.jpg"),
    ],
)
def test_keys(path: str | None, content: bytes | None, key: str) -> None:
    assert key_of(Row(7, content, path, 0)) == key


def test_every_key_is_another_one() -> None:
    keys = Keys(Columns("image", "label", ("a/b", "c")), "x")
    rows = [Row(i, PHOTO, "1.jpg", 0) for i in range(3)] + [Row(9, PHOTO, "000000003.jpg", 0)]
    rows += [Row(3, PHOTO, "1.jpg", 0), Row(3, PHOTO, None, 0), Row(5, PHOTO, "1.jpg", 1)]
    names = [keys(row) for row in rows]
    assert names[:3] == ["a∕b/1.jpg", "a∕b/000000001.jpg", "a∕b/000000002.jpg"]
    assert names[3:] == [
        *("a∕b/000000003.jpg", "a∕b/000000003_.jpg", "a∕b/000000003__.jpg", "c/1.jpg"),
    ]


@pytest.mark.parametrize("name", ["", ".x", "..", "__MACOSX", "a\0"])
def test_class_names_that_are_no_folders(name: str) -> None:
    with pytest.raises(UserError, match=r"^x: class .* cannot be a folder's name"):
        key_of(Row(0, PHOTO, None, 0), (name,))
    with pytest.raises(UserError, match="two classes have the same name, but for slashes"):
        key_of(Row(0, PHOTO, None, 0), ("a/b", "a∕b"))


@pytest.mark.parametrize("names", [("cat", "dog"), None])
@pytest.mark.parametrize("label", [-1, 2_000_000, None, True, 1.5, "", b"x", [1]])
def test_labels_that_are_none(label: Any, names: tuple[str, ...] | None) -> None:
    with pytest.raises(RowError, match="its label is") as error:
        key_of(Row(0, PHOTO, None, label), names)
    assert ("a test split has no labels" in str(error.value)) == (label == -1)


def test_labels_without_names() -> None:
    assert key_of(Row(0, PHOTO, "a.jpg", 12), None) == "12/a.jpg"
    assert key_of(Row(0, PHOTO, "a.jpg", "x/y"), None) == "x∕y/a.jpg"


# ---- files ---------------------------------------------------------------------------------------


def test_files_of_the_parts(tmp_path: Path) -> None:
    for name in ("train-00001", "train-00000", "training", "test-00000", "validation-00000", "x"):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / f"{name}.parquet").touch()
    (tmp_path / "data" / "train-00002.arrow").touch()
    assert [path.name for path in files_of(tmp_path, "train")] == [
        "train-00000.parquet", "train-00001.parquet",
    ]  # fmt: skip
    assert [path.name for path in files_of(tmp_path, "val")] == ["validation-00000.parquet"]
    (tmp_path / "data" / "validation-00000.parquet").unlink()
    assert [path.name for path in files_of(tmp_path / "data", "val")] == ["test-00000.parquet"]


def test_rows_come_a_few_at_a_time_and_numbered_through(tmp_path: Path) -> None:
    files = [
        write(tmp_path / f"{k}.parquet", table([image(i) for i in range(5)], [0] * 5, ["a"]))
        for k in range(2)
    ]
    rows = [(path, row.number) for path, row in Table(files, None).rows()]
    assert rows == [(files[n // 5], n) for n in range(10)]


@pytest.mark.parametrize(
    "name", ["cifar100/train-0.parquet", "default/train/0000.parquet", "data/train/0000.parquet"]
)
def test_files_below_a_configuration(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).touch()
    (tmp_path / "README.md").touch()
    assert files_of(tmp_path, "train") == [tmp_path / name]
    assert files_of(tmp_path, "val") == []


def test_two_configurations_are_named(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train-0.parquet").touch()
    with pytest.raises(UserError, match="a, b each have Parquet files; name one"):
        files_of(tmp_path, "train")


def test_files_of_different_columns(tmp_path: Path) -> None:
    files = [
        write(tmp_path / f"{names[0]}.parquet", table([image()], [0], names))
        for names in (["a"], ["b"])
    ]
    with pytest.raises(UserError, match=r"b.parquet: other columns or class names than .*a.parq"):
        Table(files, None)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    whole = write(tmp_path / "x.parquet", table([image(i) for i in range(6)], [0] * 6)).read_bytes()
    for content in (b"", b"PAR1", whole[:-20], whole[: len(whole) // 2], b"text" * 99):
        path = tmp_path / "y.parquet"
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"y\.parquet: no whole Parquet file \(.+\)$"):
            Table([path], None)
    with pytest.raises(UserError, match="no whole Parquet file"):
        Table([tmp_path / "gone.parquet"], None)


@given(at=st.floats(0, 1), data=st.binary(min_size=1, max_size=30))
@settings(max_examples=150, deadline=None)
def test_fuzzed_files(at: float, data: bytes, fuzzed: Path) -> None:
    """Rows, or one line that names the file."""
    whole = (fuzzed / "whole.parquet").read_bytes()
    start = int(at * (len(whole) - 1))
    path = fuzzed / "damaged.parquet"
    path.write_bytes((whole[:start] + data + whole[start + len(data) :])[: len(whole)])
    said, n = str(path), 0
    try:
        n = sum(1 for _ in Table([path], None).rows())
    except UserError as mistake:
        said = str(mistake)
    assert n <= 4
    assert str(path) in said
    assert "\n" not in said


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzzed")
    small = [{"bytes": bytes(range(20)), "path": f"{i}.jpg"} for i in range(4)]
    content = table(small, [0, 1, 0, 1], ["a", "b"])
    pq.write_table(content, folder / "whole.parquet", write_page_checksum=True)
    return folder


# ---- a Dataset -----------------------------------------------------------------------------------


def dataset_of(images: list[Any], labels: list[Any], names: list[str] | None = None) -> Any:
    datasets = pytest.importorskip("datasets")
    features = {"image": datasets.Image()}
    features["label"] = datasets.ClassLabel(names=names) if names else datasets.Value("int64")
    columns = {"image": images, "label": labels}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def test_a_dataset_gives_the_views_of_its_folder(image_folder: Path) -> None:
    dataset = as_dataset(image_folder / "train")
    options: dict[str, Any] = {"batch_size": 8, "resolution": 32, "workers": 1, "seed": 3}
    ours, theirs = (
        build("cpu", data, **options) for data in (from_dataset(dataset), image_folder / "train")
    )
    for one, other in zip(ours, theirs, strict=True):
        for a, b in zip(one, other, strict=True):
            assert a is not None
            assert b is not None
            assert (a == b).all()
    assert ours.index.classes == theirs.index.classes
    ours.close()
    theirs.close()


def test_dataset_indices_are_rows_and_targets_labels() -> None:
    images = [image(i, f"x/{i}.png", kind="PNG") for i in range(6)]
    dataset = dataset_of(images, [2, 0, 1, 2, 0, 1], ["z", "a", "m"])
    dataset = dataset.select([5, 3, 1])
    index = from_dataset(dataset)
    assert index.classes == ("z", "a", "m")
    assert index.targets.tolist() == [1, 2, 0]
    assert index.paths[0] == "000000000-5.png"
    for i, row in enumerate((5, 3, 1)):
        assert read_file(index.place(i)) == images[row]["bytes"]
    assert index.is_there
    assert from_dataset(dataset_of(images, [0, 3, 0, 1, 1, 0])).classes == ("0", "1", "2", "3")


def test_rows_without_an_image_or_a_label(tmp_path: Path) -> None:
    (tmp_path / "0.jpg").write_bytes(PHOTO)
    gif = {"bytes": encoded(photograph(), "GIF"), "path": None}
    linked = [{"bytes": None, "path": str(tmp_path / name)} for name in ("0.jpg", "gone.jpg")]
    images = [image(0), image(1), None, gif, *linked, image(2)]
    index = from_dataset(dataset_of(images, [0, -1, 1, 1, 1, 0, 1], ["a", "b"]))
    assert {i: why.partition(" (")[0] for i, why in index.left_out.items()} == {
        1: "its label is -1, and there are classes 0 to 1; a test split has no labels",
        2: "its image is null",
        3: "a GIF; convert it to JPEG or PNG",
        5: f"{tmp_path}/gone.jpg cannot be read",
    }
    with pytest.raises(UserError, match=r"dataset/000000001.jpg: its label is -1.* \(and 3 more\)"):
        build("cpu", index, batch_size=2, resolution=32)
    options: dict[str, Any] = {"batch_size": 2, "resolution": 32, "train": False, "workers": 1}
    loader = build("cpu", index, on_bad_image="skip", **options)
    assert [i for batch in loader for i in batch.index.tolist()] == [0, 4, 6]
    loader.close()


def test_what_is_no_data_set() -> None:
    datasets = pytest.importorskip("datasets")
    one = dataset_of([image()], [0], ["a"])
    with pytest.raises(UserError, match=r"is a DatasetDict; it wants a datasets\.Dataset"):
        from_dataset(datasets.DatasetDict({"train": one}))
    with pytest.raises(UserError, match="the data set has no rows"):
        from_dataset(one.select([]))
    with pytest.raises(UserError, match="the data set: no column x; --label-column"):
        from_dataset(one, label_column="x")


def test_other_formats_are_pillows() -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.full((40, 50, 4), 90, np.uint8)).convert("CMYK").save(buffer, "TIFF")
    images = [image(kind="WEBP"), {"bytes": buffer.getvalue(), "path": None}, image()]
    index = from_dataset(dataset_of(images, [0, 0, 0], ["a"]))
    assert index.by_pillow == {0, 1}
    assert (index.heights[1], index.widths[1]) == (40, 50)
    assert not index.left_out
