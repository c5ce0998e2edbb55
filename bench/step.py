"""The training step beside its limits: `python -m bench.step [--device cuda] [--json FILE]`.

ResNet-50 at 224 px (on a CPU ResNet-18 at 112) by the trainer's own step, on bytes that lie on the
device: pair_view, forward, loss, backward, SGD. No loader: what is timed is what a loader has to
keep up with. Rows take turns.

step/single         one view of N images, compiled
step/single-2n      one view of 2N images, compiled: what a paired step costs without the pairing
step/pair           pairs of N images, compiled, pooling and DS fused: the default on a GPU
step/pair-separate  the same with pooling and DS each by itself
step/pair-eager     the same without torch.compile
step/pair-eager-…   that with one technique less: float32, NCHW memory, DS by eager torch
step/pair-eager-front[-sq]  DS by eager torch and a front-end, with the cosine or the squared ratio
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bench.common import (
    Case,
    Result,
    Row,
    Skipped,
    add_arguments,
    measure,
    parse,
    report,
    write_early,
)
from fastsc.config import TrainConfig
from fastsc.distributed.devices import DTYPES, pick_precision, set_determinism
from fastsc.distributed.ranks import Ranks
from fastsc.kernels import normalize, pair_view
from fastsc.pipelines import IMAGENET_MEAN, IMAGENET_STD, PairBatch, UserError
from fastsc.pipelines.keyed import factors
from fastsc.training.compiling import check_compiler
from fastsc.training.optimizer import peak_lr
from fastsc.training.setup import prepare
from fastsc.training.step import Step

# Dense bf16 with float32 accumulation, tensor cores, from NVIDIA's data sheets (SXM boards).
PEAK_TFLOPS = {"H200": 989.4, "H100": 989.4, "A100": 311.9}
# ResNet-50 at 224 px: 4.09 G multiply-adds an image forward (He et al., arXiv 1512.03385, give 3.8
# without the shortcuts), twice that backward.
RESNET50_FLOPS = 2 * 3 * 4.09e9
STEPS_A_CALL = 5

SINGLE: dict[str, Any] = {"alpha": 0.0, "ce_views": "clean"}


class Bench:
    """One trainer's step over one resident batch."""

    def __init__(self, options: argparse.Namespace, n: int, **changes: Any) -> None:
        self.device, self.n = options.device, n
        config = TrainConfig().replace(
            **{
                "model": options.model, "batch_size": n, "resolution": options.size,
                "stem": options.stem, "warmup_epochs": 0.0, "lr": 1e-3, "precision": "auto",
                **changes,
            }
        )  # fmt: skip
        precision, ranks = pick_precision(config.run.precision, self.device), Ranks()
        model = prepare(config, options.classes, self.device, precision, ranks)
        self.step = Step(config, model, self.device, precision, ranks)
        self.lr, self.alpha = peak_lr(config.optim), config.method.alpha
        self.paired = not self.step.plain
        self.dtype = DTYPES[precision]
        seed = torch.Generator().manual_seed(0)
        shape = n, options.size, options.size, 3
        self.x = torch.randint(0, 256, shape, dtype=torch.uint8, generator=seed).to(self.device)
        self.factors = torch.from_numpy(factors(0, 0, n, config.data.strengths)).to(self.device)
        self.target = torch.randint(0, options.classes, (n,), generator=seed).to(self.device)
        self.index = torch.arange(n, device=self.device)

    def batch(self) -> PairBatch:
        lines = IMAGENET_MEAN, IMAGENET_STD
        views: Sequence[Tensor | None]
        if self.paired:
            views = pair_view(self.x, self.factors, *lines, dtype=self.dtype)
        else:
            views = normalize(self.x, *lines, dtype=self.dtype), None
        clean, perturbed = views  # which the step puts into its own memory format
        assert clean is not None
        return PairBatch(clean, perturbed, self.target, self.index)

    def run(self) -> None:
        for _ in range(STEPS_A_CALL):
            batch = self.batch()
            self.step.train_step(batch, lr=self.lr, alpha=self.alpha, measured=False)


def variants(options: argparse.Namespace) -> dict[str, Callable[[], Bench]]:
    """By the row's name, what makes the bench of it."""
    n = options.batch
    compiled: dict[str, Any] = {"compile": True}
    fused: dict[str, Any] = {"pooling": "fused"}
    separate: dict[str, Any] = {"pooling": "separate"}

    def make(n: int, **changes: Any) -> Callable[[], Bench]:
        return lambda: Bench(options, n, **changes)

    return {
        # The goal's first: time may run out.
        "pair": make(n, **compiled, **fused),
        "single-2n": make(2 * n, **SINGLE, **compiled),
        "pair-eager": make(n, **fused),
        "pair-eager-separate": make(n, **separate),
        "pair-separate": make(n, **compiled, **separate),
        "single": make(n, **SINGLE, **compiled),
        "pair-eager-fp32": make(n, precision="fp32", **separate),
        "pair-eager-nchw": make(n, channels_last=False, **separate),
        "pair-eager-front": make(n, front="rgb-luma-minmax", **separate),
        "pair-eager-front-sq": make(n, front="rgb-luma-minmax", ds="sq", **separate),
    }


def idle_share(run: Callable[[], None], device: torch.device) -> float | None:
    """Part of the time in which the GPU runs no kernel; None on a CPU."""
    if device.type != "cuda":
        return None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
        torch.cuda.synchronize(device)
    spans: list[tuple[float, float]] = sorted(
        (event.time_range.start, event.time_range.end)
        for event in profile.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
    )
    if not spans:  # no rights to the GPU's counters
        return None
    busy, end = 0.0, spans[0][0]
    for first, last in spans:
        busy += max(0.0, last - max(first, end))
        end = max(end, last)
    return 1 - busy / (end - spans[0][0])


def peak_tflops(device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for key, peak in PEAK_TFLOPS.items() if key in name), None)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.step", description=__doc__.split("\n")[0]
    )
    add_arguments(parser)
    parser.add_argument("--model", help="torchvision name (default resnet50; cpu resnet18)")
    parser.add_argument("--stem", default="imagenet", choices=("imagenet", "cifar"))
    parser.add_argument("--size", type=int, help="image side in pixels (default 224; cpu 112)")
    parser.add_argument("--batch", type=int, help="unique images a step (default 256; cpu 16)")
    parser.add_argument("--classes", type=int, default=1000, help="outputs (default 1000)")
    parser.add_argument(
        "--seconds",
        type=float,
        default=float("inf"),
        help="begin no further row after so many; those that there are are timed",
    )
    parser.add_argument("--only", nargs="+", metavar="ROW", help="these rows, such as pair single")
    options = parse(parser, arguments)
    defaults = {"model": "resnet50", "size": 224, "batch": 256}
    if options.device.type == "cpu":
        defaults = {"model": "resnet18", "size": 112, "batch": 16}
    for name, value in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    wanted = variants(options)
    if unknown := set(options.only or ()) - set(wanted):
        parser.error(f"--only: no rows {', '.join(sorted(unknown))}; there are {', '.join(wanted)}")
    start = time.monotonic()
    set_determinism(options.device, False)  # as the trainer has it
    cases, rows, extra = list[Case](), list[Row](), dict[str, dict[str, float | None]]()
    peak = peak_tflops(options.device)
    early = list[Result]()
    compiles: str | None = None
    try:
        check_compiler(options.device)
    except UserError as error:
        compiles = str(error)
    for name, make in wanted.items():
        row = f"step/{name}"
        if options.only and name not in options.only:
            continue
        try:
            if compiles is not None and "eager" not in name:
                raise UserError(compiles)
            if time.monotonic() - start > options.seconds:
                raise UserError(f"the {options.seconds:g} seconds were over")
            bench = make()
            bench.run()  # compiles
        except (UserError, torch.cuda.OutOfMemoryError) as error:
            rows.append(Skipped(row, str(error).splitlines()[0]))
            continue
        unit = "pairs/s" if bench.paired else "images/s"
        cases.append(Case(row, bench.run, STEPS_A_CALL * bench.n, unit))
        extra[row] = {"idle_share": idle_share(bench.run, options.device)}
        # By itself first, should the time run out before all rows take turns.
        early += measure(cases[-1:], rounds=2, warmup=1, device=options.device)
        write_early([*early, *rows], options, {"rows": extra})
    timed = measure(cases, rounds=options.rounds, warmup=1, device=options.device)
    for result in timed:
        views = 2 if result.unit == "pairs/s" else 1
        share = None
        if peak is not None and options.model == "resnet50" and options.size == 224:
            share = result.median * views * RESNET50_FLOPS / (1e12 * peak)
        extra[result.name]["share_of_bf16_peak"] = share
    report(
        [*timed, *rows],
        f"step · {options.model}, {options.size} px, {options.batch} images",
        options,
        extra={"model": options.model, "batch": options.batch, "rows": extra},
        columns={
            heading: {
                name: f"{values[key]:.1%}"
                for name, values in extra.items()
                if values[key] is not None
            }
            for heading, key in (("idle", "idle_share"), ("of peak", "share_of_bf16_peak"))
        },
    )
    _compare(timed)


def _compare(rows: Sequence[Result]) -> None:
    """The line that matters: what pairing costs beyond its images."""
    by_name = {row.name: row.median for row in rows}
    if {"step/pair", "step/single-2n"} <= set(by_name):
        ratio = by_name["step/single-2n"] / (2 * by_name["step/pair"])
        print(f"a paired step takes {ratio:.3f} of the plain step of the same views")


if __name__ == "__main__":
    main()
