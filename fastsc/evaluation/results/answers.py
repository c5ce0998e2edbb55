"""What a question gives back: rows an image, and the figures that are computed from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fastsc.evaluation.results.statistics import Estimate, Statistic, estimate

Arrays = dict[str, NDArray[Any]]
Keep = Callable[[str, Mapping[str, object], Callable[[], Arrays]], Arrays]
"""keep(part, settings, compute): the arrays of a part of a question, computed or from a cache.

`settings` are JSON values on which the arrays depend besides model and data. What an interrupted
evaluation has computed is kept by the part: no part should take much longer than a minute.
"""


def compute(part: str, settings: Mapping[str, object], compute: Callable[[], Arrays]) -> Arrays:
    """The `Keep` that keeps nothing."""
    del part, settings
    return compute()


def concatenated(parts: Iterable[Arrays]) -> Arrays:
    """Parts of the same columns, one after the other."""
    found = list(parts)
    return {name: np.concatenate([part[name] for part in found]) for name in found[0]}


@dataclass(frozen=True, eq=False)
class Rows:
    """A table with one row an image.

    Attributes:
        index: (n,) int64, dataset indices, all different.
        columns: (n,) each; floats, or whole numbers where they are classes.
    """

    index: NDArray[np.int64]
    columns: Mapping[str, NDArray[Any]]

    def __post_init__(self) -> None:
        assert len(np.unique(self.index)) == len(self.index), "an image has two rows"
        assert all(len(column) == len(self.index) for column in self.columns.values())

    def __len__(self) -> int:
        return len(self.index)

    def take(self, index: NDArray[np.int64]) -> Rows:
        """The rows of dataset indices that are all there, in the order given."""
        order = np.argsort(self.index)
        at = order[np.searchsorted(self.index, index, sorter=order)]
        return Rows(index, {name: column[at] for name, column in self.columns.items()})


@dataclass(frozen=True)
class Measure:
    """A figure as a function of rows.

    Attributes:
        name: Of the figure: "ds_relative", "flips/brightness/0.4".
        statistic: What is done with the columns; see `fastsc.evaluation.results.statistics`.
        table: Key of `Answer.tables`.
        columns: One, or two for a ratio: mean of the first over mean of the second.
    """

    name: str
    statistic: Statistic
    table: str
    columns: tuple[str, ...]


@dataclass(frozen=True)
class Example:
    """An image in other colours, worth a look.

    Attributes:
        index: Dataset index.
        factors: Brightness, contrast, saturation, hue.
        lines: What to say of it.
        others: Dataset indices of unchanged images to show beside it.
    """

    index: int
    factors: tuple[float, float, float, float]
    lines: tuple[str, ...]
    others: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False, kw_only=True)
class Answer:
    """A question's answer of one model. `answer["ds_relative"]` is an Estimate.

    Attributes:
        question: Its name.
        tables: Rows an image, by the name of the part that made them.
        measures: The figures, as functions of the tables.
        examples: Images worth a look, the most telling first.
        seed: Of the choice of images, the draws and the intervals.
        left_out: Parts that could not be answered: "neighbours: one image a class", one line each.
    """

    question: ClassVar[str]
    tables: Mapping[str, Rows]
    measures: tuple[Measure, ...]
    examples: tuple[Example, ...] = ()
    seed: int = 0
    left_out: tuple[str, ...] = field(default=())

    @cached_property
    def estimates(self) -> dict[str, Estimate]:
        """Every figure by its name, with n, seed and 95 % interval."""
        return {measure.name: self._estimate(measure) for measure in self.measures}

    def __getitem__(self, name: str) -> Estimate:
        return self.estimates[name]

    def values(self, measure: Measure) -> NDArray[np.float64]:
        """(k, n): the columns of a measure."""
        columns = self.tables[measure.table].columns
        return np.stack([np.asarray(columns[name], np.float64) for name in measure.columns])

    def _estimate(self, measure: Measure) -> Estimate:
        return estimate(self.values(measure), measure.statistic, seed=self.seed)
