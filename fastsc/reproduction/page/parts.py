"""The page's parts: a claim each, with what the figures say of it, a table and a picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fastsc.reproduction.claims import CLAIMS, Effect, Records, effects_of, over
from fastsc.reproduction.page import drawn
from fastsc.reproduction.page.settings import Show, groups, over_alpha, recommended
from fastsc.reproduction.page.tables import effects_table, method_of, present
from fastsc.reproduction.page.words import Part, Shown, count, figure, listed, seeds_of
from fastsc.reproduction.seeds import Verdict
from fastsc.reproduction.study import Study


def parts_of(study: Study, runs: Records, figures: dict[str, str]) -> Iterator[Part]:
    """Every part for which there are records; the figures' SVG texts go into `figures`."""

    def shown(name: str, picture: drawn.Picture | None) -> tuple[Shown, ...]:
        if picture is None:
            return ()
        file = f"{study.name}-{name}.svg"
        figures[file] = picture.svg
        return (Shown(f"reproduction/{file}", picture.title.replace("\n", " ")),)

    if len(present(study, runs)) > 1:
        longer = [f"`{name}`" for name in study.baselines if study.arms[name].times > 1]
        words = "Every arm that trained for E epochs, on the same network, and the baselines."
        if longer:
            words += " An epoch with both views costs two with one, so that plain training is "
            words += f"given more in {listed(longer)}."
        picture = drawn.plane(study, runs)
        yield Part("Accuracy beside continuity", words, figures=shown("plane", picture))
    yield from _summary(study, runs, shown)
    yield from over_alpha(study, runs, shown)
    for title, question, about in QUESTIONS:
        effects = effects_of(runs, CLAIMS[question], study.default, study.beside)
        if effects:
            pictures = shown(question, drawn.by_question(study, runs, question))
            words = f"{about}{_premise(study, runs, question)} {_sentence(effects)}"
            words += _images(study, runs, question)
            yield Part(title, words, effects_table(study, effects), pictures)
    yield from _claimed(study, runs)
    yield from groups(study, runs, shown)
    yield from recommended(study, runs)


QUESTIONS = (
    (
        "Accuracy",
        "accuracy",
        "The paper's claim: accuracy does not suffer. Tested: top-1 is not below the other arm's "
        "by more than a point (one-sided); on second views it is above it.",
    ),
    (
        "DS under each perturbation (the paper's figure 4)",
        "continuity",
        "The paper's claim: DS falls under each of the four.",
    ),
    (
        "Neighbours (figures 1 and 2)",
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
            f"{n} {one if n == 1 else more}"
            for verdict, one, more in VERDICTS
            if (n := of.count(verdict))
        ]
        words.append(f"beside `{against}` {listed(counts)}")
    return (
        f"Over {seeds_of(effects)}, of {count(len({e.measure for e in effects}), 'measure')}: "
        + ("; ".join(words) + ".")
    )


def _premise(study: Study, runs: Records, question: str) -> str:
    """Whether plain training does what figure 1 says of it."""
    measure = CLAIMS["neighbours"][0]
    found = over(runs, study.reference, measure.key)
    if question != "neighbours" or not found.n:
        return ""
    label = study.arms[study.reference].label
    words = f" With {label}, the former is so for {figure(measure, found)} % of the images"
    return f"{words}{'; of the others it is not true here' if found.value < MOST else ''}."


MOST = 0.5  # of the images, for what is said of them all
# What `fastsc.evaluate` calls the number of images of a question.
SIZES = {
    "continuity": "curves", "neighbours": "neighbours", "gradients": "gradients",
    "robustness": "robustness", "explanations": "explained", "transfer": "transfer", "bias": "bias",
}  # fmt: skip


def _images(study: Study, runs: Records, question: str) -> str:
    """On how many images a network was asked; the intervals say nothing of other images."""
    if question not in SIZES:
        return ""
    asked = [
        record.asked.get("sizes", {}) for (arm, _), record in runs.items()
        if arm in (study.default, *study.beside)
        and any(name.startswith(f"{question}/") for name in record.figures)
    ]  # fmt: skip
    sizes = sorted({size[SIZES[question]] for size in asked if SIZES[question] in size})
    if not sizes:
        return ""
    numbers = " or ".join(f"{n:,}" for n in sizes)
    if question == "continuity":
        return f" Each kind by itself is asked of up to {numbers} images, the rest of all."
    same = ", the same for all networks" if len(sizes) == 1 else ""
    return f" Asked of up to {numbers} images{same}."


def _claimed(study: Study, runs: Records) -> Iterator[Part]:
    """Every claim once more for further arms, each beside its own baselines."""
    for name, against in study.claimed.items():
        measures = [measure for of in CLAIMS.values() for measure in of]
        effects = effects_of(runs, measures, name, against)
        if effects:
            yield Part(
                f"All claims for: {study.arms[name].label}",
                f"`{name}` is {method_of(study, name)}. {_sentence(effects)}",
                effects_table(study, effects),
            )


VERDICTS: tuple[tuple[Verdict, str, str], ...] = (
    ("holds", "holds", "hold"),
    ("does not hold", "does not hold", "do not hold"),
    ("not shown", "is not shown", "are not shown"),
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
