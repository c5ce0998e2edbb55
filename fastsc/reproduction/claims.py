"""The paper's claims, as figures of records: effect, interval over seeds, verdict per baseline."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from fastsc.reproduction.records import Record
from fastsc.reproduction.seeds import (
    SeedEstimate,
    Verdict,
    difference_over,
    mean_over,
    ratio_over,
    verdict_above,
    verdict_below,
    verdict_not_worse,
)
from fastsc.reproduction.study import Study

Records = Mapping[tuple[str, int], Record]
MARGIN = 0.01  # of top-1: how much less still counts as holding
# At which DS is claimed to fall, each kind alone: the strengths that the recipes train with.
STRENGTHS = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
TO_REFERENCE, TO_BASELINE = 0.25, 0.5  # goals for ds_relative, as shares of theirs


@dataclass(frozen=True)
class Measure:
    """A figure of a record, and what is claimed of it.

    Attributes:
        key: "val/top1", or a figure's "question/name".
        label: What a reader sees.
        better: Which way is better.
        effect: "ratio" to the baseline's, "difference" from it, or "not worse": a difference of at
            least -MARGIN, one-sided.
        kind: Of the perturbation, where it is of one alone.
    """

    key: str
    label: str
    better: Literal["lower", "higher"]
    effect: Literal["ratio", "difference", "not worse"]
    kind: str = ""

    @property
    def directed(self) -> str:
        """The label with an arrow to the better side."""
        return f"{self.label} {'↓' if self.better == 'lower' else '↑'}"


def _ratio(key: str, label: str, kind: str = "") -> Measure:
    """A figure that should fall, over the baseline's."""
    return Measure(key, label, "lower", "ratio", kind)


def _share(key: str, label: str, better: Literal["lower", "higher"] = "higher") -> Measure:
    """A share, less the baseline's."""
    return Measure(key, label, better, "difference")


TOP1 = Measure("val/top1", "top-1", "higher", "not worse")
RELATIVE = _ratio("val/ds_relative", "ds_relative, all four together")
CLAIMS: dict[str, tuple[Measure, ...]] = {
    "accuracy": (TOP1, _share("val/top1_perturbed", "top-1, second views")),
    "continuity": (
        RELATIVE,
        *(
            _ratio(f"continuity/ds_relative/{kind}/{at:g}", f"ds_relative, {kind}", kind)
            for kind, at in STRENGTHS.items()
        ),
        _ratio("continuity/flips", "predictions that flip"),
    ),
    "neighbours": (
        _share(
            "neighbours/farther_than_nearest",
            "own perturbed view farther than the nearest other image",
            "lower",
        ),
        _ratio("embedding/spread", "an image’s views, spread over its class’s"),
    ),
    "gradients": (
        _ratio("gradients/gradient_norm", "input gradient, norm"),
        _share("gradients/gradient_cosine", "gradients of both views, cosine × 100"),
        *(_ratio(f"gradients/lipschitz/{kind}", f"slope along {kind}") for kind in STRENGTHS),
    ),
    "robustness": (
        _share("robustness/photometric/random", "right in random colors"),
        _share("robustness/photometric/worst", "right in the worst colors"),
        _share("robustness/accuracy/worst/linf/1", "right under attacks, linf 1/255"),
        _share("robustness/accuracy/worst/l2/0.5", "right under attacks, RMS 0.5/255"),
    ),
    "shifts": (
        _share("shifts/accuracy/corruptions", "right under corruptions"),
        _share("shifts/accuracy/colour", "right under color casts"),
    ),
    "explanations": tuple(
        _share(f"explanations/rank/{method}/kept", f"{name}, rank correlation of both views × 100")
        for method, name in (
            ("IG", "integrated gradients"),
            ("Grad-CAM", "Grad-CAM"),
            ("LIME", "LIME"),
        )
    ),
    "transfer": (
        _share("transfer/probe/accuracy", "linear probe, accuracy"),
        _share("transfer/knn20/accuracy", "20 nearest neighbours, accuracy"),
    ),
    "bias": (
        _share("bias/accuracy/random", "right in random colors"),
        _share("bias/accuracy/reversed", "right in another class’s colors"),
        _share("bias/probe/colour", "color read from the features", "lower"),
    ),
}


@dataclass(frozen=True)
class Effect:
    """An arm against a baseline in one measure.

    Attributes:
        measure, arm, against: What of whom.
        own, theirs: The arm's and the baseline's figure, over the seeds that both have.
        estimate: The effect.
        verdict: On the claim that the arm is better, or not worse.
    """

    measure: Measure
    arm: str
    against: str
    own: SeedEstimate
    theirs: SeedEstimate
    estimate: SeedEstimate
    verdict: Verdict

    @property
    def bound(self) -> float:
        """What the claim says the estimate is below or above."""
        if self.measure.effect == "not worse":
            return -MARGIN
        return 1.0 if self.measure.effect == "ratio" else 0.0


def value_of(record: Record, key: str) -> float | None:
    """A figure by its key; None where the record lacks it, as collapsed features ds_relative."""
    if key == RELATIVE.key and record.collapsed:
        return None
    if key.startswith("val/"):
        return record.val.get(key.removeprefix("val/"))
    return record.figures.get(key)


def number_of(record: Record, key: str) -> float:
    """A figure by its key; NaN where the record lacks it."""
    value = value_of(record, key)
    return math.nan if value is None else value


def values_of(records: Records, arm: str, key: str) -> dict[int, float]:
    """A figure of an arm by seed, of the seeds that have it."""
    values = {}
    for (name, seed), record in sorted(records.items()):
        value = value_of(record, key) if name == arm else None
        if value is not None:
            values[seed] = value
    return values


def estimate_of(records: Records, arm: str, key: str) -> SeedEstimate:
    """A figure of an arm over its seeds."""
    return mean_over(list(values_of(records, arm, key).values()))


def effect_of(records: Records, measure: Measure, arm: str, against: str) -> Effect | None:
    """The effect over the seeds that both arms have; None where there is no such seed."""
    own, theirs = (values_of(records, name, measure.key) for name in (arm, against))
    seeds = sorted(own.keys() & theirs.keys())
    if not seeds:
        return None
    a, b = [own[seed] for seed in seeds], [theirs[seed] for seed in seeds]
    effect = ratio_over(a, b) if measure.effect == "ratio" else difference_over(a, b)
    return Effect(
        measure, arm, against, mean_over(a), mean_over(b), effect, _verdict(measure, effect)
    )


def _verdict(measure: Measure, effect: SeedEstimate) -> Verdict:
    if measure.effect == "not worse":
        return verdict_not_worse(effect, MARGIN)
    none = 1.0 if measure.effect == "ratio" else 0.0
    of = verdict_below if measure.better == "lower" else verdict_above
    return of(effect, none)


def effects_of(
    records: Records, measures: Iterable[Measure], arm: str, baselines: Sequence[str]
) -> list[Effect]:
    """Every effect that the records can tell: a measure against each baseline."""
    effects = (effect_of(records, m, arm, against) for m in measures for against in baselines)
    return [effect for effect in effects if effect is not None]


@dataclass(frozen=True)
class Goal:
    """One line of what the recommended default is meant to reach: at most, or at least, `bound`."""

    label: str
    measure: Measure
    against: str
    estimate: SeedEstimate
    bound: float
    verdict: Verdict


def goals_of(study: Study, records: Records) -> list[Goal]:
    """ds_relative against plain training and, by the stricter limit, against baselines that see the
    same views; top-1 against each baseline."""
    default, goals = study.default, list[Goal]()
    paired = [name for name in study.baselines if not study.plain(name)]
    limits = {study.reference: TO_REFERENCE, **dict.fromkeys(paired, TO_BASELINE)}
    for against, limit in limits.items():
        effect = effect_of(records, RELATIVE, default, against)
        if effect is not None:
            label = f"ds_relative over that of {study.arms[against].label}, at most {limit:g}"
            verdict = verdict_below(effect.estimate, limit)
            goals.append(Goal(label, RELATIVE, against, effect.estimate, limit, verdict))
    for effect in effects_of(records, [TOP1], default, study.baselines):
        label = f"top-1 less that of {study.arms[effect.against].label}"
        label += f", at least −{100 * MARGIN:g} point"
        goals.append(
            Goal(label, TOP1, effect.against, effect.estimate, effect.bound, effect.verdict)
        )
    return goals
