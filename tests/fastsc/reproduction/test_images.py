"""Folders of links: a study's share, a trial's few images, and never anybody's file removed."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastsc import reproduce
from fastsc.errors import UserError
from fastsc.pipelines import scan
from fastsc.reproduction.images import limited, share
from fastsc.reproduction.records import read_record
from tests.fastsc.reproduction.test_study import grid

pytestmark = [pytest.mark.usefixtures("in_process"), pytest.mark.heavy]


def links(folder: Path) -> dict[str, Path]:
    return {str(path.relative_to(folder)): path.resolve() for path in folder.glob("*/*/*")}


def test_images_are_dealt_over_the_classes(image_folder: Path, tmp_path: Path) -> None:
    root, line = limited(image_folder, tmp_path, 6)
    found = links(root)
    assert sorted(name for name in found if name.startswith("train")) == [
        "train/apple/00.jpg", "train/apple/01.jpg", "train/boat/00.jpg", "train/boat/01.jpg",
        "train/cloud/00.jpg", "train/door/00.jpg",
    ]  # fmt: skip
    assert all(path == (image_folder / name).resolve() for name, path in found.items())
    assert line == "6 training and 6 validation images"


def test_a_share_has_few_training_and_all_validation_images(
    image_folder: Path, tmp_path: Path
) -> None:
    """And is another folder of the same images by the names that a run is known by."""
    root, line = share(image_folder, tmp_path / "out", 12)
    found = links(root)
    mine = tmp_path / "mine" / "train"
    for path in (image_folder / "train").glob("*/0[0-2].jpg"):
        (mine / path.parent.name).mkdir(parents=True, exist_ok=True)
        (mine / path.parent.name / path.name).write_bytes(path.read_bytes())
    assert scan(root / "train").hash == scan(mine).hash
    assert scan(root / "val").hash == scan(image_folder / "val").hash
    assert all(path == (image_folder / name).resolve() for name, path in found.items())
    assert line == "the first 12 of 32 training images, dealt over the classes"
    with pytest.raises(UserError, match="has no folder val or test"):
        share(tmp_path / "mine", tmp_path / "out", 2)


def test_a_choice_is_validated_on_training_images_that_it_does_not_train_on(
    image_folder: Path, tmp_path: Path
) -> None:
    root, line = share(image_folder, tmp_path / "out", 12, held_out=8)
    found = links(root)
    train, val = (
        {path for name, path in found.items() if name.startswith(part)} for part in ("train", "val")
    )
    folder = (image_folder / "train").resolve()
    assert train == {path for k in range(3) for path in folder.glob(f"*/0{k}.jpg")}
    assert val == {path for k in (3, 4) for path in folder.glob(f"*/0{k}.jpg")}
    assert line.endswith("; validated on the next 8")
    with pytest.raises(UserError, match=r"12 training images and 21 others, and there are 32$"):
        share(image_folder, tmp_path / "more", 12, held_out=21)
    assert not (tmp_path / "more").exists()


def test_a_study_takes_its_share_of_a_larger_data_set(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "small.yaml"
    options = {"model": "fastsc:resnet8w4", "batch_size": 4, "workers": 1}
    path.write_text(grid(images=12, options=options, epochs=1))
    command = [str(path), "--data", str(image_folder), "--out", str(tmp_path / "out")]
    command += ["--arms", "both", "--seeds", "0"]
    assert reproduce.main([*command, "--dry-run"]) == 0
    assert "more images than the study takes" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert reproduce.main(command) == 0
    record = read_record(tmp_path / "out" / "records" / "both-0.json")
    assert record.images == {"train": 12, "val": 12}
    assert not record.trial
    assert reproduce.main(command) == 0
    assert "1 runs, 1 of them done already" in capsys.readouterr().out


def test_another_trial_takes_the_place_of_the_first(image_folder: Path, tmp_path: Path) -> None:
    limited(image_folder, tmp_path, 12)
    root, _ = limited(image_folder, tmp_path, 2)
    assert sorted(links(root)) == [
        "train/apple/00.jpg", "train/boat/00.jpg", "val/apple/00.jpg", "val/boat/00.jpg",
    ]  # fmt: skip


def test_another_data_set_of_the_same_names_is_seen(image_folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    for name in ("train/apple/00.jpg", "train/boat/00.jpg"):
        (other / name).parent.mkdir(parents=True)
        (other / name).write_bytes((image_folder / "train/door/03.jpg").read_bytes())
    limited(image_folder, tmp_path / "out", 2)
    root, line = limited(other, tmp_path / "out", 2)
    assert links(root)["train/apple/00.jpg"] == (other / "train/apple/00.jpg").resolve()
    assert "which are the same: there is no val" in line


def test_no_file_is_removed(image_folder: Path, tmp_path: Path) -> None:
    mine = tmp_path / "images" / "train" / "apple" / "mine.jpg"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    with pytest.raises(UserError, match="no link of an earlier trial"):
        limited(image_folder, tmp_path, 4)
    assert mine.read_bytes() == b"mine"


def test_data_in_the_trials_own_place_is_refused(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inside = tmp_path / "out" / "images"
    for name in ("train/a", "val/a"):
        (inside / name).mkdir(parents=True)
        (inside / name / "0.jpg").write_bytes((image_folder / "train/door/03.jpg").read_bytes())
    command = ["imagenet", "--data", str(inside), "--out", str(tmp_path / "out")]
    assert reproduce.main([*command, "--limit-images", "2"]) == 2
    assert "lies where trials put their links" in capsys.readouterr().err
    assert len(list(inside.rglob("*.jpg"))) == 2
