"""Charts of bias: accuracy by colouring, what a probe reads, and classes beside each other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from markupsafe import Markup

from fastsc.datasets.colormnist import FOLDERS
from fastsc.evaluation.questions.bias.axes import WHATS, Dependence, What
from fastsc.evaluation.questions.bias.colour_bias import CHANCE
from fastsc.evaluation.questions.bias.question import Bias
from fastsc.evaluation.report.charts import Axes, Dots, dots, legend
from fastsc.evaluation.report.parts import Chart, Charts, Question
from fastsc.evaluation.report.words import PERCENT, PLAIN, SPACE, strength_text, value_of
from fastsc.evaluation.results.statistics import Estimate
from fastsc.evaluation.views import KINDS
from fastsc.plotting.inline import INK, MUTED, draw, series

PROBES = {
    "probe/colour": "colour, features",
    "pixels/colour": "colour, pixels",
    "probe/shape": "shape, features",
    "pixels/shape": "shape, pixels",
}
TOP = 8  # classes of a chart
MARK = " *"  # behind the name of a class that stands out
OVERALL: dict[What, str] = {"moved": "axis", "flipped": "axis_flips"}

Named = Sequence[tuple[int, str, Bias]]  # (slot, model, answer)


def colour_charts(question: Question, named: Named) -> Iterator[Charts]:
    """Of Color MNIST: the three folders, and the probes."""
    drawn = []
    names = [f"accuracy/{folder}" for folder in FOLDERS]
    if said := _figures(named, names):
        groups = [
            (slot, [answer[name] for name in names]) for slot, _, answer in _with(named, names)
        ]
        svg = bars(FOLDERS, groups, f"Digits that are read right by their colours. {said}")
        drawn.append(Chart(svg, "Digits that are read right.", "Accuracy by colouring"))
    if said := _figures(named, list(PROBES)):
        svg = dots(
            list(PROBES.values()),
            [
                Dots(slot, [answer[name] for name in PROBES])
                for slot, _, answer in _with(named, list(PROBES))
            ],
            Axes("digits that the probe reads right"),
            f"What linear probes read. {said}",
            limits=(0, 1),
            line=CHANCE,
            x_scale=100,
            x_suffix=" %",
        )
        drawn.append(
            Chart(
                svg,
                "Linear probes of the features, and of raw pixels, in random colours.",
                "What can be read from it",
            )
        )
    if drawn:
        yield Charts(
            "Colour or shape",
            "The same test digits in their class’s colour, in any, and in another class’s, with "
            f"95{SPACE}% intervals; the dotted line is chance.",
            tuple(drawn),
            legend(question),
            wide=True,
        )


def bars(
    groups: Sequence[str], models: Sequence[tuple[int, Sequence[Estimate]]], finding: str
) -> Markup:
    """A group of bars a name, a bar with its interval and its value a model; shares.

    Args:
        groups: Under the axis.
        models: (slot, a share a group).
        finding: In words.
    """
    width = 0.8 / len(models)

    def paint(axis: Any) -> None:
        axis.axhline(CHANCE, color=MUTED, linewidth=1, linestyle=(0, (2, 2)))
        for place, (slot, found) in enumerate(models):
            for group, one in enumerate(found):
                x = group + (place - (len(models) - 1) / 2) * width
                axis.bar(x, one.value, 0.9 * width, color=series(slot), alpha=0.75)
                axis.plot([x, x], [one.low, one.high], color=INK, linewidth=1.4)
                axis.text(
                    x, one.high + 0.02, f"{100 * one.value:.0f}", ha="center", va="bottom"
                )  # fmt: skip
        axis.set_xticks(range(len(groups)), list(groups))
        axis.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
        axis.set_ylim(0, 1.13)
        axis.grid(visible=False, axis="x")
        axis.tick_params(axis="x", length=0)

    return draw(paint, finding)


def _with(named: Named, names: Sequence[str]) -> Named:
    return [one for one in named if set(names) <= set(one[2].estimates)]


def _figures(named: Named, names: Sequence[str]) -> str:
    return "; ".join(
        f"{model}: "
        + ", ".join(
            f"{PROBES.get(n, n.split('/')[-1])} {value_of(answer[n], PERCENT)}" for n in names
        )
        for _, model, answer in _with(named, names)
    )


# --- class by class ------------------------------------------------------------------------------


def class_charts(question: Question, named: Named) -> Iterator[Charts]:
    """The classes that depend most on each kind: how far they move, and how often they flip."""
    titles = {
        "flipped": "Whose prediction each kind decides",
        "moved": "Whose representation each kind moves",
    }
    notes = {
        "flipped": "Share of predictions that flip",
        "moved": "Distance that the representation moves, in distances between images",
    }
    of_some = "" if question.alone else ", in some model"
    for what in reversed(WHATS):
        drawn = [chart for kind in KINDS if (chart := _class_chart(named, kind, what)) is not None]
        if drawn:
            yield Charts(
                titles[what],
                f"{notes[what]} when one kind changes alone, both directions averaged, with "
                f"95{SPACE}% intervals over the class’s images: the {TOP} classes with the most, "
                f"those that stand out first. A star: more than in all classes{of_some}, beyond "
                "what chance explains. Faint: over all classes.",
                tuple(drawn),
                legend(question),
            )


def _class_chart(named: Named, kind: str, what: What) -> Chart | None:
    tables = [
        {one.class_name: one for one in answer.dependence if (one.kind, one.what) == (kind, what)}
        for _, _, answer in named
    ]
    tables = [
        {name: one for name, one in table.items() if math.isfinite(one.value)} for table in tables
    ]
    top = _top(tables)
    if not top:
        return None
    stars = {one.class_name for table in tables for one in table.values() if one.stands_out}
    overall = f"{OVERALL[what]}/{kind}"
    percent = what == "flipped"
    unit = PERCENT if percent else PLAIN
    rows = [
        Dots(
            slot,
            [_estimate(table.get(name), answer.seed) for name in top],
            [answer.estimates.get(overall)] * len(top),
        )
        for (slot, _, answer), table in zip(named, tables, strict=True)
    ]
    said = "; ".join(
        f"{model}: "
        + ", ".join(
            f"{name} {value_of(found, unit)}"
            for name in top[:3]
            if (found := _estimate(table.get(name), answer.seed)) is not None
        )
        for (_, model, answer), table in zip(named, tables, strict=True)
    )
    strength = strength_text(kind, named[0][2].strengths[KINDS.index(kind)])
    svg = dots(
        [name + MARK * (name in stars) for name in top],
        rows,
        Axes("flips" if percent else "image distances"),
        f"Classes that {kind} {'flips' if percent else 'moves'} most. {said}",
        x_scale=100 if percent else 1,
        x_suffix=" %" if percent else "",
    )
    every = ", ".join(
        f"{model} {value_of(answer[overall], unit)}"
        for _, model, answer in named
        if overall in answer.estimates
    )
    return Chart(svg, f"Over all classes: {every}.", f"{kind} {strength}")


def _top(tables: Sequence[dict[str, Dependence]]) -> list[str]:
    """Classes that stand out in some model, then those with the largest figures."""
    best: dict[str, tuple[bool, float]] = {}
    for table in tables:
        for name, one in table.items():
            best[name] = max(best.get(name, (False, -1.0)), (one.stands_out, one.value))
    return sorted(best, key=lambda name: (*(-x for x in best[name]), name))[:TOP]


def _estimate(one: Dependence | None, seed: int) -> Estimate | None:
    if one is None:
        return None
    return Estimate(one.value, one.low, one.high, one.n, seed, "bootstrap")
