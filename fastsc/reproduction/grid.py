"""Studies as files: what a grid in YAML says, and what of it cannot be meant."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import MISSING, fields
from importlib import resources
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

from fastsc.config.recipes import load_recipe
from fastsc.config.rules import MAX_EPOCHS, MAX_IMAGES, MAX_SEED
from fastsc.config.yaml_text import parse_yaml
from fastsc.errors import UserError
from fastsc.evaluation import QUESTIONS, SIZED
from fastsc.pipelines.fields import Fields, did_you_mean, shown
from fastsc.pipelines.reading import blamed, read_text
from fastsc.reproduction import STUDIES
from fastsc.reproduction.study import Arm, Evaluated, Options, Rate, Study

# Of an arm: a file is called so, and a command takes what begins with - for an option of its own.
NAME = re.compile(r"\w[\w.-]{,99}")
MAX_SEEDS = 10_000  # of an arm
OWN = {"data", "out", "resume", "seed", "val"}  # of a run, which no arm can name
GROUPS = ("alpha", "depth", "target", "collapse", "longer", "colours")


def load_study(name: str) -> Study:
    """A shipped study, or one of the same form by its path.

    Raises:
        UserError: No such study, or its YAML does not say what a study must.
    """
    if name in STUDIES:
        return parse_study(_shipped(name), name)
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        raise UserError(
            f"unknown study {name!r}{did_you_mean(name, STUDIES)}; known are {', '.join(STUDIES)}, "
            "or the path of a YAML file"
        )
    return parse_study(read_text(path, f"study {name}"), path.stem)


def parse_study(text: str, name: str) -> Study:
    """A study from its YAML; every arm's options are tried, so that no run fails on a typo.

    Raises:
        UserError: One line with the place of what is wrong.
    """

    def wrong(what: str) -> NoReturn:
        raise UserError(what if what.startswith("study ") else f"study {name}: {what}")

    place = f"study {name}"
    values = parse_yaml(text, place)
    if not isinstance(values, dict):
        wrong("must hold lines of `key: value`")
    with blamed(place):
        said = _said_of(Study, values, place, {"name"})
        study = Study(
            **{
                **said,
                "name": name,
                "arms": _arms(values["arms"], values.get("seeds", 1), place),
                "groups": _lists(values.get("groups", {}), f"{place}: groups"),
                "claimed": _lists(values.get("claimed", {}), f"{place}: claimed"),
                "evaluate": Evaluated(
                    **_said_of(Evaluated, values.get("evaluate", {}), f"{place}: evaluate")
                ),
                "rates": _rates(values.get("rates", []), f"{place}: rates"),
            },
        )
        _check_values(study)
        _check(study, wrong)
    return study


def _said_of(
    kind: type[Study | Arm | Evaluated | Rate],
    values: object,
    place: str,
    own: Collection[str] = (),
) -> dict[str, Any]:
    """What a file says of its fields, lists as tuples: of known ones, and of all that it needs.

    own: Fields that are not the file's to name, or not here.
    """
    of, named = Fields(values, place), [f for f in fields(kind) if f.name not in own]
    known = [f.name for f in named]
    for key in of.values:
        if key not in known:
            raise UserError(f"{place}: unknown key {shown(key)}{did_you_mean(key, known)}")
    for f in named:
        if f.default is f.default_factory is MISSING and f.name not in of.values:
            raise UserError(f"{place}: has no {f.name}")
    return {k: tuple(v) if isinstance(v, list) else v for k, v in of.values.items()}


def _arms(values: object, seeds: int, place: str) -> dict[str, Arm]:
    """Those without a label are the common ones, whatever else they say."""
    common = parse_yaml(_shipped("common"), "common arms")
    of, arms = Fields(values, f"{place}: arms"), dict[str, Arm]()
    for name in of.values:
        if not NAME.fullmatch(name):
            raise UserError(
                f"{place}: arm {shown(name)}: a name is up to 100 letters, digits, _, - and ., and "
                "begins with none of the last two"
            )
        arm = of.inner(name).values
        arm = {"seeds": seeds, **({} if "label" in arm else common.get(name, {})), **arm}
        arms[name] = Arm(name=name, **_said_of(Arm, arm, f"{place}: arm {name}", {"name"}))
    return arms


def _rates(values: object, place: str) -> tuple[Rate, ...]:
    if not isinstance(values, list):
        raise UserError(f"{place} must be a list, not {shown(values)}")
    return tuple(Rate(**_said_of(Rate, rate, place)) for rate in values)


def _shipped(name: str) -> str:
    return (resources.files("fastsc.reproduction") / "studies" / f"{name}.yaml").read_text()


def _lists(values: object, place: str) -> dict[str, tuple[str, ...]]:
    of = Fields(values, place)
    return {key: of.texts(key) for key in of.values}


def _check_values(study: Study) -> None:
    """Raises UserError for a value of another type than its field's, or beyond any study."""
    place = f"study {study.name}"
    of_study = _typed(study, place)
    of_study.whole("images", 1, MAX_IMAGES)
    of_study.whole("held_out", high=MAX_IMAGES)
    of_study.whole("first_seed", high=MAX_SEED - MAX_SEEDS)
    of_study.whole("epochs", 1, MAX_EPOCHS)
    for key in ("title", "about"):
        _one_line(of_study, key)
    of_scales = of_study.inner("scales")
    for name in study.scales:
        of_scale = of_scales.inner(name)
        for key, high in (("images", MAX_IMAGES), ("epochs", MAX_EPOCHS)):
            if key in of_scale.values:
                of_scale.whole(key, 1, high)
        if "about" in of_scale.values:
            _one_line(of_scale, "about")
    if not isinstance(study.quick_seeds, tuple):
        of_study.wrong("quick_seeds", "a list of whole numbers")
    for seed in study.quick_seeds:
        Fields({"quick_seeds": seed}, place).whole("quick_seeds", high=MAX_SEED)
    for arm in study.arms.values():
        of_arm = _typed(arm, f"{place}: arm {arm.name}")
        _one_line(of_arm, "label")
        of_arm.whole("seeds", 1, MAX_SEEDS)
        of_arm.number("times", 0, MAX_EPOCHS)
    asked = _typed(study.evaluate, f"{place}: evaluate")
    asked.whole("seeds", high=MAX_SEEDS)
    of_images = asked.inner("images")
    for question in study.evaluate.images:
        of_images.whole(question, 1, MAX_IMAGES)
    for rate in study.rates:
        _typed(rate, f"{place}: rates").number("images_per_s", 1e-9, 1e12)


def _one_line(of: Fields, key: str) -> None:
    """A text that stands in a table, a heading or a key of a figure."""
    text = of.text(key)
    if text.splitlines() != [text]:
        of.wrong(key, "one line of text")


def _typed(value: Study | Arm | Evaluated | Rate, place: str) -> Fields:
    """Its fields; those that are texts, lists of texts or options are."""
    of = Fields(vars(value), place)
    checks: dict[object, Callable[[str], object]] = {
        "str": of.text,
        "tuple[str, ...]": of.texts,
        "Options": of.inner,
    }
    for f in fields(value):
        if f.type in checks:
            checks[f.type](f.name)
    return of


def _check(study: Study, wrong: Callable[[str], NoReturn]) -> None:
    if not study.arms:
        wrong("arms must not be empty")
    for name in study.groups:
        if name not in GROUPS:
            nearest = did_you_mean(name, GROUPS)
            wrong(f"groups has {shown(name)}, which is no part of the page{nearest}")
    referred: dict[str, Sequence[str]] = {
        "default": (study.default,) if study.default else (),
        "reference": (study.reference,),
        "augmentation": (study.augmentation,) if study.augmentation else (),
        "baselines": study.baselines,
        "quick": study.quick,
        "evaluate": study.evaluate.arms,
        "claimed": (*study.claimed, *chain(*study.claimed.values())),
        **study.groups,
    }
    for where, names in referred.items():
        for name in names:
            if name not in study.arms:
                wrong(
                    f"{where} names {shown(name)}, which is no arm{did_you_mean(name, study.arms)}"
                )
    if study.default and study.augmentation not in study.baselines:
        wrong("its default's claims are tested against baselines, one of them the augmentation")
    tested = study.baselines, study.augmentation, study.claimed, study.quick
    if not study.default and any(tested):
        wrong("baselines, augmentation, claimed and quick are of a study with a default")
    claimed = {study.default: study.compared} if study.default else {}
    for name, against in (*claimed.items(), *study.claimed.items()):
        if not against or name in against:
            wrong(f"the claims of {name} must be tested against other arms")
    if study.quick and not study.quick_seeds:
        wrong("quick needs quick_seeds: a replication has seeds of its own")
    asked = study.evaluate
    for question in asked.questions:
        if question not in QUESTIONS:
            wrong(f"evaluate asks {shown(question)}{did_you_mean(question, QUESTIONS)}")
    for question in asked.images:
        if question not in SIZED:
            wrong(f"evaluate.images names {shown(question)}{did_you_mean(question, SIZED)}")
    try:
        load_recipe(study.recipe)
    except UserError as error:
        wrong(str(error))
    named: dict[str, tuple[Options, Collection[str]]] = {
        "options": (study.options, OWN | {"epochs", "val_every"}),
        **{f"scales: {name}": (scale, OWN | {"val_every"}) for name, scale in study.scales.items()},
        **{f"arm {arm.name}": (arm.options, OWN) for arm in study.arms.values()},
    }
    for where, (options, own) in named.items():
        for option in own & options.keys():
            wrong(f"{where}: every run gets its {option} from the study; leave it out")
    for arm in study.arms.values():
        if not arm.times > 0:
            wrong(f"arm {arm.name}: times must be a number above 0")
        study.config(arm, Path("DIR"), 0)
    if study.default and not study.plain(study.reference):
        wrong(f"reference {study.reference} is no plain training: alpha 0 and ce_views clean")
    for name in study.groups.get("target", ()):
        if study.config(study.arms[name], Path("DIR"), 0).method.ds_target is None:
            wrong(f"target names {name!r}, which has no ds_target")
    for scaled in map(study.scaled, study.scales):
        for arm in scaled.arms.values():
            scaled.config(arm, Path("DIR"), 0)
