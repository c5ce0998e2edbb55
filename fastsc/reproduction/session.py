"""One call of `python -m fastsc.reproduce`: what is to be run, what it costs, and the page."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from rich.table import Table

from fastsc.cli.lock import locked
from fastsc.config.options import parse
from fastsc.config.schema import plain_options
from fastsc.datasets.colormnist import CORRELATION, prepared
from fastsc.errors import UserError
from fastsc.pipelines import scan
from fastsc.pipelines.fields import did_you_mean
from fastsc.pipelines.index import part_of
from fastsc.reproduction.cost import cost_table, speeds_of
from fastsc.reproduction.grid import load_study
from fastsc.reproduction.images import limited, share
from fastsc.reproduction.page.document import write_page
from fastsc.reproduction.records import Record, all_records
from fastsc.reproduction.runner import FailedError, Sweep, Task, check_out
from fastsc.reproduction.study import Study

SMALLEST_BATCH = 2
Say = Callable[[str], object]


@dataclass(frozen=True)
class Session:
    """What a command line asks for.

    Attributes:
        sweep, tasks: The runs, done or not.
        known: The folder of records that need not be run again.
        replication: Whether its seeds are to be compared with the known records'.
        lines: What a person should know beforehand.
    """

    sweep: Sweep
    tasks: Sequence[Task]
    known: Path | None
    replication: bool
    lines: Sequence[str] = field(default=())

    def cost(self) -> Table:
        """What is left to run, in pairs and in hours of each machine whose rate is known."""
        sweep = self.sweep
        records = all_records([*sweep.known, sweep.out / "records"])
        # A sample of a data set is for trials; what the study costs is asked of the whole.
        n = sweep.study.images
        if sweep.trial:
            n = min(n, len(scan(sweep.data / "train").usable))
        speeds, cores = speeds_of(sweep.study, records, self.tasks), len(os.sched_getaffinity(0))
        return cost_table(sweep.study, self.tasks, n, speeds, cores)

    def run(self, say: Say) -> int:
        """Does what is left, writes the page; the exit status."""
        left = [task for task in self.tasks if not task.done]
        say(f"{len(self.tasks)} runs, {len(self.tasks) - len(left)} of them done already")
        status = 0
        if any("transfer" in task.questions for task in left):
            self._make_transfer(say)
        try:
            self.sweep.run(self.tasks, say)
        except FailedError as failed:
            status = failed.status
        known = self._comparable() if self.replication else {}
        path = write_page(
            self.sweep.study, self._records(), self.sweep.out, known, trial=self.sweep.trial
        )
        say(f"wrote {path}")
        return status

    def _make_transfer(self, say: Say) -> None:
        if self.sweep.transfer is None:
            folder = self.sweep.out / "colormnist"
            prepared(folder, CORRELATION, None)
            self.sweep.transfer = folder / "random"
            say(f"transfer to the digits of Color MNIST in random colors, {folder}")

    def _records(self) -> list[Record]:
        """Of the grid's runs, as far as there are any, and of this session's; a replication's own.

        So a page does not lose the figures of another call of the same grid.
        """
        arms = list(dict.fromkeys(task.arm.name for task in self.tasks))
        seeds = list(dict.fromkeys(task.seed for task in self.tasks))
        tasks = self.sweep.tasks(arms, seeds)
        if not self.replication:
            tasks += self.sweep.tasks()
        records = {(task.arm.name, task.seed): task.record for task in tasks}
        return [record for record in records.values() if record is not None]

    def _comparable(self) -> dict[tuple[str, int], Record]:
        """Known records of the same options and images as this session's, and of other seeds."""
        mine = {(task.arm.name, task.seed) for task in self.tasks}
        known = {
            (record.arm, record.seed): record
            for record in all_records([] if self.known is None else [self.known])
            if (record.arm, record.seed) not in mine and not record.trial
        }
        arms = list(dict.fromkeys(task.arm.name for task in self.tasks))
        tasks = self.sweep.tasks(arms, list(dict.fromkeys(seed for _, seed in known)))
        keys = {(task.arm.name, task.seed): task.key for task in tasks}
        return {run: record for run, record in known.items() if keys.get(run) == record.key}


def open_session(
    args: argparse.Namespace, more: Sequence[str], known: Path | None, resources: ExitStack
) -> Session:
    """Everything that the user may have got wrong is checked here, before anything is written.

    resources: Keeps other commands out of --out until it is closed.

    Raises:
        UserError: One line for the user.
    """
    study, lines = load_study(args.study), list[str]()
    if args.scale is not None:
        study = study.scaled(args.scale)
    study = study.changed(_options(study, more))
    if args.max_steps is not None:
        study = study.changed({"max_steps": args.max_steps})
    common = study.config(study.arms[study.reference], Path("DIR"), 0)
    trial = args.limit_images is not None or common.optim.max_steps is not None
    data: Path = args.data
    if not data.is_dir():
        raise UserError(f"--data {data}: there is no such folder")
    check_out(args.out, data)
    for record in all_records([args.out / "records"]):
        if record.study != study.name:  # its records would have the names of these
            raise UserError(
                f"--out {args.out}: holds records of study {record.study}; name another folder"
            )
    blind = args.dry_run and not any((data / name).is_dir() for name in ("val", "test"))
    if blind:
        lines.append(f"{data} has no validation images: nothing counts as done")
    larger = args.limit_images is None and _larger(study, common.data.pipeline, data, lines)
    if study.held_out and (common.data.pipeline == "ffcv" or common.data.val != "auto"):
        raise UserError(
            f"study {study.name} validates on training images that it holds out: leave --val and "
            "--pipeline ffcv out"
        )
    if larger and common.data.val == "none":
        raise UserError("a study needs validation images: leave --val none out")
    if larger and args.dry_run and (args.out / "images" / "train").is_dir():
        data = args.out / "images"
    elif larger and args.dry_run:
        blind = True
        lines.append(f"{data} has more images than the study takes: nothing counts as done yet")
    arms, seeds = args.arms, args.seeds
    if args.quick:
        if not study.quick:
            raise UserError(f"--quick: study {study.name} has no short replication")
        arms, seeds = arms or list(study.quick), seeds or list(study.quick_seeds)
    for arm in arms or ():
        if arm not in study.arms:
            raise UserError(
                f"--arms {arm}: no arm of study {study.name}{did_you_mean(arm, study.arms)}; "
                f"there are {', '.join(study.arms)}"
            )
    if args.limit_images is not None and args.dry_run:
        raise UserError("--dry-run counts the whole study: leave --limit-images out")
    sweep = Sweep(
        study=study,
        data=data,
        out=args.out,
        known=[] if known is None else [known],
        jobs=args.jobs,
        transfer=args.transfer_data,
        trial=trial,
    )
    sweep.tasks(arms, seeds, blind=True)  # tells of a seed or a record that is none
    if not args.dry_run:
        resources.enter_context(locked(args.out))
    if args.limit_images is not None:
        data, line = limited(data, args.out, args.limit_images)
        study, smaller = _smaller_batch(study, common.optim.batch_size, args.limit_images)
        lines += [line, *smaller]
    elif larger and not args.dry_run:
        data, line = share(
            data, args.out, study.images, val=common.data.val == "auto", held_out=study.held_out
        )
        lines.append(line)
    if trial:
        lines.append("a trial: its figures are no result, and its page says so")
    sweep.study, sweep.data = study, data
    tasks = sweep.tasks(arms, seeds, blind=blind)
    return Session(sweep, tasks, known, args.quick, lines)


def _larger(study: Study, pipeline: str, data: Path, lines: list[str]) -> bool:
    """Whether the folder has more training images than the study means; of fewer a line tells."""
    part = part_of(data, "train")
    if pipeline == "ffcv" or part is None:
        return False  # an FFCV dataset is taken as it is; opening it reports what is missing
    n = len(scan(part).usable)
    if n < study.images:
        lines.append(
            f"{n:,} training images, and the study means {study.images:,}: other runs than the "
            "committed ones"
        )
    return n > study.images or study.held_out > 0


def _options(study: Study, more: Sequence[str]) -> dict[str, object]:
    """The options that are named after --; one that is given the recipe's own value counts."""
    if not more:
        return {}
    given = plain_options(parse([study.recipe, "--data", "DIR", *more]))
    words = {word.split("=")[0].lstrip("-").replace("-", "_") for word in more if word[:2] == "--"}
    named = [key for key in given if key in words or f"no_{key}" in words]
    if "plain" in words:
        raise UserError("--plain is an arm's of its own: a study says which are plain")
    for key in ("data", "out", "resume", "seed"):
        if key in named:
            raise UserError(f"--{key} belongs to fastsc.reproduce itself, before --")
    if "val_every" in named:
        raise UserError("--val-every: a study's runs are validated at their end; leave it out")
    return {key: given[key] for key in named}


def _smaller_batch(study: Study, batch: int, n_images: int) -> tuple[Study, list[str]]:
    """At least two batches an epoch: a trial of few images takes few at a time."""
    size = batch
    while size > SMALLEST_BATCH and 2 * size > n_images:
        size //= 2
    if size == batch:
        return study, []
    return study.changed({"batch_size": size}), [f"batches of {size} images, not of {batch}"]
