"""`python -m fastsc.doctor`: what works on this machine, and what to install where something fails.

A row that works was really tried: a pipeline handed over a batch, a decoder decoded, a compiler
compiled. Each try is a process of its own with a time limit, since what is tried here may crash the
interpreter or hang. Exit status: 0 what fastsc cannot do without works; 1 it does not; 2 a mistake.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fastsc.cli.parser import Parser
from fastsc.diagnostics import probes
from fastsc.errors import UserError
from fastsc.run import environment

if TYPE_CHECKING:
    from rich.console import Console

TIMEOUT = 120.0  # seconds; the slowest takes 15 on two busy cores, a cold network disk more
MAX_AT_ONCE = 8  # a probe holds up to 1 GiB, on a GPU too

DALI = "pip install 'fastsc[dali]' ('fastsc[dali-cu12]' with a CUDA 12 driver)"
GPU = "a GPU with NVIDIA's driver (without, all runs on the CPU)"
COMPILER = "apt-get install g++ python3-dev"
FFCV = "apt-get install libopencv-dev libturbojpeg0-dev pkg-config g++; pip install 'fastsc[ffcv]'"
EVAL = "pip install 'fastsc[eval]'"
TORCH = "pip install 'torch>=2.11' torchvision"
DECODERS = "FASTSC_DECODER=NAME takes another decoder"


@dataclass(frozen=True)
class Probe:
    """One row of the table, and how to find out."""

    group: str
    name: str
    check: Callable[..., str]  # at the top level of a module: its process imports it by name
    args: tuple[str, ...] = ()
    remedy: str | None = None  # what to install, or to do, if it fails
    needed: bool = False  # whether fastsc cannot do without
    after: str = ""  # the name of an earlier probe without which this one is pointless
    slow: bool = False  # begun early
    timeout: float = TIMEOUT

    @property
    def command(self) -> list[str]:
        """Arguments for Python that run it."""
        return [
            "-m",
            "fastsc.diagnostics.probes",
            f"{self.check.__module__}:{self.check.__name__}",
            *self.args,
        ]


class Result(NamedTuple):
    """What became of a probe."""

    probe: Probe
    works: bool
    detail: str  # what was seen, or the reason; one line
    remedy: str | None = None


def _package(name: str, module: str, remedy: str | None = None, needed: bool = False) -> Probe:
    args, remedy = (name, module), remedy or f"pip install {name}"
    return Probe("packages", name, probes.package, args, remedy, needed)


def _decoder(name: str, remedy: str) -> Probe:
    return Probe("decoders", name, probes.decoder, (name,), remedy)


def _pipelines(name: str, remedy: str, needed: bool = False) -> tuple[Probe, Probe]:
    on_cpu = Probe("pipelines", name, probes.pipeline, (name,), remedy, needed)
    on_gpu = replace(on_cpu, name=f"{name} on cuda", args=(name, "cuda"), after="GPU", needed=False)
    return on_cpu, on_gpu


PROBES: tuple[Probe, ...] = (
    Probe("machine", "system", probes.system),
    Probe("machine", "CPU", probes.cpu),
    Probe("machine", "bf16 on CPU", probes.cpu_bf16),
    Probe("torch", "torch", probes.torch_step, remedy=TORCH, needed=True),
    Probe("torch", "GPU", probes.gpu, remedy=GPU),
    _package("fastsc", "fastsc", "pip install -e . in the checkout", needed=True),
    _package("torchvision", "torchvision", needed=True),
    _package("numpy", "numpy", needed=True),
    _package("numba", "numba", needed=True),
    _package("pillow", "PIL", needed=True),
    _package("timm", "timm"),
    _package("tyro", "tyro", needed=True),
    _package("pyyaml", "yaml", needed=True),
    _package("rich", "rich"),
    _package("safetensors", "safetensors"),
    _package("matplotlib", "matplotlib", EVAL),
    _package("mlxtend", "mlxtend", EVAL),
    _package("triton", "triton", "it comes with torch's build for CUDA"),
    _package("nvidia-dali", "nvidia.dali", DALI),
    _decoder("nvimgcodec", DALI),
    _decoder("simplejpeg", "pip install 'fastsc[jpeg]'"),
    _decoder("torchvision", TORCH),
    _decoder("pil", "pip install pillow"),
    *_pipelines("cpu", DECODERS, needed=True),
    *_pipelines("memory", DECODERS),
    *_pipelines("dali", DALI),
    *_pipelines("ffcv", FFCV),
    Probe("pipelines", "ffcv library", probes.ffcv_library, remedy=FFCV, slow=True),
    Probe("kernels", "pair_view", probes.kernel_pair_view, ("numba",), "pip install numba", True),
    Probe("kernels", "ds", probes.kernel_ds, needed=True),
    Probe("kernels", "torch.compile", probes.torch_compile, remedy=COMPILER, slow=True),
    Probe("kernels", "triton", probes.triton_launch, (), COMPILER, after="GPU", slow=True),
    Probe("distributed", "gloo", probes.all_reduce, ("gloo", "cpu"), TORCH),
    Probe("distributed", "nccl", probes.all_reduce, ("nccl", "cuda"), TORCH, after="GPU"),
    Probe("loggers", "tensorboard", probes.tensorboard, remedy="pip install tensorboard"),
    Probe("loggers", "wandb", probes.wandb, remedy="pip install wandb"),
    Probe("files", "cache", probes.cache_folder, remedy="FASTSC_CACHE_DIR=FOLDER takes another"),
)


# ---- trying --------------------------------------------------------------------------------------


def examine(wanted: Sequence[Probe], tell: Callable[[Result], None] | None = None) -> list[Result]:
    """Runs probes, as many at once as there are cores: `tell` gets a result as soon as it is known,
    the list has them in the order of the probes."""
    futures: dict[Probe, Future[Result]] = {}
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    with (
        tempfile.TemporaryDirectory(prefix="fastsc-doctor-", ignore_cleanup_errors=True) as folder,
        ThreadPoolExecutor(min(n_cores, MAX_AT_ONCE)) as pool,
    ):
        # What others wait for comes first, so that a waiting thread never waits for a place.
        names = {probe.after for probe in wanted}
        for probe in sorted(wanted, key=lambda p: (p.name not in names, bool(p.after), not p.slow)):
            before = [future for p, future in futures.items() if p.name == probe.after]
            futures[probe] = pool.submit(_try, probe, Path(folder), before)
        try:
            for future in as_completed(futures.values()):
                if tell is not None:
                    tell(future.result())
        except KeyboardInterrupt:  # which the terminal sent to those that run, too
            pool.shutdown(cancel_futures=True)
            raise
    return [futures[probe].result() for probe in wanted]


def _try(probe: Probe, folder: Path, before: list[Future[Result]]) -> Result:
    if not all(future.result().works for future in before):
        return Result(probe, False, f"not tried: {probe.after} does not work")
    home = Path(tempfile.mkdtemp(dir=folder))
    variables = {"OMP_NUM_THREADS": "1"} | os.environ | {"TMPDIR": str(home)}
    # What was compiled at another time says nothing of the compiler that is here now.
    variables |= {"TORCHINDUCTOR_CACHE_DIR": str(home), "TRITON_CACHE_DIR": str(home / "triton")}
    answer, errors = home / "answer", home / "errors"
    status: int | None = None
    # Files, since a pipe ends only when whatever else the probe started has ended, too.
    with open(answer, "wb") as out, open(errors, "wb") as err, suppress(subprocess.TimeoutExpired):
        command, silent = [sys.executable, *probe.command], subprocess.DEVNULL
        status = subprocess.run(
            command, stdin=silent, stdout=out, stderr=err, env=variables, timeout=probe.timeout
        ).returncode
    found = None
    with suppress(ValueError, TypeError, IndexError):  # whatever was printed before a crash
        found = dict(json.loads(_lines(answer)[-1]))
    if status == 0 and found is not None:
        works = bool(found["works"])
        remedy = None if works else found["remedy"] or probe.remedy
        return Result(probe, works, " ".join(found["detail"].split()), remedy)
    if status is None:
        how = f"hangs: ended after {probe.timeout:g} s"
    elif status < 0:
        how = f"crashed: {signal.strsignal(-status)} (signal {-status})"
    else:
        how = f"ended with status {status}"
    if found is not None and found["works"]:
        how = f"worked, then {how}"
    last = "".join(f"; {line[:300]}" for line in _lines(errors)[-1:])
    return Result(probe, False, f"{how}{last}", probe.remedy)


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text("utf-8", "replace").splitlines() if line.strip()]


# ---- telling -------------------------------------------------------------------------------------


def show(results: Iterable[Result], console: Console | None) -> None:
    """A table on a terminal; elsewhere, and where rich is missing, a line a row, however long."""
    rows = [
        (probe, works, "works" if works else "no", f"{detail} -> {remedy}" if remedy else detail)
        for probe, works, detail, remedy in results
    ]
    if console is None or not console.is_terminal:
        for probe, _, status, words in rows:
            _say(f"{probe.group:<12}{probe.name:<16}{status:<7}{words}", console)
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False)
    for probe, works, status, words in rows:
        colour = "green" if works else "red" if probe.needed else "yellow"
        # Text, since brackets are no markup here.
        table.add_row(probe.group, probe.name, Text(status, colour), Text(words))
    console.print(table)


def _console() -> Console | None:
    try:
        from rich.console import Console
    except ModuleNotFoundError:
        return None
    return Console(highlight=False)


def _say(text: str, console: Console | None) -> None:
    if console is None:
        sys.stdout.write(f"{text}\n")
        return
    from rich.text import Text

    console.print(Text(text), soft_wrap=True)


def _examine_all(console: Console | None) -> list[Result]:
    if console is None or not console.is_terminal:
        return examine(PROBES)
    from rich.progress import Progress

    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("trying", total=len(PROBES))
        return examine(PROBES, lambda _: bar.advance(task))


def advice(results: Iterable[Result]) -> list[str]:
    """What is broken, which --pipeline to take here, and what would make it better: a line each."""
    by_name = {(r.probe.group, r.probe.name): r for r in results}
    lines = []
    for probe, works, *_ in by_name.values():
        if probe.needed and not works:
            by_hand = f"python {' '.join(probe.command)}".replace("fastsc.diagnostics.probes:", "")
            lines.append(f"Needed: {probe.group} {probe.name}. Its traceback: {by_hand}")
    on_gpu = by_name["torch", "GPU"].works
    device, suffix = ("GPU", " on cuda") if on_gpu else ("CPU", "")
    # On CPUs cpu is the faster of the two (see the README's measurements).
    names = ("dali", "cpu", "memory") if on_gpu else ("cpu", "dali", "memory")
    usable = [name for name in names if by_name["pipelines", name + suffix].works]
    if usable:
        small = "; for small images --pipeline memory" if "memory" in usable[1:] else ""
        lines.append(f"Training on the {device} here: --pipeline {usable[0]}{small}.")
    else:
        lines.append(f"Training on the {device} here: no --pipeline works.")
    keys = [("torch", "GPU"), ("pipelines", "dali" + suffix), ("kernels", "triton")]
    if not by_name["decoders", "nvimgcodec"].works:
        keys.append(("decoders", "simplejpeg"))
    missing = [remedy for key in keys if (remedy := by_name[key].remedy) is not None]
    lines.append(f"Would make it better: {'; '.join(missing)}." if missing else "All is there.")
    return lines


def to_json(results: Iterable[Result], seconds: float) -> str:
    """The same as strict JSON, with versions and hardware."""
    rows = [
        {"name": p.name, "group": p.group, "works": works, "detail": detail, "remedy": remedy}
        for p, works, detail, remedy in results
    ]
    seen = {r.probe.name: r.detail for r in results if r.works}
    metadata = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "commit": environment.commit(),
        "command": environment.command(),
        "versions": environment.versions(),
        "hardware": {
            "cpu": seen.get("CPU"),
            "gpus": seen["GPU"].split("; ") if "GPU" in seen else [],
        },
    }
    return json.dumps({"metadata": metadata, "results": rows}, indent=2, allow_nan=False) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Tries everything and tells; returns the exit status."""
    parser = Parser(
        prog="python -m fastsc.doctor",
        description="Each backend and device: works, or why not and what to install.",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here, too")
    try:
        path: Path | None = parser.parse_args(argv).json
        if path is not None:
            _check_writable(path)
        console, began = _console(), time.monotonic()
        results = _examine_all(console)
        show(results, console)
        _say("\n".join(["", *advice(results)]), console)
        if path is not None:
            path.write_text(to_json(results, time.monotonic() - began), "utf-8")
    except UserError as mistake:
        sys.stderr.write(f"fastsc.doctor: {mistake}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    return int(any(r.probe.needed and not r.works for r in results))


def _check_writable(path: Path) -> None:
    """Raises UserError now rather than when all has been tried."""
    new = not os.path.lexists(path)
    try:
        with open(path, "ab"):
            pass
        if new:
            path.unlink()
    except OSError as error:
        raise UserError(f"--json {path} cannot be written: {error.strerror}") from None
