"""How robust is a classifier? Accuracy under attack, and under the worst light and colors.

Nothing here proves robustness: an attack that fails may be a weak one. So gradients are not taken
at their word: an attack that does without them and plain noise run next to those that follow them,
and signs of masked gradients are reported (Athalye et al., arXiv 1802.00420; Carlini et al., arXiv
1902.06705).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from fastsc.cli.packages import needed
from fastsc.errors import UserError
from fastsc.evaluation.models.classifier import Classifier
from fastsc.evaluation.questions.robustness.attacks import (
    QUERIES,
    STEPS,
    STRIDE,
    SUREST,
    Attack,
    Norm,
    Target,
    possible,
)
from fastsc.evaluation.questions.robustness.masking import signs
from fastsc.evaluation.questions.robustness.photometric import photometric
from fastsc.evaluation.results.answers import (
    Answer,
    Arrays,
    Example,
    PartCache,
    Rows,
    compute,
    in_parts,
)
from fastsc.evaluation.results.measures import Measure, Name
from fastsc.evaluation.views import KINDS, Indices, Viewer, choose, slices
from fastsc.pipelines import Pipeline

LINF = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 64.0)  # 8-bit levels; the last hides nearly all
L2 = (0.125, 0.25, 0.5, 1.0, 2.0)  # RMS in 8-bit levels
ATTACKS = (
    Attack("fgsm", "linf", LINF),
    Attack("pgd", "linf", LINF, tries=2),
    Attack("square", "linf", (2.0, 8.0)),
    Attack("noise", "linf", LINF, tries=4),
    Attack("pgd", "l2", L2, tries=2),
)
PART = 8  # images of 224 px in a part, and in a backward pass; of small ones up to eight times more
SHOWN = 2  # images of a part that are kept as the attack left them
N_EXAMPLES = 6
THOROUGH = {"random": 64, "sobol": 128, "steps": 8}  # of the photometric search


@dataclass(frozen=True, eq=False)
class Adversary:
    """An image that the model has right, and the change at which it does not.

    Attributes:
        index: Dataset index.
        change: (R, R, 3) float32 on [-1, 1], to be added to the image on [0, 1].
        level: The largest change of a value, in 8-bit levels.
        lines: What to say of it.
    """

    index: int
    change: NDArray[np.float32]
    level: float
    lines: tuple[str, ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class Robustness(Answer):
    """Answer of `robustness`.

    Attributes:
        attacks: Those that ran.
        masking: Signs that gradients are masked, one sentence each; empty: none was seen.
        adversaries: Of PGD in L-inf, those fooled by the smallest change first.
        resolution: Side of the images, on which the length of an L2 change depends.
        strengths: Of brightness, contrast, saturation, hue: the box of the worst colors.
    """

    question: ClassVar[str] = "robustness"
    attacks: tuple[Attack, ...]
    masking: tuple[str, ...]
    adversaries: tuple[Adversary, ...]
    resolution: int
    strengths: tuple[float, float, float, float]


def robustness(
    model: Classifier,
    loader: Pipeline,
    *,
    labels: NDArray[np.int64] | None = None,
    n: int | None = 24,
    attacks: Sequence[Attack] = ATTACKS,
    thorough: bool = False,
    seed: int = 0,
    cache: PartCache = compute,
) -> Robustness:
    """Accuracy on images that were changed to be taken for something else.

    Attacked are images x on [0, 1] as the loader decodes them; each of `attacks` may change them
    within a ball, whose size grows by its levels. "accuracy/ATTACK/NORM/LEVEL" is the share that
    this attack, with all its tries, fooled neither there nor at a smaller level of its own, nor was
    wrong unchanged: its own result, whatever the others found. "accuracy/worst/NORM/LEVEL" is the
    share that no attack in this norm fooled at that or a smaller level, the pointwise worst case.
    Both fall with the level, as larger balls contain the smaller; what was found is not searched
    again. A tie counts for the class that comes first. Levels are 8-bit ones: the largest change of
    a value in "linf", its RMS in "l2" (`attacks.radius` has the length).

    In addition: the same images at random and at the worst light and colors within the loader's
    strengths (`fastsc.evaluation.questions.robustness.photometric`). Attacks run in float32 always.

    Args, besides those of all questions (`fastsc.evaluation.questions`):
        attacks: Different ones.
        thorough: Search the box of light and colors longer: twice the passes.

    Raises:
        UserError: No image's right output is known, or scipy is missing.
    """
    labels = (loader.index.targets if labels is None else labels).astype(np.int64)
    some = choose(loader, n, seed, right_images(loader, labels))
    right = labels[some]
    assert (right < model.n_classes).all(), "a label that the model has no output for"
    viewer, s = Viewer(model, loader), loader.settings
    target = Target(model, s.mean, s.std)
    attacks, why = possible(target, attacks, s.resolution)
    # Whose images are attacked together: never as the loader's batches have it.
    parts = slices(len(some), max(1, round(PART * min(8.0, (224 / s.resolution) ** 2))))

    def cached(part: str, what: Mapping[str, object], work: partial[Arrays]) -> Arrays:
        settings = {**what, "seed": seed, "part": len(some[parts[0]])}
        return in_parts(
            cache,
            part,
            parts,
            settings,
            lambda rows: work(some[rows], right[rows]),
            lambda rows: {"images": some[rows].tolist(), "labels": right[rows].tolist()},
        )

    search = THOROUGH if thorough else {}
    photo = Rows(some, photometric(viewer, some, right, seed=seed, cache=cache, **search))
    clean = cached("unchanged", {}, partial(_unchanged, viewer, target))
    attacked = {
        attack.key: cached(
            attack.key.replace("/", "-"),
            {
                "levels": attack.levels,
                "tries": attack.tries,
                "search": (STEPS, STRIDE, SUREST, QUERIES),
            },
            partial(_attacked, viewer, target, attack, seed),
        )
        for attack in attacks
    }
    least = {key: columns["least"] for key, columns in attacked.items()}
    tables, measures = _tables(attacks, some, clean, least)
    return Robustness(
        tables={**tables, "photometric": photo},
        measures=(
            *measures,
            Measure(Name("photometric", "random"), "rate", "photometric", ("photometric_random",)),
            Measure(Name("photometric", "worst"), "share", "photometric", ("photometric_worst",)),
        ),
        examples=tuple(_examples(model, photo, clean["correct"], right)),
        seed=seed,
        left_out=() if why is None else (why,),
        attacks=attacks,
        masking=signs(attacks, least, clean["has_gradient"] > 0),
        adversaries=tuple(_adversaries(model, some, clean, attacked.get("pgd/linf"))),
        resolution=s.resolution,
        strengths=s.strengths,
    )


def right_images(loader: Pipeline, labels: NDArray[np.int64]) -> Indices:
    """The images whose right output is known; a UserError without any, or without scipy."""
    needed("scipy", "robustness: the search for the worst colors")
    usable = loader.index.usable
    known = usable[labels[usable] >= 0]
    if not len(known):
        raise UserError(f"robustness: what is right is known of no image in {loader.index.root}")
    return known


def levels_of(attacks: Sequence[Attack], norm: Norm) -> tuple[float, ...]:
    """All levels of the attacks in a norm, ascending."""
    return tuple(sorted({level for a in attacks if a.norm == norm for level in a.levels}))


# --- parts ---------------------------------------------------------------------------------------


def _pixels(viewer: Viewer, index: Indices, title: str) -> torch.Tensor:
    """(m, 3, R, R) float32 on [0, 1], contiguous."""
    pixels = torch.cat([images.pixels for images in viewer.images(index, title)])
    return (pixels.permute(0, 3, 1, 2).float() / 255).contiguous()


def _unchanged(viewer: Viewer, target: Target, index: Indices, right: NDArray[np.int64]) -> Arrays:
    """Columns (m,): "predicted", "confidence", "correct", "has_gradient"."""
    images = _pixels(viewer, index, "robustness: unchanged")
    labels = torch.from_numpy(right).to(images.device)
    logits = target.logits(images)
    predicted = logits.argmax(1)
    return {
        "predicted": predicted.cpu().numpy(),
        "confidence": logits.softmax(1).amax(1).cpu().numpy(),
        "correct": (predicted == labels).double().cpu().numpy(),
        "has_gradient": target.has_gradient(images, labels).astype(np.float64),
    }


def _attacked(
    viewer: Viewer,
    target: Target,
    attack: Attack,
    seed: int,
    index: Indices,
    right: NDArray[np.int64],
) -> Arrays:
    """Columns (m,) of `AttackResult`; of PGD in L-inf also "shown" (k,), the rows that fell first,
    and "change" (k, R, R, 3) float16, which is finer than their levels."""
    title = f"robustness: {attack.name}, {attack.norm}"
    images = _pixels(viewer, index, title)
    labels = torch.from_numpy(right).to(images.device)
    walked = target.walk(attack, images, labels, key=(seed, int(index[0])), title=title)
    columns: Arrays = {
        "least": walked.least,
        "predicted": walked.predicted,
        "confidence": walked.confidence,
    }
    if attack.key == "pgd/linf":
        fell = np.flatnonzero((walked.least > 0) & np.isfinite(walked.least))
        shown = fell[np.argsort(walked.least[fell], kind="stable")][:SHOWN]
        at = torch.from_numpy(shown).to(images.device)
        change = (walked.images[at] - images[at]).permute(0, 2, 3, 1)
        columns |= {"shown": index[shown], "change": change.half().cpu().numpy()}
    return columns


# --- figures -------------------------------------------------------------------------------------


def _tables(
    attacks: Sequence[Attack], index: Indices, clean: Arrays, least: Mapping[str, NDArray]
) -> tuple[dict[str, Rows], list[Measure]]:
    """One table a norm: "correct", and "ATTACK/LEVEL" and "worst/LEVEL" of 0 and 1."""
    tables = {"unchanged": Rows(index, clean)}
    measures = [Measure(Name("accuracy", "clean"), "share", "unchanged", ("correct",))]
    norms: tuple[Norm, ...] = ("linf", "l2")
    for norm in norms:
        of = [attack for attack in attacks if attack.norm == norm]
        if not of:
            continue
        worst = np.min([least[attack.key] for attack in of], axis=0)
        curves = [
            *((a.name, a.levels, least[a.key]) for a in of),
            ("worst", levels_of(of, norm), worst),
        ]
        columns = {}
        for name, levels, first in curves:
            columns[f"{name}/least"] = first
            for level in levels:
                column = f"{name}/{level:g}"
                columns[column] = (first > level).astype(np.float64)
                called = Name("accuracy", f"{name}/{norm}", f"{level:g}")
                measures.append(Measure(called, "share", norm, (column,)))
        tables[norm] = Rows(index, columns)
    return tables, measures


def _adversaries(
    model: Classifier, index: Indices, clean: Arrays, attacked: Arrays | None
) -> Iterator[Adversary]:
    if attacked is None:
        return
    rows = np.searchsorted(index, attacked["shown"])
    for at in np.argsort(attacked["least"][rows], kind="stable"):
        row = rows[at]
        before, after = (
            f"{model.class_name(int(of['predicted'][row]))} ({100 * of['confidence'][row]:.0f} %)"
            for of in (clean, attacked)
        )
        yield Adversary(
            int(index[row]),
            attacked["change"][at].astype(np.float32),
            float(attacked["least"][row]),
            (f"{before} → {after}",),
        )


def _examples(
    model: Classifier, photo: Rows, correct: NDArray[np.float64], right: NDArray[np.int64]
) -> Iterator[Example]:
    """Images that are right unchanged and furthest from it at the worst colors found."""
    columns = photo.columns
    fell = np.flatnonzero((correct > 0) & (columns["photometric_worst"] == 0))
    for row in fell[np.argsort(columns["margin"][fell], kind="stable")][:N_EXAMPLES]:
        yield Example.of(
            photo.index[row],
            np.array([columns[f"worst/{kind}"][row] for kind in KINDS]),
            f"{model.class_name(int(right[row]))} unchanged; here another class is ahead, by "
            f"{-columns['margin'][row]:.2g} in logits",
            f"right in {100 * columns['photometric_random'][row]:.0f} % of random colors",
        )
