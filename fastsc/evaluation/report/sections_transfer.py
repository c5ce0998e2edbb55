"""The page on transfer: what is read of other classes from the features, and in other colours."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from fastsc.evaluation.report.charts import Axes, Dots, dots, legend
from fastsc.evaluation.report.parts import (
    Asked,
    Cell,
    Chart,
    Charts,
    Question,
    Section,
    Table,
    said_by,
)
from fastsc.evaluation.report.tables import tables, verdicts
from fastsc.evaluation.report.words import (
    PERCENT,
    SPACE,
    interval_of,
    listed,
    number,
    spoken,
    value_of,
)
from fastsc.evaluation.results.answers import Answer

PERTURBED = "_perturbed"


def section(question: Question) -> Section:
    """The whole section."""
    return Section(
        "transfer",
        "Transfer",
        "Are its features good for classes that it was not made for?",
        said_by(question, _sentences, _how),
        _beside(question.asked),
        verdicts(
            question,
            {
                "probe/accuracy": "Right answers of the linear probe",
                "probe/accuracy_perturbed": "The same in other colours",
                "probe/flips": "Answers of the probe that flip",
                "fine_tuned/accuracy": "Right answers after fine-tuning",
            },
        ),
        (),
        tuple(_charts(question)),
        tuple(_named(table) for table in tables(question)),
    )


def reader_words(name: str) -> str:
    """ "linear probe", "5 nearest" of "knn5"."""
    if found := re.fullmatch(r"knn(\d+)", name):
        return f"{found[1]} nearest"
    known = {"probe": "linear probe", "fine_tuned": "fine-tuned", "majority": "largest class"}
    return known.get(name, name.replace("_", " "))


def figure_words(name: str) -> str:
    """ "linear probe, right in other colours" of "probe/accuracy_perturbed"."""
    reader, _, what = name.partition("/")
    said = {
        "accuracy": "right",
        f"accuracy{PERTURBED}": "right in other colours",
        "flips": "answers that flip in other colours",
    }
    return f"{reader_words(reader)}, {said.get(what, what)}"


# --- sentences -----------------------------------------------------------------------------------


def _sentences(answer: Answer) -> Iterator[str]:
    found = answer.estimates
    classes = len(getattr(answer, "classes", ()))
    where = f" of {classes} classes of {_data(answer)}" if classes else ""
    if "probe/accuracy" in found:
        said = (
            f"A linear probe of the frozen features is right on "
            f"{spoken(found['probe/accuracy'], PERCENT)} of the images{where}"
        )
        if (one := found.get(f"probe/accuracy{PERTURBED}")) is not None:
            within = interval_of(one, PERCENT)
            said += f", and on {value_of(one, PERCENT)} ({within}) in other colours"
        if (one := found.get("probe/flips")) is not None:
            said += f"; {value_of(one, PERCENT)} of its answers flip"
        yield said + "."
    near = [name for name in _readers(answer) if name.startswith("knn")]
    if near:
        said = listed([_with_interval(answer, name) for name in near])
        yield f"By the nearest images it is {said}."
    if "fine_tuned/accuracy" in found:
        yield f"Fine-tuned as a whole, it is right on {_both(answer, 'fine_tuned')}."


def _with_interval(answer: Answer, name: str) -> str:
    one = answer[f"{name}/accuracy"]
    k = name.removeprefix("knn")
    return f"{value_of(one, PERCENT)} ({interval_of(one, PERCENT)}) by {k}"


def _both(answer: Answer, name: str) -> str:
    said = spoken(answer[f"{name}/accuracy"], PERCENT)
    one = answer.estimates.get(f"{name}/accuracy{PERTURBED}")
    return said + (f", and on {value_of(one, PERCENT)} in other colours" if one else "")


def _how(answer: Answer) -> Iterator[str]:
    learned, c = getattr(answer, "learned", None), getattr(answer, "c", None)
    if learned is not None and c is not None:
        yield (
            f"Learned from {number(learned, 0)} images; the probe’s C is {c:g}, chosen by "
            "cross-validation among them."
        )


def _beside(asked: Sequence[Asked]) -> str:
    chances = {getattr(one.answer, "chance", None) for one in asked}
    largest = {
        value_of(one.answer["majority/accuracy"], PERCENT)
        for one in asked
        if "majority/accuracy" in one.answer.estimates
    }
    said = []
    if len(chances) == 1 and (chance := chances.pop()):
        said.append(f"Guessing would be right on {number(100 * chance, 1)}{SPACE}%")
    if len(largest) == 1:
        said.append(f"the largest class alone on {largest.pop()}")
    text = ", ".join(said)
    return f"{text[0].upper()}{text[1:]}." if text else ""


def _data(answer: Answer) -> str:
    """The data set's folder: the one above its parts."""
    folder = Path(getattr(answer, "data", ""))
    known = folder.name in ("train", "val", "test") and folder.parent.name
    return folder.parent.name if known else folder.name


def _readers(answer: Answer) -> list[str]:
    """ "probe", "knn5", …, in their order."""
    names = [measure.name.partition("/") for measure in answer.measures]
    return [reader for reader, _, what in names if what == "accuracy"]


def _named(table: Table) -> Table:
    """The same with the figures in words; the last cell of a row is the measure's name."""
    rows = tuple((Cell(figure_words(row[-1].text)), *row[1:]) for row in table.rows)
    title, _, seed = table.caption.rpartition(", seed ")
    return replace(table, rows=rows, caption=f"{reader_words(title).capitalize()}, seed {seed}")


# --- charts --------------------------------------------------------------------------------------


def _charts(question: Question) -> Iterator[Charts]:
    readers = list(dict.fromkeys(name for one in question.asked for name in _readers(one.answer)))
    if not readers:
        return
    chances = {getattr(one.answer, "chance", None) for one in question.asked}
    chance = chances.pop() if len(chances) == 1 else None
    drawn = []
    for suffix, title in (("", "Unchanged"), (PERTURBED, "In other colours")):
        names = {name: f"{name}/accuracy{suffix}" for name in readers}
        # What says one class whatever it sees does so in all colours.
        names = {
            name: "majority/accuracy" if name == "majority" else of for name, of in names.items()
        }
        rows = [
            Dots(one.slot, [one.answer.estimates.get(of) for of in names.values()])
            for one in question.asked
        ]
        said = "; ".join(
            f"{one.model.name}: {reader_words(name)} {value_of(found, PERCENT)}"
            for one in question.asked
            for name, of in names.items()
            if (found := one.answer.estimates.get(of))
        )
        svg = dots(
            [reader_words(name) for name in names],
            rows,
            Axes("right answers"),
            f"Right answers on other classes, {title.lower()}. {said}",
            limits=(0, 1.02),
            line=chance,
            x_scale=100,
            x_suffix=f"{SPACE}%",
        )
        drawn.append(Chart(svg, "Dashed: guessing." if chance else "", title))
    yield Charts(
        "Right answers on other classes",
        "Of what reads the frozen features and, where it was asked for, of the fine-tuned network, "
        "with 95 % intervals over the test images. The largest class is what always saying it "
        "would give.",
        tuple(drawn),
        legend(question),
    )
