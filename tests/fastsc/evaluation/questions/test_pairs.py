"""Pairs of real pictures: the list, its mistakes, and figures that can be computed by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastsc.errors import UserError
from fastsc.evaluation.pairs_data import Pairs, open_pairs
from fastsc.evaluation.questions.pairs import PairsAnswer, pairs
from fastsc.pipelines import build
from tests.fastsc.evaluation import tiny
from tests.fastsc.evaluation.calls import asked, figures, results
from tests.pipelines.conftest import photograph, undecodable

UNIT = np.sqrt(3 * tiny.SIDE**2)  # distance of two grey images whose values differ by one


def written(folder: Path, lines: list[str], **images: object) -> Path:
    for name, image in images.items():
        Image.fromarray(image).save(folder / f"{name}.png")  # type: ignore[arg-type]
    path = folder / "pairs.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def greys(folder: Path) -> Pairs:
    values = {"a": 0.2, "b": 0.24, "c": 0.4, "d": 0.48, "e": 0.3}
    images = {name: tiny.constant(value)[0] for name, value in values.items()}
    lines = ["first,second,label", "a.png, b.png,one", "", "c.png,d.png,two", "a.png,e.png,one"]
    lines.append(lines[1])  # which counts once
    return open_pairs(written(folder, lines, **images))


def answered(of: Pairs, labels: list[int] | None = None) -> PairsAnswer:
    loader = build(
        "memory", of.split.index, resolution=tiny.SIDE, train=False, workers=1, batch_size=4,
        val_crop=1.0, mean=tiny.NO_MEAN, std=tiny.NO_STD,
    )  # fmt: skip
    right = np.full(len(of.split.index), -1) if labels is None else np.array(labels)
    return pairs(
        tiny.flat(), loader, first=of.first, second=of.second, numbers=of.numbers, labels=right
    )


def test_three_pairs_by_hand(tmp_path: Path) -> None:
    of = greys(tmp_path)
    assert of.split.labelled
    assert of.split.index.paths == ("a.png", "b.png", "c.png", "d.png", "e.png")
    assert (of.first.tolist(), of.second.tolist()) == ([0, 2, 0], [1, 3, 4])
    answer = answered(of, [0, 0, 1, 1, 0])
    moved = answer.tables["pairs"].columns["moved"]
    bytes_ = np.round(255 * np.array([0.2, 0.24, 0.4, 0.48, 0.3])) / 255
    wanted = UNIT * np.array([bytes_[1] - bytes_[0], bytes_[3] - bytes_[2], bytes_[4] - bytes_[0]])
    np.testing.assert_allclose(moved, wanted, rtol=1e-4)
    between = UNIT * np.array([bytes_[2] - bytes_[0]] * 3)
    assert answer["ds_relative"].value == pytest.approx(wanted.mean() / between.mean(), rel=1e-4)
    assert answer["ds_relative"].n == 3
    assert {"flips", "top1", "top1_second", "confidence_change"} <= answer.estimates.keys()
    # Nothing is clipped: brightness moves a grey by its share of it, here by a fifth.
    share = wanted.mean() / (UNIT * bytes_[[0, 2, 0]].mean())
    assert answer.as_brightness.value == pytest.approx(share, rel=2e-2)
    assert answer.as_brightness.low <= answer.as_brightness.value <= answer.as_brightness.high
    assert answer.worst[0].names == ("a.png", "e.png")
    assert answer.worst[0].pictures[1][0, 0, 0] == round(255 * 0.3)


def test_equal_pictures_are_nowhere_apart(tmp_path: Path) -> None:
    image = {"a": tiny.constant(0.2)[0], "b": tiny.constant(0.9)[0]}
    answer = answered(open_pairs(written(tmp_path, ["a.png,a.png", "b.png,b.png"], **image)))
    assert answer["ds_relative"].value == answer["flips"].value == 0
    assert answer.as_brightness.value == 0
    assert "top1" not in answer.estimates
    far = {"c": tiny.constant(0.01)[0], "f": tiny.constant(0.011)[0], "d": tiny.constant(1.0)[0]}
    answer = answered(open_pairs(written(tmp_path, ["c.png,d.png", "f.png,d.png"], **far)))
    assert np.isinf(answer.as_brightness.value)


def test_a_broken_or_missing_file_leaves_its_pair_out_by_name(tmp_path: Path) -> None:
    image = {name: tiny.constant(0.2)[0] for name in "ab"}
    (tmp_path / "bad.png").write_bytes(undecodable())
    (tmp_path / "text.png").write_bytes(b"no picture")
    lines = ["a.png,b.png", "a.png,bad.png", "gone.png,b.png", "text.png,a.png", "b.png,a.png"]
    of = open_pairs(written(tmp_path, lines, **image))
    assert of.numbers.tolist() == [0, 4]
    assert [line.split(":")[0] for line in of.left_out] == [
        "a.png and bad.png", "gone.png and b.png", "text.png and a.png",
    ]  # fmt: skip
    assert of.left_out[1] == "gone.png and b.png: gone.png: No such file or directory"
    with pytest.raises(UserError, match=r"1 whole pairs, and not two; a.png and bad.png"):
        open_pairs(written(tmp_path, lines[:2]))


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], "no pair in it"),
        (["first,second"], "no pair in it"),
        (["image_a,image_b"], "no pair in it"),
        (["a.png"], "line 1: .* is not two files"),
        (["a.png,b.png,x,y"], "line 1"),
        (["a.png,b.png", "a.png,"], "line 2"),
        (["a.png,b.png,one", "b.png,a.png,two"], "line 2 calls b.png 'two', after another"),
        (['"a.png,b.png'], "--pairs"),
    ],
)
def test_mistakes_of_the_list(tmp_path: Path, lines: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said) as mistake:
        open_pairs(written(tmp_path, lines))
    assert "\n" not in str(mistake.value)


@pytest.mark.usefixtures("undrawn")
def test_of_the_command(
    tmp_path: Path, nets: str, few_images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(4):
        image = photograph(i)
        image.save(tmp_path / f"{i}-a.jpg", quality=95)
        image.save(tmp_path / f"{i}-b.jpg", quality=20)
    file = tmp_path / "pairs.csv"
    rows = [f"{i}-a.jpg,{i}-b.jpg" for i in range(4)]
    file.write_text("\n".join([*rows, "0-a.jpg,gone.jpg"]) + "\n")
    call = (f"{nets}:small", "--data", few_images, "--out", "out", "--only", "pairs")
    assert asked(*call) == 2
    assert "pairs: no pairs of pictures; give them with --pairs FILE.csv" in capsys.readouterr().err
    assert asked(*call, "--pairs", tmp_path / "none.csv") == 2
    assert asked(*call, "--pairs", file) == 0
    out = capsys.readouterr().out
    assert "left out: pair 0-a.jpg and gone.jpg: gone.jpg: No such file or directory" in out
    assert "4 pairs: ds_relative 0." in out
    found = figures(Path("out"))
    assert {"pairs/ds_relative", "pairs/flips", "pairs/rank/IG"} <= found.keys()
    assert results(Path("out"))["metadata"]["pairs"] == 4
    page = Path("out/report.html").read_text()
    assert "This change moves the representation" in page
    assert page.count("-b.jpg") >= 4


@pytest.mark.usefixtures("undrawn")
def test_listed_perturbations_of_the_command(
    tmp_path: Path, nets: str, few_images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = (f"{nets}:small", "--data", few_images, "--out", "out", "--images", "2")
    call = (*call, "--only", "continuity")
    assert asked(*call, "--perturb", "blurr") == 2
    assert "did you mean blur?" in capsys.readouterr().err
    assert asked(*call, "--perturb", "jpeg=90", "exposure", "grayscale") == 0
    found = figures(Path("out"))
    wanted = {"ds_relative/jpeg/90", "flips/exposure/1", "flip_radius/jpeg/up", "flips/listed"}
    assert {f"continuity/{name}" for name in wanted} <= found.keys()
    page = Path("out/report.html").read_text()
    assert "All that --perturb lists, and the colors, move it by" in page
