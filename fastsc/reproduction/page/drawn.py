"""A study's figures: which numbers of its records are drawn, under which finding."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from fastsc.reproduction import figures as fig
from fastsc.reproduction.claims import (
    CLAIMS,
    MARGIN,
    RELATIVE,
    STRENGTHS,
    TO_BASELINE,
    TOP1,
    Measure,
    effects_of,
    number_of,
)
from fastsc.reproduction.page.results import Results
from fastsc.reproduction.page.words import capitalized, effect, seeds, signed
from fastsc.reproduction.records import Record
from fastsc.training.alpha import TOLERANCE, near

TOP1_AXIS = "top-1 on unchanged images, % (higher is better)"
DS_AXIS = "ds_relative (lower is better)"
OTHERWISE = {"model", "strengths", "ds_target"}  # arms with such options compare with their like
MARKS = (
    fig.Mark("blue", "o"), fig.Mark("orange", "s"), fig.Mark("green", "^"), fig.Mark("purple", "D"),
    fig.Mark("ochre", "v"), fig.Mark("grey", "X"),
)  # fmt: skip


@dataclass(frozen=True)
class Picture:
    """An SVG and what it finds, in words."""

    title: str
    svg: str


def headline(s: Results) -> str:
    """What the default reaches against plain training and the better baseline; empty if unknown."""
    effect = s.effect(RELATIVE, s.study.default, s.study.reference)
    if effect is None or effect.estimate.n < 2 or math.isnan(effect.estimate.value):
        return ""
    cost = "an unknown cost"
    top1 = effects_of(s.runs, [TOP1], s.study.default, s.study.baselines)
    if top1:
        best = max(top1, key=lambda claim: claim.theirs.value)
        cost = f"{signed(100 * best.estimate.value, 1)} points"
    return (
        f"{capitalized(s.chosen)} leaves {100 * effect.estimate.value:.0f} % of plain training’s "
        f"movement, at {cost} of top-1 against the better baseline"
    )


def _plane(s: Results) -> Picture | None:
    """Accuracy against continuity, an arm a point; only arms that train as the study's do."""
    names = [
        name for name in s.present()
        if (s.study.arms[name].times == 1 or name in s.study.baselines)
        and not OTHERWISE & s.study.arms[name].options.keys()
    ]  # fmt: skip
    in_words = {s.study.default, s.study.reference, *s.study.baselines}
    points = []
    for name in names:
        point = _point(s, name)
        if name == s.study.default:
            point = replace(point, role="constraint, with the goals")
        elif s.study.config_alpha(name) == 0:
            point = replace(point, role="no constraint")
        # Names of the many, which the table below it explains: labels in words would not fit.
        if name not in in_words:
            point = replace(point, label=f"{name} (n = {point.y.n})")
        points.append(point)
    goal = None
    best = [s.estimate(name, TOP1.key).value for name in s.study.baselines if name in names]
    if best and s.study.augmentation in names:
        limit = TO_BASELINE * s.estimate(s.study.augmentation, RELATIVE.key).value
        goal = fig.Goal("the goal", x=limit, y=100 * (max(best) - MARGIN))
    title = headline(s) or "Accuracy against continuity"
    return Picture(title, fig.plane(points, title, x=DS_AXIS, y=TOP1_AXIS, goal=goal))


def _alpha(s: Results) -> Picture | None:
    """Figure 5: the arms with alpha above 0 over alpha, those without as levels."""
    points = [(s.study.config_alpha(name), _point(s, name)) for name in s.group("alpha")]
    sweep = {alpha: point for alpha, point in points if alpha > 0}
    if len(sweep) < 2:
        return None
    lowest, highest = min(sweep), max(sweep)
    first, last = sweep[lowest], sweep[highest]
    title = (
        f"From alpha {lowest:g} to {highest:g} ds_relative goes from {first.x.value:.3f} "
        f"to {last.x.value:.3f}, top-1 from {first.y.value:.1f} to {last.y.value:.1f} %"
    )
    label = f"constraint, {seeds(point.y for point in sweep.values())}"
    levels = [point for alpha, point in points if alpha == 0]
    svg = fig.over_alpha(label, sweep, levels, title, top1=TOP1_AXIS, ds=DS_AXIS)
    return Picture(title, svg)


def _continuity(s: Results) -> Picture | None:
    """Figure 4: ds_relative under each perturbation alone."""
    names = *s.study.compared, s.study.default
    return _by_kind(s, names, s.chosen, "plain training")


def _depth(s: Results) -> Picture | None:
    """The same in another network: the first arm of the group has no constraint."""
    names = s.group("depth", 2)
    return _by_kind(s, names, s.label(names[-1]), s.label(names[0])) if names else None


def _by_kind(s: Results, wanted: Sequence[str], ours: str, theirs: str) -> Picture | None:
    """ds_relative by perturbation; the last arm against the first one, by these names."""
    kinds = [measure for measure in CLAIMS["continuity"] if measure.kind]
    series = []
    for place, name in enumerate(s.present(wanted)):
        estimates = [s.estimate(name, measure.key) for measure in kinds]
        n = max(estimate.n for estimate in estimates)
        if n:
            series.append(fig.Series(_label(s, name, n), estimates, _mark(place)))
    if len(series) < 2:
        return None
    effects = effects_of(s.runs, kinds, wanted[-1], wanted[:1])
    title = "ds_relative under each perturbation alone"
    if effects and effects[0].estimate.n > 1:
        falls = sum(claim.verdict == "holds" for claim in effects)
        title = f"ds_relative is smaller with {ours} than with {theirs}: shown for "
        title += f"{falls} of {len(effects)} perturbations"
    return Picture(title, fig.by_perturbation(series, tuple(STRENGTHS), title, y=DS_AXIS))


def _colors(s: Results) -> Picture | None:
    """Color MNIST: who reads digits right whose color lies?"""
    folders = ("aligned", "random", "reversed")
    series = []
    for place, name in enumerate(s.present(s.study.groups.get("colours", ()))):
        estimates = [s.estimate(name, f"bias/accuracy/{folder}").times(100) for folder in folders]
        if all(math.isfinite(estimate.value) for estimate in estimates):
            series.append(fig.Series(_label(s, name, estimates[0].n), estimates, _mark(place)))
    if len(series) < 2:
        return None
    measure = Measure("bias/accuracy/random", "", "higher", "difference")
    change = s.effect(measure, s.study.default, s.study.augmentation)
    title = "Right answers by the color of the digits"
    if change is not None and change.estimate.n > 1 and change.estimate.value > 0:
        title = f"In random colors {s.chosen} reads {effect(change)} points of the digits more "
        title += "than augmentation alone"
    write = "{:.1f}" if len(series) < 5 else "{:.0f}"  # more bars are too thin for tenths
    y = "right answers, %"
    return Picture(title, fig.bars(folders, series, title, y, chance=10.0, write=write.format))


def _effects(s: Results, *, ratios: bool) -> Picture | None:
    """Every claim against the baseline that augments, as ratios or as differences in points."""
    sections: dict[str, list[fig.Row]] = {}
    for question in CLAIMS:
        for claim in s.effects(question, against=[s.study.augmentation]):
            if (claim.measure.effect == "ratio") != ratios or not math.isfinite(
                claim.estimate.value
            ):
                continue
            row = fig.Row(
                claim.measure.directed, claim.estimate.times(1 if ratios else 100), claim.verdict
            )
            if claim.measure.effect == "not worse":  # its test is one-sided
                change = replace(row.estimate, low=row.estimate.lower, high=row.estimate.upper)
                label = f"{row.label} (interval: 90 %)"
                row = replace(row, label=label, estimate=change, bound=-100 * MARGIN)
            sections.setdefault(question, []).append(row)
    rows = [row for of in sections.values() for row in of]
    if len(rows) < 2:
        return None
    base, n_holds = s.label(s.study.augmentation), sum(row.verdict == "holds" for row in rows)
    title = f"Of {len(rows)} differences from {base}, {n_holds} are shown to be as claimed"
    if ratios:
        title = f"Of {len(rows)} measures that should fall, {n_holds} are shown to, against {base}"
    if all(math.isnan(row.estimate.low) for row in rows):
        title = (
            f"{capitalized(s.chosen)} compared with {base}, in a single seed, which shows nothing"
        )
    svg = fig.effects(
        sections,
        title,
        f"{s.chosen} {'over' if ratios else 'less'} {base}{'' if ratios else ', points'}",
        ratios=ratios,
        directions=("better", "worse") if ratios else ("smaller", "larger"),
        write="{:.2f}".format if ratios else lambda value: signed(value, 1),
    )
    return Picture(title, svg)


def _targets(s: Results) -> Picture | None:
    """--ds-target: ds_relative of the training batches and alpha, over the steps."""
    records = [record for name in s.group("target", 1) for record in s.steered([name])[:1]]
    if not records:
        return None
    ds, alphas, n_near = [], [], 0
    for place, record in enumerate(records):
        target, mark = float(record.options["ds_target"]), _mark(place)
        ds.append(_line(record, "ds_relative", mark, s.label(record.arm), target))
        alphas.append(_line(record, "alpha", mark))
        n_near += near(number_of(record, RELATIVE.key), target)
    title = f"{n_near} of {len(records)} runs end within {100 * TOLERANCE:.0f} % of the "
    title += "ds_relative that was asked for"
    panels = [
        fig.Panel("ds_relative of training batches", ds, log=True),
        fig.Panel("alpha", alphas, log=True),
    ]
    return Picture(title, fig.trajectories(panels, title))


def _collapse(s: Results) -> Picture | None:
    """Distance between different images over the steps, and how many directions they take."""
    records = [s.of(name)[0] for name in s.group("collapse", 2)]
    if not records:
        return None
    fallen = [s.label(record.arm) for record in records if record.collapsed]
    title = (
        f"Features collapse with {'; '.join(fallen)}" if fallen else "No arm’s features collapse"
    )
    between, rank = (
        [_line(record, column, _mark(i), s.label(record.arm)) for i, record in enumerate(records)]
        for column in ("between", "effective_rank")
    )
    panels = [
        fig.Panel("distance between different images", between),
        fig.Panel("effective rank of the features", rank, log=True),
    ]
    return Picture(title, fig.trajectories(panels, title))


PICTURES: Mapping[str, Callable[[Results], Picture | None]] = {
    "plane": _plane,
    "effects-ratios": lambda s: _effects(s, ratios=True),
    "effects-points": lambda s: _effects(s, ratios=False),
    "alpha": _alpha,
    "continuity": _continuity,
    "depth": _depth,
    "bias": _colors,
    "target": _targets,
    "collapse": _collapse,
}


def _mark(place: int) -> fig.Mark:
    """Of the arm in a place: however many there are, none is left out."""
    return replace(MARKS[place % len(MARKS)], filled=place < len(MARKS))


def _point(s: Results, name: str) -> fig.Point:
    top1, relative = s.estimate(name, TOP1.key), s.estimate(name, RELATIVE.key)
    return fig.Point(_label(s, name, top1.n), relative, top1.times(100))


def _line(
    record: Record, column: str, mark: fig.Mark, label: str = "", target: float | None = None
) -> fig.Line:
    steps: Sequence[float] = [step for step in record.curve["step"] if step is not None]
    return fig.Line(label, steps, record.curve[column], mark, target)


def _label(s: Results, name: str, n: int) -> str:
    return f"{s.label(name)} (n = {n})"
