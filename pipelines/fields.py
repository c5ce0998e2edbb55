"""The values of an object in a file, each of the type and in the range that its reader needs."""

from __future__ import annotations

import difflib
import math
import os
import reprlib
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NoReturn, TypeGuard

from fastsc.pipelines.errors import UserError

LARGEST = 2**53  # whole numbers up to here are the same in every JSON reader


class Fields:
    """An object with names for its values.

    Args:
        values: What was parsed.
        place: The file, and where in it: what a UserError's line begins with.

    Every method raises UserError where the value is missing or another than it asks for.
    """

    def __init__(self, values: object, place: str) -> None:
        if not isinstance(values, Mapping):
            raise UserError(f"{place}: must hold names with values, not {shown(values)}")
        if (other := next((key for key in values if not isinstance(key, str)), None)) is not None:
            raise UserError(f"{place}: {shown(other)} is no name")
        self.values: Mapping[str, Any] = values
        self.place = place

    def has(self, key: str) -> bool:
        """Whether there is such a value, and it is not null."""
        return self.values.get(key) is not None

    def wrong(self, key: str, wanted: str) -> NoReturn:
        """Raises UserError: the value is not what is wanted."""
        instead = f"not {shown(self.values[key])}" if key in self.values else "and is missing"
        raise UserError(f"{self.place}: {key} must be {wanted}, {instead}")

    def text(self, key: str, known: Collection[str] | None = None) -> str:
        """A string; one of the known ones, if any are given."""
        value = self.values.get(key)
        if not isinstance(value, str) or not (known is None or value in known):
            self.wrong(key, "a text" if known is None else f"one of {', '.join(known)}")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings."""
        value = self.values.get(key)
        if not isinstance(value, (list, tuple)) or not all(isinstance(x, str) for x in value):
            self.wrong(key, "a list of texts")
        return tuple(value)

    def flag(self, key: str) -> bool:
        """true or false."""
        value = self.values.get(key)
        if not isinstance(value, bool):
            self.wrong(key, "true or false")
        return value

    def whole(self, key: str, low: int = 0, high: int = LARGEST) -> int:
        """A whole number from `low` to `high`."""
        value = self.values.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            self.wrong(key, f"a whole number from {low} to {high}")
        return value

    def number(self, key: str, low: float = -math.inf, high: float = math.inf) -> float:
        """A finite number from `low` to `high`."""
        value = self.values.get(key)
        if not is_number(value) or not low <= value <= high:
            limits = "" if math.isinf(low) and math.isinf(high) else f" from {low:g} to {high:g}"
            self.wrong(key, f"a finite number{limits}")
        return value

    def numbers(self, key: str, n: int, low: float, high: float) -> tuple[float, ...]:
        """A list of n numbers, each from `low` to `high`."""
        value = self.values.get(key)
        if (
            not isinstance(value, (list, tuple))
            or len(value) != n
            or not all(is_number(x) and low <= x <= high for x in value)
        ):
            self.wrong(key, f"a list of {n} numbers from {low:g} to {high:g}")
        return tuple(value)

    def inner(self, key: str) -> Fields:
        """An object in this one."""
        if not isinstance(self.values.get(key), Mapping):
            self.wrong(key, "names with values")
        return Fields(self.values[key], f"{self.place}: {key}")


def is_number(value: object) -> TypeGuard[float]:
    """Whether it is a number that fits into a float, and not a truth value."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) <= 1e308  # of whole numbers Python knows larger ones than of floats


def is_text(value: str) -> bool:
    """JSON can escape half of a character, which no file's name and no hash takes."""
    try:
        os.fsencode(value)
    except UnicodeEncodeError:
        return False
    return True


def shown(value: object) -> str:
    """A value as a message may show it: whatever a file holds, in some ten words."""
    return reprlib.repr(value)


def did_you_mean(word: str, known: Iterable[str], n: int = 1, prefix: str = "") -> str:
    """A half sentence with the n nearest of the known words, each after the prefix; or nothing."""
    near = difflib.get_close_matches(word, list(known), n=n)
    return f"; did you mean {', '.join(prefix + name for name in near)}?" if near else ""
