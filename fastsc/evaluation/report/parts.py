"""What a section of the page is made of: plain data that the template lays out and escapes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from markupsafe import Markup

from fastsc.evaluation.report.words import Figure, Unit, unit_of
from fastsc.evaluation.results.answers import Answer
from fastsc.evaluation.results.evaluated import Comparison, Evaluated, Evaluation
from fastsc.evaluation.results.measures import Measure, Name

A = TypeVar("A", bound=Answer)


@dataclass(frozen=True)
class Chart:
    """One picture of figures: inline SVG, a title over it, and under it what it shows."""

    svg: Markup
    caption: str
    title: str = ""


@dataclass(frozen=True)
class Key:
    """An entry of a legend: a piece of the line or the marker, and its name."""

    swatch: Markup
    name: str


@dataclass(frozen=True)
class Charts:
    """Small multiples with one heading, one note and one legend."""

    title: str
    note: str
    charts: tuple[Chart, ...]
    keys: tuple[Key, ...] = ()
    wide: bool = False


@dataclass(frozen=True)
class Shot:
    """An image: a data URI, what it shows in words, and the caption under it."""

    uri: str
    alt: str
    caption: str
    side: int

    @property
    def tiny(self) -> bool:
        """Whether its pixels are shown as squares."""
        return self.side <= 64


@dataclass(frozen=True)
class Card:
    """Images that belong together, and lines about them."""

    shots: tuple[Shot, ...]
    title: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Gallery:
    """Cards under one heading."""

    title: str
    note: str
    cards: tuple[Card, ...]


@dataclass(frozen=True)
class Cell:
    """What a table's cell says, and the number by which its column is sorted."""

    text: str
    sort: float | None = None


@dataclass(frozen=True)
class Table:
    """Rows under headings, which `groups` may span: (text, number of columns)."""

    caption: str
    headings: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    groups: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Statements:
    """One model's sentences, the most important first.

    Attributes:
        model: Its name.
        slot: Its place, from which its color, marker and dashes follow.
        sentences: Of the answer.
        more: What the section adds.
    """

    model: str
    slot: int
    sentences: tuple[str, ...]
    more: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """How a figure of one model differs from another's, and whether chance explains it."""

    figure: str
    models: str
    difference: str
    judged: str
    real: bool


@dataclass(frozen=True)
class Section:
    """A question's part of the page.

    Attributes:
        key: The question's name, as the anchor of its section.
        title: In a word.
        asks: The question as a person would ask it.
        statements: The answers, one per model.
        reference: What the figures are to be compared with.
        verdicts: On the comparisons that matter.
        charts, galleries, tables: What shows it.
    """

    key: str
    title: str
    asks: str
    statements: tuple[Statements, ...]
    reference: str = ""
    verdicts: tuple[Verdict, ...] = ()
    galleries: tuple[Gallery, ...] = ()
    charts: tuple[Charts, ...] = ()
    tables: tuple[Table, ...] = ()


@dataclass(frozen=True)
class Asked:
    """One model's answer to a section's question."""

    slot: int
    model: Evaluated
    answer: Answer

    def its(self, kind: type[A]) -> A:
        """The answer, which is of that class."""
        assert isinstance(self.answer, kind)
        return self.answer

    def figure(self, name: str, unit: Unit | None = None) -> Figure | None:
        """A figure of the answer, if it is one, in its unit or in another."""
        for measure in self.answer.measures:
            if measure.name == name:
                return Figure(self.answer[name], unit or unit_of(measure))
        return None

    def each(self, labels: Mapping[str, object], pattern: str) -> list[str]:
        """The pattern with `figure` and `label` filled in, of every figure that is a number."""
        figures = ((self.figure(name), label) for name, label in labels.items())
        return [
            pattern.format(figure=figure, label=label)
            for figure, label in figures
            if figure is not None and figure.known
        ]


@dataclass(frozen=True)
class Question:
    """A question, and who answered it."""

    name: str
    evaluation: Evaluation
    asked: tuple[Asked, ...] = field(default=())

    @property
    def alone(self) -> bool:
        """Whether the evaluation is of one model, whose name need not be repeated."""
        return len(self.evaluation.models) == 1

    def called(self, asked: Asked) -> str:
        """A model's name before its text; nothing where there is one model."""
        return "" if self.alone else f"{asked.model.name}: "

    def measures(self, family: str | None = None) -> tuple[Measure, ...]:
        """Of all models, or those of a family, each name once."""
        every: dict[Name, Measure] = {}
        for asked in self.asked:
            for measure in asked.answer.measures:
                every.setdefault(measure.figure, measure)
        return tuple(m for name, m in every.items() if family in (None, name.family))

    def of(self, kind: type[A]) -> Iterator[tuple[Asked, A]]:
        """The models with their answers, which are of that class."""
        for asked in self.asked:
            if isinstance(asked.answer, kind):
                yield asked, asked.answer

    def comparisons(self, name: str | None = None) -> Iterator[Comparison]:
        """Those of this question, of all its measures or of one."""
        for comparison in self.evaluation.comparisons:
            if comparison.question == self.name and name in (None, comparison.name):
                yield comparison


@dataclass(frozen=True)
class Code:
    """What of a section takes more than a YAML file, by the names that it has there.

    Attributes:
        words: What its templates call.
        charts: Of one heading.
        cards: Of one model's gallery.
        tables: Besides those of the figures.
    """

    words: Mapping[str, object] = field(default_factory=dict)
    charts: Mapping[str, Callable[[Question], Iterable[Chart]]] = field(default_factory=dict)
    cards: Mapping[str, Callable[[Question, Asked], Iterable[Card]]] = field(default_factory=dict)
    tables: Callable[[Question], Iterable[Table]] = lambda _: ()


def questions(evaluation: Evaluation) -> tuple[Question, ...]:
    """All that some model answered, in the order of the models' answers."""
    names = dict.fromkeys(name for model in evaluation.models for name in model.answers)
    return tuple(
        Question(
            name,
            evaluation,
            tuple(
                Asked(slot, model, model.answers[name])
                for slot, model in enumerate(evaluation.models)
                if name in model.answers
            ),
        )
        for name in names
    )
