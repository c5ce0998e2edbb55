"""A run's log read backwards: which options, ranks and data a past step ran with.

A run is a start and any number of resumes, each from a checkpoint that may come after steps which
ran before. The last one that ran a step is what counts for it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from fastsc.config import TrainConfig
from fastsc.config.checks import check_ranges
from fastsc.config.recipes import field_types, load_recipe, with_values
from fastsc.errors import UserError
from fastsc.pipelines.files import TRAIN_BETON
from fastsc.pipelines.index import relative
from fastsc.run.folder import RunFolder
from fastsc.run.log import read_log

Event = dict[str, Any]


@dataclass
class Segment:
    """What ran from a start or a resume on, up to the next one.

    Attributes:
        start: Steps that were done when it began: it ran start + 1, start + 2, ….
        facts: The log's header as it would read for this segment; None where that is not known.
        events: Its lines of the log, the first one included.
    """

    start: int
    facts: Event
    events: list[Event] = field(default_factory=list)
    last: int = 0  # the last step that it is known to have run, at least
    ended: bool = False  # then `last` is exact

    def add(self, event: Event) -> None:
        """Takes in the next line of the log."""
        self.events.append(event)
        if event["event"] == "end":
            self.ended = True
            self.reach(event.get("steps"))
        elif event["event"] != "resume":
            self.reach(event.get("step"))

    def reach(self, step: int | None) -> None:
        """Notes that it has run a step, if the event names one."""
        if step is not None:
            self.last = max(self.last, step)

    @property
    def most(self) -> int:
        """The last step that it may have run: a killed process leaves a few unlogged.

        Figures come from a GPU when the next step is under way.
        """
        late = int(str(self.facts.get("device")).startswith("cuda"))
        unlogged = (self.facts.get("log_every") or 1) - 1 + late
        return self.last if self.ended else self.last + unlogged


class StepRecord(NamedTuple):
    """A step of a run."""

    step: int  # from 1
    segment: Segment
    nonfinite: Event | None  # the line that holds its indices, where its loss was not finite
    certain: bool  # whether the log proves that it ran


class History:
    """The segments of a run since it last started from nothing."""

    def __init__(self, run: Path, segments: list[Segment]) -> None:
        self.run, self.segments = run, segments

    @classmethod
    def read(cls, run: Path) -> History:
        """Reads RUN/log.jsonl, which may be in use; nothing is written or locked.

        Raises:
            UserError: It is no run's folder, or nothing has run there yet.
        """
        folder = RunFolder(run)
        if not run.is_dir() or not folder.config.is_file():
            what = "no config.yaml in it" if run.is_dir() else "no such folder"
            raise UserError(f"{run}: {what}; name a run's folder, the --out of its training")
        events = read_log(folder.log)
        segments: list[Segment] = []
        for event in events:
            if event["event"] == "header":
                segments = [Segment(0, event)]
            elif event["event"] == "resume" and segments:
                segments.append(_resumed(segments, event))
            if segments:
                segments[-1].add(event)
        if not segments:
            raise UserError(f"{folder.log} has no header: no step has run there yet")
        for step in folder.saved_steps:
            if step > segments[-1].start:
                segments[-1].reach(step)
        return cls(run, segments)

    def at(self, step: int | None) -> StepRecord:
        """The record of a step; of the last one that was not finite, for None.

        Raises:
            UserError: No such step has run.
        """
        if step is None:
            return self._last_nonfinite()
        last = max(segment.last for segment in self.segments)
        if step < 1:
            raise UserError(f"--step {step}: steps count from 1; the run's last is {last}")
        for certain in (True, False):
            for segment in reversed(self.segments):
                if segment.start < step <= (segment.last if certain else segment.most):
                    lines = [line for line in _nonfinite(segment) if line["step"] == step]
                    return StepRecord(step, segment, lines[-1] if lines else None, certain)
        what = f"the run's last step is {last}" if last else "the run has done no step yet"
        raise UserError(f"--step {step}: {what}")

    def _last_nonfinite(self) -> StepRecord:
        for segment in reversed(self.segments):
            if lines := _nonfinite(segment):
                return StepRecord(lines[-1]["step"], segment, lines[-1], certain=True)
        last = max(segment.last for segment in self.segments)
        raise UserError(
            f"{self.run}: every logged loss is finite; name a step with --step N, 1 to {last}"
        )

    def config(self, record: StepRecord) -> TrainConfig:
        """The options that the step ran with.

        Raises:
            UserError: The log or config.yaml names a value that no option can have.
        """
        folder, facts = RunFolder(self.run), record.segment.facts
        older = {k: r.before for k, r in TrainConfig().rules().items() if r.before is not None}
        logged = older | {key: facts[key] for key in field_types() if key in facts}
        config = with_values(load_recipe(str(folder.config)), logged, str(folder.log))
        check_ranges(config)
        return config

    def broken(self, record: StepRecord) -> dict[str, bool]:
        """Training files that the log names as broken, up to the record's segment.

        Returns:
            Every name that it may have in an index -> whether it was so from the start and was left
            out of the index; the others had substitutes.
        """
        broken: dict[str, bool] = {}
        for segment in self.segments[: self.segments.index(record.segment) + 1]:
            root = TRAIN_BETON if segment.facts.get("pipeline") == "ffcv" else "train"
            data = Path(segment.facts.get("data") or "")
            folders = Path(data, root), data  # a repair's data need no folder train
            first = segment is self.segments[0]
            for event in segment.events[1:]:
                # After the header come the results of the scan or --verify, then other lines.
                first = first and event["event"] in ("bad_image", "rank")
                if event["event"] == "bad_image":
                    path = event["path"]
                    for name in (path, *(relative(path, folder) for folder in folders)):
                        if name is not None:
                            broken.setdefault(name, first)
        return broken


def _nonfinite(segment: Segment) -> list[Event]:
    return [event for event in segment.events if event["event"] == "nonfinite" and event["index"]]


def _resumed(segments: list[Segment], event: Event) -> Segment:
    """The segment that a resume begins; the checkpoint it came from proves how far another got."""
    start: int = event["step"]
    before = next(segment for segment in reversed(segments) if segment.start <= start)
    before.reach(start)
    own = {key: value for key, value in event.items() if key not in ("event", "step", "epoch")}
    return Segment(start, segments[-1].facts | (event.get("changed") or {}) | own)
