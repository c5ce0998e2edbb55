"""YAML as recipes, studies and class maps have it: plain values, bounded, each key once."""

from __future__ import annotations

import re
from typing import Any

import yaml
from yaml.nodes import CollectionNode, MappingNode, Node, ScalarNode

from fastsc.errors import UserError
from fastsc.pipelines.reading import MAX_DEPTH, blamed, reason

MAX_NODES = 100_000  # values, those that an alias repeats as often as it does
_INT, _MERGE, _STR = (f"tag:yaml.org,2002:{name}" for name in ("int", "merge", "str"))
_NUMBER = re.compile("(?:0|[1-9][0-9]*)$")


def parse_yaml(text: str, place: str, *, words: bool = False) -> Any:
    """The value of a YAML text.

    Args:
        text: Of a file that `fastsc.pipelines.reading` has read, and so of bounded size.
        place: What a UserError calls the file.
        words: Keys are text as they are written, and of plain values only 0, 1, 2, … are numbers:
            yes, 001 and 2020-01-01 may be the names of folders.

    Raises:
        UserError: It is no YAML, holds a tag or a value that has no meaning, gives a key twice, is
            nested too deeply, or repeats by aliases more than MAX_NODES values.
    """
    with blamed(f"{place} is not YAML"):
        try:
            # SafeLoaders that refuse more
            return yaml.load(text, _WordLoader if words else _Loader)  # noqa: S506
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            line = f" in line {mark.line + 1}" if mark else ""
            problem = getattr(error, "problem", None) or "unreadable"
            raise UserError(f"{place} is not YAML: {problem}{line}") from None


class _Loader(yaml.SafeLoader):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._sizes: dict[int, int] = {}  # id of a node -> values in it, repeated ones repeatedly
        self._depth = self._composed = 0

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        event = self.peek_event()
        self._depth += 1
        self._composed += 1
        if self._depth > MAX_DEPTH:
            raise _problem("nested too deeply", event.start_mark)
        if self._composed > MAX_NODES:  # before the rest is parsed, at 10,000 values a second
            raise _problem(f"more than {MAX_NODES:,} values", event.start_mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(event, yaml.AliasEvent):
            if id(node) not in self._sizes:
                raise _problem("an alias to what it lies in", event.start_mark)
        elif node is not None:
            self._sizes[id(node)] = self._size_of(node, event.start_mark)
        return node

    def _size_of(self, node: Node, begins: Any) -> int:
        parts: list[Node] = []
        if isinstance(node, MappingNode):
            parts = [part for pair in node.value for part in pair]
            _check_keys(node)
        elif isinstance(node, CollectionNode):
            parts = node.value
        size = 1 + sum(self._sizes[id(part)] for part in parts)
        if size > MAX_NODES:
            raise _problem(f"more than {MAX_NODES:,} values, with those of its aliases", begins)
        return size

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except yaml.YAMLError:
            raise
        except Exception as error:  # noqa: BLE001, a month of 13, a tag that means something else
            raise _problem(reason(error), node.start_mark) from None


class _WordLoader(_Loader):
    yaml_implicit_resolvers = {digit: [(_INT, _NUMBER)] for digit in "0123456789"}  # noqa: RUF012

    def _size_of(self, node: Node, begins: Any) -> int:
        if isinstance(node, MappingNode):
            for key, _ in node.value:
                if isinstance(key, ScalarNode):
                    key.tag = _STR
        return super()._size_of(node, begins)


def _check_keys(node: MappingNode) -> None:
    seen: set[tuple[str, str]] = set()
    for key, _ in node.value:
        if isinstance(key, ScalarNode) and key.tag != _MERGE:
            if (key.tag, key.value) in seen:
                raise _problem(f"{key.value!r} is given twice", key.start_mark)
            seen.add((key.tag, key.value))


def _problem(what: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=what, problem_mark=mark)
