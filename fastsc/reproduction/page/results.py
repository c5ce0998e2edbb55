"""A study's records as the page's templates and figures ask for them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fastsc.reproduction import claims
from fastsc.reproduction.claims import CLAIMS, RELATIVE, TOP1, Effect, Goal, Measure, Records
from fastsc.reproduction.cost import cells_of, speeds_of
from fastsc.reproduction.page import words
from fastsc.reproduction.page.words import EQUAL, NONE, count, signed, table
from fastsc.reproduction.records import Record
from fastsc.reproduction.runner import Task, command_of
from fastsc.reproduction.runner import words as typed
from fastsc.reproduction.seeds import LEVEL, SeedEstimate, mean_over, prediction
from fastsc.reproduction.study import Study
from fastsc.run.resume import plain_options
from fastsc.training.alpha import near

Row = Sequence[object]
CHANGE = Measure("val/top1", "top-1", "higher", "difference")  # two-sided, unlike the claim
DS, REST = ("ds", "ds_at", "alpha"), ("ce_views", "stop_gradient", "bn")  # a method's options
CHANCE = (1 - LEVEL) / 2  # that an interval lies on one side without an effect
PAPER = {  # what it claims, by question
    "accuracy": "accuracy does not suffer",
    "continuity": "DS falls under each perturbation (figure 4)",
    "neighbours": "an image's views lie close together (figures 1 and 2)",
    "gradients": "the network is smoother in its input",
    "robustness": "attacks succeed less often",
    "shifts": "no claim of its: other shifts are borne better, too",
    "explanations": "explanations agree",
    "transfer": "features transfer better",
    "bias": "it relies less on colors that lie",
}
# What `fastsc.evaluate` calls the number of images of a question.
SIZES = {question: question for question in CLAIMS} | {
    "continuity": "curves", "explanations": "explained",
}  # fmt: skip


@dataclass(frozen=True)
class Results:
    """A study and what is known of it.

    Attributes:
        study, runs: Which study, and the records of its runs.
        further, known: Runs with other seeds, and those that they repeat.
    """

    study: Study
    runs: Records
    further: Records = field(default_factory=dict)
    known: Records = field(default_factory=dict)

    def present(self, names: Iterable[str] | None = None) -> list[str]:
        """The arms of which there is a run, in the study's or the given order."""
        have = {arm for arm, _ in self.runs}
        return [name for name in (self.study.arms if names is None else names) if name in have]

    def group(self, name: str, least: int = 3) -> list[str]:
        """The arms of a group; none of so few, or without its base, with which all are compared."""
        group = self.study.groups.get(name, ())
        names = self.present(group)
        based = name == "target" or names[:1] == list(group[:1])
        return names if based and len(names) >= least else []

    def label(self, name: str) -> str:
        """What a reader sees of an arm."""
        return self.study.arms[name].label

    @property
    def chosen(self) -> str:
        """What a sentence calls the arm that the study is about."""
        default = self.study.default
        return "the default" if default == "default" else self.label(default)

    def of(self, name: str) -> list[Record]:
        """The records of an arm by seed."""
        return [record for (arm, _), record in sorted(self.runs.items()) if arm == name]

    def command(self, name: str) -> str:
        """The training of an arm's first seed as one types it: recipes may have changed since."""
        return command_of(self.study, self.study.arms[name], self.of(name)[0].seed)

    def estimate(self, name: str, key: str) -> SeedEstimate:
        """A figure of an arm over its seeds."""
        return claims.estimate_of(self.runs, name, key)

    def effect(self, measure: Measure, name: str, against: str) -> Effect | None:
        """Of an arm against another; None where there is no common seed."""
        return claims.effect_of(self.runs, measure, name, against)

    def effects(
        self, *questions: str, arm: str | None = None, against: Sequence[str] | None = None
    ) -> list[Effect]:
        """The claims of these questions, or of all; of the default against each baseline."""
        measures = [measure for question in questions or CLAIMS for measure in CLAIMS[question]]
        baselines = self.study.compared if against is None else against
        return claims.effects_of(self.runs, measures, arm or self.study.default, baselines)

    def goals(self, *, further: bool = False) -> list[Goal]:
        """What the default is meant to reach, by these runs or by the further ones."""
        return claims.goals_of(self.study, self.further if further else self.runs)

    def goal_rows(self, goals: Sequence[Goal]) -> Iterator[Row]:
        """One row per goal, with what was reached."""
        verdicts = {"holds": "reached", "does not hold": "missed", "not shown": "undecided"}
        for goal in goals:
            yield [goal.label, goal.estimate.n, words.effect(goal), verdicts[goal.verdict]]

    def others(self) -> Iterator[Row]:
        """One row per further arm whose claims are tested: what still moves, and the price."""
        for name, arms in self.study.claimed.items():
            against = self.study.augmentation if self.study.augmentation in arms else arms[0]
            found = [self.effect(measure, name, against) for measure in (RELATIVE, TOP1)]
            if any(found):
                cells = (NONE if effect is None else words.judged(effect) for effect in found)
                yield [self.label(name), self.label(against), *cells]

    @property
    def setting(self) -> Record:
        """A run of plain training, or of another arm: its options are those of most."""
        return self.of((self.present([self.study.reference]) or self.present())[0])[0]

    def method(self, name: str) -> str:
        """An arm's constraint, as the options that make it."""
        options = plain_options(self.study.config(self.study.arms[name], Path("DIR"), 0))
        ds, rest = ({key: options[key] for key in keys} for keys in (DS, REST))
        own = self.study.arms[name].options
        rest |= {k: v for k, v in own.items() if k not in {*ds, *rest, "alpha_warmup_epochs"}}
        if not options["alpha"]:
            return f"cross-entropy alone, with `{' '.join(typed(rest))}`"
        rise = options["alpha_warmup_epochs"]
        if rise is None:
            how = "which rises in a straight line from 0 over the whole run"
        else:
            how = f"which rises over the first {rise:g} epochs" if rise else "constant"
        return f"`{' '.join(typed(ds))}`, {how}; `{' '.join(typed(rest))}`"

    def relative(self, records: Sequence[Record]) -> str:
        """An arm's ds_relative; collapsed features have none."""
        runs = {(record.arm, record.seed): record for record in records}
        estimate = claims.estimate_of(runs, records[0].arm, RELATIVE.key)
        if estimate.n == len(records):
            return words.number(estimate)
        if estimate.n:
            return f"{words.number(estimate)} (n = {estimate.n})"
        return "collapsed" if any(record.collapsed for record in records) else NONE

    def arms(self) -> Iterator[Row]:
        """One row per arm: mean ± half the 95 % interval over its seeds."""
        for name in self.present():
            records = self.of(name)
            top1 = self.estimate(name, TOP1.key)
            yield [
                f"{self.label(name)} (`{name}`)", records[0].options["epochs"], _views(records[0]),
                top1.n, words.percent(top1),
                words.percent(self.estimate(name, "val/top1_perturbed")),
                self.relative(records),
            ]  # fmt: skip

    def side_by_side(self) -> list[str]:
        """Arms that train alike, the reference first: another network compares with its like."""
        names = [name for name in self.present() if name not in self.study.groups.get("depth", ())]
        return sorted(names, key=lambda name: name != self.study.reference)

    def compared(self, names: Sequence[str]) -> Iterator[Row]:
        """One row per arm: figures, and effects against the first one over common seeds."""
        base = names[0]
        for name in names:
            top1, records = self.estimate(name, TOP1.key), self.of(name)
            left = min(record.left for record in records)
            cells = [f"{self.label(name)} (`{name}`)", str(top1.n), words.percent(top1)]
            cells.append(words.percent(self.estimate(name, "val/top1_perturbed")))
            cells += [self.relative(records), f"{100 * left:.0f} %"]
            for measure in (CHANGE, RELATIVE):
                change = None if name == base else self.effect(measure, name, base)
                cells.append(NONE if change is None else words.effect(change))
                if change is not None and change.estimate.n < top1.n:
                    cells[-1] += f" in {count(change.estimate.n, 'common seed')}"
            yield cells

    def unseen_by_cosine(self) -> Iterator[Row]:
        """One row per arm that was asked: what a cosine misses of features and of movement."""
        for name in self.present():
            shares = [self.estimate(name, f"continuity/{key}_share") for key in ("mean", "radial")]
            if shares[0].n:
                label = f"{self.label(name)} (`{name}`)"
                yield [
                    label,
                    shares[0].n,
                    *map(words.percent, shares),
                    self.relative(self.of(name)),
                ]

    def claims(self, effects: Sequence[Effect]) -> str:
        """One row per measure: the arm's figure, and effect and verdict against each baseline."""
        headings = ["measure", self.label(effects[0].arm)]
        against = list(dict.fromkeys(effect.against for effect in effects))
        for name in against:
            headings += [self.label(name), "against it"]
        rows = []
        for measure in dict.fromkeys(effect.measure for effect in effects):
            by_name = {effect.against: effect for effect in effects if effect.measure == measure}
            most = max(by_name.values(), key=lambda effect: effect.estimate.n)
            row = [measure.directed, words.figure(measure, most.own)]
            for effect in map(by_name.get, against):
                if effect is None:
                    row += [NONE, NONE]
                    continue
                fewer = f", n = {effect.estimate.n}" if effect.estimate.n < most.estimate.n else ""
                row += [words.figure(measure, effect.theirs), words.judged(effect) + fewer]
            rows.append(row)
        return table(rows, *headings)

    def replication(self) -> Iterator[Row]:
        """Means of further seeds, and where those of the known runs predict them."""
        for name in Results(self.study, self.further).present():
            for key, scale, digits in (("val/top1", 100, 1), ("val/ds_relative", 1, 3)):
                old, new = (list(claims.values_of(runs, name, key).values())
                            for runs in (self.known, self.further))  # fmt: skip
                if len(old) < 2 or not new:
                    continue
                low, high = prediction(old, len(new))
                mean = mean_over(new)
                yield [
                    f"{self.label(name)}, {key.removeprefix('val/')}",
                    words.number(mean_over(old), digits, scale),
                    f"{scale * low:.{digits}f} to {scale * high:.{digits}f}",
                    words.number(mean, digits, scale),
                    "fits" if low <= mean.value <= high else "does not fit",
                ]

    def asked(self, question: str) -> list[str]:
        """On how many images networks were asked."""
        records = [record for name in (self.study.default, *self.study.compared)
                   for record in self.of(name)
                   if any(key.startswith(f"{question}/") for key in record.figures)]  # fmt: skip
        sizes = [record.asked.get("sizes", {}).get(SIZES[question]) for record in records]
        return [f"{size:,}" for size in sorted({size for size in sizes if size is not None})]

    def steered(self, names: Iterable[str]) -> list[Record]:
        """The records that had a target, and tell of their alpha."""
        return [
            record for name in names for record in self.of(name)
            if record.options.get("ds_target") is not None
            and any(x is not None for x in record.curve["alpha"])
        ]  # fmt: skip

    def targets(self, names: Sequence[str]) -> Iterator[Row]:
        """One row per run: the target, where alpha began, went and ended, what was reached."""
        for record in self.steered(names):
            target = float(record.options["ds_target"])
            alphas = [x for x in record.curve["alpha"] if x is not None]
            reached = claims.number_of(record, RELATIVE.key)
            off = NONE if math.isnan(reached) else f"{signed(100 * (reached / target - 1), 0)} %"
            yield [
                f"`{record.arm}`, seed {record.seed}", f"{target:g}",
                f"{float(record.options['alpha']):g}",
                f"{min(alphas):.2g} to {max(alphas):.4g}", f"{alphas[-1]:.3g}",
                self.relative([record]), off, f"{100 * claims.number_of(record, TOP1.key):.1f}",
            ]  # fmt: skip

    @property
    def tested(self) -> list[Effect]:
        """Every claim on the default, against every arm that it is compared with."""
        return [effect for effect in self.effects() if math.isfinite(effect.estimate.value)]

    def failures(self) -> dict[str, list[str]]:
        """What was missed, came out contrary, collapsed, and what so few seeds leave open."""
        missed, contrary, collapsed, undecided = (list[str]() for _ in range(4))
        goals = self.goals()
        for goal in goals:
            line = f"{goal.label}: {words.effect(goal)}"
            if goal.verdict == "does not hold":
                missed.append(f"{line}.")
            elif goal.verdict == "not shown":
                undecided.append(f"{line}, the goal{words.enough(goal)}.")
        for (arm, seed), record in sorted(self.runs.items()):
            target, label = record.options.get("ds_target"), f"{self.label(arm)}, seed {seed}"
            if target is not None and not near(claims.number_of(record, RELATIVE.key), target):
                missed.append(f"{label}, ends at {self.relative([record])}.")
            if record.collapsed:
                collapsed.append(
                    f"{label}: top-1 {100 * claims.number_of(record, TOP1.key):.1f} %."
                )
        aims = {(goal.measure, goal.against) for goal in goals}
        others = [effect for effect in self.tested if (effect.measure, effect.against) not in aims]
        for effect in others:
            text, against = words.effect(effect), self.label(effect.against)
            line = f"{effect.measure.directed}, against {against}: {text}"
            if effect.verdict == "does not hold":
                contrary.append(f"{line}.")
            elif effect.verdict == "not shown" and effect.estimate.n > 1 and text != EQUAL:
                undecided.append(f"{line}{words.enough(effect)}.")
        single = sum(effect.estimate.n == 1 for effect in others)
        if single:
            line = f"{count(single, 'comparison')} in a single seed, which shows nothing."
            undecided.append(line)
        return {"missed": missed, "contrary": contrary, "collapsed": collapsed, "open": undecided}

    def tested_against(self) -> list[str]:
        """The labels of the arms that the default is compared with."""
        return [self.label(name) for name in self._against()]

    def by_question(self) -> Iterator[Row]:
        """One row per claim of the paper: how many of its measures hold against which arm."""
        for question, measures in CLAIMS.items():
            tested = [effect for effect in self.tested if effect.measure in measures]
            if tested:
                cells = ([e for e in tested if e.against == name] for name in self._against())
                yield [PAPER[question], *(words.tally(effects) for effects in cells)]

    def _against(self) -> list[str]:
        return list(dict.fromkeys(effect.against for effect in self.tested))

    @property
    def by_chance(self) -> float:
        """How many claims would seem to hold if there were no effect at all."""
        return CHANCE * sum(
            effect.estimate.n > 1 and effect.measure.effect != "not worse" for effect in self.tested
        )

    @property
    def left(self) -> str:
        """The runs that the grid holds and no record does, arm by arm, with their cost."""
        left = {
            arm.name: tasks
            for arm in self.study.arms.values()
            if (tasks := [
                _task(self.study, arm.name, seed) for seed in self.study.seeds_of(arm)
                if (arm.name, seed) not in self.runs
            ])
        }  # fmt: skip
        every = [task for tasks in left.values() for task in tasks]
        return _costs(self.study, {**left, "all": every}, self.runs.values()) if left else ""

    def scaled(self, name: str) -> tuple[Study, str, str]:
        """The study on another machine, its network, and what its quick arms cost there."""
        scaled = self.study.scaled(name)
        tasks = {arm: [_task(scaled, arm, 0)] for arm in scaled.quick}
        model = tasks[scaled.quick[0]][0].config.model.model
        return scaled, model, _costs(scaled, tasks, ())

    @property
    def machines(self) -> list[Row]:
        """One row per kind of machine and set of versions, with the runs that it made."""
        rows: dict[tuple[str, ...], list[str]] = {}
        for record in {**self.further, **self.runs}.values():
            made, hardware = record.made, record.made["hardware"]
            gpus = hardware["gpus"] if str(made["device"]).startswith("cuda") else []
            commit, _, changed = str(made.get("commit") or "unknown").partition("-")
            versions = made["versions"]
            machine = (
                f"{gpus[0] if gpus else hardware['cpu']}, {count(hardware['cores'], 'core')}, "
                f"{hardware['memory_gib']:.0f} GiB",
                f"{made['threads']} per run, {made['precision']}",
                f"Python {versions['python']}, torch {versions['torch']}, "
                f"torchvision {versions['torchvision']}",
                f"`{commit[:10]}`" + (", with changes" if changed else ""),
            )
            rows.setdefault(machine, []).append(made["date"])
        return [
            [self.study.title, *machine, " to ".join(sorted({min(dates), max(dates)})), len(dates)]
            for machine, dates in sorted(rows.items())
        ]


def _task(study: Study, arm: str, seed: int) -> Task:
    config = study.config(study.arms[arm], Path("DIR"), seed)
    return Task(study.arms[arm], seed, config, "", study.values(study.arms[arm], seed))


def _costs(study: Study, by_arm: dict[str, list[Task]], records: Iterable[Record]) -> str:
    """One row per arm, with hours on machines whose rate is known."""
    every = [task for tasks in by_arm.values() for task in tasks]
    speeds = speeds_of(study, records, every)
    rows = [
        [name if name == "all" else f"`{name}`", len(tasks),
         *cells_of(tasks, study.images, speeds, zero=NONE, unknown=NONE)]
        for name, tasks in by_arm.items()
    ]  # fmt: skip
    return table(rows, "arm", "runs", "images", "pairs", *(speed.where for speed in speeds))


def _views(record: Record) -> str:
    """Images that went through the network in a training, each view of one by itself."""
    share = 0.0 if record.plain else float(record.options["paired_fraction"])
    return f"{record.steps * int(record.options['batch_size']) * (1 + share):,.0f}"
