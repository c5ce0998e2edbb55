"""Trainings on a GPU by the trainer itself: `python -m bench.gpu_runs PART --data DIR --device D`.

ranks          one process that behaves as one of many: NCCL around every step, a resume, --sync-bn
deterministic  20 steps and a validation, beside 10 steps, a resume and 10 more: equal weights
low            fp16, clipping, an average of the weights, --on-nan skip; then bf16, and its wait

A row is a training, with its seconds and what came of it; the JSON file is whole after every row.
Exit status 1 where a row is not as it must be. --dry takes sizes for a CPU, and bf16 for fp16.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from bench.common import describe
from fastsc.config.recipes import configure
from fastsc.distributed.ranks import Ranks
from fastsc.run import checkpoint
from fastsc.run.log import read_log
from fastsc.training.loop import train

FULL: dict[str, Any] = {"model": "resnet50", "batch_size": 64}
DRY: dict[str, Any] = {
    "model": "fastsc:resnet8w4", "stem": "cifar", "resolution": 32, "batch_size": 8, "workers": 1,
}  # fmt: skip
SETTLED = 10  # steps, after which rates count

Checks = Iterator[tuple[str, Callable[[], dict[str, Any]]]]  # a row's name, and what it does


class Runs:
    """Trainings of this process, each in a folder of its own."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder

    def train(self, name: str, **changes: Any) -> list[dict[str, Any]]:
        """The events of a training's log; an error where it did not come to its end."""
        out = self.folder / name
        options = self.options
        values = {
            **(DRY if options.dry else FULL), "data": str(options.data), "out": str(out),
            "device": options.device, "pipeline": options.pipeline, "val": "none", "epochs": 8,
            "log_every": 5, **changes,
        }  # fmt: skip
        if (status := train(configure("imagenet", **values))) != 0:
            raise AssertionError(f"status {status}")
        events = read_log(out / "log.jsonl")
        losses = [event["loss"] for event in events if event["event"] == "step"]
        if not losses or None in losses:
            raise AssertionError(f"losses {losses}")
        return events

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        """Those of the newest checkpoint, for which no package is needed."""
        loaded = checkpoint.load_newest(self.folder / name / "checkpoints")
        assert loaded is not None
        return dict(loaded.state["model"])


def _last(events: list[dict[str, Any]]) -> dict[str, Any]:
    steps = [event for event in events if event["event"] == "step"]
    late = [event for event in steps if event["step"] > SETTLED] or steps
    return {
        "steps": steps[-1]["step"],
        "loss": steps[-1]["loss"],
        "pairs_per_s": statistics.median(event["pairs_per_s"] for event in late),
        "loader_wait": statistics.median(event["loader_wait"] for event in late),
    }


def ranks(runs: Runs) -> Checks:
    """One rank that behaves as one of many."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = str(port)
    Ranks.single_process = False  # type: ignore[assignment, method-assign]

    def resumed() -> dict[str, Any]:
        runs.train("steps", max_steps=5)
        events = runs.train("steps", max_steps=10, resume=True)
        assert [event["step"] for event in events if event["event"] == "resume"] == [5]
        return _last(events)

    yield "ranks/steps-and-resume", resumed
    yield "ranks/sync-bn", lambda: _last(runs.train("sync", max_steps=10, sync_bn=True))
    more: dict[str, Any] = {"max_steps": 10, "sync_bn": True, "bn": "split"}
    yield "ranks/split-sync-bn", lambda: _last(runs.train("split", **more))


def deterministic(runs: Runs) -> Checks:
    """The same twice, the second time with a stop in between."""
    exact = {"deterministic": True, "val": "auto"}
    whole: list[dict[str, Any]] = []

    def at_once() -> dict[str, Any]:
        whole.extend(runs.train("whole", max_steps=20, **exact))
        return _last(whole)

    def in_parts() -> dict[str, Any]:
        runs.train("parts", max_steps=10, **exact)
        events = runs.train("parts", max_steps=20, resume=True, **exact)
        one, other = runs.weights("whole"), runs.weights("parts")
        different = [name for name in one if not one[name].equal(other[name])]
        assert not different, f"{len(different)} of {len(one)} tensors differ, as {different[0]}"
        last = [[e["val"] for e in log if e["event"] == "epoch"][-1] for log in (whole, events)]
        assert last[0] == last[1], f"validations {last}"
        return _last(events)

    yield "deterministic/at-once", at_once
    yield "deterministic/in-parts", in_parts


def low(runs: Runs) -> Checks:
    """Half precision, and what a step waits for its images."""
    batch = {} if runs.options.dry else {"batch_size": 256}
    steps = 4 if runs.options.dry else 30
    fp16 = {"clip_grad": 1.0, "ema": 0.99, "on_nan": "skip", "lr": 0.01}

    def half() -> dict[str, Any]:
        precision = "bf16" if runs.options.dry else "fp16"
        events = runs.train("fp16", precision=precision, max_steps=steps, **fp16, **batch)
        skipped = [event["step"] for event in events if event["event"] == "nonfinite"]
        assert not skipped, f"steps {skipped} were left out"
        return _last(events)

    yield "low/fp16-clip-ema", half
    yield "low/bf16", lambda: _last(runs.train("bf16", max_steps=steps, **batch))


PARTS: dict[str, Callable[[Runs], Checks]] = {
    "ranks": ranks,
    "deterministic": deterministic,
    "low": low,
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_runs", description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and val/")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--pipeline", default="cpu")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--dry", action="store_true")
    options = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = []
    metadata = describe(torch.device(options.device))
    with tempfile.TemporaryDirectory(prefix="fastsc-bench-") as folder:
        for name, work in PARTS[options.part](Runs(options, Path(folder))):
            start = time.perf_counter()
            try:
                row = {"name": name, "met": True, **work()}
            except Exception as error:  # noqa: BLE001, whatever went wrong: the next row is tried
                row = {"name": name, "met": False, "said": f"{type(error).__name__}: {error}"}
                if dist.is_initialized():  # on a GPU an error leaves the group to the process's end
                    dist.destroy_process_group()
            row["seconds"] = round(time.perf_counter() - start, 2)
            rows.append({k: None if v != v or v in (math.inf,) else v for k, v in row.items()})
            document = {"metadata": metadata, "results": rows}
            options.json.write_text(json.dumps(document, indent=2) + "\n")
            print(json.dumps(row), flush=True)
    return int(not all(row["met"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
