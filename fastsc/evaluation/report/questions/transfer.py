"""What the page says of transfer besides its figures: the data, and what guessing would give."""

from __future__ import annotations

from pathlib import Path

from fastsc.evaluation.questions.transfer.question import Transfer
from fastsc.evaluation.report.parts import Code, Question


def _data_name(answer: Transfer) -> str:
    """The data set's folder: the one above its parts."""
    folder = Path(answer.data)
    known = folder.name in ("train", "val", "test") and folder.parent.name
    return folder.parent.name if known else folder.name


def _largest_class(question: Question) -> list[str]:
    """What always saying the largest class gets right, each value once."""
    figures = (asked.figure("majority/accuracy") for asked in question.asked)
    return list(dict.fromkeys(figure.value for figure in figures if figure))


CODE = Code(
    words={"data_name": _data_name, "largest_class": _largest_class},
)
