"""Recipes: YAML into a checked TrainConfig, with what the call adds; and back into YAML.

`configure` is the way in from Python. Nothing here needs the command line's parser, so that a
machine without it can train.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping
from functools import cache
from importlib import resources
from itertools import groupby
from pathlib import Path
from types import NoneType
from typing import Any, Literal

import yaml

from fastsc.config.checks import check
from fastsc.config.rules import spelled
from fastsc.config.schema import DEFAULT_ALPHA, Switch, TrainConfig, field_types, plain_options
from fastsc.config.yaml_text import parse_yaml
from fastsc.errors import UserError
from fastsc.pipelines.fields import did_you_mean, shown
from fastsc.pipelines.reading import read_text

# What makes a recipe its plain counterpart, which is called NAME-plain.
_PLAIN = {"alpha": 0.0, "ce_views": "clean", "alpha_warmup_epochs": None, "ds_target": None}


def configure(recipe: str | Path, *, plain: bool = False, **values: Any) -> TrainConfig:
    """What `python -m fastsc.train RECIPE --NAME VALUE …` trains with, from Python.

    recipe: a shipped name or the path of a YAML file. plain: cross-entropy on clean views alone, as
    --plain. values: fields by their names, of the types in `fastsc.config`; they win over the
    recipe's. `fastsc.training.loop.train` runs the result.

    Raises UserError, one line, for every mistake that shows without touching the data.
    """
    for key in values:
        if key not in field_types() or key == "recipe":
            raise UserError(f"unknown option {key!r}{did_you_mean(key, field_types())}")
    config = _set(load_recipe(str(recipe), plain=plain), values)
    config = config.replace(given=config.given | values.keys())
    check(config)
    return config


def recipe_names() -> list[str]:
    """Names of the recipes that ship with fastsc."""
    folder = resources.files("fastsc") / "recipes"
    return sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".yaml"))


def load_recipe(recipe: str, *, plain: bool = False) -> TrainConfig:
    """The defaults with a recipe's values in place: a shipped name or the path of a YAML file.

    A recipe may begin from a shipped one: `base: NAME`, and what it changes. `plain` makes any its
    plain counterpart, NAME-plain; a shipped one has that name from the start, too.

    The result is not `check`ed: what the recipe leaves out (--data) comes from the command line.
    """
    values, given, start = _shipped_values(recipe), frozenset[str](), TrainConfig()
    where, name = f"recipe {recipe}", recipe
    if values is None:
        path = Path(recipe)
        if not path.exists() and path.name == recipe and path.suffix not in (".yaml", ".yml"):
            raise UserError(
                f"unknown recipe {recipe!r}{did_you_mean(recipe, recipe_names())}; known are "
                f"{', '.join(recipe_names())}, or the path of a YAML file"
            )
        if path.is_dir():
            raise UserError(
                f"recipe {recipe} is a folder: give the YAML file, as config.yaml in it"
            )
        text = read_text(path, f"recipe {recipe}")
        where, name = recipe, path.stem
        inherited, values = _with_base(text, where)
        start, given = with_values(start, inherited, where), frozenset(values)
    config = with_values(start, values, where)
    config = config.replace(recipe=config.recipe or name, given=given)
    if plain:
        config = config.replace(**_PLAIN, recipe=f"{config.recipe.removesuffix('-plain')}-plain")
    return config


def with_values(config: TrainConfig, values: Mapping[str, Any], place: str) -> TrainConfig:
    """A copy with fields changed by what a file says of them.

    Args:
        config: The other fields' values.
        values: Fields by their flat names; numbers may be words.
        place: What a UserError calls the file.

    Raises:
        UserError: A value is not of its field's type.
    """
    try:
        return _set(config, values)
    except UserError as error:
        raise UserError(f"{place}: {error}") from None


def dump(config: TrainConfig) -> str:
    """The whole configuration as YAML: `load_recipe` of it gives an equal one."""
    lines = []
    for key, value in plain_options(config).items():
        text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6)
        lines.append(f"{key}: {text.removesuffix(chr(10)).removesuffix('...').strip()}")
    return "\n".join(lines) + "\n"


def list_recipes() -> str:
    """A line for each shipped recipe with what its file's first line says; equal ones share one."""
    lines = []
    for about, names in groupby(recipe_names(), lambda name: _shipped(name).partition("\n")[0]):
        first, *others = names
        label = ", ".join([first, *(f"-{name.rpartition('-')[2]}" for name in others)])
        lines.append(f"{label:<33} {about.removeprefix('# ')}\n")
    return "".join(lines) + "--plain makes any of them cross-entropy on clean views alone.\n"


# --- values -------------------------------------------------------------------------------------


def _set(config: TrainConfig, values: Mapping[str, Any]) -> TrainConfig:
    changed = config.replace(**{key: _converted(key, value) for key, value in values.items()})
    return changed if "alpha" in values else with_kinds_alpha(changed, config)


def with_kinds_alpha(config: TrainConfig, before: TrainConfig) -> TrainConfig:
    """`config`, made of `before` without a word on alpha, which follows the kind unless named."""
    if "alpha" in before.given:
        return config
    old, new = (
        DEFAULT_ALPHA.get(c.method.ds, TrainConfig().method.alpha) for c in (before, config)
    )
    return config.replace(alpha=new) if config.method.alpha == old != new else config


def _converted(key: str, value: object) -> Any:
    """A value as its field has it. Numbers may be words: YAML takes 1e-4 for one."""
    kind = field_types()[key]
    if kind is bool:
        if not isinstance(value, bool):
            raise UserError(f"{key} must be true or false, not {shown(value)}")
        return value
    choices = typing.get_args(kind)
    if kind == Switch:
        if value != "auto" and not isinstance(value, bool):
            raise UserError(f"{key} must be auto, true or false, not {shown(value)}")
        return value
    if value is None and NoneType not in choices:
        raise UserError(f"{key} has no value")
    if isinstance(value, bool):  # YAML reads a bare no, on and yes so
        raise UserError(f"{key} cannot be {shown(value)}; put a word like no into quotes")
    many = isinstance(value, (list, tuple))
    if isinstance(value, dict) or many != (typing.get_origin(kind) is tuple):
        hint = f"; write [{value}]" if choices[1:] == (Ellipsis,) and isinstance(value, str) else ""
        raise UserError(f"{key} cannot be {shown(value)}{hint}")
    if key == "recipe" and str(value).startswith("-"):
        raise UserError(f"recipe cannot be {shown(value)}")
    option = spelled(key)
    if isinstance(value, (list, tuple)):
        if choices[1:] == (Ellipsis,):
            return tuple(_parsed(option, str(v), choices[0]) for v in value)
        if len(value) != len(choices):
            raise UserError(f"{option} needs {len(choices)} values")
        return tuple(_parsed(option, str(v), k) for v, k in zip(value, choices, strict=True))
    return _parsed(option, str(value), kind)


def _parsed(option: str, word: str, kind: Any) -> Any:
    """A word as a str, a number, None, or one of the words of a Literal."""
    choices = typing.get_args(kind)
    if NoneType in choices and word == "None":
        return None
    if typing.get_origin(kind) is Literal:
        if word not in choices:
            known = ", ".join(map(repr, choices))
            raise UserError(f"{option} has no choice {shown(word)}; choose from {known}")
        return word
    number = next((number for number in (int, float) if number in (kind, *choices)), None)
    if number is None:
        return word
    try:
        return number(word)
    except ValueError:
        name = "a whole number" if number is int else "a number"
        raise UserError(f"{option} takes {name}, not {shown(word)}") from None


# --- YAML ----------------------------------------------------------------------------------------


def _with_base(text: str, where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The values of the shipped recipe that a recipe's text names as its base, and its own."""
    values = _read_yaml(text, where)
    if (base := values.pop("base", None)) is None:
        return {}, values
    if (inherited := _shipped_values(str(base))) is None:
        raise UserError(
            f"{where}: base {shown(base)} is no recipe that ships with fastsc"
            f"{did_you_mean(str(base), recipe_names())}"
        )
    return inherited, values


@cache  # a page of a study has hundreds of configurations
def _shipped_values(name: str) -> dict[str, Any] | None:
    """Of a recipe that ships with fastsc, or of its plain counterpart; None of another name."""
    base = name.removesuffix("-plain")
    if base not in recipe_names():
        return None
    inherited, own = _with_base(_shipped(base), f"recipe {base}")
    values = inherited | own
    return values if name == base else values | _PLAIN


def _shipped(name: str) -> str:
    return (resources.files("fastsc") / "recipes" / f"{name}.yaml").read_text("utf-8")


def _read_yaml(text: str, where: str) -> dict[str, Any]:
    values = parse_yaml(text, where)
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UserError(f"{where} must hold lines of `option: value`")
    plain: dict[str, Any] = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name not in field_types() and name != "base":
            raise UserError(f"{where}: unknown key {shown(key)}{did_you_mean(name, field_types())}")
        if name in plain:
            raise UserError(f"{where}: {key!r} is given twice")
        plain[name] = value
    return plain
