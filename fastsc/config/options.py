"""The command line, parsed by tyro into a checked TrainConfig.

It is parsed with the recipe's values (`fastsc.config.recipes`) as its defaults, so that
`RECIPE --help` shows the recipe's own. tyro is needed here alone, and imported when there is
something to parse.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import sys
from collections.abc import Iterable, Sequence
from types import MappingProxyType
from typing import Any, NoReturn

from fastsc.cli.packages import needed
from fastsc.config.checks import check
from fastsc.config.recipes import (
    list_recipes,
    load_recipe,
    recipe_names,
    with_kinds_alpha,
)
from fastsc.config.rules import spelled
from fastsc.config.schema import SECTIONS, Switch, TrainConfig, field_types
from fastsc.errors import UserError
from fastsc.pipelines.fields import did_you_mean

PROG = "fastsc.train"
_DESCRIPTION = (
    "Train an image classifier that is semantically continuous: its representation hardly moves "
    "when light, contrast, saturation or hue of an image change (arXiv 2011.09789). "
)


def parse(argv: Sequence[str]) -> TrainConfig:
    """The configuration that a command line (without the program's name) asks for.

    Raises UserError, one line, for every mistake that shows without touching the data; SystemExit
    with status 0 after --help or --list-recipes. Paths other than the recipe's are not read.
    """
    argv = _switched(argv)
    if "--list-recipes" in argv:
        sys.stdout.write(list_recipes())
        raise SystemExit(0)
    needed("tyro", "python -m fastsc.train")
    helps = any(token in ("-h", "--help") for token in argv)
    plain = "--plain" in argv
    tokens = [token for token in argv if token not in ("-h", "--help", "--plain")]
    if helps:
        _show_help(tokens, plain=plain)
    _check_names(tokens)
    recipe = _recipe_among(tokens)
    if not recipe:
        known = ", ".join(recipe_names())
        raise UserError(f"recipe is missing: give one of {known}, or the path of a YAML file")
    defaults = load_recipe(recipe, plain=plain)
    # A run's config.yaml names the recipe it came from; the positional only says where it lies.
    config = _cli(tokens, defaults).replace(
        recipe=defaults.recipe, given=defaults.given | _typed(tokens)
    )
    if "alpha" not in _typed(tokens):
        config = with_kinds_alpha(config, defaults)
    check(config)
    return config


def _recipe_among(tokens: Sequence[str]) -> str:
    """The one word that is neither an option nor its value; "" if there is none."""
    if tokens and not tokens[0].startswith("-"):
        return tokens[0]  # without tyro, which takes a third of the time that a small run does
    return _cli(tokens, TrainConfig()).recipe


def _typed(tokens: Sequence[str]) -> frozenset[str]:
    """The fields whose options are among the words."""
    options = {token.partition("=")[0].replace("_", "-") for token in tokens}
    return frozenset(
        name
        for name, kind in field_types().items()
        if spelled(name) in options or (kind is bool and spelled(name, False) in options)
    )


def _switched(argv: Sequence[str]) -> list[str]:
    """The words with what a `Switch` leaves out: tyro takes --compile for one with a value."""
    words, switches = list[str](), [k for k, kind in field_types().items() if kind == Switch]
    on = {spelled(name) for name in switches}
    off = {spelled(name, False): spelled(name) for name in switches}
    for word, following in zip(argv, [*argv[1:], ""], strict=False):
        words.append(off.get(word, word))
        if word in off or (word in on and following not in ("auto", "True", "False")):
            words.append(str(word in on))
    return words


def _cli(tokens: Sequence[str], defaults: TrainConfig, *, note: str = "") -> TrainConfig:
    """One pass of tyro; its boxed messages become a UserError of one line."""
    import tyro

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


def _show_help(tokens: Sequence[str], *, plain: bool) -> NoReturn:
    """Help with the recipe's own values as defaults; with imagenet's if none is named."""
    _reflow_help()
    recipe = ""
    with contextlib.suppress(UserError):
        recipe = _recipe_among(tokens)
    if not recipe:
        recipe = next((token for token in tokens if token in recipe_names()), "imagenet")
    defaults = load_recipe(recipe, plain=plain)
    note = f"The defaults shown are those of the recipe {defaults.recipe}"
    if recipe not in tokens:
        note += "; put another recipe's name before --help to see its own"
    note += (
        f". Recipes: {', '.join(recipe_names())}, or a YAML file; --list-recipes describes them, "
        "and --plain makes any of them cross-entropy on clean views alone."
    )
    _cli(["--help"], defaults.replace(recipe=""), note=note)
    raise AssertionError("tyro exits after --help")


def help_of(section: Any) -> dict[str, str]:
    """What stands under the fields of a section or of TrainConfig, each as one line."""
    import docstring_parser  # tyro's own

    docs = docstring_parser.parse_from_object(section).params
    return {doc.arg_name: " ".join(doc.description.split()) for doc in docs if doc.description}


def _reflow_help() -> None:
    """Hand tyro the fields' docstrings without our source's line breaks, which it would keep."""
    sections: list[Any] = [type(getattr(TrainConfig(), name)) for name in SECTIONS]
    for section in (TrainConfig, *sections):
        texts = help_of(section)
        for field in dataclasses.fields(section):
            if field.name in texts:
                help_text = {"help": texts[field.name]}
                field.metadata = MappingProxyType({**field.metadata, **help_text})


def _check_names(tokens: Iterable[str]) -> None:
    """Unknown options first: tyro would name the value after one as unknown too."""
    options = {key: kind for key, kind in field_types().items() if key != "recipe"}
    known = {"--help", "--list-recipes", "--plain", *map(spelled, options)}
    known |= {spelled(key, False) for key, kind in options.items() if kind is bool}
    for token in tokens:
        name = token.partition("=")[0]
        if name.startswith("--") and name.replace("_", "-") not in known:
            raise UserError(f"unrecognized option {name}{did_you_mean(name, known)}")


def _one_line(box: str) -> str:
    """tyro's framed message as one line: its first paragraph, without colors, frame and title.

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
        text, n = re.subn(pattern, plain, text)
        if n:
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
    (
        r"^Error parsing (--\S+): .* arguments \[(.*)\] into .*\bint\b.*$",
        r"\1 takes whole numbers, not \2",
    ),
    (r"^Error parsing (--\S+): .* arguments \[(.*)\] into .*$", r"\1 takes numbers, not \2"),
    (
        r"^invalid choice ('.*') for argument '(.*)'. Expected one of \((.*?),?\)\.$",
        r"\2 has no choice \1; choose from \3",
    ),
    (r"^Missing value for argument '(.*)'. Expected 1 values?\.$", r"\1 needs a value"),
    (r"^Missing value for argument '(.*)'. Expected (\d+) values\.$", r"\1 needs \2 values"),
    (r"^Unrecognized options: (.*)$", r"unrecognized argument \1"),
)
