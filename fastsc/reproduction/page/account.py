"""The page's last sections: what does not hold, what was not run, how and where the rest was."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fastsc.reproduction.claims import (
    CLAIMS,
    RELATIVE,
    TOP1,
    Effect,
    Records,
    effects_of,
    goals_of,
    number_of,
)
from fastsc.reproduction.cost import Cost, Speed, cost_of, hours, hours_of, speeds_of
from fastsc.reproduction.page.tables import present, relative_of
from fastsc.reproduction.page.words import EQUAL, NONE, count, effect, goal, table
from fastsc.reproduction.runner import Task
from fastsc.reproduction.seeds import LEVEL
from fastsc.reproduction.study import Study
from fastsc.training.alpha import near

CHANCE = (1 - LEVEL) / 2  # that an interval lies on one side without an effect
Studies = Sequence[tuple[Study, Records]]


def failures_of(studies: Studies) -> str:
    """What was missed, what came out contrary, what collapsed, and what so few seeds leave open."""
    said: dict[str, list[str]] = {title: [] for title in FAILURES}
    for study, runs in studies:
        for title, lines in _failures(study, runs).items():
            said[title] += [f"- {study.title}: {line}" for line in lines]
    blocks = [f"{FAILURES[title]}\n\n" + "\n".join(of) for title, of in said.items() if of]
    counted = _counted(studies)
    if not blocks and not counted:
        return "No claim could be tested: that takes the default and a baseline with common seeds."
    return "\n\n".join([*filter(None, [counted]), *blocks])


FAILURES = {
    "missed": "Missed, of this project's goals and of `--ds-target`:",
    "contrary": "The contrary of what is claimed, for the default beside another arm:",
    "collapsed": "Features that collapsed:",
    "open": "Neither shown nor refuted by so many seeds, of the default:",
}


def _failures(study: Study, runs: Records) -> dict[str, list[str]]:
    """A study's lines under each heading of FAILURES."""
    said: dict[str, list[str]] = {title: [] for title in FAILURES}
    goals = goals_of(study, runs)
    for wish in goals:
        if wish.verdict == "does not hold":
            said["missed"].append(f"{wish.label}: {goal(wish)}.")
        elif wish.verdict == "not shown":
            said["open"].append(f"{wish.label}: {goal(wish)}, the goal.")
    for (arm, seed), record in sorted(runs.items()):
        target = record.options["ds_target"]
        label, found = study.arms[arm].label, number_of(record, RELATIVE.key)
        if target is not None and not near(found, target):
            said["missed"].append(
                f"{label}, seed {seed}, ends at {relative_of({(arm, seed): record}, arm)}."
            )
        if record.collapsed:
            top1 = 100 * number_of(record, TOP1.key)
            said["collapsed"].append(f"{label}, seed {seed}: top-1 {top1:.1f} %.")
    wished = {(wish.measure, wish.against) for wish in goals}
    effects = [one for one in _tested(study, runs) if (one.measure, one.against) not in wished]
    for one in effects:
        told = effect(one.measure, one.found)
        line = f"{one.measure.directed}, beside {study.arms[one.against].label}: "
        line += f"{told}."
        if one.verdict == "does not hold":
            said["contrary"].append(line)
        elif one.verdict == "not shown" and one.found.n > 1 and told != EQUAL:
            said["open"].append(line)
    alone = sum(one.found.n == 1 for one in effects)
    if alone:
        said["open"].append(f"{count(alone, 'comparison')} in a single seed, which shows nothing.")
    return said


def _tested(study: Study, runs: Records) -> list[Effect]:
    """Every claim on the default, beside every arm that it is compared with."""
    measures = [measure for of in CLAIMS.values() for measure in of]
    found = effects_of(runs, measures, study.default, study.beside)
    return [one for one in found if math.isfinite(one.found.value)]


def _counted(studies: Studies) -> str:
    """How many verdicts there are beside each arm, and how many chance alone would have given."""
    rows, by_chance = list[list[str]](), 0.0
    for study, runs in studies:
        tested = [one for one in _tested(study, runs) if one.found.n > 1]
        by_chance += CHANCE * sum(one.measure.effect != "not worse" for one in tested)
        for against in dict.fromkeys(one.against for one in tested):
            of = [one.verdict for one in tested if one.against == against]
            counts = [of.count(verdict) for verdict in ("holds", "does not hold", "not shown")]
            beside = f"{study.title}, beside {study.arms[against].label}"
            rows.append([beside, str(len(of)), *map(str, counts)])
    if not rows:
        return ""
    counted = table(["the default", "claims", "hold", "do not hold", "not shown"], rows)
    return (
        f"{counted}\n\nWere there no effect at all, about {by_chance:.0f} of them would seem to "
        "hold and as many not to; they are not independent."
    )


def not_run(studies: Studies, missing: Sequence[Study]) -> str:
    """What the grids hold and no record does, with what it would cost."""
    blocks = [text for study, runs in studies if (text := _left(study, runs))]
    blocks += [_left(study, {}) for study in missing]
    quick = [study for study, _ in studies if study.quick]
    blocks += [_scale(study, name) for study in quick for name in study.scales]
    if not any(blocks):
        return "Everything in the grids was run."
    return "\n\n".join([COSTS, *filter(None, blocks)])


COSTS = (
    "What a training costs: each time that it sees an image, with one view (images) or with two "
    "(pairs), and hours at a rate, without evaluation; + where the rate of one of the networks is "
    "not known, – of all."
)


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
    sweep = f"python -m fastsc.reproduce {study.name} --data DIR --out OUT"
    lines = [
        f"# DIR: {count(study.images, 'training image')}; of more, OUT/images holds what is used",
        f"{sweep}            # what is not committed; --anew: all of it",
    ]
    if study.quick:
        lines.append(f"{sweep} --quick    # with seeds of its own")
    asked = study.evaluate
    if asked.arms:
        lines.append("# what the sweep asks a trained network")
        size = "" if asked.images is None else f" --images {asked.images}"
        lines.append(
            f"python -m fastsc.evaluate RUN --data DIR --out OUT --where-possible --only "
            f"{' '.join(asked.questions)}{size}"
            + (" --transfer-data OUT/colormnist/random" if "transfer" in asked.questions else "")
        )
    lines.append("\n# one training of each arm; other seeds likewise")
    for name in present(study, runs):
        record = next(record for (arm, _), record in sorted(runs.items()) if arm == name)
        lines += [f"# {study.arms[name].label}", record.command]
    return f"{study.title}:\n\n```sh\n" + "\n".join(lines) + "\n```"


def machines_of(studies: Studies) -> str:
    """A row a study, a kind of machine and set of versions, with the runs that it made."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for study, runs in studies:
        for record in runs.values():
            made = record.made
            hardware, versions = made["hardware"], made["versions"]
            gpus = hardware["gpus"] if str(made["device"]).startswith("cuda") else []
            commit, _, changed = str(made["commit"] or "unknown").partition("-")
            key = (
                study.title,
                f"{gpus[0] if gpus else hardware['cpu']}, {count(hardware['cores'], 'core')}, "
                f"{hardware['memory_gib']:.0f} GiB",
                f"{made['threads']} a run, {made['precision']}",
                f"Python {versions['python']}, torch {versions['torch']}, "
                f"torchvision {versions['torchvision']}",
                f"`{commit[:10]}`" + (", with changes" if changed else ""),
            )
            rows.setdefault(key, []).append(made["date"])
    cells = [[*key, _between(dates), str(len(dates))] for key, dates in sorted(rows.items())]
    return table(
        ["study", "machine", "threads, precision", "versions", "commit", "dates", "runs"], cells
    )


def _between(dates: Sequence[str]) -> str:
    first, last = min(dates), max(dates)
    return first if first == last else f"{first} to {last}"
