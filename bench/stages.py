"""What each stage of a loader costs alone, on one thread: where a loader's time goes.

read: files or samples, from the page cache; decode: the crop's region (FFCV: the whole image);
resize: to 224 pixels and into the slot, mirrored or not; pair: both float32 views; hand-over:
tasks, buffers and everything else that is done for an image whose stages do nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from bench.common import Case
from bench.peers import BATCH, SIZE
from fastsc.kernels import pair_view
from fastsc.pipelines import IMAGENET_MEAN, IMAGENET_STD, BetonIndex, Index, build
from fastsc.pipelines.cpu import CpuPipeline
from fastsc.pipelines.decode import pick
from fastsc.pipelines.ffcv import FfcvPipeline
from fastsc.pipelines.files import read_file
from fastsc.pipelines.resample import move, place
from fastsc.pipelines.samples import decode as decode_sample
from fastsc.pipelines.samples import resize as area_resize

N = 256  # images of a call
UNIT = "ms/image"


def cpu_stages(index: Index, workers: int) -> list[Case]:
    """The stages of `--pipeline cpu`."""
    loader = build("cpu", index, batch_size=BATCH, resolution=SIZE, workers=workers)
    plan, rows = loader.plan(), _rows(index)
    decode, slot = pick()[1], np.empty((SIZE, SIZE, 3), np.uint8)
    encoded = {i: read_file(index.place(i)) for i in rows}
    regions = {i: decode(encoded[i], *plan.boxes[i].tolist()) for i in rows}

    def each(stage: Callable[[int], object]) -> Callable[[], None]:
        def run() -> None:
            for i in rows:
                stage(i)

        return run

    stages: dict[str, Callable[[int], object]] = {
        "read": lambda i: read_file(index.place(i)),
        "decode": lambda i: decode(encoded[i], *plan.boxes[i].tolist()),
        "resize": lambda i: place(regions[i], slot, (0, 0), bool(plan.flips[i])),
    }
    cases = [Case(f"stages/cpu/{name}", each(run), len(rows), UNIT) for name, run in stages.items()]
    return [*cases, _pair("cpu", regions), _hand_over("cpu", loader)]


def ffcv_stages(index: BetonIndex, workers: int, kind: str) -> list[Case]:
    """The stages of `--pipeline ffcv` on a beton; reading is part of decoding there."""
    loader = build("ffcv", index, batch_size=BATCH, resolution=SIZE, workers=workers)
    assert isinstance(loader, FfcvPipeline)
    plan, rows, samples = loader.plan(), _rows(index), index.samples
    boxes, (encoded, pixels) = loader.stored_boxes(plan.boxes), samples.scratch()
    slot, moved = (np.empty((SIZE, SIZE, 3), np.uint8) for _ in range(2))
    wanted = {i: (int(boxes[i][0]), int(boxes[i][2])) for i in rows}
    whole = {}
    for i in rows:
        height, width = int(samples.heights[i]), int(samples.widths[i])
        decode_sample(loader.file, samples.columns, i, 0, height, encoded, pixels)
        whole[i] = pixels[: height * width * 3].reshape(height, width, 3).copy()

    def decode() -> None:
        for i in rows:
            decode_sample(loader.file, samples.columns, i, *wanted[i], encoded, pixels)

    def resize() -> None:
        for i in rows:
            area_resize(whole[i], *whole[i].shape[:2], boxes[i], slot)
            if plan.flips[i]:
                move(slot, moved, 0, 0, True, False)

    name = f"ffcv{kind}"
    return [
        Case(f"stages/{name}/read-and-decode", decode, len(rows), UNIT),
        Case(f"stages/{name}/resize", resize, len(rows), UNIT),
        _pair(name, whole),
        _hand_over(name, loader),
    ]


def dali_stages(index: Index) -> list[Case]:
    """The stages of `--pipeline dali` on the CPU: its graph, whole and with the decoder alone."""
    from nvidia.dali import fn, pipeline_def, types

    loader: Any = build("dali", index, batch_size=BATCH, resolution=SIZE, workers=1)
    plan, rows = loader.plan(), _rows(index)
    encoded = [np.fromfile(index.path(i), np.uint8) for i in rows]
    boxes = np.ascontiguousarray(plan.boxes[rows])

    def graph(*, decoded: bool, resized: bool) -> Callable[[], None]:
        @pipeline_def(batch_size=BATCH, num_threads=1, device_id=None, prefetch_queue_depth=1)
        def define() -> Any:
            data, box = fn.external_source(
                source=lambda k: (batch(encoded, k), batch(boxes, k)),
                num_outputs=2,
                dtype=[types.UINT8, types.INT32],
                ndim=1,
            )
            if not decoded:
                return data, box
            image = fn.decoders.image_slice(
                data, box[0:2], box[2:4], axis_names="HW", adjust_orientation=False
            )
            return fn.resize(image, size=[SIZE, SIZE], antialias=True) if resized else image

        pipe = define()
        pipe.build()

        def run() -> None:
            for _ in range(N // BATCH):
                pipe.run()

        return run

    def batch(column: Any, k: int) -> Any:
        start = k * BATCH % len(rows)
        return column[start : start + BATCH]

    def read() -> None:
        for i in rows:
            read_file(index.place(i))

    loader.close()
    return [
        Case("stages/dali/read", read, len(rows), UNIT),
        Case("stages/dali/feed", graph(decoded=False, resized=False), N, UNIT),
        Case("stages/dali/feed-and-decode", graph(decoded=True, resized=False), N, UNIT),
        Case("stages/dali/feed-decode-resize", graph(decoded=True, resized=True), N, UNIT),
    ]


def _rows(index: Index) -> list[int]:
    """N dataset indices, spread over the folder."""
    usable = index.usable
    picked: list[int] = usable[np.linspace(0, len(usable) - 1, N).astype(int)].tolist()
    return picked


def _pair(name: str, regions: dict[int, Any]) -> Case:
    """pair_view of a batch, into memory that is there."""
    slots = np.empty((BATCH, SIZE, SIZE, 3), np.uint8)
    for slot, region in zip(slots, regions.values(), strict=False):
        place(region, slot, (0, 0), False)
    images = torch.from_numpy(slots)
    factors = torch.tensor([[1.2, 0.8, 1.1, 0.05]]).repeat(BATCH, 1)
    views = [torch.empty(BATCH, SIZE, SIZE, 3).permute(0, 3, 1, 2) for _ in range(2)]

    def run() -> None:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        pair_view(images, factors, IMAGENET_MEAN, IMAGENET_STD, out=(views[0], views[1]))
        torch.set_num_threads(threads)

    return Case(f"stages/{name}/pair", run, BATCH, UNIT)


def _hand_over(name: str, loader: Any) -> Case:
    """The loader itself, with stages that do nothing: its threads' time adds up to this."""
    assert isinstance(loader, CpuPipeline)

    def nothing(*_: object) -> None:
        pass

    loader._work = nothing  # type: ignore[assignment,method-assign]
    loader._views = lambda _plan, images, index: (images, index)  # type: ignore[assignment,method-assign,return-value]

    def run() -> int:
        loader.set_epoch(loader.epoch + 1)
        return sum(len(batch[0]) for batch in loader)

    return Case(f"stages/{name}/hand-over", run, 1, UNIT)
