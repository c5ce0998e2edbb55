"""Which builder shows which question; one that is not known here is shown by its figures alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from fastsc.evaluation.report import (
    sections_bias,
    sections_continuity,
    sections_embedding,
    sections_explanations,
    sections_gradients,
    sections_neighbours,
    sections_robustness,
    sections_shifts,
    sections_transfer,
)
from fastsc.evaluation.report.parts import Question, Said, Section, questions
from fastsc.evaluation.report.pictures import gallery
from fastsc.evaluation.report.tables import tables, verdicts, words_of
from fastsc.evaluation.report.words import spoken, unit_of
from fastsc.evaluation.results.answers import Answer
from fastsc.evaluation.results.evaluated import Evaluation

BUILDERS: dict[str, Callable[[Question], Section]] = {
    "continuity": sections_continuity.section,
    "neighbours": sections_neighbours.section,
    "embedding": sections_embedding.section,
    "gradients": sections_gradients.section,
    "robustness": sections_robustness.section,
    "shifts": sections_shifts.section,
    "explanations": sections_explanations.section,
    "transfer": sections_transfer.section,
    "bias": sections_bias.section,
}
MAIN = 3  # figures of an unknown question that its sentence names


def sections(evaluation: Evaluation) -> tuple[Section, ...]:
    """A section for every question that some model answered."""
    return tuple(
        BUILDERS.get(question.name, generic)(question) for question in questions(evaluation)
    )


def generic(question: Question) -> Section:
    """The section of a question without a builder of its own."""
    names = dict.fromkeys(m.name for asked in question.asked for m in asked.answer.measures)
    main = [name for name in names if "/" not in name][:MAIN] or list(names)[:MAIN]
    title = question.name.replace("_", " ").capitalize()
    return Section(
        question.name,
        title,
        "",
        tuple(
            Said(one.model.name, one.slot, tuple(_figures(one.answer, main)))
            for one in question.asked
        ),
        "",
        verdicts(question, {name: words_of(name).capitalize() for name in main}),
        tuple(
            found
            for asked in question.asked
            if (found := gallery(question, asked, "Images worth a look", ""))
        ),
        tables=tables(question),
    )


def _figures(answer: Answer, names: list[str]) -> Iterator[str]:
    for measure in answer.measures:
        if measure.name in names:
            found = spoken(answer[measure.name], unit_of(measure))
            yield f"{words_of(measure.name).capitalize()}: {found}."


def left_out(evaluation: Evaluation) -> tuple[tuple[str, str, str], ...]:
    """(what, of which models, why): questions, and parts of questions, that were not answered."""
    found: dict[tuple[str, str], list[str]] = {}
    for model in evaluation.models:
        for question, why in model.left_out.items():
            found.setdefault((question, why), []).append(model.name)
        for question, answer in model.answers.items():
            for line in answer.left_out:
                what, colon, why = line.partition(": ")
                part = f"{question}, {what}" if colon else question
                found.setdefault((part, why if colon else line), []).append(model.name)
    rows = []
    every = len(evaluation.models)
    for (what, why), models in found.items():
        of = "" if every == 1 else "all models" if len(models) == every else ", ".join(models)
        rows.append((what, of, why))
    return tuple(rows)
