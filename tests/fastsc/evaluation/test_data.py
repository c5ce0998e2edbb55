"""Which images are asked about: splits, labelled and flat folders, broken files."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastsc.config.options import parse
from fastsc.datasets.folders import open_data
from fastsc.errors import UserError
from fastsc.evaluate import main
from fastsc.evaluation.data import open_split
from fastsc.pipelines import build, scan
from fastsc.pipelines.index import scan_flat
from tests.pipelines.conftest import undecodable


@pytest.fixture
def flat(image_folder: Path, tmp_path: Path) -> Path:
    """Six images without classes."""
    folder = tmp_path / "photos"
    folder.mkdir()
    files = sorted((image_folder / "val").glob("*/*.jpg"))[:6]
    for i, file in enumerate(files):
        shutil.copy(file, folder / f"{i}.jpg")
    return folder


def test_the_first_split_that_is_there(image_folder: Path, tmp_path: Path) -> None:
    for split in ("train", "test", "val"):
        (tmp_path / split).symlink_to(image_folder / "val")
        found = open_split(tmp_path)
        assert found.index.root == tmp_path / split
        assert found.labelled
    assert open_split(tmp_path, "train").index.root == tmp_path / "train"
    assert open_split(image_folder / "val").index.root == image_folder / "val"


def test_a_class_called_train_is_no_split(image_folder: Path, tmp_path: Path) -> None:
    """One of CIFAR-100's is."""
    shutil.copytree(image_folder / "val", tmp_path / "data")
    (tmp_path / "data" / "door").rename(tmp_path / "data" / "train")
    assert open_split(tmp_path / "data").index.classes == ("apple", "boat", "cloud", "train")
    config = parse(["repair", "--data", str(tmp_path / "data"), "--init", "x"])
    assert sum(map(len, open_data(config.data, labels=False))) == 12
    for image in (tmp_path / "data" / "cloud").iterdir():  # train, val and masks are no classes
        image.unlink()
    assert open_split(tmp_path / "data").index.root == tmp_path / "data" / "train"


def test_a_labelled_split_is_the_scan(image_folder: Path) -> None:
    found, expected = open_split(image_folder, "train"), scan(image_folder / "train")
    assert found.index.hash == expected.hash
    assert found.labelled


def test_images_beside_class_folders_are_not_looked_at(image_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(image_folder / "val", tmp_path / "data")
    shutil.copy(tmp_path / "data" / "apple" / "00.jpg", tmp_path / "data" / "cover.jpg")
    found = open_split(tmp_path / "data")
    assert found.labelled
    assert len(found.index) == 12


def test_a_flat_folder_is_unlabelled(flat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (flat / "notes").mkdir()
    (flat / "readme.txt").write_text("photographs")
    found = open_split(flat)
    assert not found.labelled
    index = found.index
    assert index.classes == ("",)
    assert index.root == flat
    assert [index.path(i) for i in range(6)] == [str(flat / f"{i}.jpg") for i in range(6)]
    assert (index.targets == 0).all()
    for i in range(6):
        with Image.open(index.path(i)) as image:
            assert (index.widths[i], index.heights[i]) == image.size
    monkeypatch.chdir(flat)
    assert open_split(".").index.hash == index.hash


def test_a_flat_folder_is_decoded_like_any(flat: Path) -> None:
    loader = build(
        "cpu", open_split(flat).index, batch_size=4, resolution=16, train=False, workers=1
    )
    one = torch.cat([batch.clean for batch in loader])
    loader.close()
    classes = flat.parent / "classes"
    shutil.copytree(flat, classes / "all")
    loader = build("cpu", scan(classes), batch_size=4, resolution=16, train=False, workers=1)
    assert torch.equal(one, torch.cat([batch.clean for batch in loader]))
    loader.close()


def test_a_flat_scan_is_cached_and_renewed(flat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = scan_flat(flat)

    def never(*args: object) -> object:
        raise AssertionError("the headers were read again")

    with monkeypatch.context() as patch:
        patch.setattr("fastsc.pipelines.index._read_headers", never)
        assert scan_flat(flat).hash == before.hash
    shutil.copy(flat / "0.jpg", flat / "6.jpg")
    after = scan_flat(flat)
    assert len(after) == 7
    assert after.widths[6] == after.widths[0]


@pytest.mark.parametrize("labelled", [True, False])
def test_a_broken_header_is_a_line_or_is_left_out(
    labelled: bool, flat: Path, tmp_path: Path
) -> None:
    data = flat
    if labelled:
        data = tmp_path / "data"
        shutil.copytree(flat, data / "apple")
    broken = next(data.rglob("2.jpg"))
    broken.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"2\.jpg: .*--on-bad-image skip"):
        open_split(data)
    assert open_split(data, on_bad_image="skip").index.usable.tolist() == [0, 1, 3, 4, 5]


def test_what_only_decoding_shows_is_a_line(
    flat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unless it is to be skipped; a BMP that is cut, whose header is whole."""
    whole = io.BytesIO()
    Image.open(flat / "4.jpg").save(whole, "BMP")
    (flat / "4.bmp").write_bytes(whole.getvalue()[:-300])
    words = ["torchvision:resnet18", "--no-pretrained", "--data", str(flat), "--resolution", "32",
             "--only", "continuity", "--out", str(tmp_path / "out")]  # fmt: skip
    assert main(words) == 2
    assert "4.bmp: image file is truncated" in capsys.readouterr().err


def test_what_only_decoding_shows_is_left_out_beforehand(flat: Path) -> None:
    (flat / "4.jpg").write_bytes(undecodable())
    assert len(open_split(flat).index.usable) == 6  # headers are whole
    found = open_split(flat, on_bad_image="skip").index
    assert found.usable.tolist() == [0, 1, 2, 3, 5]
    loader = build("cpu", found, batch_size=2, resolution=16, train=False, workers=1,
                   on_bad_image="skip")  # fmt: skip
    index = np.concatenate([batch.index for batch in loader.decoded(found.usable)])
    loader.close()
    assert index.tolist() == [0, 1, 2, 3, 5]


def test_nothing_but_broken_images(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match="none of its 1 images can be used"):
        open_split(tmp_path, on_bad_image="skip")


def test_folders_that_are_not_there(image_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--data .*absent: no such folder"):
        open_split(tmp_path / "absent")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--data .*file: a file, not a folder"):
        open_split(tmp_path / "file")
    with pytest.raises(UserError, match=r"--split test: .* has no such folder, but train, val"):
        open_split(image_folder, "test")
    with pytest.raises(UserError, match=r"no images in it .*one folder a class is expected"):
        open_split(tmp_path)
    (tmp_path / "val").mkdir()
    with pytest.raises(UserError, match=r"val: no images in it"):
        open_split(tmp_path)
    with pytest.raises(UserError, match="no images in it"):
        scan_flat(tmp_path / "val")
    with pytest.raises(UserError, match="cannot be read"):
        scan_flat(tmp_path / "absent")
