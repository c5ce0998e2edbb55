"""Loaders beside what a user would pick instead: `python -m bench.loaders [--data DIR]`.

Photographs from JPEG files, or from betons made of them, to batches of float32 views of 224 pixels
on the CPU, shuffled, cropped and flipped; a pair is a clean and a color-jittered view of one crop.
All read from the page cache (but see `--cold`) with `--workers` decoding threads or worker
processes; fastsc-dali adds a thread to DALI's, which DALI's own pipeline gains nothing from, and
both have threads that read. `floor` decodes the crops' regions and resizes them, with our decoder
and as many threads, and nothing else. The stages are timed alone, on one thread. DIR is a folder of
class folders, or has one in train/; without it photographs that packages ship are written to a
temporary folder.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bench import peers, stages
from bench.common import Case, Row, Skipped, add_arguments, measure, parse, report
from bench.loaders_plot import draw
from bench.peers import BATCH, SIZE, PairDataset, drain
from bench.sources import (
    BETONS,
    add_data_argument,
    beton,
    drop_caches,
    enlarged,
    linked_folder,
    mistakes,
    source_folder,
    tars,
)
from fastsc.errors import UserError
from fastsc.pipelines import Index, build, open_beton, scan
from fastsc.pipelines.decode import pick
from fastsc.pipelines.resample import place

Maker = Callable[[], Callable[[], int]]
COLD = ("loaders/fastsc-cpu/pair", "loaders/fastsc-cpu-tar/pair")


def fastsc(
    name: str,
    data: Index | Path,
    workers: int,
    *,
    paired: bool,
    exact: bool = False,
    perturb: tuple[str, ...] = (),
) -> peers.Epoch:
    """Our loader, another epoch at every call."""
    loader = build(
        name,
        data,
        batch_size=BATCH,
        resolution=SIZE,
        workers=workers,
        paired=paired,
        exact_decode=exact,
        perturb=perturb,
    )

    def run() -> int:
        loader.set_epoch(loader.epoch + 1)
        return drain(loader)

    return run


def floor(index: Index, workers: int, *, resize: bool = True) -> peers.Epoch:
    """Decoding the crops' regions and resizing them: what the cpu loader cannot pass."""
    decode = pick()[1]
    loader = build("cpu", index, batch_size=BATCH, resolution=SIZE, workers=workers)
    plan = loader.plan()
    loader.close()
    threads = ThreadPoolExecutor(workers)

    def some(rows: Any) -> int:
        slot = np.empty((SIZE, SIZE, 3), np.uint8)
        for i in rows.tolist():
            with open(index.path(i), "rb") as file:
                region = decode(file.read(), *plan.boxes[i].tolist())
            if resize:
                place(region, slot, (0, 0), bool(plan.flips[i]))
        return len(rows)

    chunks = np.array_split(plan.order, max(1, len(index) // 8))
    return lambda: sum(threads.map(some, chunks))


def makers(folder: Path, index: Index, workers: int) -> dict[str, tuple[Maker, str]]:
    """Name -> what makes an epoch's function, and what to install where it cannot be made."""
    n, files = len(index), folder.parent

    def ours(name: str, paired: bool, kind: str | None = None, *, exact: bool = False) -> Maker:
        def make() -> peers.Epoch:
            data = index if kind is None else beton(index, files, kind)
            return fastsc(name, data, workers, paired=paired, exact=exact)

        return make

    def torch_loader(kind: str, **more: bool) -> Maker:
        return lambda: peers.data_loader(PairDataset(index, kind, **more), workers)

    def dali(kind: str) -> Maker:
        return lambda: peers.dali(folder, n, workers, kind)

    def keyed(feed: str) -> Maker:
        def make() -> peers.Epoch:
            loader = build("cpu", index, batch_size=BATCH, resolution=SIZE)
            loader.close()
            return peers.dali_keyed(index, loader.plan().boxes, workers, feed)

        return make

    def ffcv(kind: str, **more: bool) -> Maker:
        return lambda: peers.ffcv(beton(index, files, kind), workers, **more)

    def packed() -> Path:
        return tars(index, files, 4 * workers)

    def webdataset(paired: bool) -> Maker:
        return lambda: peers.webdataset(packed(), workers, paired=paired)

    def arrow(paired: bool) -> Maker:
        return lambda: peers.hf_datasets(index, files / "arrow", workers, paired=paired)

    made: dict[str, tuple[Maker, str]] = {
        "fastsc-cpu/pair": (ours("cpu", True), ""),
        "fastsc-cpu-exact/pair": (ours("cpu", True, exact=True), ""),
        "fastsc-cpu-tar/pair": (lambda: fastsc("cpu", packed(), workers, paired=True), ""),
        "webdataset-torchvision/pair": (webdataset(True), "fastsc[bench]"),
        "webdataset-torchvision/single": (webdataset(False), "fastsc[bench]"),
        "datasets-torchvision/pair": (arrow(True), "fastsc[bench]"),
        "datasets-torchvision/single": (arrow(False), "fastsc[bench]"),
        "fastsc-cpu/single": (ours("cpu", False), ""),
        "fastsc-dali/pair": (ours("dali", True), "fastsc[dali]"),
        "fastsc-dali/single": (ours("dali", False), "fastsc[dali]"),
        "torchvision-tensor/pair": (torch_loader("tensor"), ""),
        "fastsc-cpu-perturb/pair": (
            lambda: fastsc("cpu", index, workers, paired=True, perturb=peers.LISTED),
            "",
        ),
        "torchvision-tensor-perturb/pair": (torch_loader("tensor", listed=True), ""),
        "albumentations-perturb/pair": (
            torch_loader("albumentations", listed=True),
            "fastsc[bench]",
        ),
        "torchvision-tensor/single": (torch_loader("tensor", paired=False), ""),
        "torchvision-pil/pair": (torch_loader("pil"), ""),
        "torchvision-pil-draft/pair": (torch_loader("pil-draft"), ""),
        "albumentations/pair": (torch_loader("albumentations"), "fastsc[bench]"),
        "dali/single": (dali("single"), "fastsc[dali]"),
        "dali/single-normalized": (dali("normalized"), "fastsc[dali]"),
        "dali-own-colour/pair": (dali("own-colour"), "fastsc[dali]"),
        "dali-keyed-reader/single": (keyed("reader"), "fastsc[dali]"),
        "dali-keyed-bytes/single": (keyed("bytes"), "fastsc[dali]"),
        "floor": (lambda: floor(index, workers), ""),
        "floor-decode": (lambda: floor(index, workers, resize=False), ""),
    }
    for kind in BETONS:
        made[f"fastsc-ffcv{kind}/pair"] = (ours("ffcv", True, kind), "fastsc[ffcv]")
        made[f"fastsc-ffcv{kind}/single"] = (ours("ffcv", False, kind), "fastsc[ffcv]")
        made[f"ffcv{kind}/single"] = (ffcv(kind), "fastsc[ffcv]")
    made["ffcv-twice/pair"] = (ffcv("", twice=True), "fastsc[ffcv]")
    return made


def make_cases(
    folder: Path, index: Index, workers: int, only: Sequence[str] | None, *, cold: bool = False
) -> tuple[list[Case], list[Row]]:
    """Every loader as a case, and a row with the reason for each that is not here."""
    cases, skipped = [], list[Row]()
    for name, (make, package) in makers(folder, index, workers).items():
        name = f"loaders/{name}"
        if only and not any(word in name for word in only):
            continue
        unit = "pairs/s" if name.endswith("/pair") else "images/s"
        try:
            cases.append(Case(name, make(), len(index), unit))
            if cold and name in COLD:
                drop_caches()
                cases.append(replace(cases[-1], name=f"{name}-cold", before=drop_caches))
        except (ImportError, ValueError) as error:
            hint = (
                f"; pip install '{package}'" if package and not isinstance(error, UserError) else ""
            )
            skipped.append(Skipped(name, f"{error}{hint}"))
    return cases, skipped


def stage_cases(index: Index, files: Path, workers: int) -> list[Case]:
    """The stages of each of our loaders that is installed here."""
    found = stages.cpu_stages(index, workers)
    for made in (
        lambda: stages.dali_stages(index),
        *(
            lambda kind=kind: stages.ffcv_stages(
                open_beton(beton(index, files, kind)), workers, kind
            )
            for kind in BETONS
        ),
    ):
        try:
            found += made()
        except (ImportError, UserError):
            continue  # its loader's row says why
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.loaders", description=__doc__)
    add_arguments(parser)
    add_data_argument(parser)
    cores = min(16, len(os.sched_getaffinity(0)))
    parser.add_argument("--workers", type=int, default=cores, help="threads or worker processes")
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        help="cases whose name has this in it; a stage's only where it begins with stages",
    )
    parser.add_argument(
        "--cold", action="store_true", help=f"{' and '.join(COLD)} also with an empty page cache"
    )
    parser.add_argument(
        "--large", type=int, metavar="N", help="of N of them, enlarged to 4000 × 3000 pixels"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the results (.png, .svg)")
    parser.set_defaults(rounds=5)
    options = parse(parser, arguments)
    if options.workers < 1:
        parser.error("--workers must be at least 1")
    if options.large is not None and options.large < BATCH:
        parser.error(f"--large must be at least {BATCH}")
    if options.device.type != "cpu":
        parser.error("--device: this benchmark is of loaders on the CPU")
    if options.plot is not None and not options.plot.absolute().parent.is_dir():
        parser.error(f"--plot: there is no folder {options.plot.parent}; make it first")
    folders = tempfile.TemporaryDirectory(prefix="fastsc-bench-")
    with mistakes(parser), folders as temporary:
        source = source_folder(options.data, Path(temporary))
        if options.large:
            small = scan(source, progress=False, use_cache=False)
            source = enlarged(small, Path(temporary) / "large", options.large)
        folder = linked_folder(source, Path(temporary) / "links", options.large)
        index = scan(folder, progress=False, use_cache=False)
        # Ours are compiled before FFCV's own loader is: that one changes numba's type of byte
        # vectors in place (ffcv/memory_managers/os_cache.py, state_type), by which numba finds what
        # it has compiled, and a later compilation would end in a KeyError.
        staged = any(word.startswith("stages") for word in options.only or ["stages"])
        timed = stage_cases(index, folder.parent, options.workers) if staged else []
        cases, rows = make_cases(folder, index, options.workers, options.only, cold=options.cold)
        if options.only:
            timed = [case for case in timed if any(word in case.name for word in options.only)]
        if not cases + timed:
            parser.error(f"--only {' '.join(options.only)}: no case has this in its name")
        rows = [*measure(cases, rounds=options.rounds, warmup=1), *rows]
        rows += measure([replace(case) for case in timed], rounds=options.rounds, warmup=1)
        report(
            rows,
            f"loaders · {SIZE} px, batch {BATCH}, {options.workers} workers",
            options,
            baselines={"loaders": "loaders/torchvision-tensor/pair"},
            extra={
                "workers": options.workers,
                "files": len(index),
                "decoder": pick()[0],
                "mean_bytes": float(np.mean(index.n_bytes)),
                "mean_pixels": float(np.mean(index.heights.astype(float) * index.widths)),
            },
        )
        if options.plot is not None:
            draw(rows, options.workers, options.plot)


if __name__ == "__main__":
    main()
