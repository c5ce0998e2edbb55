"""The page on robustness: what is still right under attack, and in the worst light and colours."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastsc.evaluation.questions.robustness.attacks import Attack, Norm, radius
from fastsc.evaluation.report.charts import Axes, Curve, Dots, dots, legend, over_strength
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
from fastsc.evaluation.report.pictures import (
    CARDS,
    CARDS_EACH,
    LARGEST,
    TINY,
    data_uri,
    gallery,
    title_of,
)
from fastsc.evaluation.report.tables import tables, verdicts
from fastsc.evaluation.report.words import PERCENT, SPACE, box_text, interval_of, listed, value_of
from fastsc.evaluation.results.answers import Answer
from fastsc.evaluation.results.statistics import Estimate

TITLES = {
    "worst": "Worst of all",
    "fgsm": "FGSM, one step of the gradient",
    "pgd": "PGD, ten steps",
    "square": "Square, without gradients",
    "noise": "Random noise",
}
TOLD: dict[Norm, float] = {"linf": 1.0, "l2": 0.25}  # levels that the sentences name
PHOTOMETRIC = {
    "accuracy/clean": "unchanged",
    "photometric/random": "random colours",
    "photometric/worst": "worst colours",
}


def section(question: Question) -> Section:
    """The whole section."""
    pictures = []
    for asked in question.asked:
        pictures += [_adversaries(question, asked), _worst_colours(question, asked)]
    return Section(
        "robustness",
        "Robustness",
        "What is left of the right answers when somebody looks for the change that does most harm?",
        said_by(question, _sentences, _doubts),
        "An attack that finds nothing proves nothing: the true figures can only be lower. An "
        "attack that worked at one size counts at every larger one.",
        verdicts(
            question,
            {
                "accuracy/clean": "Right answers, unattacked",
                f"accuracy/worst/linf/{TOLD['linf']:g}": (
                    f"Right under every attack at {TOLD['linf']:g}/255"
                ),
                f"accuracy/worst/l2/{TOLD['l2']:g}": (
                    f"Right under every attack at an RMS of {TOLD['l2']:g}/255"
                ),
                "photometric/random": "Right at random colours",
                "photometric/worst": "Right at the worst colours",
            },
        ),
        tuple(found for found in pictures if found),
        tuple(_charts(question)),
        tables(question),
    )


# --- sentences -----------------------------------------------------------------------------------


def _sentences(answer: Answer) -> Iterator[str]:
    found = answer.estimates
    clean = found.get("accuracy/clean")
    of = "" if clean is None else f", of {_in_brackets(clean)} unattacked"
    linf = found.get(f"accuracy/worst/linf/{TOLD['linf']:g}")
    if linf is not None:
        yield (
            f"With no value of a pixel changed by more than {TOLD['linf']:g}/255, a single 8-bit "
            f"step, {_still_right(linf)}{of}."
        )
    l2 = found.get(f"accuracy/worst/l2/{TOLD['l2']:g}")
    if l2 is not None:
        yield (
            f"With a change of RMS {TOLD['l2']:g}/255{_length(answer, TOLD['l2'])}, "
            f"{_still_right(l2)}."
        )
    if {"photometric/random", "photometric/worst"} <= set(found):
        box = getattr(answer, "strengths", None)
        where = f", {box_text(box)}" if box else ""
        yield (
            f"Within the box{where}, {_in_brackets(found['photometric/random'])} of views "
            f"are right at random colours, and {_in_brackets(found['photometric/worst'])} of "
            "images at the worst colours that were found."
        )
    masking = getattr(answer, "masking", ())
    if masking:
        yield (
            "Its gradients seem to be masked, so that it may be less robust than the attacks by "
            f"gradients make it look: {listed([*masking])}."
        )


def _still_right(found: Estimate) -> str:
    return (
        f"{value_of(found, PERCENT)} of the images are still right "
        f"({interval_of(found, PERCENT)}, n{SPACE}={SPACE}{found.n})"
    )


def _in_brackets(found: Estimate) -> str:
    return f"{value_of(found, PERCENT)} ({interval_of(found, PERCENT)})"


def _length(answer: Answer, level: float) -> str:
    side = getattr(answer, "resolution", None)
    if side is None:
        return ""
    return f" (a length of {radius('l2', level, side):.2g} at {side}{SPACE}px)"


def _doubts(answer: Answer) -> Iterator[str]:
    attacks: Sequence[Attack] = getattr(answer, "attacks", ())
    if attacks and not getattr(answer, "masking", ()):
        yield "No sign of masked gradients was seen."


# --- pictures ------------------------------------------------------------------------------------


def _adversaries(question: Question, asked: Asked) -> Gallery | None:
    found = getattr(asked.answer, "adversaries", ())
    found = found[: CARDS if question.alone else CARDS_EACH]
    if not found:
        return None
    title = "Fooled by the smallest change"
    cards = []
    for one in found:
        pixels = asked.model.picture(one.index, None)
        attacked = pixels + 255 * one.change
        times = 127 / max(one.level, 1e-9)
        difference = 127.5 + 255 * times * one.change
        name = title_of(question, one.index)
        shots = (
            (pixels, "unchanged"),
            (attacked, f"changed by {one.level:g}/255"),
            (difference, f"the difference, ×{times:.3g}"),
        )
        cards.append(
            Card(
                tuple(
                    Shot(_uri(shown), f"{name}: {said}", said, max(pixels.shape[:2]))
                    for shown, said in shots
                ),
                name,
                one.lines,
            )
        )
    return Gallery(
        title if question.alone else f"{title}: {asked.model.name}",
        "An image that is right, the same after PGD in L∞, and what was added, made visible: grey "
        "is no change.",
        tuple(cards),
    )


def _uri(shown: NDArray[Any]) -> str:
    """(R, R, 3) on [0, 255]; like `data_uri`, but that noise does not fit into the buffer in which
    PIL optimizes a JPEG."""
    pixels = np.clip(np.round(shown), 0, 255).astype(np.uint8)
    if max(pixels.shape[:2]) <= TINY:
        return data_uri(pixels)
    image, file = Image.fromarray(pixels), io.BytesIO()
    image.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    image.save(file, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def _worst_colours(question: Question, asked: Asked) -> Gallery | None:
    return gallery(
        question,
        asked,
        "The worst colours",
        "Right unchanged, wrong at the worst light and colours that were found within the box.",
    )


# --- charts --------------------------------------------------------------------------------------


def _charts(question: Question) -> Iterator[Charts]:
    keys = legend(question)
    attacks = _attacks(question)
    norms: tuple[Norm, ...] = ("linf", "l2")
    for norm in norms:
        names = [name for name, of in attacks if of == norm]
        if not names:
            continue
        names = ["worst", *names] if len(names) > 1 else names
        drawn = tuple(_curve_chart(question, name, norm) for name in names)
        yield Charts(_HEADINGS[norm], _NOTES[norm] + _BANDS, drawn, keys)
    rows = [
        Dots(asked.slot, [asked.answer.estimates.get(name) for name in PHOTOMETRIC])
        for asked in question.asked
    ]
    if any(one is not None for row in rows for one in row.found[1:]):
        said = "; ".join(
            f"{asked.model.name}: {value_of(asked.answer[name], PERCENT)} {called}"
            for asked in question.asked
            for name, called in PHOTOMETRIC.items()
            if name in asked.answer.estimates
        )
        svg = dots(
            list(PHOTOMETRIC.values()),
            rows,
            Axes("right answers"),
            f"Right answers in other light and colours. {said}",
            limits=(0, 1),
            x_scale=100,
            x_suffix=" %",
        )
        yield Charts(
            "The worst light and colours",
            "Brightness, contrast, saturation and hue anywhere in the box: on average "
            "over random ones, and at the worst that a search found for each image.",
            (Chart(svg, "Share of right answers, with 95 % intervals."),),
            keys,
        )


_HEADINGS = {
    "linf": "Right answers over the largest change of a pixel (L∞)",
    "l2": "Right answers over the size of the whole change (L2)",
}
_NOTES = {
    "linf": "In 8-bit levels, of 255. Each attack by itself, and the worst case: right only where "
    "no attack found anything up to there.",
    "l2": "As the RMS over all values, in 8-bit levels, of 255.",
}
_BANDS = " Bands: 95 % intervals over images. Sizes are not to scale."


def _attacks(question: Question) -> list[tuple[str, Norm]]:
    """(name, norm) of all that ran on some model, in their order."""
    every = (a for asked in question.asked for a in getattr(asked.answer, "attacks", ()))
    return list(dict.fromkeys((a.name, a.norm) for a in every))


def _curve_chart(question: Question, name: str, norm: Norm) -> Chart:
    prefix = f"accuracy/{name}/{norm}/"
    # Places of the norm's levels are the same in all of its charts.
    every = {
        m.name.rpartition("/")[2]
        for asked in question.asked
        for m in asked.answer.measures
        if m.name.startswith("accuracy/") and f"/{norm}/" in m.name
    }
    levels = sorted(every, key=float)
    measured = [
        level
        for level in levels
        if any(prefix + level in asked.answer.estimates for asked in question.asked)
    ]
    told = f"{TOLD[norm]:g}"
    told = told if told in measured else measured[0]
    curves, said = [], []
    for asked in question.asked:
        found = asked.answer.estimates
        points = [
            (place, found[prefix + level])
            for place, level in enumerate(levels, 1)
            if prefix + level in found
        ]
        if "accuracy/clean" in found:
            points = [(0, found["accuracy/clean"]), *points]
        x = np.array([place for place, _ in points], float)
        value, low, high = (
            np.array([getattr(one, end) for _, one in points], float)
            for end in ("value", "low", "high")
        )
        curves.append(Curve(asked.slot, x, value, low, high))
        called = "" if question.alone else f"{asked.model.name} "
        if prefix + told in found:
            said.append(f"{called}{value_of(found[prefix + told], PERCENT)}")
    unit = "/255" if norm == "linf" else "/255 RMS"
    finding = f"At {told}{unit}: {', '.join(said)}"
    svg = over_strength(
        curves,
        Axes(_AXIS[norm], "still right", 100, " %"),
        f"{TITLES[name]}, {_HEADINGS[norm]}. {finding}",
        ticks=[(0.0, "0"), *((float(at), f"{float(x):g}") for at, x in enumerate(levels, 1))],
        limits=(0, 1.02),
    )
    return Chart(svg, finding, TITLES[name])


_AXIS = {"linf": "largest change, of 255", "l2": "RMS of the change, of 255"}
