"""What follows from the field of an option: its range, its part of a run, its documentation."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastsc.config import TrainConfig
from fastsc.config.rules import Rules, option, spelled
from fastsc.config.table import table
from fastsc.errors import UserError
from fastsc.run.resume import check_unchanged

DOCS = Path(__file__).parents[3] / "docs"


def test_the_committed_table_is_what_the_fields_give() -> None:
    text = table()
    assert (DOCS / "options.md").read_text() == text, "run `make options`"
    for name in TrainConfig().flat():
        assert name == "recipe" or text.count(f"\n| `{spelled(name)}` |") == 1
    assert "| from 8 to 4,096 | Side of the square that the model sees, in pixels." in text
    assert "`gpu` with `--pipeline dali` |" in text


@pytest.mark.parametrize(
    ("rules", "value", "said"),
    [
        (Rules(low=2, high=5), 1, "-x must be at least 2, not 1 (from 2 to 5)"),
        (Rules(low=2, high=5), 10**400, "-x must be at most 5"),
        (Rules(above=0, below=1), 0.0, "-x must be above 0, not 0 (above 0 to below 1)"),
        (Rules(above=0, below=1), 1, "-x must be below 1"),
        (Rules(above=0, high=1e30), 2e30, "-x must be at most 1e+30, not 2e+30"),
        (Rules(), float("nan"), "-x must be a finite number"),
    ],
)
def test_what_lies_outside_of_a_range(rules: Rules, value: float, said: str) -> None:
    with pytest.raises(UserError) as mistake:
        rules.check_range("-x", value)
    assert str(mistake.value).startswith(said)


def test_a_range_holds_its_closed_ends() -> None:
    for value in (2, 2.5, 5):
        Rules(low=2, high=5).check_range("-x", value)
    for value in (0.001, 0.999):
        Rules(above=0, below=1).check_range("-x", value)


def test_a_rule_that_there_is_not_is_an_error_of_the_program() -> None:
    with pytest.raises(TypeError, match="hihg"):
        option(1, hihg=2)


def test_which_part_of_a_run_an_option_is_of() -> None:
    rules, now = TrainConfig().rules(), TrainConfig().flat()
    for name, value in {"alpha": 1, "precision": "fp32", "crop": "pad", "ema": 0.5}.items():
        assert (rules[name].part, rules[name].resume) == ("science", "refused")
        with pytest.raises(UserError, match=f"cannot resume: --{name} has changed"):
            check_unchanged({**now, name: value}, now)
    for name in ("timm:resnet18.a1_in1k", "timm:resnet18.a2_in1k"):
        check_unchanged({**now, "model": name}, {**now, "model": "timm:resnet18"})
    with pytest.raises(UserError, match=r"--model has changed \(nets\.a:net then, nets\.b:net now"):
        check_unchanged({**now, "model": "nets.a:net"}, {**now, "model": "nets.b:net"})
    for name, value in {"epochs": 1, "pipeline": "cpu", "val_flip": True, "seed": 1}.items():
        assert rules[name].resume != "refused"
        check_unchanged({**now, name: value}, now)
    # Of an option that is younger than the run: its default, or what runs did before.
    older = {name: value for name, value in now.items() if name not in ("front", "exact_decode")}
    check_unchanged(older, {**now, "exact_decode": True})
    with pytest.raises(UserError, match=r"--exact-decode has changed \(True then, False now"):
        check_unchanged(older, now)
    assert {rules[name].part for name in ("decode", "verify", "log_every", "compile")} == {
        "machine"
    }
    own = [name for name in rules if rules[name].part == "local"]
    assert " ".join(own) == (
        "recipe data label_key val workers decode_hardware loader_timeout out tensorboard wandb csv"
    )
