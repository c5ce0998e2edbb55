"""What a question gives back: rows per image, and the figures that are computed from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from fastsc.evaluation.results.measures import Measure
from fastsc.evaluation.results.statistics import Estimate, estimate

P = TypeVar("P")
Arrays = dict[str, NDArray[Any]]
PartCache = Callable[[str, Mapping[str, object], Callable[[], Arrays]], Arrays]
"""cache(part, settings, compute): the arrays of a part of a question, computed or from a cache.

`settings` are JSON values on which the arrays depend besides model and data. What an interrupted
evaluation has computed is kept by the part: no part should take much longer than a minute.
"""


def compute(part: str, settings: Mapping[str, object], compute: Callable[[], Arrays]) -> Arrays:
    """The `PartCache` that stores nothing."""
    del part, settings
    return compute()


def concatenated(parts: Iterable[Arrays]) -> Arrays:
    """Parts of the same columns, one after the other."""
    columns = list(parts)
    return {name: np.concatenate([part[name] for part in columns]) for name in columns[0]}


def in_parts(
    cache: PartCache,
    name: str,
    parts: Iterable[P],
    settings: Mapping[str, object],
    work: Callable[[P], Arrays],
    own: Callable[[P], Mapping[str, object]] = lambda _: {},
) -> Arrays:
    """The columns of all images, of which parts NAME-0, NAME-1, … are kept each by itself.

    Parts are rows or dataset indices; `own` are settings of one part besides those of all.
    """
    return concatenated(
        cache(f"{name}-{place}", {**settings, **own(part)}, partial(work, part))
        for place, part in enumerate(parts)
    )


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
class Example:
    """An image in other colors that tells much.

    Attributes:
        index: Dataset index.
        factors: Brightness, contrast, saturation, hue.
        lines: What to say of it.
        others: Dataset indices of unchanged images to show next to it.
    """

    index: int
    factors: tuple[float, float, float, float]
    lines: tuple[str, ...]
    others: tuple[int, ...] = ()

    @classmethod
    def of(
        cls, index: int, factors: NDArray[np.float32], *lines: str, others: tuple[int, ...] = ()
    ) -> Example:
        """With a row of factors (4,)."""
        b, c, s, h = factors.tolist()
        return cls(int(index), (b, c, s, h), lines, others)


@dataclass(frozen=True, eq=False, kw_only=True)
class Answer:
    """A question's answer of one model. `answer["ds_relative"]` is an Estimate.

    Attributes:
        question: Its name.
        tables: Rows an image, by the name of the part that made them.
        measures: The figures, as functions of the tables.
        examples: Images, the most telling first.
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
