"""Everything that a GPU must confirm, in one go: `bench/gpu.sh [--only PART…] [--out DIR] [--dry]`.

import         versions and the device
exact          the kernels and the step against their references, without torch.compile
handover       the pipelines on the GPU, whose consumer lags; steps in which waiting is an error
ranks          NCCL around one process: steps, a resume, synchronized batch norm
deterministic  ResNet-50 with validation, at once and in parts: equal weights
low            fp16 with clipping, an average and --on-nan skip; what a step waits for its images
kernels        pair_view and pool_ds: time on the device, share of a copy's bandwidth
step           pairs compiled, then as many images without pairs, then eager
decoders       nvImageCodec's region decode, and its JPEG engine beside a busy stream
compiled       exactness of what torch.compile makes; with --only

Exactness comes before speed. Every part is a process and writes its own results, whole after every
row; DIR/gpu.json has all of them after every part, with what was aimed at and what was seen. A part
that fails or runs out of time is a line of the table, and the others go on. --dry runs every part
on the CPU at toy sizes: it shows that the script works, and times nothing of interest.
"""

from __future__ import annotations

import argparse
import contextlib
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
from bench.sources import linked_folder
from fastsc.cli.packages import installed

ROOT = Path(__file__).parent.parent
BUDGET_S = 480.0  # for all parts together
MARK = "mark.gpu"
TESTS = sorted(
    str(path.relative_to(ROOT))
    for path in ROOT.glob("tests/*/**/test_*.py")
    if MARK in path.read_text() and path.name != "test_gpu.py"
)
HANDOVER = ("test_handover.py", "test_a_step_waits_for_nothing")

IMPORTS = """
import platform, torch, torchvision, triton, numba, timm
import fastsc.kernels.views_triton, fastsc.kernels.pooling_triton, fastsc.training.loop
device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
modules = torch, torchvision, triton, numba, timm
print(device, platform.python_version(), *(module.__version__ for module in modules))
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

    def bench(name: str, module: str, limit_s: float, full: str, small: str = "") -> Part:
        command = [python, "-m", f"bench.{module}", *(small if dry else full).split()]
        command += ["--device", device, "--json", str(out / f"{name}.json")]
        return Part(name, command, limit_s)

    def tests(name: str, limit_s: float, which: str) -> Part:
        # pyproject's options name plug-ins that may not be there.
        command = [python, "-m", "pytest", "-v", "-m", "gpu", "-o", "addopts="]
        command += ["--import-mode=importlib", "-p", "no:cacheprovider", *TESTS, "-k", which]
        return Part(name, command, limit_s)

    def runs(name: str, limit_s: float) -> Part:
        pipeline = "dali" if installed("nvidia.dali") and not dry else "cpu"
        words = f"{name} --data {photographs} --pipeline {pipeline}"
        return bench(name, "gpu_runs", limit_s, words, f"{words} --dry")

    late = " or ".join(HANDOVER)
    tiny = "--model fastsc:resnet8w4 --stem cifar --size 32 --batch 4 --classes 5 --rounds 2"
    kernels = "--only pair_view pool_ds --no-inductor"
    return [
        Part("import", [python, "-c", IMPORTS], 10),
        tests("exact", 80, f"not compiled and not ({late})"),
        tests("handover", 30, late),
        runs("ranks", 50),
        runs("deterministic", 60),
        runs("low", 40),
        bench("kernels", "kernels", 40, f"{kernels} --rounds 11",
              f"{kernels} --size 24 --batch 4 --rounds 2"),
        bench("step", "step", 130, "--rounds 5 --seconds 90", f"{tiny} --only pair pair-eager"),
        bench("decoders", "gpu_decoders", 40, str(photographs), str(photographs)),
        tests("compiled", 120, "compiled"),
    ]  # fmt: skip


EXTRA = ("compiled",)  # with --only


def run(part: Part, out: Path, dry: bool, left_s: float) -> dict[str, Any]:
    """What became of it: passed, failed or left out, its seconds and its last line."""
    limit = min(part.limit_s * (6 if dry else 1), left_s)
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
        except BaseException:  # a part in a session of its own would stay on the device
            os.killpg(process.pid, 9)
            raise
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    said = lines[-1] if lines else ""
    state = "passed" if status == 0 else "out of time" if status is None else f"failed ({status})"
    return {"state": state, "seconds": round(time.monotonic() - start, 1), "said": said}


def _rate(part: str, name: str, figure: str = "median") -> Callable[[dict[str, Any]], float]:
    def rate(found: dict[str, Any]) -> float:
        (row,) = [row for row in found[part]["results"] if row["name"] == name]
        return float(row[figure])

    return rate


def _paired(found: dict[str, Any]) -> float:
    """A paired step's time by that of a plain step of the same 2N images."""
    return _rate("step", "step/single-2n")(found) / 2 / _rate("step", "step/pair")(found)


def _of_copy(case: str) -> Callable[[dict[str, Any]], float]:
    return lambda found: float(found["kernels"]["metadata"]["cases"][case]["share_of_copy"])


def _pool_over_bytes(found: dict[str, Any]) -> float:
    return 1 / _of_copy("pool_ds/cosine-triton")(found)


def _copy_share_wanted() -> float:
    """An H200 moves 4.8 TB/s with the arithmetic of an H100, which moves 3.35."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return 0.65 if "H200" in name else 0.75


# As shares of what bounds them; docs/benchmarks.md predicts each.
GOALS = (
    Goal("paired step: times the plain step of the same images", "≤ 1.02", _paired,
         lambda x: x <= 1.02),
    Goal("pair_view, bf16: of the copy's bandwidth", f"≥ {_copy_share_wanted()}",
         _of_copy("pair_view/fastsc-triton-bf16"), lambda x: x >= _copy_share_wanted()),
    Goal("pooling, DS and backward: times their bytes' time", "≤ 1.3", _pool_over_bytes,
         lambda x: x <= 1.3),
    Goal("the loader's wait, at the step's rate", "≤ 0.02",
         _rate("low", "low/bf16", "loader_wait"), lambda x: x <= 0.02),
)  # fmt: skip


def judge(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Every goal with what was seen; None where a row it needs is not there."""
    rows = []
    for goal in GOALS:
        try:
            seen: float | None = goal.figure(found)
        except (KeyError, ValueError, TypeError, ArithmeticError):
            seen = None
        met = None if seen is None else goal.met(seen)
        rows.append({"what": goal.what, "wanted": goal.wanted, "seen": seen, "met": met})
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench/gpu.sh", description=__doc__)
    parser.add_argument("--dry", action="store_true", help="on the CPU, at toy sizes")
    parser.add_argument("--only", nargs="+", metavar="PART", help="these parts, such as step low")
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
        every = parts(options.dry, out, photographs)
        wanted = options.only or [part.name for part in every if part.name not in EXTRA]
        if unknown := set(wanted) - {part.name for part in every}:
            names = ", ".join(part.name for part in every)
            parser.error(f"--only: no parts {', '.join(sorted(unknown))}; there are {names}")
        drawn = draw_photographs(Path(temporary) / "drawn", 16 if options.dry else 512)
        for split, n in (
            {"train": 16, "val": 8} if options.dry else {"train": 8192, "val": 256}
        ).items():
            linked_folder(drawn, photographs / split, n)
        for part in (part for part in every if part.name in wanted):
            budget = float("inf") if options.dry else BUDGET_S
            states[part.name] = run(part, out, options.dry, budget - (time.monotonic() - start))
            print(f"{part.name}: {states[part.name]['state']}", flush=True)
            result = out / f"{part.name}.json"
            with contextlib.suppress(OSError, ValueError):  # none, or cut by the part's end
                found[part.name] = json.loads(result.read_text())
            write(out, states, found, dry=options.dry)
    tell(states, judge(found), dry=options.dry)
    print(f"wrote {out / 'gpu.json'}")
    return int(any(state["state"] != "passed" for state in states.values()))


def write(out: Path, states: dict[str, Any], found: dict[str, Any], *, dry: bool) -> None:
    """gpu.json with what there is so far."""
    document = {
        "metadata": describe(torch.device("cpu" if dry else "cuda")) | {"dry": dry},
        "parts": states,
        "goals": judge(found),
        "results": {name: part["results"] for name, part in found.items()},
    }
    (out / "gpu.json").write_text(json.dumps(document, indent=2) + "\n")


def tell(states: dict[str, Any], goals: list[dict[str, Any]], *, dry: bool) -> None:
    lines = [["part", "state", "seconds", "last line"]]
    lines += [[n, s["state"], f"{s['seconds']:.0f}", s["said"][:70]] for n, s in states.items()]
    print_lines(lines, "parts", left=("part", "state", "last line"))
    lines = [["goal", "wanted", "seen", "met"]]
    for goal in goals:
        seen, met = goal["seen"], goal["met"]
        word = "-" if met is None or dry else "yes" if met else "no"
        lines.append([goal["what"], goal["wanted"], "-" if seen is None else f"{seen:.4g}", word])
    print_lines(lines, "goals", left=("goal",))


if __name__ == "__main__":
    sys.exit(main())
