"""Everything that a GPU must confirm, in one go: `bench/gpu.sh [--dry] [--out DIR]`.

The tests that need a GPU, the kernels' exactness and speed, the training step, the hand-over of
every installed pipeline, and a training from end to end; then a short table of what was aimed at
and what was seen, with everything in DIR/gpu.json and each part's own results beside it. A part
that fails or runs out of time is a line of the table, and the others go on. --dry runs every part
on the CPU at toy sizes: it shows that the script works, and times nothing of interest.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.common import describe, print_lines
from bench.handover import draw_photographs
from fastsc.cli.packages import installed

ROOT = Path(__file__).parent.parent
BUDGET_S = 530.0  # for all parts together
TESTS = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("tests/**/test_on_gpu*.py"))

TRAIN = """
import sys
from fastsc.config.recipes import configure
from fastsc.training.loop import train
sys.exit(train(configure("imagenet", **{values})))
"""


@dataclass(frozen=True)
class Part:
    """One process; `limit_s` is what it may take at most."""

    name: str
    command: Sequence[str]
    limit_s: float


@dataclass(frozen=True)
class Goal:
    """A figure of one part's results, and what it was to be."""

    what: str
    wanted: str
    figure: Callable[[dict[str, Any]], float]
    met: Callable[[float], bool]


def parts(dry: bool, out: Path, photographs: Path) -> list[Part]:
    python, device = sys.executable, "cpu" if dry else "cuda"

    def bench(name: str, module: str, limit_s: float, full: str, small: str) -> Part:
        command = [python, "-m", f"bench.{module}", "--device", device]
        command += ["--json", str(out / f"{name}.json"), *(small if dry else full).split()]
        return Part(name, command, limit_s)

    pipeline = "dali" if installed("nvidia.dali") else "cpu"
    values = {
        "data": str(photographs), "out": str(out / "run"), "pipeline": pipeline, "device": device,
        "epochs": 1, "val": "none", "workers": 4,
        **({"model": "fastsc:resnet8w4", "resolution": 32, "batch_size": 8, "max_steps": 2,
            "stem": "cifar"} if dry else {"batch_size": 128, "max_steps": 20}),
    }  # fmt: skip
    tiny = "--model fastsc:resnet8w4 --stem cifar --size 32 --batch 4 --classes 5 --rounds 2"
    return [
        # pyproject's options name plug-ins that may not be there.
        Part(
            "tests",
            [python, "-m", "pytest", "-q", "-o", "addopts=", "--import-mode=importlib", *TESTS],
            100,
        ),
        bench("kernels", "kernels", 130, "--rounds 11", "--size 24 --batch 4 --rounds 2"),
        # Rows of three compiled graphs, then what a technique less costs, as far as time goes.
        bench("step", "step", 220, "--rounds 5 --seconds 150", tiny),
        bench("handover", "handover", 40, "", "--images 8 --size 32 --batch 4"),
        Part("train", [python, "-c", TRAIN.format(values=values)], 40),
    ]


def run(part: Part, out: Path, dry: bool, left_s: float) -> dict[str, Any]:
    """What became of it: passed, failed or left out, its seconds and its last line."""
    limit = min(part.limit_s, left_s)
    if limit <= 0:
        return {"state": "left out", "seconds": 0.0, "said": "no time was left"}
    log, start = out / f"{part.name}.log", time.monotonic()
    environment = dict(os.environ, FASTSC_DRY="1") if dry else dict(os.environ)
    paths = [str(ROOT), *filter(None, [environment.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    with log.open("w") as file:
        process = subprocess.Popen(
            part.command, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT, env=environment,
            start_new_session=True,
        )  # fmt: skip
        try:
            status: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)  # its own children with it
            process.wait()
            status = None
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    said = lines[-1] if lines else ""
    state = "passed" if status == 0 else "out of time" if status is None else f"failed ({status})"
    return {"state": state, "seconds": round(time.monotonic() - start, 1), "said": said}


def _median(document: dict[str, Any], name: str) -> float:
    (row,) = [row for row in document["results"] if row["name"] == name]
    return float(row["median"])


def _ratio(part: str, slow: str, fast: str, factor: float = 1.0) -> Callable[[Any], float]:
    return lambda found: factor * _median(found[part], slow) / _median(found[part], fast)


def _on_device(slow: str, fast: str) -> Callable[[Any], float]:
    """How many times longer the GPU works for one kernel's row than for another's."""

    def ratio(found: dict[str, Any]) -> float:
        cases = found["kernels"]["metadata"]["cases"]
        return float(cases[slow]["device_ms"]) / float(cases[fast]["device_ms"])

    return ratio


def _pool_over_floor(found: dict[str, Any]) -> float:
    cases = found["kernels"]["metadata"]["cases"]
    return 1 / float(cases["pool_ds/cosine-triton"]["share_of_copy"])


def _share(found: dict[str, Any]) -> float:
    return float(
        found["kernels"]["metadata"]["cases"]["pair_view/fastsc-triton-bf16"]["share_of_copy"]
    )


GOALS = (
    Goal("pair_view, bf16: of the copy's bandwidth", "≥ 0.75", _share, lambda x: x >= 0.75),
    Goal("pair_view, bf16: times kornia compiled", "≥ 30",
         _on_device("pair_view/kornia-compiled", "pair_view/fastsc-triton-bf16"),
         lambda x: x >= 30),
    Goal("pool_ds: times reading and writing the map", "≤ 1.3", _pool_over_floor,
         lambda x: x <= 1.3),
    Goal("pool_ds: times eager", "≥ 3",
         _on_device("pool_ds/cosine-separate", "pool_ds/cosine-triton"), lambda x: x >= 3),
    Goal("paired step: times the plain step of 2N", "≤ 1.02",
         _ratio("step", "step/single-2n", "step/pair", 0.5), lambda x: x <= 1.02),
    Goal("paired step: pairs a second", "≥ 3,300",
         lambda found: _median(found["step"], "step/pair"), lambda x: x >= 3300),
)  # fmt: skip


def judge(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Every goal with what was seen; None where a row it needs is not there."""
    rows = []
    for goal in GOALS:
        try:
            seen: float | None = goal.figure(found)
        except (KeyError, ValueError, TypeError):
            seen = None
        met = None if seen is None else goal.met(seen)
        rows.append({"what": goal.what, "wanted": goal.wanted, "seen": seen, "met": met})
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench/gpu.sh", description=__doc__)
    parser.add_argument("--dry", action="store_true", help="on the CPU, at toy sizes")
    parser.add_argument("--out", type=Path, help="folder of the results (default runs/gpu-TIME)")
    options = parser.parse_args(arguments)
    if not options.dry and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device; --dry runs every line on the CPU")
    out = options.out or Path("runs") / time.strftime("gpu-%Y%m%d-%H%M%S")
    if out.exists() and any(out.iterdir()):
        parser.error(f"--out: {out} is not empty; name another folder")
    out.mkdir(parents=True, exist_ok=True)
    out = out.resolve()
    found: dict[str, Any] = {}
    states: dict[str, dict[str, Any]] = {}
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        photographs = Path(temporary) / "photographs"
        draw_photographs(photographs / "train", 16 if options.dry else 2048)
        for part in parts(options.dry, out, photographs):
            left = BUDGET_S - (time.monotonic() - start)
            states[part.name] = run(part, out, options.dry, left)
            print(f"{part.name}: {states[part.name]['state']}", flush=True)
            result = out / f"{part.name}.json"
            if result.exists():
                found[part.name] = json.loads(result.read_text())
    goals = judge(found)
    device = torch.device("cpu" if options.dry else "cuda")
    document = {
        "metadata": describe(device) | {"dry": options.dry},
        "parts": states,
        "goals": goals,
        "results": {name: part["results"] for name, part in found.items()},
    }
    (out / "gpu.json").write_text(json.dumps(document, indent=2) + "\n")
    lines = [["part", "state", "seconds", "last line"]]
    lines += [[n, s["state"], f"{s['seconds']:.0f}", s["said"][:70]] for n, s in states.items()]
    print_lines(lines, "parts", left=("part", "state", "last line"))
    lines = [["goal", "wanted", "seen", "met"]]
    for goal in goals:
        seen, met = goal["seen"], goal["met"]
        word = "-" if met is None or options.dry else "yes" if met else "no"
        lines.append([goal["what"], goal["wanted"], "-" if seen is None else f"{seen:.4g}", word])
    print_lines(lines, "goals", left=("goal",))
    print(f"wrote {out / 'gpu.json'}")
    return int(any(state["state"] != "passed" for state in states.values()))


if __name__ == "__main__":
    sys.exit(main())
