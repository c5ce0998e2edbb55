"""Records: what makes a run this run, and what of its log is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fastsc.errors import UserError
from fastsc.reproduction.grid import parse_study
from fastsc.reproduction.records import (
    CURVE_POINTS,
    key_of,
    read_record,
    read_records,
    record_of,
    science,
    write_record,
)
from tests.fastsc.reproduction.made import MADE, made
from tests.fastsc.reproduction.test_study import grid

STUDY = parse_study(grid(), "small")


def options(**changes: object) -> dict[str, object]:
    return science(STUDY.changed(changes).config(STUDY.arms["default"], Path("DIR"), 0))


def write_log(run: Path, *events: dict[str, object]) -> None:
    run.mkdir(exist_ok=True)
    (run / "log.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))


HEADER = {"event": "header", **{k: v for k, v in MADE.items() if k != "date"}, "images": 32,
          "val_images": 12}  # fmt: skip
VAL = {"top1": 0.5, "top5": 0.9, "top1_perturbed": 0.4, "ds": 0.1, "ds_relative": 0.2, "n": 12}


def record(run: Path):
    return record_of(
        run, study="small", arm="ce", seed=0, key="k", options=options(), command="c", trial=False
    )


def test_scaled_decoding_is_another_run_with_the_pipeline_that_has_it() -> None:
    """Older records know no exact_decode, and decoded every pixel."""
    assert "exact_decode" not in options(pipeline="cpu", exact_decode=True)
    assert options(pipeline="cpu")["exact_decode"] is False
    assert "exact_decode" not in options(pipeline="dali")


@pytest.mark.parametrize(
    "change",
    [{"alpha": 4}, {"epochs": 5}, {"lr": 0.41}, {"model": "resnet18"},
     {"strengths": [0.4, 0.4, 0.4, 0.2]}, {"bn": "split"}, {"batch_size": 32}, {"max_steps": 3},
     {"ema": 0.9}, {"pipeline": "cpu"}, {"precision": "fp32"}],
)  # fmt: skip
def test_another_option_is_another_run(change: dict[str, object]) -> None:
    assert key_of(options(**change), "a", "b") != key_of(options(), "a", "b")


@pytest.mark.parametrize(
    "change", [{"workers": 3}, {"device": "cuda"}, {"log_every": 5}, {"csv": True},
               {"checkpoint_minutes": 1}],
)  # fmt: skip
def test_another_machine_is_the_same_run(change: dict[str, object]) -> None:
    assert key_of(options(**change), "a", "b") == key_of(options(), "a", "b")


def test_other_images_are_another_run() -> None:
    keys = {key_of(options(), *hashes) for hashes in (("a", "b"), ("c", "b"), ("a", "c"))}
    assert len(keys) == 3


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    one = made(STUDY, "ce", 1, figures={"bias/gap": 0.1, "bias/none": None}, trial=True)
    path = write_record(tmp_path / "records", one)
    assert path.name == "ce-1-ce-1-k.json"  # a trial does not take the place of the run
    assert write_record(tmp_path, made(STUDY, "ce", 1)).name == "ce-1.json"
    again = read_record(path)
    assert json.loads(json.dumps(vars(one))) == json.loads(json.dumps(vars(again)))
    assert (one.plain, made(STUDY, "both", 0).plain) == (True, False)


def test_of_two_folders_the_later_one_wins(tmp_path: Path) -> None:
    for folder, top1 in (("old", 0.1), ("new", 0.2)):
        write_record(tmp_path / folder, made(STUDY, "ce", 0, top1=top1))
    found = read_records([tmp_path / "old", tmp_path / "new", tmp_path / "absent"])
    assert found["ce", 0].val["top1"] == 0.2


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"arm": "ce"}', "{"])
def test_what_is_no_record_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "ce-0.json").write_text(text)
    with pytest.raises(UserError, match=r"ce-0\.json is no record of a run"):
        read_records([tmp_path])


def test_a_record_of_another_format_is_named(tmp_path: Path) -> None:
    write_record(tmp_path, made(STUDY, "ce", 0, format=99))
    with pytest.raises(UserError, match="is a record of format 99"):
        read_records([tmp_path])


def test_the_last_validation_and_the_whole_time_are_kept(tmp_path: Path) -> None:
    write_log(
        tmp_path / "run", HEADER,
        {"event": "step", "step": 1, "ds_relative": 0.5, "between": 1.0, "effective_rank": 2.0,
         "alpha": 3.0, "ce": 4.0},
        {"event": "epoch", "epoch": 0, "seconds": 2.5, "val": None},
        {"event": "epoch", "epoch": 1, "seconds": 2.25, "val": VAL},
        {"event": "end", "time": 1_790_000_000.0},
    )  # fmt: skip
    found = record(tmp_path / "run")
    assert (found.val, found.steps, found.seconds) == (VAL, 1, 4.8)
    assert found.images == {"train": 32, "val": 12}
    assert found.made == {**MADE, "date": "2026-09-21"}
    assert found.curve == {
        "step": [1], "ds_relative": [0.5], "between": [1.0], "effective_rank": [2.0],
        "alpha": [3.0], "ce": [4.0],
    }  # fmt: skip


def test_a_long_curve_is_kept_in_means_of_equal_stretches(tmp_path: Path) -> None:
    n = 6 * CURVE_POINTS
    steps = [
        {"event": "step", "step": i + 1, "ds_relative": None if i % 6 == 0 else float(i), "ce": 1.0}
        for i in range(n)
    ]
    # A resumed run has written its last steps twice; the later line counts.
    twice = [{**steps[-1], "ce": 7.0}]
    write_log(tmp_path / "run", HEADER, *steps, *twice,
              {"event": "epoch", "epoch": 0, "seconds": 1.0, "val": VAL})  # fmt: skip
    curve = record(tmp_path / "run").curve
    assert curve["step"] == [6 * (i + 1) for i in range(CURVE_POINTS)]
    assert curve["ds_relative"][0] == 3.0  # of 1 to 5: the undefined one is left out
    assert curve["between"] == [None] * CURVE_POINTS
    assert curve["ce"][-1] == 2.0


def test_a_run_without_validation_has_no_record(tmp_path: Path) -> None:
    write_log(tmp_path / "run", HEADER, {"event": "epoch", "epoch": 0, "seconds": 1, "val": None})
    with pytest.raises(UserError, match="no validation; remove the folder"):
        record(tmp_path / "run")


@pytest.mark.parametrize(
    ("column", "last", "fallen"),
    [
        ("between", 0.009, True),
        ("between", 0.011, False),
        ("effective_rank", 0.09, True),
        ("effective_rank", 0.11, False),
    ],
)
def test_features_at_one_point_or_on_one_line_have_collapsed(
    column: str, last: float, fallen: bool
) -> None:
    curve = {**made(STUDY, "both", 0).curve, column: [0.5, None, 1.0, last]}
    assert made(STUDY, "both", 0, curve=curve).collapsed is fallen


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"options": {}}, "alpha must be there"),
        ({"options": 3}, "options must be names with values"),
        ({"seed": -1}, "seed must be a whole number"),
        ({"steps": "many"}, "steps must be a whole number"),
        ({"made": {}}, "hardware must be names with values"),
        ({"val": {"top1": "high", "ds_relative": 1}}, "top1 must be a finite number"),
        ({"curve": {}}, "step must be a list of numbers"),
        ({"figures": {"a/b": []}}, "b must be a finite number"),
        ({"images": [1, 2]}, "images must be names with values"),
        ({"pairs_per_s": 10**400}, "pairs_per_s must be a finite number"),
        ({"format": [[1]]}, "is a record of format"),
    ],
)
def test_a_record_that_no_page_can_show(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    old = json.loads(Path("tests/old/records/both-0.json").read_text("utf-8"))
    path = tmp_path / "x.json"
    path.write_text(json.dumps(old | changes))
    with pytest.raises(UserError) as caught:
        read_record(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
