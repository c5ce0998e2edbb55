"""Color MNIST: what is left out where it cannot be told, and folders that are no Color MNIST."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fastsc.datasets.colormnist import FOLDERS, METADATA, colormnist_splits
from fastsc.errors import UserError
from tests.fastsc.evaluation.questions.drawn_digits import (
    Reader,
    ask,
    color,
    data,
    shape,
    shown_by,
    splits_of,
)

pytestmark = pytest.mark.heavy

__all__ = ["data"]  # a fixture


def test_outputs_that_are_not_known_leave_the_accuracy_out(data: Path) -> None:
    labels = shown_by(data, "val").index.targets.copy()
    labels[labels == 4] = -1
    found = ask(Reader(shape), data, labels=labels)
    assert found.left_out[1] == (
        "accuracy: which outputs are the digits is not known; name them with --class-map"
    )
    assert "colours" not in found.tables


def test_without_scikit_learn_the_probes_are_left_out(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    found = ask(Reader(color), data)
    assert found.left_out[1] == ("probe: scikit-learn is not installed; pip install scikit-learn")
    assert found["gap"].value == 1


def test_digits_of_one_shape_have_no_probe(data: Path, tmp_path: Path) -> None:
    one = copied(data, tmp_path)
    for folder in FOLDERS:
        for path in (one / folder).glob("[1-9]"):
            shutil.rmtree(path)
    splits = splits_of(one)
    found = ask(Reader(color), data, splits=splits)
    assert found.left_out[1:] == ("probe: the 6 digits to learn from have one shape",)


def copied(data: Path, tmp_path: Path) -> Path:
    unneeded = shutil.ignore_patterns("train", "val")
    shutil.copytree(data, tmp_path / "copy", ignore=unneeded)
    return tmp_path / "copy"


def never(*_: Any) -> Any:
    raise AssertionError("something was computed")


def test_folders_of_other_digits_are_a_mistake(data: Path, tmp_path: Path) -> None:
    changed = copied(data, tmp_path)
    next((changed / "reversed").glob("3/*.png")).unlink()
    with pytest.raises(UserError, match=r"^bias: .*do not hold the same digits; make them again"):
        ask(Reader(color), data, splits=splits_of(changed), cache=never)


def test_digits_that_cannot_be_read_are_left_out_everywhere(data: Path) -> None:
    splits = splits_of(data)
    aligned = splits["aligned"]
    aligned.index = aligned.index.without({5: "broken"})
    reversed_ = splits["reversed"]
    reversed_.index = reversed_.index.without({7: "broken"})
    rows = ask(Reader(color), data, splits=splits).tables["colours"]
    assert rows.index.tolist() == [i for i in range(120) if i not in (5, 7)]
    aligned.index = replace(aligned.index, left_out=dict.fromkeys(range(119), "broken"))
    with pytest.raises(UserError, match="fewer than two digits"):
        ask(Reader(color), data, splits=splits, cache=never)


@pytest.mark.parametrize(
    "text", [None, "{", "[]", "{}", json.dumps({"colours": {str(k): "#ff" for k in range(10)}})]
)
def test_colors_that_are_not_known_are_a_mistake(
    data: Path, tmp_path: Path, text: str | None
) -> None:
    changed = copied(data, tmp_path)
    if text is None:
        (changed / METADATA).unlink()
    else:
        (changed / METADATA).write_text(text)
    with pytest.raises(UserError, match=r"^bias: .*colormnist\.json does not name the ten colors"):
        ask(Reader(color), data, splits=splits_of(changed), cache=never)


def test_which_folders_are_color_mnist(data: Path, tmp_path: Path) -> None:
    assert colormnist_splits(data) == {name: data / name for name in FOLDERS}
    assert colormnist_splits(data / "random") is None
    assert colormnist_splits(tmp_path / "nothing") is None
    changed = copied(data, tmp_path)
    (changed / METADATA).rename(tmp_path / METADATA)
    assert colormnist_splits(changed) is None
    (tmp_path / METADATA).rename(changed / METADATA)
    assert colormnist_splits(changed) is not None
    shutil.rmtree(changed / "aligned")
    assert colormnist_splits(changed) is None
