"""`python -m bench.cifar100 --data DIR`: does the constraint do what it says, and at what price?

CIFAR-100, paired by seed: plain cross-entropy at E and at 2 E epochs, cross-entropy on both views
(alpha 0: augmentation, the honest baseline at the constraint's cost), and constraints. Each run is
a folder of its own under --out and is the training command as a user types it; a finished one is
not run again. Unlike the other benchmarks this one takes hours: its figures are accuracy and
continuity, not time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.console import Console
from rich.table import Table

from fastsc import runlog

MEASURES = ("top1", "top1_perturbed", "ds", "ds_relative")


def arms(epochs: int) -> dict[str, list[str]]:
    """Options by the arm's name; the first four are the comparison, the others choose defaults."""
    plain, both = ["--alpha", "0", "--ce-views", "clean"], ["--alpha", "0", "--ce-views", "both"]

    def constraint(kind: str, alpha: float, views: str = "both") -> list[str]:
        return ["--ds", kind, "--alpha", f"{alpha:g}", "--ce-views", views]

    at = ["--epochs", str(epochs)]
    return {
        "ce": [*plain, *at],
        "ce-2e": [*plain, "--epochs", str(2 * epochs)],
        "both": [*both, *at],
        "cosine-3": [*constraint("cosine", 3), *at],
        "cosine-10": [*constraint("cosine", 10), *at],
        "relative-1": [*constraint("relative", 1), *at],
        "cosine-1": [*constraint("cosine", 1), *at],
        "l2-0.1": [*constraint("l2", 0.1), *at],
        "clean-cosine-3": [*constraint("cosine", 3, "clean"), *at],
    }


def train(data: Path, out: Path, options: list[str], seed: int, threads: int) -> dict[str, Any]:
    """Runs or finishes one training; returns the validation of its last epoch."""
    words = ["--data", str(data), "--out", str(out), "--seed", str(seed), "--resume"]
    words += ["--val-every", "1000", *options]
    command = [sys.executable, "-m", "fastsc.train", "cifar100", *words]
    done = subprocess.run(
        command,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{out.name}: status {done.returncode}: {done.stderr.strip()}")
    val: dict[str, Any] = [e for e in runlog.read(out / "log.jsonl") if e["event"] == "epoch"][-1][
        "val"
    ]
    return val


def main(argv: list[str] | None = None) -> int:
    """Runs what is missing, prints the table, writes the JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.cifar100", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="ImageFolder of CIFAR-100")
    parser.add_argument("--out", type=Path, default=Path("runs/cifar100"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--epochs", type=int, default=10, help="E")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--arms", nargs="+", help="default: the first four")
    args, more = parser.parse_known_args(argv)  # the rest goes to the training
    known = arms(args.epochs)
    names = args.arms or list(known)[:4]
    if unknown := [name for name in names if name not in known]:
        parser.error(f"no arm {unknown[0]}; there are {', '.join(known)}")
    threads = max(1, len(os.sched_getaffinity(0)) // args.jobs)
    tasks = [(name, seed) for seed in range(args.seeds) for name in names]

    def one(task: tuple[str, int]) -> dict[str, Any]:
        name, seed = task
        return train(args.data, args.out / f"{name}-{seed}", [*known[name], *more], seed, threads)

    with ThreadPoolExecutor(args.jobs) as pool:
        found = dict(zip(tasks, pool.map(one, tasks), strict=True))
    table, results = Table(*("arm", "n", *MEASURES)), []
    for name in names:
        row = [name, str(args.seeds)]
        for measure in MEASURES:
            values = [found[name, seed][measure] for seed in range(args.seeds)]
            spread = stdev(values) if len(values) > 1 else None
            row.append(f"{mean(values):.4f}" + ("" if spread is None else f" ± {spread:.4f}"))
            results.append(
                {"name": f"cifar100/{name}/{measure}", "mean": mean(values), "sd": spread}
                | {"unit": "", "n": len(values), "values": values}
            )
        table.add_row(*row)
    Console(highlight=False).print(table)
    if args.json:
        metadata = runlog.environment() | {"epochs": args.epochs, "seeds": args.seeds}
        text = json.dumps({"metadata": metadata, "results": results}, indent=1, allow_nan=False)
        args.json.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
