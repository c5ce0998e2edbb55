"""The page's tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from fastsc.reproduction.claims import RELATIVE, Effect, Goal, Records, over, values_of
from fastsc.reproduction.page.words import (
    EQUAL,
    NONE,
    count,
    effect,
    figure,
    goal,
    number,
    percent,
    reached,
    table,
)
from fastsc.reproduction.records import Record
from fastsc.reproduction.runner import words
from fastsc.reproduction.seeds import mean_over, prediction
from fastsc.reproduction.study import Study


def present(study: Study, runs: Records, names: Iterable[str] | None = None) -> list[str]:
    """The arms of which there is a run, in the study's or the given order."""
    have = {arm for arm, _ in runs}
    return [name for name in (study.arms if names is None else names) if name in have]


def setting_of(study: Study, runs: Records) -> str:
    """What the reference's runs have in common with all whose label says nothing else."""
    names = present(study, runs)
    name = study.reference if study.reference in names else names[0]
    first = next(record for (arm, _), record in sorted(runs.items()) if arm == name)
    options, images = first.options, first.images
    kinds = zip(("brightness", "contrast", "saturation", "hue"), options["strengths"])
    strengths = ", ".join(f"{kind} {strength:g}" for kind, strength in kinds)
    return (
        f"Model `{options['model']}`, {options['resolution']} px, {images['train']:,} training and "
        f"{images['val']:,} test images, E = {count(study.epochs, 'epoch')}, batches of "
        f"{options['batch_size']} unique images; strengths: {strengths}."
    )


def arms_table(study: Study, runs: Records) -> str:
    """A row an arm: mean ± half the 95 % interval over its seeds."""
    rows = []
    for name in present(study, runs):
        top1, perturbed = (over(runs, name, f"val/{key}") for key in ("top1", "top1_perturbed"))
        first = next(record for (arm, _), record in sorted(runs.items()) if arm == name)
        rows.append([
            f"{study.arms[name].label} (`{name}`)", str(first.options["epochs"]), _views(first),
            str(top1.n), percent(top1), percent(perturbed), relative_of(runs, name),
        ])  # fmt: skip
    return table(
        ["arm", "epochs", "views seen", "seeds", "top-1 ↑", "top-1, second views ↑",
         "ds_relative ↓"],
        rows,
    )  # fmt: skip


def relative_of(runs: Records, name: str) -> str:
    """An arm's ds_relative; collapsed features have none."""
    n = sum(arm == name for arm, _ in runs)
    found = over(runs, name, RELATIVE.key)
    if found.n == n:
        return number(found)
    fallen = any(record.collapsed for (arm, _), record in runs.items() if arm == name)
    return f"{number(found)} (n = {found.n})" if found.n else "collapsed" if fallen else NONE


def _views(record: Record) -> str:
    """Images that went through the network in a training, each view of one by itself."""
    share = 0.0 if record.plain else float(record.options["paired_fraction"])
    return f"{record.steps * int(record.options['batch_size']) * (1 + share):,.0f}"


def method_of(study: Study, name: str) -> str:
    """An arm's constraint, as the options that make it."""
    method = study.config(study.arms[name], Path("DIR"), 0).method
    ds, rest = (
        {key: getattr(method, key) for key in keys}
        for keys in (("ds", "ds_at", "alpha"), ("ce_views", "stop_gradient", "bn"))
    )
    named = {*ds, *rest, "alpha_warmup_epochs"}
    rest |= {k: v for k, v in study.arms[name].options.items() if k not in named}
    rise = method.alpha_warmup_epochs
    if rise is None:
        how = "which rises in a straight line from 0 over the whole run"
    else:
        how = f"which rises over the first {rise:g} epochs" if rise else "constant"
    return f"`{' '.join(words(ds))}`, {how}; `{' '.join(words(rest))}`"


def goals_table(goals: Sequence[Goal]) -> str:
    """A row a goal; empty where nothing is known."""
    rows = [[found.label, goal(found), reached(found)] for found in goals]
    return table(["goal", "found", ""], rows) if rows else ""


def effects_table(study: Study, effects: Sequence[Effect]) -> str:
    """A row a measure: the arm's figure, and effect and verdict beside each baseline."""
    if not effects:
        return ""
    against = list(dict.fromkeys(found.against for found in effects))
    headings = ["measure", study.arms[effects[0].arm].label]
    for name in against:
        headings += [study.arms[name].label, "beside it"]
    rows = []
    for measure in dict.fromkeys(found.measure for found in effects):
        by_name = {found.against: found for found in effects if found.measure == measure}
        most = max(by_name.values(), key=lambda one: one.found.n)
        row = [measure.directed, figure(measure, most.own)]
        for name in against:
            found = by_name.get(name)
            if found is None:
                row += [NONE, NONE]
                continue
            fewer = f", n = {found.found.n}" if found.found.n < most.found.n else ""
            row += [figure(measure, found.theirs), _told(found) + fewer]
        rows.append(row)
    return table(headings, rows)


def _told(found: Effect) -> str:
    text = effect(found.measure, found.found)
    return text if found.found.n < 2 or text in (NONE, EQUAL) else f"{text}: {found.verdict}"


def replication_table(study: Study, runs: Records, known: Records) -> str:
    """Means of these seeds beside where those of the known runs say they should lie."""
    rows = []
    for name in present(study, runs):
        for key, show in (("val/top1", percent), ("val/ds_relative", number)):
            old = list(values_of(known, name, key).values())
            new = mean_over(list(values_of(runs, name, key).values()))
            if len(old) < 2 or not new.n:
                continue
            low, high = prediction(old, new.n)
            scale, digits = (100, 1) if show is percent else (1, 3)
            fits = "fits" if low <= new.value <= high else "does not fit"
            rows.append([
                f"{study.arms[name].label}, {key.removeprefix('val/')}",
                show(mean_over(old)), f"{scale * low:.{digits}f} to {scale * high:.{digits}f}",
                show(new), fits,
            ])  # fmt: skip
    headings = ["figure", "committed", "further seeds fall into", "these seeds", ""]
    return table(headings, rows) if rows else ""
