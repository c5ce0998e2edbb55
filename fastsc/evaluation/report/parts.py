"""What a section of the page is made of: plain data that the template lays out and escapes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from markupsafe import Markup

from fastsc.evaluation.results.answers import Answer
from fastsc.evaluation.results.evaluated import Comparison, Evaluated, Evaluation


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
class Said:
    """One model's sentences, the most important first.

    Attributes:
        model: Its name.
        slot: Its place, from which its colour, marker and dashes follow.
        sentences: Of the answer.
        more: What the section adds.
    """

    model: str
    slot: int
    sentences: tuple[str, ...]
    more: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """How much of a figure one model has beside another, and whether chance explains it."""

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
        said: The answers, one a model.
        beside: What the figures are to be compared with.
        verdicts: On the comparisons that matter.
        charts, galleries, tables: What shows it.
    """

    key: str
    title: str
    asks: str
    said: tuple[Said, ...]
    beside: str = ""
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

    def comparisons(self, name: str | None = None) -> Iterator[Comparison]:
        """Those of this question, of all its measures or of one."""
        for comparison in self.evaluation.comparisons:
            if comparison.question == self.name and name in (None, comparison.name):
                yield comparison


Sentences = Callable[[Answer], Iterable[str]]


def said_by(question: Question, sentences: Sentences, more: Sentences) -> tuple[Said, ...]:
    """What each model's answer is in words: for the answers on top, and for the section."""
    return tuple(
        Said(one.model.name, one.slot, tuple(sentences(one.answer)), tuple(more(one.answer)))
        for one in question.asked
    )


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
