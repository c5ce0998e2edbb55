"""The page on shifts: right answers under corruptions and in colours that training never saw."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from fastsc.evaluation.questions.shifts.corruptions import (
    CORRUPTIONS,
    WITHOUT_DEGREES,
    case_name,
    shift,
)
from fastsc.evaluation.questions.shifts.question import Look, Shifts
from fastsc.evaluation.report.charts import Axes, Dots, dots, legend
from fastsc.evaluation.report.parts import (
    Asked,
    Card,
    Cell,
    Chart,
    Charts,
    Gallery,
    Question,
    Section,
    Shot,
    Table,
    said_by,
)
from fastsc.evaluation.report.pictures import data_uri, title_of
from fastsc.evaluation.report.tables import tables, verdicts
from fastsc.evaluation.report.words import (
    PERCENT,
    PLAIN,
    SPACE,
    interval_of,
    listed,
    number,
    spoken,
    value_of,
)
from fastsc.evaluation.results.answers import Answer
from fastsc.plotting.inline import INK, MUTED, draw, series

GROUPS = {
    "clean": "unchanged", "noise": "noise", "blur": "blur", "weather": "weather",
    "digital": "digital damage", "colour": "colour casts", "corruptions": "all corruptions",
    "all": "all shifts",
}  # fmt: skip
BESIDE = ("noise", "blur", "weather", "digital", "colour")
WORDS = {
    "jpeg_compression": "JPEG", "elastic_transform": "elastic", "grayscale": "greyscale",
    "gamma_darker": "darkened", "gamma_brighter": "lightened",
    "channel_swap": "swapped channels", "brightness": "added brightness",
    "contrast": "less contrast",
}  # fmt: skip
FAINT, FULL = 0.04, 0.5  # opacity of a cell with no right answers, and with nothing else
CELL = 0.26  # inches a row


def section(question: Question) -> Section:
    """The whole section."""
    return Section(
        "shifts",
        "Shifts",
        "Does it still see what is there when pictures are spoilt, or colours are none it knows?",
        said_by(question, _sentences, _group_sentences),
        _beside(question.asked),
        verdicts(
            question,
            {
                "accuracy/corruptions": "Right answers under corruptions",
                "accuracy/colour": "Right answers under colour casts",
                "accuracy/clean": "Right answers, unchanged",
            },
        ),
        tuple(_galleries(question)),
        tuple(_charts(question)),
        tuple(_named(table) for table in tables(question)),
    )


def kind_words(kind: str) -> str:
    """What a kind is called: "glass blur"."""
    return WORDS.get(kind, kind.replace("_", " "))


def case_words(case: str) -> str:
    """ "fog, severity 3" of "fog/3"; "greyscale", which has no degrees; "blur" of a group."""
    kind, _, severity = case.partition("/")
    if not severity:
        return GROUPS.get(kind) or kind_words(kind)
    return f"{kind_words(kind)}, severity {severity}"


# --- sentences -----------------------------------------------------------------------------------


def _sentences(answer: Answer) -> Iterator[str]:
    found, groups = answer.estimates, getattr(answer, "groups", {})
    clean = found.get("accuracy/clean")
    of = ""
    if clean is not None:
        of = f", against {value_of(clean, PERCENT)} ({interval_of(clean, PERCENT)}) unchanged"
    if "accuracy/corruptions" in found:
        kinds = sum(len(groups.get(group, ())) for group in CORRUPTIONS)
        levels = sorted(getattr(answer, "severities", ()))
        at = f" at severit{'ies' if len(levels) > 1 else 'y'} {listed([str(s) for s in levels])}"
        said = f"Over {kinds} kinds of corruption{at if levels else ''}, "
        yield said + f"{spoken(found['accuracy/corruptions'], PERCENT)} of answers are right{of}."
        of = ""
    if "accuracy/colour" in found:
        said = (
            f"Over {len(groups.get('colour', ()))} colour casts that are none of the four changes, "
        )
        yield said + f"{spoken(found['accuracy/colour'], PERCENT)} are right{of}."
    worst = _worst(answer)
    if worst:
        yield f"Worst is {worst}."


def _worst(answer: Answer) -> str:
    """The case with the fewest right answers, and the kind over its severities."""
    found = answer.estimates
    groups: dict[str, Sequence[str]] = getattr(answer, "groups", {})
    kinds = [kind for of in groups.values() for kind in of if f"accuracy/{kind}" in found]
    if not kinds:
        return ""
    kind = min(kinds, key=lambda kind: found[f"accuracy/{kind}"].value)
    over = "" if kind in WITHOUT_DEGREES else " over its severities"
    one = found[f"accuracy/{kind}"]
    said = f"{kind_words(kind)}{over}: {value_of(one, PERCENT)} ({interval_of(one, PERCENT)})"
    cases = [name for name in found if name.startswith(f"accuracy/{kind}/")]
    if len(cases) > 1:
        case = min(cases, key=lambda name: found[name].value)
        severity = case.rpartition("/")[2]
        said += f", and {value_of(found[case], PERCENT)} at severity {severity}"
    return said


def _group_sentences(answer: Answer) -> Iterator[str]:
    found = answer.estimates
    said = [
        f"{value_of(found[name], PLAIN)} under {GROUPS[group]} ({interval_of(found[name], PLAIN)})"
        for group in BESIDE
        if (name := f"ds_relative/{group}") in found and math.isfinite(found[name].value)
    ]
    if said:
        n = found["accuracy/clean"].n if "accuracy/clean" in found else 0
        yield (
            f"The representation moves by {listed(said)}, in distances between different images"
            + (f"; n{SPACE}={SPACE}{n}." if n else ".")
        )


def _beside(asked: Sequence[Asked]) -> str:
    chances = {getattr(one.answer, "chance", None) for one in asked}
    guessing = ""
    if len(chances) == 1 and (chance := chances.pop()):
        guessing = f"Guessing would be right in {number(100 * chance, 1)}{SPACE}%. "
    return guessing + (
        "Corruptions are ImageNet-C’s, with its parameters, which are lengths in pixels of 224: on "
        "smaller pictures the same severity spoils more."
    )


def _named(table: Table) -> Table:
    """The same with the cases in words; the last cell of a row is the measure's name."""
    rows = tuple(
        (Cell(case_words(row[-1].text.partition("/")[2] or row[0].text)), *row[1:])
        for row in table.rows
    )
    return replace(table, rows=rows)


# --- pictures ------------------------------------------------------------------------------------


def _galleries(question: Question) -> Iterator[Gallery]:
    """One image under every kind, a card a group, as the first model sees it."""
    first = question.asked[0]
    answer = first.answer
    if not isinstance(answer, Shifts) or not answer.looks:
        return
    clean = first.model.picture(answer.image, None)
    title, cards = title_of(question, answer.image), []
    for group, kinds in answer.groups.items():
        shots = [Shot(data_uri(clean), f"{title}: unchanged", "unchanged", clean.shape[0])]
        for look in (look for look in answer.looks if look.kind in kinds):
            pixels = shift(clean, look.kind, look.severity, index=answer.image, seed=answer.seed)
            case = case_words(case_name(look.kind, look.severity))
            shots.append(
                Shot(
                    data_uri(pixels), f"{title}: {case}", kind_words(look.kind), pixels.shape[0]
                )
            )  # fmt: skip
        lines = tuple(_line(question, asked, answer.image, kinds) for asked in question.asked)
        cards.append(Card(tuple(shots), GROUPS.get(group, group).capitalize(), lines))
    levels = sorted(answer.severities)
    yield Gallery(
        "What is done to a picture",
        f"{title}, under every kind, at severity {levels[len(levels) // 2]} of 5 where there are "
        "degrees; and where it is no longer taken for what it is.",
        tuple(cards),
    )


def _line(question: Question, asked: Asked, image: int, kinds: Sequence[str]) -> str:
    """ "plain: wrong under snow (wolf) and fog (sheep)"."""
    looks: tuple[Look, ...] = getattr(asked.answer, "looks", ())
    looks = tuple(look for look in looks if look.kind in kinds)
    name = "" if question.alone else f"{asked.model.name}: "
    if getattr(asked.answer, "image", None) != image or not looks:
        return f"{name}not asked about this picture"
    wrong = [f"{kind_words(look.kind)} ({look.said})" for look in looks if not look.right]
    said = f"wrong under {listed(wrong)}" if wrong else "right under all of them"
    return name + said if name else said[0].upper() + said[1:]


# --- charts --------------------------------------------------------------------------------------


def _charts(question: Question) -> Iterator[Charts]:
    names = {measure.name for asked in question.asked for measure in asked.answer.measures}
    groups = [group for group in ("clean", *BESIDE) if f"accuracy/{group}" in names]
    if groups:
        yield Charts(
            "By group",
            "Means over the kinds of a group and their severities, with 95 % intervals over "
            "images. Movement is in distances between different images.",
            (
                Chart(
                    _by_group(question, groups, "accuracy"), "Right answers.", "Right answers"
                ),
                Chart(
                    _by_group(question, groups[1:], "ds_relative"),
                    "Movement of the representation; at 1 it moves as far as to another image.",
                    "Movement",
                ),
            ),
            legend(question),
        )  # fmt: skip
    grids = tuple(
        Chart(
            _grid(asked),
            "Right answers in %; the fuller the colour, the more.",
            "" if question.alone else asked.model.name,
        )
        for asked in question.asked
        if getattr(asked.answer, "groups", None)
    )
    if grids:
        yield Charts(
            "By kind and severity",
            "Severities from 1, mild, to 5. Kinds without degrees have one value.",
            grids,
        )


def _by_group(question: Question, groups: Sequence[str], measure: str) -> Any:
    share = measure == "accuracy"
    rows = [
        Dots(asked.slot, [asked.answer.estimates.get(f"{measure}/{group}") for group in groups])
        for asked in question.asked
    ]
    unit = PERCENT if share else PLAIN
    said = "; ".join(
        f"{asked.model.name}: {value_of(found, unit)} under {GROUPS[group]}"
        for asked in question.asked
        for group in groups
        if (found := asked.answer.estimates.get(f"{measure}/{group}"))
    )
    what = "Right answers" if share else "Movement of the representation"
    return dots(
        [GROUPS[group] for group in groups],
        rows,
        Axes("right answers" if share else "distances between images"),
        f"{what} by group. {said}",
        limits=(0, 1.02 if share else None),
        line=None if share else 1.0,
        x_scale=100 if share else 1,
        x_suffix=f"{SPACE}%" if share else "",
    )


def _grid(asked: Asked) -> Any:
    """A row a kind, a column a severity, in each cell the share of right answers in %."""
    answer: Any = asked.answer
    groups: dict[str, Sequence[str]] = answer.groups
    kinds = [kind for of in groups.values() for kind in of]
    levels = sorted(answer.severities)
    starts = [sum(len(of) for of in list(groups.values())[:i]) for i in range(1, len(groups))]

    def paint(axis: Any) -> None:
        from matplotlib.patches import Rectangle

        for y, kind in enumerate(kinds):
            for x, level in enumerate(levels):
                found = answer.estimates.get(f"accuracy/{case_name(kind, level)}")
                wide = len(levels) if kind in WITHOUT_DEGREES else 1
                if found is None or not math.isfinite(found.value) or (wide > 1 and x):
                    continue
                axis.add_patch(
                    Rectangle(
                        (x - 0.47, y - 0.45), wide - 0.06, 0.9, facecolor=series(asked.slot),
                        edgecolor="none", alpha=FAINT + (FULL - FAINT) * found.value,
                    )
                )  # fmt: skip
                axis.text(
                    x + (wide - 1) / 2, y, number(100 * found.value, 0),
                    ha="center", va="center", color=INK,
                )  # fmt: skip
        for start in starts:
            axis.axhline(start - 0.5, color=MUTED, linewidth=0.8)
        axis.set_xticks(range(len(levels)), [str(level) for level in levels])
        axis.set_yticks(range(len(kinds)), [kind_words(kind) for kind in kinds])
        axis.set_xlim(-0.55, len(levels) - 0.45)
        axis.set_ylim(len(kinds) - 0.5, -0.5)
        axis.grid(visible=False)
        axis.tick_params(length=0)
        axis.set_xlabel("severity")

    finding = f"{asked.model.name}: right answers by kind and severity. Worst: {_worst(answer)}"
    return draw(paint, finding, height=0.6 + CELL * len(kinds))
