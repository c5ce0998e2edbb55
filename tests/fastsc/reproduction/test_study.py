"""Grids: the shipped ones name trainings that can be run, and a mistake in one is a line."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from fastsc.config.options import parse
from fastsc.config.schema import plain_options
from fastsc.errors import UserError
from fastsc.reproduction import STUDIES
from fastsc.reproduction.grid import load_study, parse_study
from fastsc.reproduction.runner import words

pytestmark = pytest.mark.heavy

GRID = {
    "title": "Small",
    "about": "A few images",
    "recipe": "cifar100",
    "images": 32,
    "epochs": 4,
    "default": "default",
    "reference": "ce",
    "baselines": ["ce-2e", "both"],
    "augmentation": "both",
    "arms": {
        "ce": {"label": "CE", "seeds": 2, "options": {"alpha": 0, "ce_views": "clean"}},
        "ce-2e": {
            "label": "CE, 2E", "seeds": 2, "times": 2, "options": {"alpha": 0, "ce_views": "clean"},
        },
        "both": {"label": "both", "seeds": 2, "options": {"alpha": 0}},
        "default": {"label": "default", "seeds": 3, "options": {}},
    },
}  # fmt: skip


def grid(**changes: object) -> str:
    """The small grid as YAML, with these keys in place of its own; None: without."""
    return yaml.safe_dump(
        {k: v for k, v in {**GRID, **changes}.items() if v is not None}, sort_keys=False
    )


@pytest.mark.parametrize("name", STUDIES)
def test_a_shipped_study_is_what_the_command_line_says(name: str) -> None:
    """An arm's options as words of the trainer give the configuration that the record is of."""
    study = load_study(name)
    for arm in study.arms.values():
        config = study.config(arm, Path("DIR"), 3)
        again = parse([study.recipe, *words({"data": "DIR", **study.values(arm, 3)})])
        assert plain_options(again) == plain_options(config)


@pytest.mark.parametrize("name", ["cifar100", "colormnist", "imagenet"])
def test_a_shipped_study_compares_at_equal_cost(name: str) -> None:
    study = load_study(name)
    default = study.config(study.arms[study.default], Path("DIR"), 0)
    reference = study.config(study.arms[study.reference], Path("DIR"), 0)
    assert reference.method.plain
    for baseline in study.baselines:
        config = study.config(study.arms[baseline], Path("DIR"), 0)
        views = 1 if config.method.plain else 2
        assert config.method.alpha == 0
        assert views * config.optim.epochs == 2 * default.optim.epochs
        assert study.arms[baseline].seeds <= study.arms[study.default].seeds


def test_epochs_scale_with_the_study_and_the_arm_wins() -> None:
    study = parse_study(grid(options={"lr": 0.2, "alpha": 9}), "small").changed({"epochs": 6})
    of = {name: study.config(arm, Path("DIR"), 1) for name, arm in study.arms.items()}
    assert [of[name].optim.epochs for name in study.arms] == [6, 12, 6, 6]
    assert {config.optim.lr for config in of.values()} == {0.2}
    assert (of["default"].method.alpha, of["both"].method.alpha) == (9, 0)
    assert {config.run.seed for config in of.values()} == {1}


def test_a_scale_is_a_set_of_options() -> None:
    gpu = {"model": "resnet18", "epochs": 60, "images": 64, "about": "All"}
    study = parse_study(grid(scales={"gpu": gpu}), "small")
    scaled = study.scaled("gpu")
    assert (study.images, scaled.images, scaled.about) == (32, 64, "All")
    config = scaled.config(scaled.arms["ce-2e"], Path("DIR"), 0)
    assert (config.model.model, config.optim.epochs) == ("resnet18", 120)
    with pytest.raises(UserError, match="--scale tpu: study small has gpu"):
        study.scaled("tpu")


def test_seeds_begin_where_the_study_says() -> None:
    asked = {"arms": ["ce"], "questions": ["gradients"], "seeds": 1}
    study = parse_study(grid(first_seed=100, evaluate=asked), "small")
    ce = study.arms["ce"]
    assert list(study.seeds_of(ce)) == [100, 101]
    assert study.asked(ce, 100) == ("gradients",)
    assert study.asked(ce, 101) == study.asked(ce, 0) == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"titel": "x"}, "unknown key 'titel'; did you mean title"),
        ({"epochs": None}, "has no epochs"),
        ({"epochs": "many"}, "epochs must be a whole number from 1"),
        ({"epochs": 0}, "epochs must be a whole number from 1"),
        ({"epochs": 1.5}, "epochs must be a whole number from 1"),
        ({"images": "20,000"}, "images must be a whole number from 1"),
        ({"images": 0}, "images must be a whole number from 1"),
        ({"scales": {"gpu": {"images": 0.5}}}, "scales: gpu: images must be a whole number from 1"),
        ({"about": "Two\nlines"}, "about must be one line of text"),
        ({"arms": ["ce", "both"]}, "arms: must hold names with values"),
        ({"arms": {**GRID["arms"], "x": None}}, "arms: x must be names with values, not None"),
        ({"arms": {**GRID["arms"], 1: {"label": "x"}}}, "arms: 1 is no name"),
        ({"arms": {**GRID["arms"], "-x": {"label": "x"}}}, "arm '-x': a name is up to 100 letters"),
        ({"arms": {**GRID["arms"], 300 * "x": {"label": "x"}}}, "a name is up to 100 letters"),
        ({"arms": {**GRID["arms"], "x": {"options": {}}}}, "arm x: has no label"),
        ({"arms": {**GRID["arms"], "x": {"label": "a\n"}}}, "x: label must be one line of text"),
        ({"arms": {**GRID["arms"], "x": {"label": "x", "option": {}}}}, "did you mean options"),
        ({"baselines": "both"}, "baselines must be a list of texts, not 'both'"),
        ({"groups": {"alpha": "both"}}, "groups: alpha must be a list of texts, not 'both'"),
        ({"rates": {"machine": "x"}}, "rates must be a list"),
        ({"quick": ["both"]}, "quick needs quick_seeds"),
        ({"quick": ["both"], "quick_seeds": 3}, "quick_seeds must be a list of whole numbers"),
        ({"default": "both"}, "claims of both must be tested against other arms"),
        ({"reference": "both"}, "reference both is no plain training"),
        ({"arms": {}}, "must not be empty"),
        ({"baselines": []}, "claims are tested against baselines"),
        ({"augmentation": None}, "claims are tested against baselines"),
        ({"default": None}, "are of a study with a default"),
        ({"augmentation": "ce"}, "baselines, one of them the augmentation"),
        ({"claimed": {"both": []}}, "the claims of both must be tested against other arms"),
        ({"claimed": {"both": ["ce", "both"]}}, "claims of both must be tested against other arms"),
        (
            {"options": {"ds_at": "logits"}, "scales": {"gpu": {"ds_at": "features"}},
             "arms": {**GRID["arms"], "x": {"label": "x", "options": {"ds": "js"}}}},
            "arm x: --ds js belongs to --ds-at logits",
        ),
        ({"reference": None}, "has no reference"),
        ({"groups": {"alhpa": ["ce"]}}, "no part of the page; did you mean alpha"),
        ({"groups": {"target": ["ce"]}}, "target names 'ce', which has no ds_target"),
        ({"scales": {"gpu": {"modle": "resnet18"}}}, "unknown option 'modle'"),
        ({"arms": {**GRID["arms"], "a/b": GRID["arms"]["ce"]}}, "a name is up to 100 letters"),
        ({"arms": {**GRID["arms"], "x": {"label": "x", "seeds": 1, "options": None}}}, "x: opt"),
        ({"arms": {**GRID["arms"], "x": {"label": "x", "seeds": "2", "options": {}}}}, "arm x"),
        ({"default": "defualt"}, "default names 'defualt', which is no arm; did you mean default"),
        ({"baselines": ["ce-3e"]}, "baselines names 'ce-3e', which is no arm"),
        ({"groups": {"alpha": ["nine"]}}, "alpha names 'nine', which is no arm"),
        ({"evaluate": {"arms": ["ce"], "questions": ["gradient"]}}, "did you mean gradients"),
        ({"evaluate": {"images": {"gradient": 4}}}, "did you mean gradients"),
        ({"evaluate": {"images": {"gradients": 0}}}, "gradients must be a whole number from 1"),
        ({"evaluate": {"images": "100"}}, "images must be names with values, not '100'"),
        ({"evaluate": {"images": 9}}, "images must be names with values, not 9"),
        ({"first_seed": -1}, "first_seed must be a whole number from 0"),
        ({"evaluate": {"arms": ["cee"]}}, "evaluate names 'cee', which is no arm"),
        ({"evaluate": {"arm": ["ce"]}}, "unknown key 'arm'; did you mean arms"),
        ({"recipe": "cifar10"}, "unknown recipe 'cifar10'; did you mean cifar100"),
        ({"arms": {**GRID["arms"], "ce": {"label": "CE", "seeds": 0, "options": {}}}}, "ce: seeds"),
        ({"options": {"epochs": 9}}, "options: every run gets its epochs from the study"),
        ({"options": {"data": "x"}}, "options: every run gets its data from the study"),
        ({"scales": {"gpu": {"val_every": 1}}}, "scales: gpu: every run gets its val_every from"),
        (
            {"arms": {**GRID["arms"], "x": {"label": "x", "seeds": 3, "options": {"seed": 5}}}},
            "arm x: every run gets its seed from the study; leave it out",
        ),
        (
            {"arms": {**GRID["arms"], "x": {"label": "x", "seeds": 1, "options": {"alfa": 1}}}},
            "arm x: unknown option 'alfa'; did you mean alpha",
        ),
        (
            {"arms": {**GRID["arms"], "x": {"label": "x", "seeds": 1, "options": {"ds": "js"}}}},
            "arm x: --ds js belongs to --ds-at logits",
        ),
    ],
)  # fmt: skip
def test_a_mistake_in_a_grid_is_one_line(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match="study small") as found:
        parse_study(grid(**changes), "small")
    assert message in str(found.value)
    assert "\n" not in str(found.value)


def test_a_study_by_path_and_those_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(grid())
    assert load_study(str(path)).name == "mine"
    with pytest.raises(UserError, match="unknown study 'cifar10'; did you mean cifar100"):
        load_study("cifar10")
    with pytest.raises(UserError, match="cannot be read"):
        load_study(str(tmp_path / "other.yaml"))
    path.write_text("a: [")
    with pytest.raises(UserError, match="is not YAML"):
        load_study(str(path))


def test_words_are_those_of_a_command_line() -> None:
    options = {"alpha": 3.0, "lr": 0.1, "weight_decay": 0.0005, "strengths": [0.4, 0.4, 0.4, 0.1]}
    options |= {"flip": False, "resume": True, "momentum": 0.123456789}
    assert words(options) == [
        *("--alpha", "3", "--lr", "0.1", "--weight-decay", "0.0005"),
        *("--strengths", "0.4", "0.4", "0.4", "0.1"),
        *("--no-flip", "--resume", "--momentum", "0.123456789"),
    ]
