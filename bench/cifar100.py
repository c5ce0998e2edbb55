"""`python -m bench.cifar100 --data DIR`: does the constraint do what it says, and at what price?

CIFAR-100, paired by seed: plain cross-entropy at E and at 2 E epochs, cross-entropy on both views
(alpha 0: augmentation, the honest baseline at the constraint's cost), and constraints. Each run is
a folder of its own under --out and is the training command as a user types it; a finished one is
not run again, a broken-off one goes on. Unlike the other benchmarks this one takes an hour or more:
its figures are accuracy and continuity, not time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.common import describe, summarize
from fastsc import runlog
from fastsc.options import load_recipe

RECIPE = "cifar100"
MEASURES = ("top1", "top1_perturbed", "ds", "ds_relative")
BASELINES = ("ce-2e", "both")
Found = Mapping[tuple[str, int], Mapping[str, float]]  # validation by (arm, seed)


def arms(epochs: int) -> dict[str, list[str]]:
    """Options by the arm's name; `default` is the recipe as it is, with its constraint."""
    plain, both = ["--alpha", "0", "--ce-views", "clean"], ["--alpha", "0", "--ce-views", "both"]
    constraints = {
        f"{kind}-{alpha:g}{'' if views == 'both' else '-clean'}": [
            *("--ds", kind, "--alpha", f"{alpha:g}", "--ce-views", views)
        ]
        for kind, alpha, views in (
            ("cosine", 1, "both"),
            ("cosine", 3, "both"),
            ("cosine", 10, "both"),
            ("relative", 0.3, "both"),
            ("relative", 1, "both"),
            ("l2", 0.1, "both"),
            ("cosine", 3, "clean"),
            ("relative", 1, "clean"),
        )
    }
    known = {"ce": plain, "ce-2e": plain, "both": both, "default": [], **constraints}
    return {
        name: [*options, "--epochs", str(epochs * (2 if name == "ce-2e" else 1))]
        for name, options in known.items()
    }


def train(data: Path, out: Path, options: list[str], seed: int, threads: int) -> dict[str, Any]:
    """Runs or finishes one training; returns the validation of its last epoch."""
    words = ["--data", str(data), "--out", str(out), "--seed", str(seed), "--resume"]
    words += ["--val-every", "1000", *options]
    done = subprocess.run(
        [sys.executable, "-m", "fastsc.train", RECIPE, *words],
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{out.name}: status {done.returncode}: {done.stderr.strip()}")
    epochs = [event for event in runlog.read(out / "log.jsonl") if event["event"] == "epoch"]
    val: dict[str, Any] = epochs[-1]["val"]
    return val


def rows(found: Found, names: Sequence[str], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """A result an arm and measure: `summarize`'s fields, mean, standard deviation and values.

    An arm's differences from the baselines that were run, seed by seed, are results too:
    `cifar100/ARM-minus-BASELINE/MEASURE`. `ds` is of each arm's own kind and has none.
    """
    series = {
        (name, measure): [found[name, seed][measure] for seed in seeds]
        for name in names
        for measure in MEASURES
    }
    for name in names:
        for base in BASELINES:
            if name == base or base not in names:
                continue
            for measure in ("top1", "top1_perturbed", "ds_relative"):
                pairs = zip(series[name, measure], series[base, measure], strict=True)
                series[f"{name}-minus-{base}", measure] = [a - b for a, b in pairs]
    return [
        summarize(
            f"cifar100/{name}/{measure}", values, "fraction" if "top1" in measure else "ds"
        ).__dict__
        | {"mean": mean(values), "sd": stdev(values) if len(values) > 1 else None}
        | {"values": values}
        for (name, measure), values in series.items()
    ]


def table(results: list[dict[str, Any]], names: Sequence[str]) -> Table:
    """Means and standard deviations over the seeds; accuracies in per cent."""
    by_name = {row["name"]: row for row in results}

    def cell(name: str, measure: str) -> str:
        row = by_name.get(f"cifar100/{name}/{measure}")
        if row is None:
            return ""
        scale, digits = (100, 1) if "top1" in measure else (1, 3)
        sign = "+" if "-minus-" in name else ""
        text = f"{scale * row['mean']:{sign}.{digits}f}"
        return text if row["sd"] is None else f"{text} ± {scale * row['sd']:.{digits}f}"

    n = by_name[f"cifar100/{names[0]}/top1"]["n"]
    found = Table("arm", *MEASURES, title=f"CIFAR-100, {n} seeds, mean ± sd", title_justify="left")
    for name in names:
        found.add_row(name, *(cell(name, measure) for measure in MEASURES))
    for base in BASELINES:
        found.add_section()
        for name in names:
            if f"cifar100/{name}-minus-{base}/top1" in by_name:
                cells = (cell(f"{name}-minus-{base}", measure) for measure in MEASURES)
                found.add_row(f"{name} − {base}", *cells)
    return found


def main(argv: list[str] | None = None) -> int:
    """Runs what is missing, prints the table, writes the JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.cifar100",
        description="Accuracy and continuity with and without the constraint; options that are "
        "not listed go to every training.",
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="DIR", help="ImageFolder of CIFAR-100")
    add("--out", type=Path, default=Path("runs/cifar100"), metavar="DIR")
    add("--json", type=Path, metavar="FILE", help="write the results here, too")
    add("--epochs", type=int, metavar="E", help="default: the recipe's")
    add("--seeds", type=int, default=3, metavar="N", help="default: %(default)s")
    add("--jobs", type=int, default=1, metavar="N", help="runs at a time (default: %(default)s)")
    add("--arms", nargs="+", metavar="ARM", help="default: ce ce-2e both default")
    args, more = parser.parse_known_args(argv)
    epochs = load_recipe(RECIPE).optim.epochs if args.epochs is None else args.epochs
    known = arms(epochs)
    names = args.arms or ["ce", "ce-2e", "both", "default"]
    if unknown := [name for name in names if name not in known]:
        parser.error(f"no arm {unknown[0]}; there are {', '.join(known)}")
    if min(args.seeds, args.jobs, epochs) < 1:
        parser.error("--seeds, --jobs and --epochs must be at least 1")
    if args.json is not None and not args.json.absolute().parent.is_dir():
        parser.error(f"--json: there is no folder {args.json.parent}; make it first")
    threads = max(1, len(os.sched_getaffinity(0)) // args.jobs)
    tasks = [(name, seed) for seed in range(args.seeds) for name in names]

    def folder(name: str, seed: int) -> Path:
        # With E in it: a run of other epochs would be gone on with, its schedule already ended.
        return args.out / f"{name}-e{epochs}-{seed}"

    def one(task: tuple[str, int]) -> dict[str, Any]:
        name, seed = task
        return train(args.data, folder(name, seed), [*known[name], *more], seed, threads)

    with ThreadPoolExecutor(args.jobs) as pool:
        try:
            found = dict(zip(tasks, pool.map(one, tasks), strict=True))
        except RuntimeError as error:
            pool.shutdown(cancel_futures=True)
            print(f"bench.cifar100: {error}", file=sys.stderr)
            return 1
    results = rows(found, names, range(args.seeds))
    console = Console(highlight=False) if sys.stdout.isatty() else Console(width=120)
    console.print(table(results, names))
    if args.json is not None:
        header = runlog.read(folder(names[0], 0) / "log.jsonl")[0]
        keep = ("images", "val_images", "model", "batch_size", "lr", "precision", "strengths")
        extra = {key: header[key] for key in keep} | {"epochs": epochs, "threads": threads}
        extra |= {"commit_of_the_runs": header["commit"]}  # which may be older than this table
        extra |= {"arms": {name: known[name] for name in names}, "more": more}
        document = {"metadata": describe() | extra, "results": results}
        args.json.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
        print(f"wrote {args.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
