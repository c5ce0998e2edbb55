"""A study's figures: which numbers of its records are drawn, under which finding."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
    Records,
    effect_of,
    effects_of,
    number_of,
    over,
)
from fastsc.reproduction.page.tables import present
from fastsc.reproduction.page.words import count, effect, signed
from fastsc.reproduction.records import Record
from fastsc.reproduction.seeds import Over
from fastsc.reproduction.study import Study
from fastsc.training.alpha import TOLERANCE, near

KINDS = tuple(STRENGTHS)
ALONE = "The default beside {base}, in a single seed, which shows nothing"
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


def plane(study: Study, runs: Records) -> Picture | None:
    """Accuracy against continuity, an arm a point; only arms that train as the study's do."""
    names = [
        name for name in present(study, runs)
        if (study.arms[name].times == 1 or name in study.baselines)
        and not OTHERWISE & study.arms[name].options.keys()
    ]  # fmt: skip
    headline = {study.default, study.reference, *study.baselines}
    points, found = [], effect_of(runs, RELATIVE, study.default, study.reference)
    for name in names:
        top1, relative = over(runs, name, "val/top1"), over(runs, name, "val/ds_relative")
        role: fig.Role = "constraint"
        if name == study.default:
            role = "constraint, as recommended"
        elif study.config_alpha(name) == 0:
            role = "no constraint"
        # Names of the many, which the table beside it explains: labels in words would not fit.
        named = _label(study, name, top1.n) if name in headline else f"{name} (n = {top1.n})"
        points.append(fig.Point(named, relative, times(top1, 100), role))
    goal = None
    best = [over(runs, name, "val/top1").value for name in study.baselines if name in names]
    if best and study.augmentation in names:
        limit = TO_BASELINE * over(runs, study.augmentation, "val/ds_relative").value
        goal = fig.Goal("the goal", x=limit, y=100 * (max(best) - MARGIN))
    title = "Accuracy beside continuity"
    if found is not None and found.found.n > 1:
        title = (
            f"The default leaves {100 * found.found.value:.0f} % of plain training’s movement, at "
            f"{_points(runs, study)} of top-1 beside the better baseline"
        )
    svg = fig.plane(points, title, x=DS_AXIS, y=TOP1_AXIS, goal=goal)
    return Picture(title, svg)


def over_alpha(study: Study, runs: Records, names: Sequence[str]) -> Picture | None:
    """Figure 5: the arms with alpha above 0 over alpha, those without as levels."""
    sweep, levels = dict[float, fig.Point](), list[fig.Point]()
    for name in names:
        top1, relative = over(runs, name, "val/top1"), over(runs, name, "val/ds_relative")
        point = fig.Point(_label(study, name, top1.n), relative, times(top1, 100))
        alpha = study.config_alpha(name)
        if alpha > 0:
            sweep[alpha] = point
        else:
            levels.append(point)
    if len(sweep) < 2:
        return None
    lowest, highest = min(sweep), max(sweep)
    first, last = sweep[lowest], sweep[highest]
    title = (
        f"From alpha {lowest:g} to {highest:g} ds_relative goes from {first.x.value:.3f} "
        f"to {last.x.value:.3f}, top-1 from {first.y.value:.1f} to {last.y.value:.1f} %"
    )
    n = sorted({point.y.n for point in sweep.values()})
    seeds = count(n[0], "seed") if len(n) == 1 else f"{n[0]} to {n[-1]} seeds"
    svg = fig.over_alpha(f"constraint, {seeds}", sweep, levels, title, top1=TOP1_AXIS, ds=DS_AXIS)
    return Picture(title, svg)


def by_question(study: Study, runs: Records, question: str) -> Picture | None:
    """The picture that belongs to a question, beside its table."""
    if question == "continuity":
        return _by_kind(study, runs)
    if question == "bias" and "colours" in study.groups:
        return _colours(study, runs)
    return None


def _by_kind(study: Study, runs: Records) -> Picture | None:
    """Figure 4: ds_relative under each perturbation alone."""
    wanted = study.groups.get("depth") or (study.reference, *study.baselines, study.default)
    series = []
    for place, name in enumerate(present(study, runs, wanted)):
        found = [over(runs, name, key_of_kind(kind)) for kind in KINDS]
        if all(math.isnan(one.value) for one in found):
            continue
        label = _label(study, name, max(one.n for one in found))
        series.append(fig.Series(label, found, MARKS[place % len(MARKS)]))
    if len(series) < 2:
        return None
    kinds = [m for m in CLAIMS["continuity"] if m.key.startswith("continuity/ds_relative/")]
    shown = effects_of(runs, kinds, study.default, [study.reference])
    falls = sum(one.verdict == "holds" for one in shown)
    title = "ds_relative under each perturbation alone"
    if shown and shown[0].found.n > 1:
        title = "ds_relative is smaller with the default than with plain training: shown for "
        title += f"{falls} of {len(shown)} perturbations"
    return Picture(title, fig.by_perturbation(series, KINDS, title, y=DS_AXIS))


def key_of_kind(kind: str) -> str:
    """The figure's name of ds_relative under one kind at its full strength."""
    for measure in CLAIMS["continuity"]:
        if measure.key.startswith(f"continuity/ds_relative/{kind}"):
            return measure.key
    raise AssertionError(kind)


def _colours(study: Study, runs: Records) -> Picture | None:
    """Color MNIST: who reads digits right whose colour lies?"""
    names = present(study, runs, study.groups["colours"])
    folders = ("aligned", "random", "reversed")
    series = []
    for place, name in enumerate(names):
        found = [times(over(runs, name, f"bias/accuracy/{folder}"), 100) for folder in folders]
        if any(math.isnan(one.value) for one in found):
            continue
        mark = replace(MARKS[place % len(MARKS)], filled=place < len(MARKS))
        series.append(fig.Series(_label(study, name, found[0].n), found, mark))
    if len(series) < 2:
        return None
    measure = Measure("bias/accuracy/random", "", "higher", "difference")
    change = effect_of(runs, measure, study.default, study.augmentation)
    title = "Right answers by the colour of the digits"
    if change is not None and change.found.n > 1 and change.found.value > 0:
        title = (
            f"In random colours the default reads {effect(measure, change.found)} points of the "
            "digits more than augmentation alone"
        )
    digits = 1 if len(series) < 5 else 0  # more bars are too thin for tenths
    svg = fig.bars(
        folders, series, title, "right answers, %", chance=10.0, write=f"{{:.{digits}f}}".format
    )
    return Picture(title, svg)


def effects(study: Study, runs: Records, against: str, *, ratios: bool) -> Picture | None:
    """Every claim beside one baseline, as ratios or as differences in points."""
    sections, n_all, n_holds = dict[str, list[fig.Row]](), 0, 0
    for question, measures in CLAIMS.items():
        of = [m for m in measures if (m.effect == "ratio") == ratios]
        rows = []
        for found in effects_of(runs, of, study.default, [against]):
            if not math.isfinite(found.found.value):
                continue
            change = found.found if ratios else times(found.found, 100)
            if found.measure.effect == "not worse":  # its test is one-sided
                change = replace(change, low=change.lower, high=change.upper)
            bound = -100 * MARGIN if found.measure.effect == "not worse" else None
            label = f"{found.measure.directed}{'' if bound is None else ' (interval: 90 %)'}"
            rows.append(fig.Row(label, change, found.verdict, bound))
            n_all, n_holds = n_all + 1, n_holds + (found.verdict == "holds")
        if rows:
            sections[question] = rows
    if n_all < 2:
        return None
    base = study.arms[against].label
    one = all(math.isnan(row.estimate.low) for rows in sections.values() for row in rows)
    if ratios:
        title = f"Of {n_all} measures that should fall, {n_holds} are shown to, beside {base}"
        title = ALONE.format(base=base) if one else title
        svg = fig.effects(
            sections, title, f"default over {base}", ratios=True,
            directions=("default better", "default worse"),
        )  # fmt: skip
    else:
        title = f"Of {n_all} differences from {base}, {n_holds} are shown to be as claimed"
        title = ALONE.format(base=base) if one else title
        svg = fig.effects(
            sections, title, f"default less {base}, points", ratios=False,
            directions=("smaller", "larger"), write=lambda value: signed(value, 1),
        )  # fmt: skip
    return Picture(title, svg)


def targets(runs: Records, names: Sequence[str]) -> Picture | None:
    """--ds-target: ds_relative of the training batches and alpha, over the steps."""
    first = dict(sorted(runs, reverse=True))
    chosen = [(arm, runs[arm, first[arm]]) for arm in names if arm in first]
    if not chosen:
        return None
    goals = sorted({float(record.options["ds_target"]) for _, record in chosen})
    starts = sorted({float(record.options["alpha"]) for _, record in chosen})
    ds_lines, alpha_lines, n_near = [], [], 0
    for _, record in chosen:
        target, start = float(record.options["ds_target"]), float(record.options["alpha"])
        mark = replace(MARKS[goals.index(target)], marker=MARKS[starts.index(start)].marker)
        ds_lines.append(_line(record, "ds_relative", "", mark, target))
        alpha_lines.append(_line(record, "alpha", "", mark))
        n_near += near(number_of(record, RELATIVE.key), target)
    title = f"{n_near} of {len(chosen)} runs end within {100 * TOLERANCE:.0f} % of the ds_relative "
    title += "that was asked for"
    panels = [
        fig.Panel("ds_relative of training batches", ds_lines, log=True),
        fig.Panel("alpha", alpha_lines, log=True),
    ]
    named = {f"target {goal:g}": {"color": mark.hex} for goal, mark in zip(goals, MARKS)}
    for start, mark in zip(starts, MARKS):
        named[f"from alpha {start:g}"] = {"marker": mark.marker, "color": "grey", "ls": "none"}
    return Picture(title, fig.trajectories(panels, title, named=named))


def collapse(study: Study, runs: Records, names: Sequence[str]) -> Picture | None:
    """Distance between different images over the steps, and how many directions they take."""
    panels: dict[str, list[fig.Line]] = {"between": [], "effective_rank": []}
    fallen = []
    for place, name in enumerate(names):
        record = runs[name, min(seed for arm, seed in runs if arm == name)]
        label = study.arms[name].label
        for column, lines in panels.items():
            lines.append(_line(record, column, label, MARKS[place % len(MARKS)]))
        fallen += [label] if record.collapsed else []
    title = "No arm’s features collapse"
    if fallen:
        title = f"Features collapse with {'; '.join(fallen)}"
    shown = [
        fig.Panel("distance between different images", panels["between"]),
        fig.Panel("effective rank of the features", panels["effective_rank"], log=True),
    ]
    return Picture(title, fig.trajectories(shown, title))


def _line(
    record: Record, column: str, label: str, mark: fig.Mark, target: float | None = None
) -> fig.Line:
    steps = [step for step in record.curve["step"] if step is not None]
    return fig.Line(label, steps, record.curve[column], mark, target)


def _points(runs: Records, study: Study) -> str:
    """Top-1 of the default less that of the better baseline, in points."""
    found = effects_of(runs, [TOP1], study.default, study.baselines)
    if not found:
        return "an unknown cost"
    best = max(found, key=lambda one: one.theirs.value)
    return f"{signed(100 * best.found.value, 1)} points"


def _label(study: Study, name: str, n: int) -> str:
    return f"{study.arms[name].label} (n = {n})"


def times(found: Over, factor: float) -> Over:
    """The same in another unit."""
    return replace(
        found,
        value=found.value * factor,
        low=found.low * factor,
        high=found.high * factor,
        lower=found.lower * factor,
        upper=found.upper * factor,
    )
