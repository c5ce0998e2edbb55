"""A study's figures: which numbers of its records are drawn, under which finding."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from fastsc.reproduction import figures as fig
from fastsc.reproduction.claims import (
    CLAIMS,
    MARGIN,
    STRENGTHS,
    TO_BASELINE,
    Measure,
    Records,
    effect_of,
    effects_of,
    over,
)
from fastsc.reproduction.records import Record
from fastsc.reproduction.seeds import Over
from fastsc.reproduction.study import Study
from fastsc.reproduction.tables import present
from fastsc.reproduction.words import count

KINDS = tuple(STRENGTHS)
ALONE = "The default beside {base}, in a single seed, which shows nothing"
TOP1_AXIS = "top-1 on unchanged images, % (higher is better)"
DS_AXIS = "ds_relative (lower is better)"
OTHERWISE = {"model", "strengths", "ds_target"}  # arms with such options compare with their like
_MARKS: tuple[tuple[fig.Colour, fig.Marker], ...] = (
    ("blue", "circle"), ("orange", "square"), ("green", "triangle"), ("purple", "diamond"),
    ("ochre", "down"), ("grey", "cross"),
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
    points, found = [], effect_of(runs, CLAIMS["continuity"][0], study.default, study.reference)
    for name in names:
        top1, relative = over(runs, name, "val/top1"), over(runs, name, "val/ds_relative")
        role: fig.Role = "constraint"
        if name == study.default:
            role = "default"
        elif study.config_alpha(name) == 0:
            role = "baseline"
        # Names of the many, which the table beside it explains: labels in words would not fit.
        named = _label(study, name, top1.n) if name in headline else f"{name} (n = {top1.n})"
        points.append(fig.Point(named, relative, times(top1, 100), role))
    goal = None
    best = [over(runs, name, "val/top1").value for name in study.baselines if name in names]
    if best and study.augmentation in names:
        limit = TO_BASELINE * over(runs, study.augmentation, "val/ds_relative").value
        goal = fig.Goal("the goal", x=limit, y=100 * (max(best) - MARGIN))
    if found is None:
        title = "Accuracy beside continuity"
    else:
        title = (
            f"The default leaves {100 * found.found.value:.0f} % of plain training’s movement, at "
            f"{_points(runs, study)} of top-1 beside the better baseline"
        )
    svg = fig.plane(points, title, x=DS_AXIS, y=TOP1_AXIS, goal=goal)
    return Picture(title, svg)


def over_alpha(study: Study, runs: Records, names: Sequence[str]) -> Picture | None:
    """Figure 5: the arms with alpha above 0 over alpha, those without as levels."""
    points, levels = [], []
    for name in names:
        top1, relative = (
            times(over(runs, name, "val/top1"), 100),
            over(runs, name, "val/ds_relative"),
        )
        alpha = study.config_alpha(name)
        if alpha > 0:
            points.append(fig.At(alpha, top1, relative))
        else:
            levels.append(fig.Level(_label(study, name, top1.n), top1, relative))
    if len(points) < 2:
        return None
    points.sort(key=lambda at: at.alpha)
    first, last = points[0], points[-1]
    title = (
        f"From alpha {first.alpha:g} to {last.alpha:g} ds_relative goes from {first.ds.value:.3f} "
        f"to {last.ds.value:.3f}, top-1 from {first.top1.value:.1f} to {last.top1.value:.1f} %"
    )
    n = sorted({at.top1.n for at in points})
    seeds = count(n[0], "seed") if len(n) == 1 else f"{n[0]} to {n[-1]} seeds"
    sweep = fig.Sweep(f"constraint, {seeds}", points)
    return Picture(title, fig.over_alpha([sweep], levels, title, top1=TOP1_AXIS, ds=DS_AXIS))


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
        colour, marker = _MARKS[place % len(_MARKS)]
        label = _label(study, name, max(one.n for one in found))
        series.append(fig.Series(label, found, fig.Mark(colour, marker)))
    if len(series) < 2:
        return None
    kinds = [m for m in CLAIMS["continuity"] if m.key.startswith("continuity/ds_relative/")]
    shown = effects_of(runs, kinds, study.default, [study.reference])
    falls = sum(effect.verdict == "holds" for effect in shown)
    title = "DS under each perturbation alone"
    if shown and shown[0].found.n > 1:
        title = f"DS is smaller with the default than with plain training: shown for {falls} of "
        title += f"{len(shown)} perturbations"
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
        colour, marker = _MARKS[place % len(_MARKS)]
        mark = fig.Mark(colour, marker, filled=place < len(_MARKS))
        series.append(fig.Series(_label(study, name, found[0].n), found, mark))
    if len(series) < 2:
        return None
    effect = effect_of(
        runs, Measure("bias/accuracy/random", "", "higher", "difference"), study.default,
        study.augmentation,
    )  # fmt: skip
    title = "Right answers by the colour of the digits"
    if effect is not None:
        title = (
            f"In random colours the default reads {100 * effect.found.value:+.0f} points of the "
            "digits more than augmentation alone"
        )
    return Picture(title, fig.bars(folders, series, title, "right answers, %", chance=10.0))


def effects(study: Study, runs: Records, against: str, *, ratios: bool) -> Picture | None:
    """Every claim beside one baseline, as ratios or as differences in points."""
    sections, n_all, n_holds = [], 0, 0
    for question, measures in CLAIMS.items():
        of = [m for m in measures if (m.effect == "ratio") == ratios]
        rows = []
        for found in effects_of(runs, of, study.default, [against]):
            if not math.isfinite(found.found.value):
                continue
            change = found.found if ratios else times(found.found, 100)
            bound = -100 * MARGIN if found.measure.effect == "not worse" else None
            rows.append(fig.Effect(found.measure.label, change, found.verdict, bound))
            n_all, n_holds = n_all + 1, n_holds + (found.verdict == "holds")
        if rows:
            sections.append(fig.Section(question, rows))
    if n_all < 2:
        return None
    base = study.arms[against].label
    one = all(math.isnan(row.found.low) for section in sections for row in section.rows)
    if ratios:
        title = f"Of {n_all} figures that should fall, {n_holds} are shown to, beside {base}"
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
            directions=("smaller", "larger"), write="{:+.1f}".format,
        )  # fmt: skip
    return Picture(title, svg)


def targets(runs: Records, names: Sequence[str]) -> Picture | None:
    """--ds-target: ds_relative of the training batches and alpha, over the steps."""
    first = dict(sorted(runs, reverse=True))
    chosen = [(arm, runs[arm, first[arm]]) for arm in names if arm in first]
    if not chosen:
        return None
    goals = sorted({float(record.options["ds_target"]) for _, record in chosen})
    ds_lines, alpha_lines, near = [], [], 0
    for _, record in chosen:
        target, start = float(record.options["ds_target"]), float(record.options["alpha"])
        colour = _MARKS[goals.index(target) % len(_MARKS)][0]
        mark = fig.Mark(colour)
        label = f"{target:g} from alpha {start:g}"
        ds_lines.append(_line(record, "ds_relative", label, mark, target))
        alpha_lines.append(_line(record, "alpha", label, mark))
        near += abs((record.val["ds_relative"] or math.inf) / target - 1) <= 0.1
    title = f"{near} of {len(chosen)} runs end within 10 % of the ds_relative that was asked for"
    panels = [
        fig.Panel("ds_relative of training batches", ds_lines, log=True),
        fig.Panel("alpha", alpha_lines, log=True),
    ]
    return Picture(title, fig.trajectories(panels, title))


def collapse(study: Study, runs: Records, names: Sequence[str]) -> Picture | None:
    """Distance between different images over the steps, and ds_relative beside it."""
    between, relative = [], []
    for place, name in enumerate(names):
        seeds = [seed for arm, seed in runs if arm == name]
        record = runs[name, min(seeds)]
        colour, marker = _MARKS[place % len(_MARKS)]
        label = study.arms[name].label
        between.append(_line(record, "between", label, fig.Mark(colour, marker)))
        relative.append(_line(record, "ds_relative", label, fig.Mark(colour, marker)))
    fallen = [
        study.arms[name].label for name, line in zip(names, between) if _share(line.values) < 0.1
    ]
    title = (
        f"Features collapse with {', '.join(fallen)}" if fallen else "No arm’s features collapse"
    )
    panels = [
        fig.Panel("distance between different images", between, log=True),
        fig.Panel("ds_relative of training batches", relative, log=True),
    ]
    return Picture(title, fig.trajectories(panels, title))


def _share(values: Iterable[float | None]) -> float:
    known = [x for x in values if x is not None]
    return known[-1] / max(known) if known and max(known) > 0 else math.nan


def _line(
    record: Record, column: str, label: str, mark: fig.Mark, target: float | None = None
) -> fig.Line:
    steps = [step for step in record.curve["step"] if step is not None]
    return fig.Line(label, steps, record.curve[column], mark, target)


def _points(runs: Records, study: Study) -> str:
    """Top-1 of the default less that of the better baseline, in points."""
    found = effects_of(runs, CLAIMS["accuracy"][:1], study.default, study.baselines)
    if not found:
        return "an unknown cost"
    best = max(found, key=lambda effect: effect.theirs.value)
    return f"{100 * best.found.value:+.1f} points".replace("-", "−")


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
