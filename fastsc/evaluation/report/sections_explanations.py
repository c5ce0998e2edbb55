"""The page on explanations: whether what the prediction rests on stays where it was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastsc.evaluation.report.charts import Axes, Dots, dots, legend
from fastsc.evaluation.report.parts import (
    Asked,
    Card,
    Chart,
    Charts,
    Gallery,
    Question,
    Section,
    Shot,
    said_by,
)
from fastsc.evaluation.report.pictures import CARDS, CARDS_EACH, data_uri, shot, title_of
from fastsc.evaluation.report.tables import tables, verdicts
from fastsc.evaluation.report.words import (
    PERCENT,
    PLAIN,
    SPACE,
    factors_text,
    interval_of,
    listed,
    number,
    spoken,
    value_of,
)
from fastsc.evaluation.results.answers import Answer

METHODS = {"IG": "integrated gradients", "Grad-CAM": "Grad-CAM", "LIME": "LIME"}
FOR, AGAINST = (213, 94, 0), (0, 114, 178)  # Okabe and Ito's vermilion and blue
PALE = 0.5  # of the way to white goes the grey picture under a map
ROWS = {
    "{0}/{1}": "in other colours",
    "{0}/{1}/kept": "  prediction kept",
    "{0}/{1}/changed": "  prediction changed",
    "{0}_floor_other/{1}": "another image",
    "{0}_floor_random/{1}": "random weights",
}


def section(question: Question) -> Section:
    """The whole section."""
    return Section(
        "explanations",
        "Explanations",
        "Does what a prediction rests on stay the same when the light changes?",
        said_by(question, _sentences, _more),
        "A rank correlation of 1 is the same order of pixels, 0 what unrelated maps have. The map "
        "of another image and that of a network with random weights are floors: what a map shares "
        "with them it does not owe to this image, or not to what was learnt.",
        verdicts(
            question,
            {f"rank/{method}": f"Agreement of {name}" for method, name in METHODS.items()},
        ),
        tuple(found for asked in question.asked if (found := _gallery(question, asked))),
        tuple(_charts(question)),
        tables(question),
    )


def _sentences(answer: Answer) -> Iterator[str]:
    found = answer.estimates
    first = True
    for method, name in METHODS.items():
        if f"rank/{method}" not in found:
            continue
        what = name[0].upper() + name[1:]
        what += " of" if method == "IG" else " maps of"
        said = (
            f"{what} the same picture in other colours agree with a rank correlation of "
            if first
            else f"{what} it: "
        )
        yield said + spoken(found[f"rank/{method}"], PLAIN) + _floors(answer, method) + "."
        first = False


def _floors(answer: Answer, method: str) -> str:
    """ "; another image’s map reaches 0.08, random weights 0.05"."""
    found = answer.estimates
    floors = [
        f"{said}{number(found[name].value)}"
        for said, name in (
            ("another image’s map reaches ", f"rank_floor_other/{method}"),
            ("random weights ", f"rank_floor_random/{method}"),
        )
        if name in found and np.isfinite(found[name].value)
    ]
    return f"; {', '.join(floors)}" if floors else ""


def _more(answer: Any) -> Iterator[str]:
    found = answer.estimates
    for which, said in (("kept", "is kept"), ("changed", "changes")):
        shown = [
            f"{spoken(found[f'rank/{method}/{which}'], PLAIN)} for {name}"
            for method, name in METHODS.items()
            if f"rank/{method}/{which}" in found
        ]
        if shown:
            yield f"Where the prediction {said}, the maps agree by {listed(shown)}."
    follows = [
        f"{value_of(one, PLAIN)} for {METHODS.get(method, method)} ({interval_of(one, PLAIN)})"
        for method, one in getattr(answer, "with_ds", {}).items()
        if np.isfinite(one.value)
    ]
    if follows:
        yield (
            "Do explanations move where the representation does? Over images, agreement and the "
            f"distance that the representation moves have a rank correlation of {listed(follows)}; "
            "below 0 is yes."
        )
    areas = [
        f"{METHODS[method]} {value_of(found[f'insertion/{method}'], PLAIN)} and "
        f"{value_of(found[f'deletion/{method}'], PLAIN)}"
        for method in METHODS
        if {f"insertion/{method}", f"deletion/{method}"} <= set(found)
    ]
    if areas:
        yield (
            "The confidence’s mean while the most important pixels come into a blurred picture "
            f"(more is better), and while they leave it (less is better): {'; '.join(areas)}."
        )
    if "completeness_error/IG" in found:
        error = found["completeness_error/IG"]
        yield (
            f"With {answer.steps} steps the sum of integrated gradients misses the difference that "
            f"it is to explain by {value_of(error, PERCENT)} of it (n{SPACE}={SPACE}{error.n})."
        )


# --- pictures ------------------------------------------------------------------------------------


def overlaid(pixels: NDArray[np.uint8], drawn: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """A map over its picture in pale grey: vermilion speaks for the class, blue against it.

    Args:
        pixels: (R, R, 3).
        drawn: (s, s) on [-1, 1]; 0 leaves the picture as it is, ±1 covers it.

    Returns:
        (R, R, 3).
    """
    height, width = pixels.shape[:2]
    wide = np.asarray(
        Image.fromarray(drawn.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    )
    grey = np.asarray(Image.fromarray(pixels).convert("L"), np.float64)
    pale = np.repeat((grey + PALE * (255 - grey))[..., None], 3, axis=2)
    colour = np.where((wide > 0)[..., None], np.array(FOR, float), np.array(AGAINST, float))
    cover = np.abs(wide).clip(0, 1)[..., None]
    found: NDArray[np.uint8] = np.rint(pale + cover * (colour - pale)).astype(np.uint8)
    return found


def _gallery(question: Question, asked: Asked) -> Gallery | None:
    """The examples, unchanged and in other colours, with every method's maps of both."""
    most = CARDS if question.alone else CARDS_EACH
    examples = asked.answer.examples[:most]
    if not examples:
        return None
    cards = []
    maps: Any = getattr(asked.answer, "maps", {})
    for place, example in enumerate(examples):
        views = (None, "unchanged"), (example.factors, "in other colours")
        shots = [shot(question, asked, example.index, factors, said) for factors, said in views]
        for method, drawn in maps.items():
            for view, (factors, said) in enumerate(views):
                pixels = asked.model.picture(example.index, factors)
                caption = f"{METHODS.get(method, method)}, {said}"
                alt = f"{title_of(question, example.index)}: map of {caption}"
                uri = data_uri(overlaid(pixels, drawn[place][view]))
                shots.append(Shot(uri, alt, caption, max(pixels.shape[:2])))
        lines = (factors_text(example.factors), *example.lines)
        cards.append(Card(tuple(shots), title_of(question, example.index), lines))
    title = "Where the explanations agree least"
    return Gallery(
        title if question.alone else f"{title}: {asked.model.name}",
        "Maps of the class that the unchanged picture is predicted as, over the pictures in grey: "
        "orange speaks for it, blue against it. Each is drawn on its own scale.",
        tuple(cards),
    )


# --- charts --------------------------------------------------------------------------------------


def _charts(question: Question) -> Iterator[Charts]:
    keys = legend(question)
    known = {name for asked in question.asked for name in asked.answer.estimates}
    methods = [method for method in METHODS if f"rank/{method}" in known]
    yield from _group(
        question,
        "How far two maps agree",
        "Rank correlation over pixels of the map of a picture with that of the same picture in "
        "other colours, and with two that should not resemble it. Mean over images with 95 % "
        "intervals.",
        [
            (METHODS[method], [pattern.format("rank", method) for pattern in ROWS], "rank")
            for method in methods
        ],
        keys,
    )
    yield from _group(
        question,
        "The same by two other measures",
        "Structural similarity of the maps as they are drawn, and the share that the tenth of the "
        "most important pixels has in common, of which unrelated maps have 0.1.",
        [
            (f"{method}, {title}", [p.format(name, method) for p in ROWS], name)
            for name, title in (("ssim", "structural similarity"), ("overlap", "top tenth"))
            for method in methods
        ],
        keys,
    )
    yield from _singles(question, methods, known, keys)


_AXES = {"rank": "rank correlation", "ssim": "structural similarity", "overlap": "in common"}


def _group(
    question: Question,
    title: str,
    note: str,
    wanted: Sequence[tuple[str, list[str], str]],
    keys: tuple[Any, ...],
) -> Iterator[Charts]:
    """Charts of the agreement: (title, names of the measures by row, what they measure)."""
    drawn = []
    for over, names, measure in wanted:
        shown = [
            (name, row.strip() if row.strip() == row else f"– {row.strip()}")
            for name, row in zip(names, ROWS.values(), strict=True)
            if any(name in asked.answer.estimates for asked in question.asked)
        ]
        svg = _dots(question, [n for n, _ in shown], [r for _, r in shown], _AXES[measure], over)
        drawn.append(Chart(svg, "", over[0].upper() + over[1:]))
    if drawn:
        yield Charts(title, note, tuple(drawn), keys)


def _singles(
    question: Question, methods: Sequence[str], known: set[str], keys: tuple[Any, ...]
) -> Iterator[Charts]:
    """Concentration and faithfulness, of the unchanged picture's map."""
    wanted = {
        "entropy": ("Entropy", "share of its maximum", "1: all pixels are as important."),
        "gini": ("Gini coefficient", "Gini coefficient", "0: all pixels are as important."),
        "insertion": ("Insertion", "mean confidence", "More is better."),
        "deletion": ("Deletion", "mean confidence", "Less is better."),
    }
    drawn = []
    for name, (title, axis, caption) in wanted.items():
        shown = [method for method in methods if f"{name}/{method}" in known]
        if shown:
            svg = _dots(question, [f"{name}/{m}" for m in shown], shown, axis, title)
            drawn.append(Chart(svg, caption, title))
    if drawn:
        yield Charts(
            "Concentrated? Faithful?",
            "How unequal the pixels of a map are; and the model’s confidence while the most "
            "important pixels are put into the blurred picture, or taken out of it.",
            tuple(drawn),
            keys,
        )


def _dots(
    question: Question, names: Sequence[str], rows: Sequence[str], axis: str, title: str
) -> Any:
    models = [
        Dots(asked.slot, [asked.answer.estimates.get(name) for name in names])
        for asked in question.asked
    ]
    said = "; ".join(
        f"{asked.model.name}: {value_of(asked.answer[name], PLAIN)} {row.removeprefix('– ')}"
        for asked in question.asked
        for name, row in zip(names, rows, strict=True)
        if name in asked.answer.estimates
    )
    ends = [
        end
        for model in models
        for one in model.found
        if one is not None
        for end in (one.value, one.low)
        if np.isfinite(end)
    ]
    low = min(0.0, *ends) if ends else 0.0
    return dots(rows, models, Axes(axis), f"{title}. {said}", limits=(low * 1.05, 1.03), line=0.0)
