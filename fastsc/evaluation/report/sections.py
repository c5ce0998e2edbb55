"""The section of a question, out of its YAML file and what takes code; tables of one unknown."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fastsc.evaluation import QUESTIONS
from fastsc.evaluation.report.charts import dot_chart
from fastsc.evaluation.report.parts import (
    Chart,
    Charts,
    Code,
    Gallery,
    Key,
    Question,
    Section,
    Statements,
    questions,
)
from fastsc.evaluation.report.pictures import example_cards, title_of
from fastsc.evaluation.report.tables import tables, verdicts, words_of
from fastsc.evaluation.report.templates import declared, line, paragraphs
from fastsc.evaluation.results.evaluated import Evaluation
from fastsc.plotting.inline import piece, swatch, unique_ids

MAIN = 3  # figures of an unknown question that its sentences name
SWATCHES: dict[str, dict[str, Any]] = {
    "image": {"color": "var(--muted)", "marker": "o", "size": 6},
    "view": {"color": "var(--c0)", "marker": "o", "size": 9},
    "star": {"color": "var(--ink)", "marker": "*", "size": 12},
    "dashes": {"color": "var(--ink)", "dashes": (1, 1)},
}
Values = dict[str, Any]


def sections(evaluation: Evaluation) -> tuple[Section, ...]:
    """A section for every question that some model answered."""
    return tuple(section(question) for question in questions(evaluation))


def section(question: Question) -> Section:
    """All that the page says and shows of a question."""
    own = declared(question.name) or _unknown(question)
    code = code_of(question.name)
    names = {measure.name for measure in question.measures()}
    values = {
        "question": question, "title_of": title_of, "has": names.__contains__, **code.words,
    }  # fmt: skip

    statements = []
    for asked in question.asked:
        its = {
            **values, "asked": asked, "answer": asked.answer,
            "f": asked.figure, "each": asked.each,
        }  # fmt: skip
        statements.append(
            Statements(
                asked.model.name,
                asked.slot,
                paragraphs(own.get("sentences", ""), its),
                paragraphs(own.get("more", ""), its),
            )
        )
    compared = (one for one in own["verdicts"] if names & set(one))
    return Section(
        question.name,
        own["title"],
        own.get("asks", ""),
        tuple(statements),
        line(own.get("reference", ""), values),
        verdicts(question, next(compared, {})),
        tuple(_galleries(question, own.get("galleries", ()), values)),
        tuple(_charts(question, own.get("charts", ()), values)),
        (*tables(question), *code.tables(question)),
    )


def code_of(question: str) -> Code:
    """What of its section takes code; nothing of a question that the page does not know."""
    if question not in QUESTIONS:
        return Code()
    module = importlib.import_module(f"fastsc.evaluation.report.questions.{question}")
    code: Code = module.CODE
    return code


def _unknown(question: Question) -> dict[str, Any]:
    """What to say of a question without a YAML file."""
    figures = [measure.figure for measure in question.measures()]
    main = ([one for one in figures if not one.kind] or figures)[:MAIN]
    words = {str(one): words_of(question.name, one).capitalize() for one in main}
    sentence = "{{% if f({0!r}) %}}{1}: {{{{ f({0!r}) }}}}.{{% endif %}}"
    return {
        "title": question.name.replace("_", " ").capitalize(),
        "sentences": "\n\n".join(sentence.format(*item) for item in words.items()),
        "verdicts": [words],
        "galleries": [{"title": "The most telling images", "note": ""}],
    }


def _galleries(
    question: Question, parts: Sequence[Mapping[str, Any]], values: Values
) -> Iterator[Gallery]:
    """One of each model, or of the first `once`; of its examples, or what code makes."""
    code = code_of(question.name)
    for part in parts:
        once = part.get("once", False)
        for asked in question.asked[:1] if once else question.asked:
            if "code" in part:
                cards = tuple(code.cards[part["code"]](question, asked))
            else:
                cards = tuple(example_cards(question, asked, part.get("others", ())))
            if cards:
                whose = "" if once or question.alone else f": {asked.model.name}"
                yield Gallery(part["title"] + whose, line(part["note"], values), cards)


def _charts(
    question: Question, parts: Sequence[Mapping[str, Any]], values: Values
) -> Iterator[Charts]:
    """What code draws and the dots, in their order, under one heading; nothing without data."""
    code = code_of(question.name)
    models = [Key(swatch(asked.slot), asked.model.name) for asked in question.asked]
    for place, part in enumerate(parts):
        drawn: list[Chart] = []
        for key in part:
            if key == "code":
                drawn += code.charts[part["code"]](question)
            elif key == "dots":
                drawn += (chart for dots in part["dots"] for chart in _dots(question, dots, values))
        if drawn:
            named = [
                Key(piece(**SWATCHES[name]), text) for name, text in part.get("keys", {}).items()
            ]
            yield Charts(
                part["title"],
                line(part["note"], {**values, **part}),
                tuple(
                    replace(chart, svg=unique_ids(chart.svg, f"{question.name}-{place}-{i}"))
                    for i, chart in enumerate(drawn)
                ),
                (*([] if question.alone else models), *named),
                wide=part.get("wide", False),
            )


def _dots(question: Question, dots: Mapping[str, Any], values: Values) -> Iterator[Chart]:
    """A chart of dots, or one for `each` set of words that its texts take up."""
    for own in dots.get("each", ({},)):
        text = {
            name: line(str(dots.get(name, "")), {**values, **own})
            for name in ("title", "caption", "axis", "line")
        }
        chart = dot_chart(
            question,
            {line(name, own): row for name, row in dots["rows"].items()},
            title=text["title"],
            caption=text["caption"],
            axis=text["axis"],
            line=float(text["line"]) if text["line"] else None,
            high=dots.get("high"),
        )
        if chart is not None:
            yield chart


def left_out(evaluation: Evaluation) -> tuple[tuple[str, str, str], ...]:
    """(what, of which models, why): questions, and parts of questions, that were not answered."""
    models: dict[tuple[str, str], list[str]] = {}
    for model in evaluation.models:
        for question, why in model.left_out.items():
            models.setdefault((question, why), []).append(model.name)
        for question, answer in model.answers.items():
            for reason in answer.left_out:
                what, colon, why = reason.partition(": ")
                part = (f"{question}, {what}", why) if colon else (question, reason)
                models.setdefault(part, []).append(model.name)
    every = len(evaluation.models)
    return tuple(
        (what, "" if every == 1 else "all models" if len(of) == every else ", ".join(of), why)
        for (what, why), of in models.items()
    )
