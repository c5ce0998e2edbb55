"""From files to views on the GPU, beside the same on the CPU: `python -m bench.handover`.

Every pipeline that is installed loads one epoch twice, onto --device and onto the CPU, with the
same crops, flips and factors. A row is how far both views are apart, in levels of 255, image by
image: 0 where the CPU decodes for both, since the kernels of both round alike; a decoder on the
GPU is another decoder. More than that, or another order, is exit status 1. The photographs are
drawn here, unless --data names some.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from bench.common import Result, Row, Skipped, add_arguments, parse, report, summarize
from bench.sources import beton, mistakes
from fastsc.pipelines import Index, PairBatch, Pipeline, UserError, build, open_beton, scan

PIPELINES = ("cpu", "memory", "dali", "ffcv")
SIDES = 96, 400  # shortest and longest
# Levels, in the mean over a view, that decoders may be apart: nvJPEG and libjpeg-turbo differ in
# their inverse transform and in how they spread chroma.
LIMIT = {"dali": 4.0}


def draw_photographs(folder: Path, n: int) -> Path:
    """n smooth JPEGs of two classes."""
    rng = np.random.default_rng(0)
    for i in range(n):
        (place := folder / f"class{i % 2}").mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 256, (6, 6, 3)).astype(np.uint8)
        width, height = (int(side) for side in rng.integers(*SIDES, 2))
        image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        image.save(place / f"{i:04d}.jpg", quality=92)
    return folder


def loader(name: str, index: Index, options: argparse.Namespace, device: torch.device) -> Pipeline:
    return build(
        name, index, batch_size=options.batch, resolution=options.size, device=device,
        mean=(0, 0, 0), std=(1, 1, 1), on_bad_image="skip",
    )  # fmt: skip


def difference(here: Pipeline, there: Pipeline) -> tuple[list[float], float]:
    """Mean absolute difference of each image's views, and the largest of any value."""
    means: list[float] = []
    largest = 0.0
    n_batches = 0
    for a, b in zip(here, there, strict=True):
        _require_same(a, b)
        assert a.perturbed is not None
        assert b.perturbed is not None
        for one, other in ((a.clean, b.clean), (a.perturbed, b.perturbed)):
            apart = 255 * (one.cpu().float() - other.float()).abs()
            means += apart.mean((1, 2, 3)).tolist()
            largest = max(largest, float(apart.max()))
        n_batches += 1
    if n_batches != len(here):
        raise AssertionError(f"{n_batches} batches arrived of {len(here)}")
    return means, largest


def _require_same(a: PairBatch, b: PairBatch) -> None:
    for what in ("target", "index"):
        if not torch.equal(getattr(a, what).cpu(), getattr(b, what)):
            raise AssertionError(f"the two devices were given other images: {what}")


def rate(pipeline: Pipeline, device: torch.device) -> float:
    """Pairs a second over an epoch, of which the first has been."""
    start, n = time.perf_counter(), 0
    for batch in pipeline:
        n += len(batch.target)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return n / (time.perf_counter() - start)


def rows_of(name: str, index: Index, options: argparse.Namespace) -> list[Row]:
    here = loader(name, index, options, options.device)
    there = loader(name, index, options, torch.device("cpu"))
    try:
        means, largest = difference(here, there)
        row = summarize(f"handover/{name}-levels", means, "levels")
        most = summarize(f"handover/{name}-largest", [largest], "levels")
        here.set_epoch(1)
        speed = summarize(f"handover/{name}", [rate(here, options.device)], "pairs/s")
    finally:
        here.close()
        there.close()
    return [row, most, speed]


def too_far(row: Row) -> str | None:
    """What is wrong with a row of differences: the same decoder must not differ at all."""
    name, _, what = row.name.removeprefix("handover/").partition("-")
    if not isinstance(row, Result) or what not in ("levels", "largest"):
        return None
    limit = LIMIT.get(name, 0.0)
    if (what == "largest" and limit) or row.median <= limit:
        return None
    return f"{row.name}: {row.median:.3g} levels apart, where {limit:g} is the most"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.handover", description=__doc__)
    add_arguments(parser)
    parser.add_argument("--data", type=Path, metavar="DIR", help="photographs in class folders")
    parser.add_argument("--images", type=int, default=512, help="to draw without --data")
    parser.add_argument("--size", type=int, default=224, help="image side in pixels (default 224)")
    parser.add_argument("--batch", type=int, default=64, help="images a batch (default 64)")
    options = parse(parser, arguments)
    rows: list[Row] = []
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as temporary, mistakes(parser):
        folder = options.data or draw_photographs(Path(temporary) / "drawn", options.images)
        index = scan(folder, progress=False)
        for name in PIPELINES:
            try:
                source = index
                if name == "ffcv":
                    source = open_beton(beton(index, Path(temporary), ""))
                rows += rows_of(name, source, options)
            except (ImportError, UserError) as problem:
                rows.append(Skipped(f"handover/{name}", str(problem).splitlines()[0]))
            except AssertionError as problem:
                rows.append(Skipped(f"handover/{name}", f"wrong: {problem}"))
                wrong.append(str(problem))
    report(rows, f"hand-over to {options.device} · {options.size} px", options)
    wrong += [complaint for row in rows if (complaint := too_far(row))]
    for line in wrong:
        print(line)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
