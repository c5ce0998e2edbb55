"""Effects and verdicts of records whose figures are known."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from fastsc.reproduction.claims import (
    CLAIMS,
    effect_of,
    effects_of,
    estimate_of,
    goals_of,
    number_of,
    value_of,
)
from fastsc.reproduction.grid import parse_study
from tests.fastsc.reproduction.made import made, runs
from tests.fastsc.reproduction.test_study import grid

STUDY = parse_study(grid(), "small")
FOUND = runs(STUDY, {
    "ce": {"top1": [0.540, 0.550], "ds_relative": [0.40, 0.44]},
    "ce-2e": {"top1": [0.560, 0.572], "ds_relative": [0.42, 0.46]},
    "both": {"top1": [0.555, 0.565], "ds_relative": [0.20, 0.22]},
    "default": {"top1": [0.558, 0.568, 0.4], "ds_relative": [0.10, 0.11, 0.9]},
})  # fmt: skip
TOP1, PERTURBED = CLAIMS["accuracy"]
RELATIVE = CLAIMS["continuity"][0]


def test_effects_are_of_the_seeds_that_both_arms_have() -> None:
    found = effect_of(FOUND, RELATIVE, "default", "both")
    assert found is not None
    assert found.estimate.n == 2  # the third seed, whose figures would spoil it, has no partner
    assert found.estimate.value == pytest.approx(0.5)
    assert (found.own.value, found.theirs.value) == (pytest.approx(0.105), pytest.approx(0.21))
    assert found.verdict == "holds"
    assert estimate_of(FOUND, "default", "val/ds_relative").n == 3


def test_a_difference_is_of_each_seed() -> None:
    found = effect_of(FOUND, TOP1, "default", "ce-2e")
    assert found is not None
    assert found.estimate.value == pytest.approx(-0.003)
    assert found.verdict == "holds"  # within a point, one-sided
    other = effect_of(FOUND, PERTURBED, "default", "ce-2e")
    assert other is not None
    assert other.verdict == "not shown"


def test_where_no_seed_has_both_there_is_no_effect() -> None:
    assert effect_of(FOUND, CLAIMS["gradients"][0], "default", "both") is None
    assert effects_of(FOUND, CLAIMS["gradients"], "default", STUDY.baselines) == []
    assert effect_of({}, RELATIVE, "default", "both") is None


def test_goals_are_beside_plain_training_augmentation_and_each_baseline() -> None:
    goals = goals_of(STUDY, FOUND)
    assert [round(goal.estimate.value, 3) for goal in goals] == [0.25, 0.5, -0.003, 0.003]
    assert [goal.against for goal in goals] == ["ce", "both", "ce-2e", "both"]
    assert [goal.measure for goal in goals] == [RELATIVE, RELATIVE, TOP1, TOP1]
    assert "at most 0.25" in goals[0].label
    assert "at most 0.5" in goals[1].label
    assert "CE, 2E" in goals[2].label
    # At the limit itself, with both seeds the same: neither below nor above.
    assert [goal.verdict for goal in goals] == ["not shown", "not shown", "holds", "holds"]
    worse = {**FOUND, ("default", 1): made(STUDY, "default", 1, top1=0.52, ds_relative=0.16)}
    assert [goal.verdict for goal in goals_of(STUDY, worse)] == ["not shown"] * 4


def test_a_figure_by_its_key() -> None:
    record = made(STUDY, "ce", 0, figures={"bias/gap": 0.25, "bias/other": None})
    assert value_of(record, "bias/gap") == 0.25
    assert value_of(record, "bias/other") is None
    assert value_of(record, "val/top1") == 0.5
    assert value_of(record, "val/top7") is None
    assert math.isnan(estimate_of({("ce", 0): record}, "ce", "bias/other").value)


def test_collapsed_features_have_no_relative_distance() -> None:
    """l2 / l2 of features at one point is noise; of features on one line, too."""
    whole = made(STUDY, "both", 0)
    assert not whole.collapsed
    fallen = {"between": [5.0, None, 9.0, 0.008], "effective_rank": [5.0, None, 9.0, 0.8]}
    for column, values in fallen.items():
        record = replace(whole, curve={**whole.curve, column: values})
        assert record.left == pytest.approx(values[-1] / 9)
        assert record.collapsed
        assert value_of(record, "val/ds_relative") is None
        assert math.isnan(number_of(record, "val/ds_relative"))
        assert value_of(record, "val/top1") == number_of(record, "val/top1") == whole.val["top1"]
        assert not replace(whole, curve={**whole.curve, column: [9.0, 0.0, 1.0]}).collapsed
    # Features in another unit have as many directions as before.
    assert not replace(whole, curve={**whole.curve, "between": [9.0, 0.1]}).collapsed
    assert replace(whole, curve={**whole.curve, "between": [0.0, 0.0]}).left == 0
    assert replace(whole, curve={"between": [None], "effective_rank": []}).left == 1


def test_every_claim_has_a_name_of_its_own() -> None:
    measures = [measure for of in CLAIMS.values() for measure in of]
    assert len({measure.key for measure in measures}) == len(measures)
    assert len({(measure.label, question) for question, of in CLAIMS.items() for measure in of})
