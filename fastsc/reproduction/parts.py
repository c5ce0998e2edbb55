"""The page's parts: a claim each, with what the figures say of it, a table and a picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from fastsc.reproduction import drawn
from fastsc.reproduction.claims import CLAIMS, Effect, Measure, Records, effect_of, effects_of, over
from fastsc.reproduction.study import Study
from fastsc.reproduction.tables import effects_table, present
from fastsc.reproduction.words import (
    NONE,
    count,
    effect,
    listed,
    number,
    percent,
    seeds_of,
    table,
)


@dataclass(frozen=True)
class Shown:
    """A figure: its file, relative to the page, and what it shows in words."""

    path: str
    alt: str


@dataclass(frozen=True)
class Part:
    """A heading with what belongs to it; Markdown."""

    title: str
    words: str
    table: str = ""
    figures: tuple[Shown, ...] = ()


def parts_of(study: Study, runs: Records, figures: dict[str, str]) -> Iterator[Part]:
    """Every part for which there are records; the figures' SVG texts go into `figures`."""

    def shown(name: str, picture: drawn.Picture | None) -> tuple[Shown, ...]:
        if picture is None:
            return ()
        file = f"{study.name}-{name}.svg"
        figures[file] = picture.svg
        return (Shown(f"reproduction/{file}", picture.title.replace("\n", " ")),)

    if len(present(study, runs)) > 1:
        yield Part(
            "Accuracy beside continuity",
            "Every arm that ran whole epochs of the study, each against what it costs.",
            figures=shown("plane", drawn.plane(study, runs)),
        )
    yield from _summary(study, runs, shown)
    yield from _alpha(study, runs, shown)
    for title, question, about in QUESTIONS:
        effects = effects_of(runs, CLAIMS[question], study.default, study.baselines)
        pictures = shown(question, drawn.by_question(study, runs, question))
        if effects:
            words = f"{about} {_sentence(effects)}{_images(study, runs, question)}"
            yield Part(title, words, effects_table(study, effects), pictures)
    yield from _groups(study, runs, shown)


QUESTIONS = (
    (
        "Accuracy",
        "accuracy",
        "The paper's claim: accuracy does not suffer. Here: not below a baseline by more than a "
        "point, one-sided.",
    ),
    (
        "DS under each perturbation (the paper's figure 4)",
        "continuity",
        "The paper's claim: DS falls under each of the four, in networks of two depths.",
    ),
    (
        "Neighbours and a picture of the features (figures 1 and 2)",
        "neighbours",
        "The paper's claim: without the constraint an image's own perturbed view lies farther away "
        "than other images; with it, the views of an image lie close together.",
    ),
    ("Gradients", "gradients", "The paper's claim: the network is smoother in its input."),
    ("Robustness", "robustness", "The paper's claim: attacks succeed less often."),
    (
        "Explanations",
        "explanations",
        "The paper's claim: explanations are better. Measured: how well the maps of an image and "
        "of its perturbed view agree, where the prediction is the same.",
    ),
    (
        "Transfer",
        "transfer",
        "The paper's claim: features transfer better. Measured: probes of frozen features on "
        "digits in random colours.",
    ),
    ("Colour bias", "bias", "The paper's claim: a network looks less at colours that lie."),
)


def _sentence(effects: Sequence[Effect]) -> str:
    """How many of the verdicts are which, beside each baseline."""
    words = []
    for against in dict.fromkeys(found.against for found in effects):
        of = [found.verdict for found in effects if found.against == against]
        counts = [
            f"{of.count(verdict)} {word}" for verdict, word in VERDICTS.items() if verdict in of
        ]
        words.append(f"beside `{against}` {listed(counts)}")
    return (
        f"Over {seeds_of(effects)}, of {count(len({e.measure for e in effects}), 'measure')}: "
        + ("; ".join(words) + ".")
    )


def _images(study: Study, runs: Records, question: str) -> str:
    """On how many images a network was asked; the intervals say nothing of other images."""
    if question in ("accuracy", "continuity"):
        return ""
    asked = {
        record.asked.get("images") for (arm, _), record in runs.items()
        if record.asked and arm in (study.default, *study.baselines)
    }  # fmt: skip
    numbers = [str(n) for n in sorted(n for n in asked if n is not None)]
    return f" Asked of up to {' or '.join(numbers)} images, the same for all." if numbers else ""


VERDICTS = {"holds": "hold", "does not hold": "do not hold", "not shown": "are not shown"}
Show = Callable[[str, drawn.Picture | None], tuple[Shown, ...]]


def _alpha(study: Study, runs: Records, shown: Show) -> Iterator[Part]:
    """Figure 5: accuracy and continuity over alpha."""
    names = present(study, runs, study.groups.get("alpha", ()))
    if len(names) < 3 or names[0] != study.groups["alpha"][0]:
        return
    base = names[0]
    yield Part(
        "Accuracy and DS over alpha (the paper's figure 5)",
        f"The paper's claim: accuracy holds over a wide range of alpha while DS falls. All arms "
        f"train as long as `{base}`, which has no constraint.",
        _beside(study, runs, names, base),
        shown("alpha", drawn.over_alpha(study, runs, names)),
    )


def _summary(study: Study, runs: Records, shown: Show) -> Iterator[Part]:
    """All claims at a glance, beside the baseline that augments."""
    against = study.augmentation
    pictures = [
        picture
        for ratios in (True, False)
        for picture in shown(
            "effects-ratios" if ratios else "effects-points",
            drawn.effects(study, runs, against, ratios=ratios),
        )
    ]
    if pictures:
        yield Part(
            "All claims at a glance",
            f"The default beside {study.arms[against].label}, which costs the same and sees the "
            "same images: what the constraint adds to augmentation.",
            figures=tuple(pictures),
        )


def _groups(study: Study, runs: Records, shown: Show) -> Iterator[Part]:
    """The rest of the grid: groups of arms, each beside its first."""
    for name, (title, words) in GROUPS.items():
        names = present(study, runs, study.groups.get(name, ()))
        if len(names) < LEAST.get(name, 3):
            continue
        if name != "target" and names[0] != study.groups[name][0]:
            continue  # without its base a group compares nothing
        if name == "target":
            yield Part(
                title, words, _targets(runs, names),
                shown(name, drawn.targets(runs, names)),
            )  # fmt: skip
            continue
        picture = drawn.collapse(study, runs, names) if name == "collapse" else None
        yield Part(title, words, _beside(study, runs, names, names[0]), shown(name, picture))


LEAST = {"target": 1, "longer": 2, "collapse": 2}  # arms that make a part
GROUPS = {
    "kinds": (
        "Kinds of DS, and other consistency losses",
        "Each at one alpha: the papers' own for Jensen-Shannon and logit pairing, the others' were "
        "chosen in earlier trials. Jensen-Shannon is AugMix's loss with one augmented view (equal "
        "to timm's), logit pairing is Kannan et al.'s; all on the same step. Beside the first row, "
        "which has no constraint.",
    ),
    "target": (
        "The constraint as a constraint",
        "`--ds-target X` asks for a ds_relative; alpha is found by dual ascent, from different "
        "starting values.",
    ),
    "study": (
        "What the method's options do",
        "One option changed at a time; beside the first row.",
    ),
    "longer": (
        "In a longer training",
        "Twice the epochs of all of the above. Beside the first row.",
    ),
    "collapse": (
        "Collapse",
        "Absolute distances can be cheated: features that shrink to a point have DS 0. Beside the "
        "first row.",
    ),
}
RELATIVE = Measure("val/ds_relative", "ds_relative", "lower", "ratio")
TOP1 = Measure("val/top1", "top-1", "higher", "difference")


def _beside(study: Study, runs: Records, names: Sequence[str], base: str) -> str:
    """A row an arm: figures, and effects beside the base over common seeds."""
    rows = []
    for name in names:
        cells = [f"{study.arms[name].label} (`{name}`)"]
        top1, relative, ds = (over(runs, name, f"val/{k}") for k in ("top1", "ds_relative", "ds"))
        cells += [str(top1.n), percent(top1), number(relative), number(ds, 4), _spread(runs, name)]
        for measure in (TOP1, RELATIVE):
            found = None if name == base else effect_of(runs, measure, name, base)
            cells.append(NONE if found is None else effect(measure, found.found))
        rows.append(cells)
    return table(
        ["arm", "seeds", "top-1", "ds_relative", "ds of its kind", "between images, end / most",
         "top-1, points", "ds_relative, ×"],
        rows,
    )  # fmt: skip


def _spread(runs: Records, arm: str) -> str:
    """The distance between different images at the end of training over its maximum."""
    shares = []
    for (name, _), record in runs.items():
        between = [x for x in record.curve["between"] if x is not None]
        if name == arm and between and max(between) > 0:
            shares.append(between[-1] / max(between))
    return f"{min(shares):.2f}" if shares else NONE


def _targets(runs: Records, names: Sequence[str]) -> str:
    """A row a run: what was asked for, where alpha began and ended, what was reached."""
    rows = []
    for arm, seed in ((name, seed) for name in names for of, seed in sorted(runs) if of == name):
        record = runs[arm, seed]
        target = float(record.options["ds_target"])
        alphas = [x for x in record.curve["alpha"] if x is not None]
        found = record.val["ds_relative"] or math.nan
        rows.append([
            f"`{arm}`, seed {seed}", f"{target:g}", f"{float(record.options['alpha']):g}",
            f"{alphas[-1]:.3g}", f"{found:.3f}", f"{100 * (found / target - 1):+.0f} %",
            f"{100 * (record.val['top1'] or math.nan):.1f}",
        ])  # fmt: skip
    return table(
        ["run", "target", "alpha at first", "at last", "ds_relative", "off by", "top-1"], rows
    )
