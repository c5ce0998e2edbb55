"""Effects and verdicts of records whose figures are known."""

from __future__ import annotations

import math

import pytest

from fastsc.reproduction.claims import (
    CLAIMS,
    effect_of,
    effects_of,
    goals_of,
    over,
    value_of,
)
from fastsc.reproduction.study import parse_study
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
    assert found.found.n == 2  # the third seed, whose figures would spoil it, has no partner
    assert found.found.value == pytest.approx(0.5)
    assert (found.own.value, found.theirs.value) == (pytest.approx(0.105), pytest.approx(0.21))
    assert found.verdict == "holds"
    assert over(FOUND, "default", "val/ds_relative").n == 3


def test_a_difference_is_of_each_seed() -> None:
    found = effect_of(FOUND, TOP1, "default", "ce-2e")
    assert found is not None
    assert found.found.value == pytest.approx(-0.003)
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
    assert [round(goal.found.value, 3) for goal in goals] == [0.25, 0.5, -0.003, 0.003]
    assert [goal.limit for goal in goals] == [0.25, 0.5, -0.01, -0.01]
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
    assert math.isnan(over({("ce", 0): record}, "ce", "bias/other").value)


def test_every_claim_has_a_name_of_its_own() -> None:
    measures = [measure for of in CLAIMS.values() for measure in of]
    assert len({measure.key for measure in measures}) == len(measures)
    assert len({(measure.label, question) for question, of in CLAIMS.items() for measure in of})
