"""What an evaluation leaves in its folder: parts not computed twice, rows, results.json."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from fastsc.errors import UserError
from fastsc.evaluation.results.answers import Answer, Arrays, Rows
from fastsc.evaluation.results.evaluated import Comparison, Evaluated, Evaluation
from fastsc.evaluation.results.measures import Measure, Name
from fastsc.evaluation.results.statistics import Difference
from fastsc.evaluation.results.store import Store


class Counted:
    """Arrays, and how often they were computed."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> Arrays:
        self.times += 1
        return {"moved/hue/0.1": np.arange(3.0), "names": np.array(["a", "ß"])}


def test_a_part_is_computed_once_for_equal_settings(tmp_path: Path) -> None:
    compute = Counted()
    first = Store(tmp_path).cache(model="m")("pairs", {"n": 3, "s": (0.4, 0.1)}, compute)
    store = Store(tmp_path)  # another evaluation in the same folder
    again = store.cache(model="m")("pairs", {"s": (0.4, 0.1), "n": 3}, compute)
    assert compute.times == 1
    assert store.computed == 0
    for name, array in first.items():
        assert np.array_equal(again[name], array)
        assert again[name].dtype == array.dtype


@pytest.mark.parametrize(
    ("part", "settings", "scope"),
    [("curves", {"n": 3}, {"model": "m"}), ("pairs", {"n": 4}, {"model": "m"}),
     ("pairs", {"n": 3}, {"model": "other"}), ("pairs", {"n": 3}, {"model": "m", "data": "d"})],
)  # fmt: skip
def test_anything_else_is_computed_anew(
    part: str, settings: dict[str, Any], scope: dict[str, Any], tmp_path: Path
) -> None:
    compute = Counted()
    Store(tmp_path).cache(model="m")("pairs", {"n": 3}, compute)
    Store(tmp_path).cache(**scope)(part, settings, compute)
    assert compute.times == 2


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_part_is_computed_anew(damage: str, tmp_path: Path) -> None:
    compute = Counted()
    cache = Store(tmp_path).cache(model="m")
    cache("pairs", {}, compute)
    (path,) = (tmp_path / "cache").iterdir()
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[len(data) // 3] ^= 0xFF
    path.write_bytes({"cut": data[: len(data) // 2], "empty": b""}.get(damage, data))
    found = cache("pairs", {}, compute)
    assert compute.times == 2
    assert found["names"].tolist() == ["a", "ß"]
    cache("pairs", {}, compute)
    assert compute.times == 2


def test_what_is_interrupted_leaves_nothing_and_what_was_done_stays(tmp_path: Path) -> None:
    def interrupted() -> Arrays:
        raise KeyboardInterrupt

    cache, done = Store(tmp_path).cache(model="m"), Counted()
    cache("one", {}, done)
    with pytest.raises(KeyboardInterrupt):
        cache("two", {}, interrupted)
    assert len(list((tmp_path / "cache").iterdir())) == 1
    cache("one", {}, done)
    assert done.times == 1


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--out .*file cannot be written"):
        Store(tmp_path / "file")


# --- rows and results.json -----------------------------------------------------------------------


class Any3(Answer):
    question: ClassVar[str] = "any"


def evaluation(*names: str) -> Evaluation:
    rows = Rows(np.array([2, 5, 7]), {
        "hit": np.array([1.0, 0.0, 1.0]), "moved": np.array([1.0, 2.0, 3.0]),
        "between": np.array([2.0, 2.0, 4.0]), "radius": np.array([0.5, np.inf, np.inf]),
    })  # fmt: skip
    answer = Any3(
        tables={"t": rows},
        measures=(
            Measure(Name("hits"), "share", "t", ("hit",)),
            Measure(Name("relative"), "ratio", "t", ("moved", "between")),
            Measure(Name("radius"), "median", "t", ("radius",)),
        ),
        seed=3,
        left_out=("part: why",),
    )
    models = tuple(
        Evaluated(name, {"any": answer}, {"other": "no labels"}, lambda i, f: rows.index, {})  # type: ignore[arg-type, return-value]
        for name in names
    )
    difference = Difference(0.5, float("nan"), 1.0, 3, 3, 0.25, 2.0)
    compared = Comparison(names[-1], names[0], "any", "hits", difference)
    return Evaluation(
        models=models,
        comparisons=(compared,),
        metadata={"versions": {"torch": "2"}, "sizes": (1, 2), "share": float("nan")},
        image_name=lambda i: f"class/{i}.jpg",
        class_name=lambda i: "class",
    )


def test_figures_come_out_of_the_rows_again(tmp_path: Path) -> None:
    Store(tmp_path).write(evaluation("a", "b"))
    found = json.loads((tmp_path / "results.json").read_text())
    assert list(found) == ["metadata", "results", "comparisons", "left_out"]
    by_name = {(r["model"], r["name"]): r for r in found["results"]}
    assert len(by_name) == 6
    for (model, name), value in {
        ("a", "hits"): 2 / 3, ("b", "relative"): 6 / 8,
    }.items():  # fmt: skip
        row = by_name[model, name]
        assert row["value"] == pytest.approx(value)
        assert row["low"] <= row["value"] <= row["high"]
        assert (row["n"], row["seed"], row["question"]) == (3, 3, "any")
        with np.load(tmp_path / row["rows"]) as rows:
            means = [rows[column].mean() for column in row["columns"]]
            assert rows["path"].tolist() == ["class/2.jpg", "class/5.jpg", "class/7.jpg"]
            assert rows["index"].tolist() == [2, 5, 7]
        assert row["value"] == pytest.approx(means[0] / means[1] if means[1:] else means[0])
    assert found["comparisons"] == [
        {"model": "b", "against": "a", "question": "any", "name": "hits", "value": 0.5,
         "low": None, "high": 1.0, "n": 3, "seed": 3, "p": 0.25, "smallest": 2.0}
    ]  # fmt: skip
    assert {"model": "a", "question": "other", "reason": "no labels"} in found["left_out"]
    assert {"model": "b", "question": "any", "reason": "part: why"} in found["left_out"]


def test_json_knows_neither_infinity_nor_nan(tmp_path: Path) -> None:
    Store(tmp_path).write(evaluation("a"))

    def refuse(word: str) -> None:
        raise AssertionError(word)

    found = json.loads((tmp_path / "results.json").read_text(), parse_constant=refuse)
    (radius,) = [r for r in found["results"] if r["name"] == "radius"]
    assert radius["value"] is None
    assert "beyond the range" in radius["note"]
    assert found["metadata"] == {"versions": {"torch": "2"}, "sizes": [1, 2], "share": None}
    with np.load(tmp_path / "rows/a/any-t.npz") as rows:
        assert math.isinf(rows["radius"][1])


def test_names_become_folders_that_do_not_meet(tmp_path: Path) -> None:
    store = Store(tmp_path)
    names = ("../up", "a/b", "a:b", "A-B", "…")
    folders = store.folders(evaluation(*names))
    assert folders == ["rows/up", "rows/a-b", "rows/a-b-2", "rows/A-B-2-2", "rows/model"]


def test_long_names_become_folders_that_a_disk_takes(tmp_path: Path) -> None:
    # Letters of one, two and three bytes, and two names with one beginning.
    names = ("a" * 300, "a" * 301, "é" * 300, "模" * 300)
    folders = Store(tmp_path).folders(evaluation(*names))
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
    assert len(set(folders)) == len(names)


@pytest.mark.parametrize("how", ["another part's", "an older fastsc's", "a pipe"])
def test_what_is_not_this_part_is_computed_anew(how: str, tmp_path: Path) -> None:
    compute = Counted()
    cache = Store(tmp_path).cache(model="m")
    wanted = cache("pairs", {"n": 3}, compute)
    (path,) = (tmp_path / "cache").iterdir()
    if how == "another part's":
        cache("curves", {"n": 3}, lambda: {"other": np.arange(4)})
        (other,) = set((tmp_path / "cache").iterdir()) - {path}
        other.replace(path)
    elif how == "a pipe":
        path.unlink()
        os.mkfifo(path)
    else:
        np.savez_compressed(path, **wanted)
    assert set(cache("pairs", {"n": 3}, compute)) == set(wanted)
    assert compute.times == 2
