"""docs/options.md, which `make options` writes: every option, by what its field says of it."""

from __future__ import annotations

import dataclasses
import re
import sys
import typing
from typing import Any, Literal

from fastsc.config.options import help_of
from fastsc.config.rules import Rules, spelled
from fastsc.config.schema import SECTIONS, Switch, TrainConfig, field_types, plain_options

_HEAD = """\
# Options of fastsc.train

From the fields in `fastsc/config/schema.py`, by `make options`. A recipe may have other defaults:
`python -m fastsc.train RECIPE --help` shows its own. On a command line they are as below, in a
recipe's YAML and in Python without the dashes: `batch_size: 64`. Of the command alone are
`--plain`, which makes RECIPE cross-entropy on clean views alone, and `--list-recipes`.

An option's part is what it decides: `science` what is computed, and it is in the key of a study's
record; `machine` where and how, the same for all processes; `local` likewise, and each process may
have its own. The last column says whether a resume may change it.
"""


def table() -> str:
    """The page: a table per section, a row per option."""
    config = TrainConfig()
    rules, defaults, kinds = config.rules(), plain_options(config), field_types()
    lines = [_HEAD]
    for name in SECTIONS:
        section = getattr(config, name)
        texts = help_of(type(section))
        lines += [f"## {name}", "", (type(section).__doc__ or "").strip(), ""]
        lines += ["| option | default | values | | part | resume |", "| --- " * 6 + "|"]
        for field in dataclasses.fields(section):
            key, rule = field.name, rules[field.name]
            cells = (
                _code(spelled(key)),
                _code(_word(defaults[key])),
                _values(key, kinds[key], rule),
                texts[key],
                rule.part,
                "no" if rule.part == "science" and rule.resume != "allowed" else "yes",
            )
            lines.append(f"| {' | '.join(map(_cell, cells))} |")
        lines.append("")
    return "\n".join(lines)


def _values(key: str, kind: Any, rules: Rules) -> str:
    """Choices, the range, or the other form of a flag; and what they need."""
    values = rules.limits
    if kind is bool:
        values = _code(spelled(key, False))
    elif kind == Switch:
        values = f"{_code(spelled(key))}, {_code(spelled(key, False))}"
    elif typing.get_origin(kind) is Literal:
        values = ", ".join(map(_code, typing.get_args(kind)))
    if rules.needs is None:
        return values
    which = "" if rules.when is None else f"{_code(str(rules.when))} "
    return f"{values}; {which}with {_code(spelled(*rules.needs))}"


def _word(value: object) -> str:
    if isinstance(value, list):
        return " ".join(map(_word, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _code(word: str) -> str:
    return f"`{word}`" if word else ""


def _cell(text: str) -> str:
    """What Markdown would read as a mark, outside of code."""
    parts = re.split("(`[^`]*`)", text)
    return "".join(p if p.startswith("`") else re.sub(r"([*|_\[])", r"\\\1", p) for p in parts)


if __name__ == "__main__":
    sys.stdout.write(table())
