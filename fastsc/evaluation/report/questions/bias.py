"""What the page draws and tabulates of bias: colorings, digits, and class by class."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from fastsc.datasets.colormnist import FOLDERS
from fastsc.evaluation.questions.bias.axes import LEAST, RATE, WHATS, Dependence, What
from fastsc.evaluation.questions.bias.color_bias import CHANCE
from fastsc.evaluation.questions.bias.question import Bias
from fastsc.evaluation.report.charts import REFERENCE, Dots, dots
from fastsc.evaluation.report.parts import Asked, Card, Cell, Chart, Code, Question, Table
from fastsc.evaluation.report.pictures import picture
from fastsc.evaluation.report.tables import EMPTY
from fastsc.evaluation.report.words import PERCENT, PLAIN, Figure, Unit, listed, strength_text
from fastsc.evaluation.results.statistics import Estimate
from fastsc.evaluation.views import KINDS
from fastsc.plotting.inline import INK, draw, series

NAMED = 4  # classes that a sentence names for a kind
MOST_CLASSES = 100  # of the table
TOP = 8  # classes of a chart
MARK = " *"  # after what stands out
UNITS: dict[What, Unit] = {"moved": PLAIN, "flipped": PERCENT}
OVERALL: dict[What, str] = {"moved": "axis", "flipped": "axis_flips"}


def _figure(entry: Dependence) -> Figure:
    estimate = Estimate(entry.value, entry.low, entry.high, entry.n, 0, "bootstrap")
    return Figure(estimate, UNITS[entry.what])


def _strength(answer: Bias, kind: str) -> str:
    """ "brightness ±40 %"."""
    return f"{kind} {strength_text(kind, answer.strengths[KINDS.index(kind)])}"


# --- in words ------------------------------------------------------------------------------------


def _alone(asked: Asked) -> list[str]:
    """What every kind does alone, over all classes."""
    answer = asked.its(Bias)
    return [
        f"{_strength(answer, kind)} flips {flips.value} of the predictions ({flips.within}) and "
        f"moves the representation by {moved.value} of the distance between images"
        for kind in answer.kinds
        if (flips := asked.figure(f"axis_flips/{kind}")) and (moved := asked.figure(f"axis/{kind}"))
    ]


def _classes_named(asked: Asked, what: What) -> list[str]:
    """Which classes stand out, kind by kind."""
    answer, parts = asked.its(Bias), []
    for kind in answer.kinds:
        out = [entry for entry in _of(answer, what, kind) if entry.stands_out]
        if out:
            out.sort(key=lambda entry: (-entry.value, entry.class_name))
            names = [f"{entry.class_name} ({_figure(entry).value})" for entry in out[:NAMED]]
            if (more := len(out) - NAMED) > 0:
                names.append(f"{more} more")
            verb = "flips" if what == "flipped" else "moves"
            overall = Figure(answer[f"{OVERALL[what]}/{kind}"], UNITS[what])
            parts.append(f"{kind} {verb} {listed(names)}, against {overall.value} over all classes")
    return parts


def _of(answer: Bias, what: What, kind: str) -> list[Dependence]:
    return [entry for entry in answer.dependence if (entry.what, entry.kind) == (what, kind)]


def _n_classes(answer: Bias) -> int:
    return len({entry.class_name for entry in answer.dependence})


# --- pictures and the table ----------------------------------------------------------------------


def _digits(question: Question, _: Asked) -> Iterator[Card]:
    """One card per digit, with what all models read in it."""
    models = [
        (question.called(asked) or "read as ", {digit.name: digit for digit in answer.digits})
        for asked, answer in question.of(Bias)
    ]
    every = {name: digit for _, digits in models for name, digit in digits.items()}
    for name, digit in every.items():
        shots = []
        for folder in FOLDERS:
            read = ", ".join(
                f"{called}{digits[name].predicted[folder]}"
                for called, digits in models
                if name in digits
            )
            shots.append(picture(digit.pixels[folder], name, f"{folder} – {read}"))
        yield Card(tuple(shots), name, ())


def _class_table(question: Question) -> Iterator[Table]:
    """The class-by-axis table: one row per class and kind, of at most MOST_CLASSES classes."""
    models = list(question.of(Bias))
    every = {
        (entry.class_name, entry.kind, entry.what, asked.slot): entry
        for asked, answer in models
        for entry in answer.dependence
    }
    if not every:
        return
    # Those that stand out, then by the least p.
    order = sorted(
        every.values(), key=lambda entry: (not entry.stands_out, entry.p, entry.class_name)
    )
    names = list(dict.fromkeys(entry.class_name for entry in order))
    kept = sorted(names[:MOST_CLASSES])
    rows = []
    for name in kept:
        for kind in KINDS:
            cells = [Cell(name), Cell(kind)]
            for asked, _ in models:
                cells += _cells([every.get((name, kind, what, asked.slot)) for what in WHATS])
            if any(cell is not EMPTY for cell in cells[2:]):
                rows.append(tuple(cells))
    caption = "Class by class, each kind alone"
    if len(kept) < len(names):
        caption += f": {len(kept)} of {len(names)} classes, those that stand out or have the most"
    headings = ["Moves", "95 % interval", "Flips", "95 % interval", "n"] * len(models)
    groups = (("", 2), *((asked.model.name, 5) for asked, _ in models))
    yield Table(caption, ("Class", "Kind", *headings), tuple(rows), groups)


def _cells(pair: Sequence[Dependence | None]) -> Iterator[Cell]:
    for entry in pair:
        if entry is None:
            yield from (EMPTY, EMPTY)
            continue
        sort = None if math.isnan(entry.value) else entry.value
        yield Cell(_figure(entry).value + MARK * entry.stands_out, sort)
        yield Cell(_figure(entry).within, sort)
    n = next((entry.n for entry in pair if entry), None)
    yield EMPTY if n is None else Cell(str(n), n)


# --- charts --------------------------------------------------------------------------------------


def _colorings(question: Question) -> Iterator[Chart]:
    """A group of bars per folder, in it one with interval and value per model."""
    models = {
        asked: [asked.figure(f"accuracy/{folder}") for folder in FOLDERS]
        for asked, answer in question.of(Bias)
        if "gap" in answer.estimates
    }
    if not models:
        return
    width = 0.8 / len(models)

    def paint(axis: Any) -> None:
        axis.axhline(CHANCE, **REFERENCE)
        for place, (asked, figures) in enumerate(models.items()):
            for group, estimate in enumerate(figure.estimate for figure in figures if figure):
                x = group + (place - (len(models) - 1) / 2) * width
                axis.bar(x, estimate.value, 0.9 * width, color=series(asked.slot), alpha=0.75)
                axis.plot([x, x], [estimate.low, estimate.high], color=INK, linewidth=1.4)
                axis.text(
                    x, estimate.high + 0.02, f"{100 * estimate.value:.0f}", ha="center", va="bottom"
                )
        axis.set_xticks(range(len(FOLDERS)), list(FOLDERS))
        axis.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
        axis.set_ylim(0, 1.13)
        axis.grid(visible=False, axis="x")
        axis.tick_params(axis="x", length=0)

    folders = {f"accuracy/{folder}": folder for folder in FOLDERS}
    listing = "; ".join(
        f"{asked.model.name}: {', '.join(asked.each(folders, '{label} {figure.value}'))}"
        for asked in models
    )
    svg = draw(paint, f"Digits that are read right by their colors. {listing}")
    yield Chart(svg, "Digits that are read right.", "Accuracy by coloring")


def _classes(what: What, question: Question) -> Iterator[Chart]:
    """The classes that depend most on each kind: how far they move, or how often they flip."""
    models = list(question.of(Bias))
    for kind in KINDS:
        tables = [
            {
                entry.class_name: entry
                for entry in _of(answer, what, kind)
                if math.isfinite(entry.value)
            }
            for _, answer in models
        ]
        top = _top(tables)
        if not top:
            continue
        stars = {
            entry.class_name for table in tables for entry in table.values() if entry.stands_out
        }
        overall = [asked.figure(f"{OVERALL[what]}/{kind}") for asked, _ in models]
        rows = [
            Dots(
                asked.slot,
                [_figure(table[name]).estimate if name in table else None for name in top],
                [figure.estimate if figure else None] * len(top),
            )
            for (asked, _), table, figure in zip(models, tables, overall, strict=True)
        ]
        listing = "; ".join(
            f"{asked.model.name}: "
            + ", ".join(f"{name} {_figure(table[name]).value}" for name in top[:3] if name in table)
            for (asked, _), table in zip(models, tables, strict=True)
        )
        svg = dots(
            [name + MARK * (name in stars) for name in top],
            rows,
            "flips" if what == "flipped" else "image distances",
            f"Classes that {kind} {'flips' if what == 'flipped' else 'moves'} most. {listing}",
            UNITS[what],
        )
        every = ", ".join(
            f"{asked.model.name} {figure.value}"
            for (asked, _), figure in zip(models, overall, strict=True)
            if figure
        )
        yield Chart(svg, f"Over all classes: {every}.", _strength(models[0][1], kind))


def _top(tables: Sequence[dict[str, Dependence]]) -> list[str]:
    """Classes that stand out in some model, then those with the largest figures."""
    best: dict[str, tuple[bool, float]] = {}
    for table in tables:
        for name, entry in table.items():
            best[name] = max(best.get(name, (False, -1.0)), (entry.stands_out, entry.value))
    return sorted(best, key=lambda name: (*(-x for x in best[name]), name))[:TOP]


CODE = Code(
    words={
        "LEAST": LEAST,
        "RATE": RATE,
        "TOP": TOP,
        "alone": _alone,
        "classes_named": _classes_named,
        "n_classes": _n_classes,
    },
    charts={
        "colorings": _colorings,
        "flipped": partial(_classes, "flipped"),
        "moved": partial(_classes, "moved"),
    },
    cards={"digits": _digits},
    tables=_class_table,
)
