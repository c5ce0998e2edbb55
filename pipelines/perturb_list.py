"""The list of perturbations as one writes it: `blur`, `blur=2`, `module:function`.

Nothing is imported here that computes: a command's word on a mistake should not wait for torch.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from fastsc.pipelines.errors import UserError
from fastsc.pipelines.fields import did_you_mean, shown


class Strength(NamedTuple):
    """What the strength s of an operation means.

    Attributes:
        most: The largest; 0, the smallest, is the identity, bit for bit.
        default: Where none is given.
        about: What an image draws, with its unit.
        whole: Whether only whole numbers are meant.
    """

    most: float
    default: float
    about: str
    whole: bool = False


STRENGTHS = {
    "gamma": Strength(3, 0.5, "exponent 2^a of every level, a uniform in [−s, s]"),
    "temperature": Strength(
        110, 50, "white balance off by a mired along the Planckian locus, a uniform in [−s, s]"
    ),
    "exposure": Strength(5, 1, "a stops in linear light, a uniform in [−s, s]"),
    "grayscale": Strength(1, 0.2, "without color with probability s"),
    "blur": Strength(20, 2, "Gaussian, sigma uniform in [0, s] pixels of an image of 224"),
    "sharpness": Strength(
        10, 1, "1 + a of the difference to a smooth image, 1 + a uniform in [max(0, 1 − s), 1 + s]"
    ),
    "noise": Strength(128, 10, "Gaussian, standard deviation uniform in [0, s] 255ths"),
    "jpeg": Strength(
        99, 70, "quality a whole number, uniform from 100 − s to 100, which changes nothing", True
    ),
    "posterize": Strength(7, 4, "0 to s of the last bits gone, uniformly", True),
}  # fmt: skip
_OWN = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


class Listed(NamedTuple):
    """An entry of the list.

    Attributes:
        name: An operation's, or module:function.
        occurrence: How many of the same name come before it.
        strength: None of a function of one's own.
    """

    name: str
    occurrence: int
    strength: float | None

    @property
    def label(self) -> str:
        """Unique in its list: "blur", and of further ones "blur-2"."""
        return f"{self.name}-{self.occurrence + 1}" if self.occurrence else self.name

    def __str__(self) -> str:
        return self.name if self.strength is None else f"{self.name}={self.strength:g}"


def words_of(perturb: object) -> tuple[str, ...]:
    """A list of words, as Python code gives it.

    Raises:
        UserError: It is no list or tuple; one line.
    """
    if not isinstance(perturb, (list, tuple)):
        raise UserError(f'perturb must be a tuple of names, as ("blur=2",), not {shown(perturb)}')
    for word in perturb:
        if not isinstance(word, str):
            raise UserError(f"--perturb {shown(word)}: write a name, as blur or blur=2")
    return tuple(perturb)


def parse_list(words: Sequence[str]) -> tuple[Listed, ...]:
    """The entries, in their order.

    Raises:
        UserError: A name is unknown, or a strength is out of its range; one line.
    """
    seen: Counter[str] = Counter()
    entries = []
    for word in words_of(words):
        name, equals, number = word.partition("=")
        if ":" in name:
            if not _OWN.fullmatch(name) or equals:
                what = "has no strength" if equals else "is no module:function"
                raise UserError(f"--perturb {word}: a function of one's own {what}")
            strength = None
        else:
            strength = _strength(word, name, number if equals else None)
        entries.append(Listed(name, seen[name], strength))
        seen[name] += 1
    return tuple(entries)


def _strength(word: str, name: str, number: str | None) -> float:
    if name not in STRENGTHS:
        raise UserError(
            f"--perturb {word}: no operation {shown(name)}{did_you_mean(name, STRENGTHS)}; there "
            f"are {', '.join(STRENGTHS)}, and module:function"
        )
    rule = STRENGTHS[name]
    if number is None:
        return rule.default
    try:
        strength = float(number)
    except ValueError:
        raise UserError(f"--perturb {word}: the strength is no number") from None
    if not (math.isfinite(strength) and 0 <= strength <= rule.most):
        raise UserError(f"--perturb {word}: the strength must be from 0 to {rule.most:g}")
    if rule.whole and strength % 1:
        raise UserError(f"--perturb {word}: the strength must be a whole number")
    return strength
