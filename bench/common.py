"""The project's one timer: interleaved rounds, medians with quartiles, results as strict JSON.

Cases take turns within every round, so that a slow spell of the machine falls on all of them, and
the order is turned by one each round. Warm-up calls are made first and never counted; a device is
synchronized inside the timed region. What is compared is the ratio within one run.
"""

import argparse
import json
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from fastsc.run.environment import commit, hardware, version_of

PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "numba",
    "nvidia-dali-cuda130",
    "nvidia-dali-cuda120",
    "nvidia-nvimgcodec-cu13",
    "nvidia-nvimgcodec-cu12",
    "ffcv",
    "simplejpeg",
    "timm",
    "albumentations",
    "kornia",
    "triton",
)


@dataclass(frozen=True)
class Case:
    """One thing to time. `run` handles `items` items a call (or returns how many it handled).

    `unit` decides the direction: a rate, written X/s, is items a second; anything else is
    milliseconds an item, and less is better. `before` is called before each run, and not timed.
    """

    name: str
    run: Callable[[], object]
    items: int = 1
    unit: str = "ms/image"
    before: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class Result:
    """A row: median and quartiles of `n` timed calls, in `unit`."""

    name: str
    median: float
    q1: float
    q3: float
    unit: str
    n: int


@dataclass(frozen=True)
class Skipped:
    """A row for what could not be run here, and why."""

    name: str
    skipped: str


Row = Result | Skipped


def is_rate(unit: str) -> bool:
    """Whether more is better."""
    return unit.endswith("/s")


def synchronize(device: torch.device) -> None:
    """Wait until `device` has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def summarize(name: str, values: Sequence[float], unit: str) -> Result:
    """Median and inclusive quartiles of at least one value."""
    q1, median, q3 = (
        statistics.quantiles(values, n=4, method="inclusive")
        if len(values) > 1
        else (values[0],) * 3
    )
    return Result(name, median, q1, q3, unit, len(values))


def measure(
    cases: Sequence[Case],
    *,
    rounds: int = 21,
    warmup: int = 2,
    device: torch.device | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Result]:
    """Time every case once a round, after `warmup` calls each, and summarize by case.

    Raises:
        ValueError: fewer than one round, or two cases of one name.
    """
    if rounds < 1 or warmup < 0:
        raise ValueError(f"rounds must be at least 1 and warmup 0, not {rounds} and {warmup}")
    if len({case.name for case in cases}) != len(cases):
        raise ValueError("two cases have one name; results are told apart by it")
    device = device or torch.device("cpu")
    for case in cases:
        for _ in range(warmup):
            case.run()
    values: dict[str, list[float]] = {case.name: [] for case in cases}
    for turn in range(rounds):
        for position in range(len(cases)):
            case = cases[(turn + position) % len(cases)]
            case.before()
            synchronize(device)
            start = clock()
            handled = case.run()
            synchronize(device)
            seconds = clock() - start
            # bool is an int: a run that returns True has not counted anything
            items = handled if type(handled) is int else case.items
            values[case.name].append(
                items / seconds if is_rate(case.unit) else 1e3 * seconds / items
            )
    return [summarize(case.name, values[case.name], case.unit) for case in cases]


# --- where and with what -------------------------------------------------------------------------


def describe(device: torch.device | None = None) -> dict[str, Any]:
    """The metadata of a results file: hardware, versions, date, command, commit, threads."""
    found = {package: version_of(package) for package in PACKAGES}
    on_gpu = device is not None and device.type == "cuda"
    machine = hardware()
    return {
        "hardware": {
            "cpu": machine["cpu"],
            "cores": machine["cores"],
            "gpu": torch.cuda.get_device_name(device) if on_gpu else None,
        },
        "versions": {"python": platform.python_version()}
        | {package: version for package, version in found.items() if version is not None},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", *sys.orig_argv[1:]]),
        "commit": commit(),
        "device": str(device or "cpu"),
        "threads": torch.get_num_threads(),
    }


# --- results -------------------------------------------------------------------------------------


def to_json(rows: Iterable[Row], metadata: dict[str, Any]) -> str:
    """Strict JSON; a value that is not finite is a mistake of the benchmark and raises."""
    document = {"metadata": metadata, "results": [asdict(row) for row in rows]}
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


def _number(value: float) -> str:
    if not math.isfinite(value) or value == 0:
        return str(value)
    digits = max(0, 3 - math.floor(math.log10(abs(value))) - 1)
    return f"{value:,.{digits}f}"


def print_table(
    rows: Iterable[Row],
    title: str,
    baselines: dict[str, str] | None = None,
    columns: dict[str, dict[str, str]] | None = None,
) -> None:
    """Print the rows.

    `baselines` maps what stands in a name before its last "-" or its last "/", or else before its
    first "/", to the row that its ratios refer to; `columns` are further ones: by heading, texts by
    the row's name.
    """
    columns, baselines = columns or {}, baselines or {}
    rows = list(rows)
    by_name = {row.name: row for row in rows}
    speed_up = ["speed-up"] if baselines else []
    lines = [["name", "median", "q1", "q3", "unit", "n", *speed_up, *columns]]
    for row in rows:
        if isinstance(row, Skipped):
            lines.append([row.name, "skipped", *[""] * (len(lines[0]) - 2)])
            continue
        stems = row.name.rsplit("-", 1)[0], row.name.rsplit("/", 1)[0], row.name.split("/")[0]
        known = (baselines[stem] for stem in stems if stem in baselines)
        base = by_name.get(next(known, ""))
        ratio = ""
        if isinstance(base, Result) and base.unit == row.unit:
            faster = row.median / base.median
            ratio = f"{faster if is_rate(row.unit) else 1 / faster:.2f}×"
        numbers = [_number(v) for v in (row.median, row.q1, row.q3)]
        more = [texts.get(row.name, "") for texts in columns.values()]
        ratios = [ratio] if speed_up else []
        lines.append([row.name, *numbers, row.unit, str(row.n), *ratios, *more])
    print_lines(lines, title, left=("name", "unit"))
    for row in rows:
        if isinstance(row, Skipped):
            print(f"{row.name} was skipped: {row.skipped}")


def print_lines(lines: Sequence[Sequence[str]], title: str, *, left: Sequence[str]) -> None:
    """A table, its first line the headings; those in `left` head columns of words.

    By rich where it is installed: a GPU machine may have torch and little else.
    """
    headings, *body = lines
    try:
        from rich.console import Console
        from rich.table import Table
    except ModuleNotFoundError:
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        print(title)
        for line in lines:
            cells = zip(headings, line, widths, strict=True)
            print("  ".join(c.ljust(w) if h in left else c.rjust(w) for h, c, w in cells).rstrip())
        return
    table = Table(title=title, title_justify="left")
    for i, heading in enumerate(headings):
        words = heading in left
        table.add_column(heading, justify="left" if words else "right", no_wrap=i == 0)
    for line in body:
        table.add_row(*line, style="dim" if "skipped" in line else None)
    # Into a file or a pipe rich would fold the table to 80 columns.
    console = Console() if sys.stdout.isatty() else Console(width=160)
    console.print(table)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that every benchmark has."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here, too")
    parser.add_argument("--rounds", type=int, default=21, help="timed calls a case (default 21)")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1")


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse and check, before anything is timed; a mistake ends with exit status 2."""
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    if options.json is not None and not options.json.absolute().parent.is_dir():
        parser.error(f"--json: there is no folder {options.json.parent}; make it first")
    if options.json is not None and options.json.is_dir():
        parser.error(f"--json: {options.json} is a folder; name a file")
    try:
        options.device = torch.device(options.device)
    except RuntimeError:
        parser.error(f"--device: {options.device!r} is no device; use cpu or cuda")
    if options.device.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device; use --device cpu")
    return options


def write_early(rows: Sequence[Row], options: argparse.Namespace, extra: dict[str, Any]) -> None:
    """Writes `--json` with the rows so far: whoever runs out of time has these."""
    if options.json is not None:
        _write(options.json, rows, describe(options.device) | extra | {"early": True})


def report(
    rows: Sequence[Row],
    title: str,
    options: argparse.Namespace,
    *,
    baselines: dict[str, str] | None = None,
    extra: dict[str, Any] | None = None,
    columns: dict[str, dict[str, str]] | None = None,
    more: Sequence[Row] = (),
) -> None:
    """Print the table and write `--json`, with `extra` in the metadata and `more` rows."""
    metadata = describe(options.device) | (extra or {})
    machine = metadata["hardware"]
    where = machine["gpu"] or f"{machine['cpu']}, {machine['cores']} cores"
    print_table(rows, f"{title} · {where} · threads {metadata['threads']}", baselines, columns)
    if options.json is not None:
        _write(options.json, [*rows, *more], metadata)
        print(f"wrote {options.json}")


def _write(path: Path, rows: Sequence[Row], metadata: dict[str, Any]) -> None:
    part = path.with_suffix(".part")
    part.write_text(to_json(rows, metadata))
    part.replace(path)
