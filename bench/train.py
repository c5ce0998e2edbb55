"""Trainings beside what else one would start: `python -m bench.train [--data DIR] [--json FILE]`.

Every row is a whole training in a process of its own, over links to the same photographs, one epoch
of --steps batches; rows take turns. Its rate is the median over ten steps at a time, without the
first ten and the last, by the program's own log.

train/fastsc/single        recipe imagenet-plain
train/fastsc/pair          recipe imagenet
train/timm/single          timm's train.py (--timm-script)
train/torchvision/single   torchvision's reference (--torchvision-script)
train/…-64                 64 px and a tiny network: the loader's speed decides
train/fastsc/pair-…        train/fastsc/pair with one option of the configuration changed

`train/` rows are the rate of the steps, in unique images a second, of which a pair is one; `run/`
rows that of the whole process from its start to its end, with imports, scan and checkpoint; `wait/`
rows the part of the time that the steps waited for images.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bench.common import add_arguments, parse
from bench.sources import add_data_argument, linked_folder, mistakes, source_folder
from bench.train_report import Seen, tell
from bench.train_rows import PEERS, SMALL_MODEL, SMALL_SIZE, Training, all_rows
from bench.train_runs import INTERVAL, Setting, Speeds, shown

ROOT = Path(__file__).parent.parent
LIMIT_S = 600.0  # of one training
MIN_STEPS = 5 * INTERVAL  # the slowest log to read gives its first figure after 30 steps
DEFAULTS = {
    "cpu": {"model": "resnet18", "size": 112, "batch": 32, "small_batch": 64, "steps": 50},
    "cuda": {"model": "resnet50", "size": 224, "batch": 256, "small_batch": 256, "steps": 100},
}


def run(training: Training, threads: int) -> tuple[Speeds, float]:
    """One process of a row; its rates and its seconds.

    Raises:
        RuntimeError: It failed, took too long, or printed nothing that can be read.
    """
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    environment = os.environ | counts | {"PYTHONPATH": os.pathsep.join(paths)}
    with tempfile.TemporaryDirectory(prefix="fastsc-bench-") as out:
        environment["FASTSC_CACHE_DIR"] = f"{out}/cache"  # a scan every time, as the peers do
        start = time.perf_counter()
        process = subprocess.Popen(
            training.command(Path(out)), cwd=ROOT, env=environment, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        )  # fmt: skip
        try:
            said, _ = process.communicate(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"not done after {LIMIT_S:g} s") from None
        finally:
            if process.poll() is None:  # its workers with it
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
        seconds = time.perf_counter() - start
        if process.returncode != 0:
            last = [line for line in said.splitlines() if line.strip()][-1:]
            raise RuntimeError(f"ended with status {process.returncode}: {''.join(last).strip()}")
        speeds = training.read(said, Path(out))
    if not speeds.rates:
        raise RuntimeError("its log has no rates after the first steps")
    return speeds, seconds


def take_turns(
    trainings: Sequence[Training], rounds: int, threads: int, deadline: float
) -> dict[str, Seen]:
    """Every row once a round, as far as the time goes; one that failed is not tried again."""
    seen = {training.name: Seen() for training in trainings}
    for turn in range(rounds):
        for training in trainings:
            mine = seen[training.name]
            if mine.failed or (turn and training.once) or time.monotonic() > deadline:
                continue
            try:
                speeds, seconds = run(training, threads)
            except RuntimeError as error:
                mine.failed = str(error)
                print(f"{training.name}: {mine.failed}", file=sys.stderr, flush=True)
                continue
            mine.speeds.append(speeds)
            mine.seconds.append(seconds)
            rate, wait = statistics.median(speeds.rates), statistics.median(speeds.waits)
            print(f"{training.name}: {rate:,.0f} images/s, wait {wait:.1%}", flush=True)
    return seen


def settings(options: argparse.Namespace, folder: Path) -> tuple[Setting, Setting]:
    """Of the rows where computing decides, and of those where loading does."""
    source = source_folder(options.data, folder)

    def with_links(name: str, setting: Setting) -> Setting:
        train = linked_folder(source, folder / name / "train", setting.images)
        (folder / name / "val").symlink_to("train")  # torchvision's reference reads its names
        return replace(setting, data=folder / name, classes=len(list(train.iterdir())))

    o = options
    setting = Setting(str(o.device), o.model, o.size, o.batch, o.steps, o.workers, Path(), 0)
    small = replace(
        setting, model=SMALL_MODEL, size=SMALL_SIZE, batch=o.small_batch, steps=2 * o.steps
    )
    return with_links("data", setting), with_links(f"data-{SMALL_SIZE}", small)


def typed(training: Training, options: argparse.Namespace) -> str:
    """The command of a row, without this machine's folders."""
    places = {str(training.setting.data): "DATA", "/OUT": "OUT", sys.executable: "python"}
    for peer in PEERS:
        if (path := getattr(options, f"{peer}_script")) is not None:
            places[str(path)] = f"{peer.upper()}/train.py"
    return shown(training.command(Path("/OUT")), places)


def new_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    add_data_argument(parser)
    cores = len(os.sched_getaffinity(0))
    for peer, what in PEERS.items():
        parser.add_argument(f"--{peer}-script", type=Path, metavar="FILE", help=what)
    parser.add_argument("--only", nargs="+", metavar="ROW", help="these, such as fastsc/pair")
    parser.add_argument(
        "--steps", type=int, help="of a training (default 50; cuda 100); -64: twice"
    )
    parser.add_argument("--model", help="torchvision name (default resnet18; cuda resnet50)")
    parser.add_argument("--size", type=int, help="image side in pixels (default 112; cuda 224)")
    parser.add_argument("--batch", type=int, help="unique images a step (default 32; cuda 256)")
    parser.add_argument("--small-batch", type=int, help="in the -64 rows (default 64; cuda 256)")
    parser.add_argument("--threads", type=int, default=cores, help="torch's (default: the cores)")
    parser.add_argument(
        "--workers", type=int, default=min(16, cores), help="decoding threads, or processes"
    )
    parser.add_argument("--full", action="store_true", help="all rows, in every round")
    parser.add_argument(
        "--seconds", type=float, default=500.0, help="begin no training after so many (default 500)"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the commands; run nothing")
    parser.set_defaults(rounds=2)
    return parser


def checked(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options with their defaults in place; a mistake ends with exit status 2."""
    options = parse(parser, arguments)
    for name, value in DEFAULTS[options.device.type].items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    for name in ("size", "batch", "small_batch", "threads", "workers"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if options.steps < MIN_STEPS:
        parser.error(
            f"--steps must be at least {MIN_STEPS}: the first ten and the last do not count"
        )
    for peer in PEERS:
        script = getattr(options, f"{peer}_script")
        if script is not None and not script.is_file():
            parser.error(f"--{peer}-script: there is no file {script}")
        if script is not None:  # a training has another folder to start in
            setattr(options, f"{peer}_script", script.resolve())
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 where a training failed; a row says why."""
    parser = new_parser()
    options = checked(parser, arguments)
    deadline = time.monotonic() + options.seconds
    folders = tempfile.TemporaryDirectory(prefix="fastsc-bench-")
    with mistakes(parser), folders as temporary:
        setting, small = settings(options, Path(temporary))
        wanted = all_rows(options, setting, small)
        if options.only:
            asked = {f"train/{name.removeprefix('train/')}" for name in options.only}
            names = [row.name for row in wanted]
            if unknown := asked - set(names):
                known = ", ".join(name.removeprefix("train/") for name in names)
                parser.error(f"--only: no rows {', '.join(sorted(unknown))}; there are {known}")
            wanted = [row for row in wanted if row.name in asked]
        trainings = [row for row in wanted if isinstance(row, Training)]
        commands = {training.name: typed(training, options) for training in trainings}
        if options.dry_run:
            for name, command in commands.items():
                print(f"{name}\n    {command}")
            return 0
        seen = take_turns(trainings, options.rounds, options.threads, deadline)
    tell(wanted, seen, commands, options)
    return int(any(mine.failed for mine in seen.values()))


if __name__ == "__main__":
    sys.exit(main())
