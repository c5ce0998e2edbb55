"""A run's record: one small JSON file with everything that a table or a figure shows of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from fastsc.config.checks import check_ranges
from fastsc.config.recipes import with_values
from fastsc.config.rules import MAX_SEED
from fastsc.config.schema import TrainConfig, field_types, plain_options
from fastsc.errors import UserError
from fastsc.evaluation.results.store import write_text
from fastsc.pipelines.fields import Fields, is_number, shown
from fastsc.pipelines.reading import blamed, read_json
from fastsc.run.log import read_log
from fastsc.training.collapse import SHARE

FORMAT = 1
POINT = 0.01  # of the most distance between images; under it they lie at one point
CURVE_POINTS = 60  # at most, of what is kept of a run's steps
CURVE = ("step", "ds_relative", "between", "effective_rank", "alpha", "ce")


@dataclass(frozen=True)
class Record:
    """What is known of one run; the fields of its JSON file.

    Attributes:
        study, arm, seed: Which run.
        key: Hash of what makes it this run and no other: options and images.
        options: Those of the training that make it what it is, resolved.
        command: That one may type to run it again.
        made: Date, hardware, versions, commit, threads, device, precision.
        images: Of training and of validation.
        steps, seconds: Optimizer steps; of all epochs, the validation after the last one among it.
        pairs_per_s: Unique images a second of the steps: the median over what was logged.
        val: The last validation: top1, top5, top1_perturbed, ds, ds_relative, n.
        curve: Columns of numbers over the steps.
        trial: Whether steps or images were cut short, so that it is no result.
        figures: "question/name" -> value, of `fastsc.evaluate`.
        asked: How it was asked: images per question, budget, seconds.
    """

    study: str
    arm: str
    seed: int
    key: str
    options: Mapping[str, Any]
    command: str
    made: Mapping[str, Any]
    images: Mapping[str, int]
    steps: int
    seconds: float
    pairs_per_s: float
    val: Mapping[str, float | None]
    curve: Mapping[str, list[float | None]]
    trial: bool = False
    figures: Mapping[str, float | None] = field(default_factory=dict)
    asked: Mapping[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def name(self) -> str:
        return run_name(self.arm, self.seed)

    @property
    def plain(self) -> bool:
        """Whether it trained with one view an image."""
        return self.options["alpha"] == 0 and self.options["ce_views"] == "clean"

    def images_of(self, question: str) -> int | None:
        """On how many images a question was to be asked; None: as its budget says."""
        images = self.asked.get("images")
        return None if images is None else images.get(question)

    @property
    def left(self) -> float:
        """What is left at the end of the features' spread, or of its directions, of their most."""
        return min(_left(self.curve[column]) for column in ("between", "effective_rank"))

    @property
    def collapsed(self) -> bool:
        """Whether the features ended on one line or at one point; ds_relative is noise then.

        A spread that is smaller, but keeps its directions, is only another unit down to a hundredth
        of its most; of the committed runs those that learn keep more than half.
        """
        spread, rank = (_left(self.curve[key]) for key in ("between", "effective_rank"))
        return rank < SHARE or spread < POINT


def _left(values: Iterable[float | None]) -> float:
    known = [x for x in values if x is not None]
    if not known:
        return 1.0  # nothing says that it fell
    return known[-1] / max(known) if max(known) > 0 else 0.0


def run_name(arm: str, seed: int) -> str:
    """Of a run's folder and, with .json, of its record."""
    return f"{arm}-{seed}"


def science(config: TrainConfig) -> dict[str, Any]:
    """The options that make a run what it is, as JSON has them.

    Of those with `since`, which older records do not know, only what is not as it was with these;
    and what nothing but the pipeline cpu has is none of another's.
    """
    rules, older = config.rules(), plain_options(type(config)())
    older |= {key: r.before for key, r in rules.items() if r.before is not None}
    if config.data.pipeline != "cpu":
        config = config.replace(exact_decode=True)  # as the others decode
    return {
        key: value
        for key, value in plain_options(config).items()
        if rules[key].part == "science" and not (rules[key].since and value == older[key])
    }


def key_of(options: Mapping[str, Any], train_hash: str, val_hash: str) -> str:
    """Hash of a run's options and images: a record of the same key is a record of this run."""
    text = json.dumps([dict(options), train_hash, val_hash], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def record_of(
    run: Path,
    *,
    study: str,
    arm: str,
    seed: int,
    key: str,
    options: Mapping[str, Any],
    command: str,
    trial: bool,
) -> Record:
    """Of a finished run's folder.

    Raises:
        UserError: Its log does not tell of an end, or of other images than the key's.
    """
    events = read_log(run / "log.jsonl")
    header = next((event for event in events if event["event"] == "header"), None)
    # A resumed run may have written an epoch or a step twice; the later line counts.
    epochs = list({e["epoch"]: e for e in events if e["event"] == "epoch"}.values())
    if header is None or not epochs or not epochs[-1].get("val"):
        raise UserError(f"{run}: its log has no validation; remove the folder, to run it again")
    # Earlier runs do not name their validation images; --verify leaves out what no plan knows of.
    if "val_index_hash" in header and not header.get("verify"):
        seen = key_of(options, header["index_hash"], header["val_index_hash"])
        if seen != key:
            raise UserError(
                f"{run}: has seen other images than there were when it was planned; remove the "
                "folder, to run it again"
            )
    steps = {event["step"]: event for event in events if event["event"] == "step"}
    rates = [event["pairs_per_s"] for event in steps.values() if event.get("pairs_per_s")]
    made = {key: header.get(key) for key in ("hardware", "versions", "commit")}
    made |= {key: header.get(key) for key in ("device", "precision", "threads", "pipeline")}
    made["date"] = _date(events)
    images: dict[str, Any] = {"train": header.get("images"), "val": header.get("val_images")}
    record = Record(
        study=study,
        arm=arm,
        seed=seed,
        key=key,
        options=options,
        command=command,
        made=made,
        images=images,
        steps=max(steps, default=0),
        seconds=round(sum(event["seconds"] for event in epochs), 1),
        pairs_per_s=round(median(rates), 2) if rates else 0.0,
        val=epochs[-1]["val"],
        curve=_curve([steps[step] for step in sorted(steps)]),
        trial=trial,
    )
    return checked(record, f"{run / 'log.jsonl'}: its run")


def write_record(folder: Path, record: Record) -> Path:
    """FOLDER/ARM-SEED.json, whole or not at all; FOLDER/ARM-SEED-KEY.json of a trial."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from None
    # A trial must not replace the run itself.
    name = f"{record.name}-{record.key[:6]}" if record.trial else record.name
    path = folder / f"{name}.json"
    write_text(path, json.dumps(asdict(record), indent=1, allow_nan=False) + "\n")
    return path


def read_record(path: Path) -> Record:
    """UserError where the file is no record of this format."""
    place = f"{path} is no record of a run"
    values = Fields(read_json(path, place), place)
    if (other := values.values.get("format", FORMAT)) != FORMAT:
        raise UserError(f"{path} is a record of format {shown(other)}, not {FORMAT}: run it again")
    with blamed(place):
        return checked(Record(**values.values), place)


# Options that tables and figures show; others may be younger than a record.
_SHOWN = (
    "alpha", "batch_size", "ce_views", "epochs", "model", "paired_fraction", "resolution",
    "strengths",
)  # fmt: skip
_SIZES = ("curves", "neighbours", "gradients", "robustness", "explained", "transfer", "bias")


def checked(record: Record, place: str) -> Record:
    """The record, if all that a table or a figure takes from it is of its type.

    place: What a UserError calls its file.
    """
    fields = Fields(vars(record), place)
    for key in ("study", "arm", "key", "command"):
        fields.text(key)
    fields.whole("seed", high=MAX_SEED)
    fields.whole("steps")
    fields.number("seconds")
    fields.number("pairs_per_s", low=0)
    fields.flag("trial")
    _check_options(fields.inner("options"))
    _check_made(fields.inner("made"))
    images = fields.inner("images")
    images.whole("train")
    images.whole("val")
    _check_numbers(fields.inner("val"), ("top1", "ds_relative"))
    _check_numbers(fields.inner("figures"))
    curve = fields.inner("curve")
    lengths = {len(_column(curve, key)) for key in CURVE}
    if len(lengths) > 1:
        curve.wrong(CURVE[0], "as long as the other columns")
    asked = fields.inner("asked")
    if asked.has("images"):
        of_images = asked.inner("images")
        for question in of_images.values:
            of_images.whole(question)
    if asked.has("left_out"):
        asked.texts("left_out")
    if asked.has("sizes"):
        sizes = asked.inner("sizes")
        for key in filter(sizes.has, _SIZES):
            sizes.whole(key)
    return record


def _check_options(options: Fields) -> None:
    for key in _SHOWN:
        if not options.has(key):
            options.wrong(key, "there")
    known = {key: value for key, value in options.values.items() if key in field_types()}
    check_ranges(with_values(TrainConfig(), known, options.place))


def _check_made(made: Fields) -> None:
    hardware, versions = made.inner("hardware"), made.inner("versions")
    hardware.text("cpu")
    hardware.whole("cores")
    hardware.number("memory_gib", low=0)
    gpus = hardware.texts("gpus")
    if made.text("device").startswith("cuda") and not gpus:
        hardware.wrong("gpus", "the names of the GPUs that it ran on")
    for key in ("python", "torch", "torchvision"):
        versions.text(key)
    if made.has("commit"):
        made.text("commit")
    made.text("precision")
    made.text("date")
    made.whole("threads", low=1)


def _check_numbers(fields: Fields, needed: Iterable[str] = ()) -> None:
    for key in (*needed, *fields.values):
        if key not in fields.values or fields.has(key):
            fields.number(key)


def _column(curve: Fields, key: str) -> list[float | None]:
    column = curve.values.get(key)
    if not isinstance(column, list) or not all(x is None or is_number(x) for x in column):
        curve.wrong(key, "a list of numbers")
    return column


def read_records(folders: Iterable[Path]) -> dict[tuple[str, int], Record]:
    """By (arm, seed); of two folders' the later one's. Folders that are not there hold none."""
    return {(record.arm, record.seed): record for record in all_records(folders)}


def all_records(folders: Iterable[Path]) -> list[Record]:
    """Every record of the folders, also several of one arm and seed with other options."""
    return [read_record(path) for folder in folders for path in sorted(folder.glob("*.json"))]


def _date(events: list[dict[str, Any]]) -> str:
    """The day of the run's end."""
    from datetime import UTC, datetime

    ends = [event["time"] for event in events if event["event"] == "end" and event.get("time")]
    return datetime.fromtimestamp(ends[-1], UTC).date().isoformat() if ends else ""


def _curve(steps: list[dict[str, Any]]) -> dict[str, list[float | None]]:
    """Means of the logged figures over equal stretches of the run, with the stretch's last step."""
    n = min(CURVE_POINTS, len(steps))
    edges = [round(i * len(steps) / n) for i in range(n + 1)] if n else []
    columns: dict[str, list[float | None]] = {name: [] for name in CURVE}
    for low, high in pairwise(edges):
        part = steps[low:high]
        columns["step"].append(part[-1]["step"])
        for name in CURVE[1:]:
            values = [event[name] for event in part if event.get(name) is not None]
            columns[name].append(float(f"{sum(values) / len(values):.5g}") if values else None)
    return columns
