"""The page's last sections: what does not hold, what was not run, how and where the rest was."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fastsc.reproduction.claims import CLAIMS, Records, effects_of, goals_of
from fastsc.reproduction.cost import Cost, Speed, cost_of, hours_of, speeds_of
from fastsc.reproduction.study import Study
from fastsc.reproduction.sweep import Task
from fastsc.reproduction.tables import present
from fastsc.reproduction.words import NONE, count, effect, goal, hours, table

NEAR = 0.1  # of a --ds-target
Studies = Sequence[tuple[Study, Records]]


def failures_of(studies: Studies) -> str:
    """Goals that were missed and claims whose interval says the contrary, then what stays open."""
    missed, against, undecided, tested = list[str](), list[str](), list[str](), 0
    for study, runs in studies:
        name = study.title
        for found in goals_of(study, runs):
            line = f"- {name}: {found.label}: {goal(found)}"
            if found.verdict == "does not hold":
                missed.append(f"{line}. The goal is missed.")
            elif found.verdict == "not shown":
                undecided.append(f"{line}: undecided, the goal.")
        for (arm, seed), record in sorted(runs.items()):
            target = record.options["ds_target"]
            if target is not None and abs((record.val["ds_relative"] or 0) / target - 1) > NEAR:
                missed.append(
                    f"- {name}: {study.arms[arm].label}, seed {seed}, ends at "
                    f"{record.val['ds_relative'] or math.nan:.3f}: the target is missed."
                )
        for measures in CLAIMS.values():
            for one in effects_of(runs, measures, study.default, study.baselines):
                if not math.isfinite(one.found.value):
                    continue
                tested += 1
                line = f"- {name}: {one.measure.label}, beside {study.arms[one.against].label}: "
                line += effect(one.measure, one.found)
                if one.verdict == "does not hold":
                    against.append(f"{line}.")
                elif one.verdict == "not shown":
                    undecided.append(f"{line}.")
    blocks = []
    if missed:
        blocks.append("Goals:\n\n" + "\n".join(missed))
    if against:
        blocks.append(
            "The contrary of what is claimed, for the default beside a baseline:\n\n"
            + "\n".join(against)
        )
    if undecided:
        blocks.append(
            "Neither shown nor refuted by so many seeds, of the default:\n\n" + "\n".join(undecided)
        )
    if not blocks and not tested:
        return "No claim could be tested: that takes the default and a baseline with common seeds."
    return "\n\n".join(blocks) or "Nothing was found that contradicts a claim."


def not_run(studies: Studies, missing: Sequence[Study]) -> str:
    """What the grids hold and no record does, with what it would cost."""
    blocks = [text for study, runs in studies if (text := _left(study, runs))]
    blocks += [_left(study, {}) for study in missing]
    blocks += [_scale(study, name) for study, _ in studies for name in study.scales]
    return "\n\n".join(filter(None, blocks)) or "Everything in the grids was run."


def _left(study: Study, runs: Records) -> str:
    """A study's runs that are left, arm by arm, with the cost on machines whose rate is known."""
    left: dict[str, list[Task]] = {}
    for arm in study.arms.values():
        for seed in range(arm.seeds):
            record = runs.get((arm.name, seed))
            if record is None:
                config = study.config(arm, Path("DIR"), seed)
                task = Task(arm, seed, config, "", study.values(arm, seed))
                left.setdefault(arm.name, []).append(task)
    if not left:
        return ""
    every = [task for tasks in left.values() for task in tasks]
    costs = _costs(study, {**left, "all": every}, speeds_of(study, runs.values(), every))
    return f"{study.title}, trainings that are left:\n\n{costs}"


def _scale(study: Study, name: str) -> str:
    """What an arm costs in another machine's setting, by published rates."""
    scaled = study.scaled(name)
    arms = [scaled.arms[arm] for arm in scaled.quick]
    tasks = {
        arm.name: [Task(arm, 0, scaled.config(arm, Path("DIR"), 0), "", scaled.values(arm, 0))]
        for arm in arms
    }
    every = [task for of in tasks.values() for task in of]
    model = every[0].config.model.model
    costs = _costs(scaled, tasks, speeds_of(scaled, (), every))
    return (
        f"{study.title} with `--scale {name}`, one training of an arm: `{model}`, "
        f"{count(scaled.images, 'image')}, E = {count(scaled.epochs, 'epoch')}:\n\n{costs}"
    )


def _costs(study: Study, by_arm: Mapping[str, Sequence[Task]], speeds: Sequence[Speed]) -> str:
    """A row an arm."""
    rows = [
        [
            name if name == "all" else f"`{name}`",
            str(len(tasks)),
            *_cells([cost_of(task, study.images) for task in tasks], speeds),
        ]
        for name, tasks in by_arm.items()
    ]
    return table(["arm", "runs", "images", "pairs", *(speed.where for speed in speeds)], rows)


def _cells(costs: Sequence[Cost], speeds: Iterable[Speed]) -> list[str]:
    """Images, pairs and hours; a + where the rate of some network is not known, – of all."""
    counts = [sum(cost.singles for cost in costs), sum(cost.pairs for cost in costs)]
    cells = [f"{n:,}" if n else NONE for n in counts]
    for speed in speeds:
        spent, whole = hours_of(costs, speed)
        cells.append(hours(spent) + ("" if whole else " +") if spent else NONE)
    return cells


def commands_of(study: Study, runs: Records) -> str:
    """The sweep's command, and each arm's as a single training, for the first of its seeds."""
    lines = [f"python -m fastsc.reproduce {study.name} --data DIR --out OUT"]
    if study.quick:
        lines.append(f"python -m fastsc.reproduce {study.name} --quick --data DIR --out OUT")
    lines.append("")
    for name in present(study, runs):
        record = next(record for (arm, _), record in sorted(runs.items()) if arm == name)
        lines += [f"# {study.arms[name].label}", record.command]
    return f"{study.title}:\n\n```sh\n" + "\n".join(lines) + "\n```"


def machines_of(studies: Studies) -> str:
    """A row a kind of machine and set of versions, with the runs that it made."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for _, runs in studies:
        for record in runs.values():
            made = record.made
            hardware, versions = made["hardware"], made["versions"]
            gpus = hardware["gpus"] if str(made["device"]).startswith("cuda") else []
            key = (
                gpus[0] if gpus else f"{hardware['cpu']}, {count(hardware['cores'], 'core')}",
                f"{made['threads']} a run, {made['precision']}",
                f"Python {versions['python']}, torch {versions['torch']}, "
                f"torchvision {versions['torchvision']}",
                f"`{(made['commit'] or 'unknown')[:10]}`",
            )
            rows.setdefault(key, []).append(made["date"])
    cells = [[*key, _between(dates), str(len(dates))] for key, dates in sorted(rows.items())]
    return table(["machine", "threads, precision", "versions", "commit", "dates", "runs"], cells)


def _between(dates: Sequence[str]) -> str:
    first, last = min(dates), max(dates)
    return first if first == last else f"{first} to {last}"
