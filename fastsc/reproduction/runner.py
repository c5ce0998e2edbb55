"""Runs what a study lacks: trainings, and what the trained networks are asked."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fastsc.cli.children import Children
from fastsc.config import TrainConfig
from fastsc.config.rules import spelled
from fastsc.datasets.folders import Data, open_data
from fastsc.distributed.signals import EXIT_RESUMABLE
from fastsc.errors import UserError
from fastsc.evaluation import SIZED
from fastsc.pipelines.reading import blamed, read_json
from fastsc.reproduction.records import (
    Record,
    all_records,
    checked,
    key_of,
    record_of,
    run_name,
    science,
    write_record,
)
from fastsc.reproduction.study import Arm, Study

Say = Callable[[str], object]
TRIAL_IMAGES = dict.fromkeys(SIZED, 4)  # of a trial's evaluation
_GRACE = 60.0  # seconds for a training to write its checkpoint when it is told to stop


class FailedError(Exception):
    """A training or an evaluation ended with a status that is not 0; it has printed the reason."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


@dataclass(frozen=True)
class Task:
    """One run: an arm, a seed, and what is known of it."""

    arm: Arm
    seed: int
    config: TrainConfig
    key: str
    values: Mapping[str, Any]
    questions: tuple[str, ...] = ()
    images: Mapping[str, int] = field(default_factory=dict)
    record: Record | None = None

    @property
    def name(self) -> str:
        return run_name(self.arm.name, self.seed)

    @property
    def done(self) -> bool:
        """Whether there is nothing left to do."""
        if self.record is None:
            return False
        if not self.questions:
            return True
        asked = self.record.asked
        answered = {name.partition("/")[0] for name in self.record.figures}
        sized = [q for q in self.questions if q in SIZED]
        same = all(self.record.images_of(q) == self.images.get(q) for q in sized)
        return same and set(self.questions) <= answered | set(asked.get("left_out", ()))


@dataclass
class Sweep:
    """A study on a data set, in a folder.

    Attributes:
        study, data, out: What, on what, where.
        known: Folders of records that need not be run again; OUT/records besides.
        jobs: Trainings at a time.
        transfer: The data set for the question transfer.
        trial: Whether the runs are cut short and no result.
    """

    study: Study
    data: Path
    out: Path
    known: Sequence[Path] = ()
    jobs: int = 1
    transfer: Path | None = None
    trial: bool = False

    def tasks(
        self,
        arms: Iterable[str] | None = None,
        seeds: Sequence[int] | None = None,
        *,
        blind: bool = False,
    ) -> list[Task]:
        """Every run of the arms, seed by seed, so that a broken-off sweep has paired ones.

        Args:
            arms: By name; None: all.
            seeds: In place of each arm's own.
            blind: Without looking at the images, so that nothing counts as done.
        """
        chosen = [self.study.arms[name] for name in dict.fromkeys(arms or self.study.arms)]
        images: Data | None = None
        if not blind:
            images = open_data(self.study.config(chosen[0], self.data, 0).data)
            if images.val is None:
                raise UserError("a study needs validation images: leave --val none out")
        records = all_records([*self.known, self.out / "records"])
        own = {arm.name: self.study.seeds_of(arm) for arm in chosen}
        numbers = max(own.values(), key=len) if seeds is None else dict.fromkeys(seeds)
        return [
            self._task(arm, seed, images, records)
            for seed in numbers
            for arm in chosen
            if seeds is not None or seed in own[arm.name]
        ]

    def _task(self, arm: Arm, seed: int, images: Data | None, records: Sequence[Record]) -> Task:
        config, key = self.study.config(arm, self.data, seed), ""
        if images is not None and images.val is not None:
            key = key_of(science(config), images.train.hash, images.val.hash)
        which = (self.study.name, arm.name, seed, key, self.trial)
        same = [r for r in records if (r.study, r.arm, r.seed, r.key, r.trial) == which]
        record = max(same, key=lambda r: len(r.figures), default=None)
        questions = self.study.asked(arm, seed)
        values, n = self.study.values(arm, seed), self.study.evaluate.images
        return Task(
            arm, seed, config, key, values, questions, TRIAL_IMAGES if self.trial else n, record
        )

    def run(self, tasks: Sequence[Task], say: Say) -> None:
        """Does what is left of the tasks; each leaves its record in OUT/records.

        Raises:
            FailedError: A training or an evaluation failed, with the first one's status. The others
                came to their end, unless it was told to stop.
            KeyboardInterrupt: All were told to stop, and have.
        """
        left = [task for task in tasks if not task.done]
        workers = _Workers(self, len(left), say)
        pool = ThreadPoolExecutor(self.jobs)
        try:
            futures = [pool.submit(workers.do, task) for task in left]
            failed = [error for future in futures if (error := future.exception()) is not None]
            pool.shutdown()
            if failed:
                raise failed[0]
        except KeyboardInterrupt:
            workers.stopping = True
            workers.children.end(grace=_GRACE)  # as a scheduler would
            pool.shutdown(cancel_futures=True)
            raise

    def folder(self, task: Task) -> Path:
        """Of a run. Its key is in the name: with other options it is another run."""
        return self.out / "runs" / f"{task.name}-{task.key[:6]}"


class _Workers:
    """The commands of one sweep, each a process of its own, and how far they are."""

    def __init__(self, sweep: Sweep, total: int, say: Say) -> None:
        self.sweep, self.total, self.say = sweep, total, say
        self.began, self.n_done, self.lock = time.monotonic(), 0, threading.Lock()
        self.children, self.stopping = Children(), False
        cores, at_once = len(os.sched_getaffinity(0)), max(1, min(sweep.jobs, total))
        self._environment = {"OMP_NUM_THREADS": str(max(1, cores // at_once)), **os.environ}

    def do(self, task: Task) -> None:
        """Training, record, evaluation; what is there is not done again."""
        sweep, run, record = self.sweep, self.sweep.folder(task), task.record
        records = sweep.out / "records"
        if record is None or not (run / "weights.safetensors").exists():
            place = {"data": str(sweep.data), "out": str(run), "resume": True}
            self._call("train", [sweep.study.recipe, *words({**task.values, **place})], run)
            record = record_of(
                run,
                study=sweep.study.name,
                arm=task.arm.name,
                seed=task.seed,
                key=task.key,
                options=science(task.config),
                command=command_of(sweep.study, task.arm, task.seed),
                trial=sweep.trial,
            )
            write_record(records, record)
        if task.questions:
            record = self._evaluated(task, run, record)
            write_record(records, record)
        with self.lock:
            self.n_done += 1
            spent = time.monotonic() - self.began
            left = (self.total - self.n_done) * spent / self.n_done / 60
            top1, relative = record.val["top1"], record.val["ds_relative"]
            self.say(
                f"[{self.n_done}/{self.total}] {task.name}: top-1 {_number(top1, 100, 1)} %, "
                f"ds_relative {_number(relative, 1, 3)}; about {left:.0f} min to go"
            )

    def _evaluated(self, task: Task, run: Path, record: Record) -> Record:
        sweep = self.sweep
        questions = [q for q in task.questions if q != "transfer" or sweep.transfer is not None]
        out = sweep.out / "evaluations" / run.name
        command = [str(run), "--data", str(sweep.data), "--out", str(out), "--names", task.name]
        command += ["--where-possible", "--only", *questions]
        command += image_words({q: n for q, n in task.images.items() if q in questions})
        if "transfer" in questions:
            command += ["--transfer-data", str(sweep.transfer)]
        began = time.monotonic()
        self._call("evaluate", command, run)
        path = out / "results.json"
        results = read_json(path, str(path))
        with blamed(f"{path} is no evaluation's"):
            rows = results["results"]
            figures = {f"{row['question']}/{row['name']}": row["value"] for row in rows}
            missing = {
                row["question"] for row in results["left_out"] if row["question"] in questions
            }
            answered = {row["question"] for row in rows}
            sizes = dict(results["metadata"]["sizes"])
        left_out = sorted((missing - answered) | (set(task.questions) - set(questions)))
        asked_of = replace(
            record,
            figures=figures,
            asked={
                "images": dict(task.images),
                "transfer": None if sweep.transfer is None else sweep.transfer.name,
                "sizes": sizes,
                "left_out": left_out,
                "seconds": round(time.monotonic() - began, 1),
            },
        )
        return checked(asked_of, str(path))

    def _call(self, module: str, command: Sequence[str], run: Path) -> None:
        """Raises FailedError with the process's status, after printing its last line."""
        if self.stopping:
            raise FailedError(EXIT_RESUMABLE)
        try:
            process = self.children.run(
                [sys.executable, "-m", f"fastsc.{module}", *command],
                env=self._environment,
                stdout=subprocess.DEVNULL,  # what it prints is in the run's log
                stderr=subprocess.PIPE,
                text=True,
                errors="backslashreplace",  # libraries write a file's name as it is
            )
        except InterruptedError:
            raise FailedError(EXIT_RESUMABLE) from None
        if process.returncode == EXIT_RESUMABLE:
            self.stopping = True  # whoever told it to stop means the sweep
        if process.returncode != 0:
            if not self.stopping:
                lines = process.stderr.strip().splitlines() or ["it printed nothing"]
                self.say(f"{run.name}: {lines[-1]}")
            # Killed, by the kernel for want of memory, say: our own fault, as a crash is.
            raise FailedError(max(process.returncode, 1))


def _number(value: float | None, scale: float, digits: int) -> str:
    return "undefined" if value is None else f"{scale * value:.{digits}f}"


def command_of(study: Study, arm: Arm, seed: int) -> str:
    """The training of a run as one types it, with DIR for its data."""
    options = {"data": "DIR", **study.values(arm, seed)}
    return shlex.join(["python", "-m", "fastsc.train", study.recipe, *words(options)])


def words(options: Mapping[str, Any]) -> list[str]:
    """Options as words of a command line."""
    parts: list[str] = []
    for key, value in options.items():
        if isinstance(value, bool):
            parts.append(spelled(key, value))
        else:
            values = value if isinstance(value, (list, tuple)) else [value]
            parts += [spelled(key), *map(_word, values)]
    return parts


def image_words(images: Mapping[str, int]) -> list[str]:
    """Numbers of images of questions as words of `fastsc.evaluate`."""
    return [word for q, n in images.items() for word in ("--images", f"{q}={n}")]


def _word(value: object) -> str:
    short = f"{value:g}" if isinstance(value, float) else str(value)
    return short if not isinstance(value, float) or float(short) == value else str(value)


def check_out(out: Path, data: Path) -> None:
    """Raises UserError where what is written would lie among the images."""
    if out.resolve().is_relative_to(data.resolve()):
        raise UserError(f"--out {out} lies in --data, among the images; name another folder")
    if data.resolve().is_relative_to((out / "images").resolve()):
        raise UserError(f"--data {data} lies where trials put their links; choose another --out")
