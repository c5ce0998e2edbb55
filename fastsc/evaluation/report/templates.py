"""Jinja's templates of the page: of HTML, and of the sentences in a question's YAML file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from markupsafe import Markup

from fastsc.cli.packages import needed
from fastsc.config.yaml_text import parse_yaml
from fastsc.evaluation.report import words

HERE = Path(__file__).parent
_UNBROKEN = re.compile(r" (?=%)|(?<=\bn) (?==)|(?<=\bn =) |(?<=\bn\u00a0=) | (?=px\b)")


@cache
def environment(*, html: bool) -> Any:
    """Jinja's environment; only in HTML what goes into a template is escaped.

    Raises:
        UserError: A package of the extra `eval` is missing.
    """
    import jinja2

    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=html,
        undefined=jinja2.StrictUndefined,
        trim_blocks=html,
        lstrip_blocks=html,
    )
    made.globals |= {name: getattr(words, name) for name in words.IN_TEMPLATES}
    return made


def html(name: str, **values: Any) -> str:
    """A template of this folder, filled in."""
    needed("jinja2", "the page of an evaluation")
    text: str = environment(html=True).get_template(name).render(values)
    return text


def own(name: str) -> Markup:
    """A file of this folder, to stand in the page as it is."""
    return Markup((HERE / name).read_text(encoding="utf-8"))


@cache
def _template(text: str) -> Any:
    return environment(html=False).from_string(text)


def paragraphs(text: str, values: Mapping[str, Any]) -> tuple[str, ...]:
    """Plain text out of a template, blank lines between its parts; parts without words are none.

    Within a part lines are joined, and a number stays on the line of its unit.
    """
    filled = _template(text).render(values)
    parts = (re.sub(r"[ \n]+", " ", part).strip() for part in re.split(r"\n\s*\n", filled))
    return tuple(_UNBROKEN.sub(words.SPACE, part) for part in parts if part)


def line(text: str, values: Mapping[str, Any]) -> str:
    """The same of a template without parts."""
    return " ".join(paragraphs(text, values))


@cache
def declared(question: str) -> dict[str, Any]:
    """What its YAML file says of a question; nothing of one that the page does not know."""
    path = HERE / "questions" / f"{question}.yaml"
    if not path.is_file():
        return {}
    read: dict[str, Any] = parse_yaml(path.read_text(encoding="utf-8"), path.name)
    return read
