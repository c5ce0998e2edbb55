"""A recipe's YAML and the command line, parsed by one parser (tyro) into a checked TrainConfig.

A recipe is turned into command-line tokens first, so that both have the same types, checks and
messages. The command line is then parsed with the recipe's result as its defaults, so that
`RECIPE --help` shows the recipe's own values.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import re
import sys
import typing
from collections.abc import Iterable, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

import docstring_parser
import tyro
import yaml

from fastsc.checks import check
from fastsc.config import SECTIONS, TrainConfig
from fastsc.pipelines.errors import UserError

PROG = "fastsc.train"
_DESCRIPTION = (
    "Train an image classifier that is semantically continuous: its representation hardly moves "
    "when light, contrast, saturation or hue of an image change (arXiv 2011.09789). "
)


def parse(argv: Sequence[str]) -> TrainConfig:
    """The configuration that a command line (without the program's name) asks for.

    Raises UserError, one line, for every mistake that shows without touching the data; SystemExit
    with status 0 after --help or --list-recipes. Paths other than the recipe's are not looked at.
    """
    argv = list(argv)
    if "--list-recipes" in argv:
        for name in recipe_names():
            sys.stdout.write(f"{name:<14} {_description_of(name)}\n")
        raise SystemExit(0)
    helps = any(token in ("-h", "--help") for token in argv)
    tokens = [token for token in argv if token not in ("-h", "--help")]
    if helps:
        _show_help(tokens)
    _check_names(tokens)
    recipe = _cli(tokens, TrainConfig()).recipe
    if not recipe:
        known = ", ".join(recipe_names())
        raise UserError(f"recipe is missing: give one of {known}, or the path of a YAML file")
    defaults = load_recipe(recipe)
    # A run's config.yaml names the recipe it came from; the positional only says where it lies.
    config = _cli(tokens, defaults).replace(recipe=defaults.recipe)
    check(config)
    return config


def recipe_names() -> list[str]:
    """Names of the recipes that ship with fastsc."""
    folder = resources.files("fastsc") / "recipes"
    return sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".yaml"))


def load_recipe(recipe: str) -> TrainConfig:
    """The defaults with a recipe's values in place: a shipped name or the path of a YAML file.

    A recipe may begin from a shipped one: `base: NAME`, and what it changes.

    The result is not `check`ed: what the recipe leaves out (--data) comes from the command line.
    """
    if recipe in recipe_names():
        where, name = f"recipe {recipe}", recipe
        text = _shipped(recipe)
    else:
        path = Path(recipe)
        if not path.exists() and path.name == recipe and path.suffix not in (".yaml", ".yml"):
            raise UserError(
                f"unknown recipe {recipe!r}{_did_you_mean(recipe, recipe_names())}; known are "
                f"{', '.join(recipe_names())}, or the path of a YAML file"
            )
        if path.is_dir():
            raise UserError(
                f"recipe {recipe} is a folder: give the YAML file, as config.yaml in it"
            )
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError:
            raise UserError(f"recipe {recipe} is not a text file") from None
        except OSError as error:
            raise UserError(f"recipe {recipe} cannot be read: {error.strerror}") from None
        where, name = recipe, path.stem
    values = _with_base(text, where)
    tokens = [token for key, value in values.items() for token in _tokens(key, value, where)]
    try:
        config = _cli(tokens, TrainConfig())
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return config.replace(recipe=config.recipe or name)


def dump(config: TrainConfig) -> str:
    """The whole configuration as YAML: `parse([path of it])` gives an equal one."""
    values = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in config.flat().items()
    }
    lines = []
    for key, value in values.items():
        text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6)
        lines.append(f"{key}: {text.removesuffix(chr(10)).removesuffix('...').strip()}")
    return "\n".join(lines) + "\n"


# --- YAML to tokens ---------------------------------------------------------------------------


def _with_base(text: str, where: str) -> dict[str, Any]:
    """The values of a recipe's text over those of the shipped recipe that it names as its base."""
    values = _read_yaml(text, where)
    if (base := values.pop("base", None)) is None:
        return values
    if base not in recipe_names():
        raise UserError(
            f"{where}: base {base!r} is no recipe that ships with fastsc"
            f"{_did_you_mean(str(base), recipe_names())}"
        )
    return _with_base(_shipped(base), f"recipe {base}") | values


def _shipped(name: str) -> str:
    return (resources.files("fastsc") / "recipes" / f"{name}.yaml").read_text("utf-8")


def _read_yaml(text: str, where: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "unreadable"
        raise UserError(f"{where} is not YAML: {problem}{line}") from None
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UserError(f"{where} must hold lines of `option: value`")
    plain: dict[str, Any] = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name not in _field_types() and name != "base":
            raise UserError(f"{where}: unknown key {key!r}{_did_you_mean(name, _field_types())}")
        if name in plain:
            raise UserError(f"{where}: {key!r} is given twice")
        plain[name] = value
    return plain


def _tokens(key: str, value: object, where: str) -> list[str]:
    """What one would type for a YAML line."""
    option = key.replace("_", "-")
    kind = _field_types()[key]
    if kind is bool:
        if not isinstance(value, bool):
            raise UserError(f"{where}: {key} must be true or false, not {value!r}")
        return [f"--{option}" if value else f"--no-{option}"]
    if value is None:
        if type(None) not in typing.get_args(kind):
            raise UserError(f"{where}: {key} has no value")
        value = "None"
    if isinstance(value, bool):  # YAML reads a bare no, on and yes so
        raise UserError(f"{where}: {key} cannot be {value!r}; put a word like no into quotes")
    if isinstance(value, dict) or isinstance(value, list) != (typing.get_origin(kind) is tuple):
        raise UserError(f"{where}: {key} cannot be {value!r}")
    if key == "recipe":
        if str(value).startswith("-"):
            raise UserError(f"{where}: recipe cannot be {value!r}")
        return [str(value)]
    if isinstance(value, list):
        return [f"--{option}", *map(str, value)]
    return [f"--{option}={value}"]  # one token, since a value may begin with a hyphen


@cache
def _field_types() -> dict[str, Any]:
    types: dict[str, Any] = {"recipe": str}
    for name in SECTIONS:
        section = getattr(TrainConfig(), name)
        hints = typing.get_type_hints(type(section))
        types |= {f.name: hints[f.name] for f in dataclasses.fields(section)}
    return types


def _description_of(name: str) -> str:
    return _shipped(name).splitlines()[0].removeprefix("#").strip()


# --- tyro ---------------------------------------------------------------------------------------


def _cli(tokens: Sequence[str], defaults: TrainConfig, *, note: str = "") -> TrainConfig:
    """One pass of tyro; its boxed messages become a UserError of one line."""
    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr):
            return tyro.cli(
                TrainConfig,
                args=list(tokens),
                default=defaults,
                prog=PROG,
                description=_DESCRIPTION + note,
                config=(tyro.conf.OmitArgPrefixes,),
            )
    except SystemExit as stop:
        if not stop.code:
            raise  # --help
        raise UserError(_one_line(stderr.getvalue())) from None


def _show_help(tokens: Sequence[str]) -> NoReturn:
    """Help with the recipe's own values as defaults; with imagenet's if none is named."""
    _reflow_help()
    recipe = ""
    with contextlib.suppress(UserError):
        recipe = _cli(tokens, TrainConfig()).recipe
    if not recipe:
        recipe = next((token for token in tokens if token in recipe_names()), "imagenet")
    defaults = load_recipe(recipe)
    note = f"The defaults shown are those of the recipe {defaults.recipe}"
    if recipe not in tokens:
        note += "; put another recipe's name before --help to see its own"
    note += (
        f". Recipes: {', '.join(recipe_names())}, or a YAML file; --list-recipes describes them."
    )
    _cli(["--help"], defaults.replace(recipe=""), note=note)
    raise AssertionError("tyro exits after --help")


def _reflow_help() -> None:
    """Hand tyro the fields' docstrings without our source's line breaks, which it would keep."""
    sections: list[Any] = [type(getattr(TrainConfig(), name)) for name in SECTIONS]
    for section in (TrainConfig, *sections):
        fields = {f.name: f for f in dataclasses.fields(section)}
        for doc in docstring_parser.parse_from_object(section).params:
            if doc.description and doc.arg_name in fields:
                text = " ".join(doc.description.split())
                fields[doc.arg_name].metadata = MappingProxyType({"help": text})


def _check_names(tokens: Iterable[str]) -> None:
    """Unknown options first: tyro would name the value behind one as unknown too."""
    known = {"help", "list-recipes"}
    for key, kind in _field_types().items():
        if key != "recipe":
            known |= {key.replace("_", "-")}
            known |= {"no-" + key.replace("_", "-")} if kind is bool else set()
    for token in tokens:
        name = token.partition("=")[0]
        if name.startswith("--") and name[2:].replace("_", "-") not in known:
            hint = _did_you_mean(name, {f"--{option}" for option in known})
            raise UserError(f"unrecognized option {name}{hint}")


def _one_line(box: str) -> str:
    """tyro's framed message as one line: its first paragraph, without colours, frame and title.

    The frame is drawn with lines where stdout speaks UTF-8 and with hyphens elsewhere.
    """
    paragraphs: list[list[str]] = [[]]
    for line in re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines():
        line = line.strip("│ ")
        if line.startswith(("╭", "╰")) or re.fullmatch("─+|-{3,}", line):
            paragraphs.append([])
        elif line:
            paragraphs[-1].append(line)
    if "╭" not in box:
        del paragraphs[0]  # the title
    text = next((" ".join(words) for words in paragraphs if words), "")
    for pattern, plain in _PLAINER:
        text, found = re.subn(pattern, plain, text)
        if found:
            break
    return text or "the command line cannot be read; see --help"


# tyro's messages speak of Python; these do not.
_PLAINER = (
    (
        r"^Error parsing (--\S+): .*invalid literal for int\(\).*: ('.*')$",
        r"\1 takes a whole number, not \2",
    ),
    (
        r"^Error parsing (--\S+): could not convert string to float: ('.*')$",
        r"\1 takes a number, not \2",
    ),
    (r"^Error parsing (--strengths): .* arguments \[(.*)\] into .*$", r"\1 takes numbers, not \2"),
    (
        r"^Error parsing (--resolution-ramp): .* arguments \[(.*)\] into .*$",
        r"\1 takes two whole numbers, not \2",
    ),
    (
        r"^invalid choice ('.*') for argument '(.*)'. Expected one of \((.*?),?\)\.$",
        r"\2 has no choice \1; choose from \3",
    ),
    (r"^Missing value for argument '(.*)'. Expected 1 values?\.$", r"\1 needs a value"),
    (r"^Missing value for argument '(.*)'. Expected (\d+) values\.$", r"\1 needs \2 values"),
    (r"^Unrecognized options: (.*)$", r"unrecognized argument \1"),
)


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""
