"""Which figures there are: their names by parts, and what each is of a table's rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from fastsc.evaluation.results.statistics import Statistic


class Name(NamedTuple):
    """What a figure is called; `str` of it is its name in files: "flips/brightness/0.4".

    Attributes:
        family: What is measured.
        kind: Of what: a kind of change, a stage, a method; "" where there is no choice.
        level: How strong, in which direction, of which images; "" where there is no choice.
    """

    family: str
    kind: str = ""
    level: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in self if part)


@dataclass(frozen=True)
class Measure:
    """A figure as a function of rows.

    Attributes:
        figure: Which.
        statistic: What is done with the columns; see `fastsc.evaluation.results.statistics`.
        table: Key of `Answer.tables`.
        columns: One, or two for a ratio: mean of the first over mean of the second.
    """

    figure: Name
    statistic: Statistic
    table: str
    columns: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of the figure, in files."""
        return str(self.figure)
