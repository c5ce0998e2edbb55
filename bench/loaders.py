"""Loaders beside what a user would pick instead: `python -m bench.loaders [--data DIR]`.

Photographs from JPEG files to batches of float32 views of 224 pixels on the CPU, shuffled, cropped
and flipped; a pair is a clean and a colour-jittered view of one crop. All read the same files, from
the page cache, with `--workers` decoding threads or worker processes; fastsc-dali adds a thread to
DALI's, which DALI's own pipeline gains nothing from, and both have threads that read. DIR is a
folder of class folders, or has one in train/; without it photographs that packages ship are written
to a temporary folder.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from bench.common import Case, Row, Skipped, add_arguments, measure, parse, report
from fastsc.pipelines import IMAGENET_MEAN, IMAGENET_STD, Index, build, scan
from fastsc.pipelines.decode import pick

SIZE = 224
BATCH = 32
STRENGTHS = (0.4, 0.4, 0.4, 0.1)
MIN_FILES = 2500  # an epoch so long that its start does not count


def linked_folder(source: Path, target: Path) -> Path:
    """A class folder tree of links to the source's files, repeated up to MIN_FILES."""
    index = scan(source, progress=False)
    usable = index.usable.tolist()
    for copy in range(-(-MIN_FILES // len(usable))):
        for i in usable:
            folder = target / index.classes[index.targets[i]]
            folder.mkdir(parents=True, exist_ok=True)
            file = Path(index.path(i)).resolve()
            (folder / f"{copy:03d}-{i:07d}{file.suffix}").symlink_to(file)
    return target


def drain(batches: Iterable[Any]) -> int:
    """One epoch; the number of images in it."""
    return sum(len(batch[0]) for batch in batches)


# --- ours ----------------------------------------------------------------------------------------


def fastsc(name: str, index: Index, workers: int, *, paired: bool) -> Callable[[], int]:
    """Our loader, another epoch at every call."""
    loader = build(name, index, batch_size=BATCH, resolution=SIZE, workers=workers, paired=paired)

    def run() -> int:
        loader.set_epoch(loader.epoch + 1)
        return drain(loader)

    return run


def decode_floor(index: Index, workers: int) -> Callable[[], int]:
    """Decoding the crops' regions with our decoder and nothing else: what no loader can pass."""
    from concurrent.futures import ThreadPoolExecutor

    decode = pick()[1]
    loader = build("cpu", index, batch_size=BATCH, resolution=SIZE, workers=workers)
    boxes = loader.plan().boxes.tolist()
    loader.close()
    threads = ThreadPoolExecutor(workers)

    def one(i: int) -> None:
        with open(index.path(i), "rb") as file:
            decode(file.read(), *boxes[i])

    def run() -> int:
        return len(list(threads.map(one, range(len(index)), chunksize=8)))

    return run


# --- peers ---------------------------------------------------------------------------------------


class PairDataset(Dataset[tuple[torch.Tensor, ...]]):
    """What a user writes: decode, one crop and flip, the jitter on a copy, normalization of both.

    `kind` is "tensor" or "pil" (torchvision transforms v2) or "albumentations".
    """

    def __init__(self, index: Index, kind: str, *, paired: bool = True) -> None:
        self.files = [index.path(i) for i in range(len(index))]
        self.kind, self.paired = kind, paired
        if kind == "albumentations":
            import albumentations as A

            self.crop: Any = A.Compose([A.RandomResizedCrop((SIZE, SIZE)), A.HorizontalFlip()])
            ranges = [(1 - s, 1 + s) for s in STRENGTHS[:3]]
            self.jitter: Any = A.ColorJitter(*ranges, (-STRENGTHS[3], STRENGTHS[3]), p=1)
            self.finish: Any = A.Normalize(IMAGENET_MEAN, IMAGENET_STD)
            return
        from torchvision.transforms import v2

        self.crop = v2.Compose([v2.RandomResizedCrop(SIZE), v2.RandomHorizontalFlip()])
        self.jitter = v2.ColorJitter(*STRENGTHS)
        self.finish = v2.Compose(
            [
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, ...]:
        if self.kind == "albumentations":
            return self._albumentations(self.files[i])
        if self.kind == "tensor":
            from torchvision.io import ImageReadMode, decode_image

            image = self.crop(decode_image(self.files[i], ImageReadMode.RGB))
        else:
            from PIL import Image

            image = self.crop(Image.open(self.files[i]).convert("RGB"))
        if not self.paired:
            return (self.finish(image),)
        return self.finish(image), self.finish(self.jitter(image))

    def _albumentations(self, file: str) -> tuple[torch.Tensor, ...]:
        import cv2

        pixels: Any = cv2.imread(file, cv2.IMREAD_COLOR_RGB)
        image = self.crop(image=pixels)["image"]
        jittered = self.jitter(image=image)["image"]
        views = (self.finish(image=view)["image"] for view in (image, jittered))
        return tuple(torch.from_numpy(view).permute(2, 0, 1) for view in views)


def data_loader(dataset: PairDataset, workers: int) -> Callable[[], int]:
    """torch's DataLoader around it, its processes kept alive between epochs."""
    loader = DataLoader(
        dataset,
        batch_size=BATCH,
        shuffle=True,
        num_workers=workers,
        drop_last=True,
        persistent_workers=True,
    )
    return lambda: drain(loader)


def dali_peer(folder: Path, n: int, workers: int, kind: str) -> Callable[[], int]:
    """DALI's own pipelines, its reader shuffling and its decoder drawing the crops.

    "single" ends with uint8 pixels, the least that it can do; "normalized" adds the flip and
    float32; "own-colour" makes both float32 views with its colour operators, decoding once.
    """
    from nvidia.dali import fn, pipeline_def, types

    mean, std = [[255 * x for x in values] for values in (IMAGENET_MEAN, IMAGENET_STD)]

    @pipeline_def(batch_size=BATCH, num_threads=workers, device_id=None)
    def graph() -> Any:
        encoded, _ = fn.readers.file(file_root=str(folder), random_shuffle=True)
        image = fn.decoders.image_random_crop(encoded, output_type=types.RGB)
        image = fn.resize(image, size=[SIZE, SIZE], antialias=True)
        if kind == "single":
            return image
        mirror = fn.random.coin_flip()

        def finish(view: Any) -> Any:
            return fn.crop_mirror_normalize(
                view, mirror=mirror, mean=mean, std=std, output_layout="HWC"
            )

        if kind == "normalized":
            return finish(image)
        b, c, s = (fn.random.uniform(range=(1 - x, 1 + x)) for x in STRENGTHS[:3])
        turn = fn.random.uniform(range=(-360 * STRENGTHS[3], 360 * STRENGTHS[3]))
        twist = fn.color_twist(image, brightness=b, contrast=c, saturation=s, hue=turn)
        return finish(image), finish(twist)

    pipe = graph()
    pipe.build()

    def run() -> int:
        seen = 0
        for _ in range(n // BATCH):
            views = [torch.from_dlpack(view.as_tensor()) for view in pipe.run()]
            seen += len(views[0])
        return seen

    return run


# --- all together --------------------------------------------------------------------------------


def make_cases(folder: Path, workers: int) -> tuple[list[Case], list[Row]]:
    """Every loader as a case, and a row with the reason for each that is not here."""
    index = scan(folder, progress=False, use_cache=False)
    n = len(index)
    makers: dict[str, tuple[Callable[[], Callable[[], int]], str]] = {
        "fastsc-cpu/pair": (lambda: fastsc("cpu", index, workers, paired=True), ""),
        "fastsc-cpu/single": (lambda: fastsc("cpu", index, workers, paired=False), ""),
        "fastsc-dali/pair": (lambda: fastsc("dali", index, workers, paired=True), "fastsc[dali]"),
        "fastsc-dali/single": (
            lambda: fastsc("dali", index, workers, paired=False),
            "fastsc[dali]",
        ),
        "torchvision-tensor/pair": (
            lambda: data_loader(PairDataset(index, "tensor"), workers),
            "torchvision",
        ),
        "torchvision-tensor/single": (
            lambda: data_loader(PairDataset(index, "tensor", paired=False), workers),
            "torchvision",
        ),
        "torchvision-pil/pair": (
            lambda: data_loader(PairDataset(index, "pil"), workers),
            "torchvision",
        ),
        "albumentations/pair": (
            lambda: data_loader(PairDataset(index, "albumentations"), workers),
            "albumentations",
        ),
        "dali/single": (lambda: dali_peer(folder, n, workers, "single"), "fastsc[dali]"),
        "dali/single-normalized": (
            lambda: dali_peer(folder, n, workers, "normalized"),
            "fastsc[dali]",
        ),
        "dali-own-colour/pair": (
            lambda: dali_peer(folder, n, workers, "own-colour"),
            "fastsc[dali]",
        ),
        "floor": (lambda: decode_floor(index, workers), ""),
    }
    cases, skipped = [], list[Row]()
    for name in ("fastsc-ffcv/pair", "ffcv/single"):
        skipped.append(Skipped(f"loaders/{name}", "there is no ffcv pipeline yet"))
    for name, (make, package) in makers.items():
        unit = "pairs/s" if name.endswith("/pair") else "images/s"
        try:
            cases.append(Case(f"loaders/{name}", make(), n, unit))
        except (ImportError, ValueError) as error:
            skipped.append(Skipped(f"loaders/{name}", f"{error}; pip install '{package}'"))
    return cases, skipped


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.loaders", description=__doc__)
    add_arguments(parser)
    parser.add_argument("--data", type=Path, metavar="DIR", help="photographs in class folders")
    cores = min(16, len(os.sched_getaffinity(0)))
    parser.add_argument("--workers", type=int, default=cores, help="threads or worker processes")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="cases whose name has this in it")
    parser.set_defaults(rounds=5)
    options = parse(parser, arguments)
    if options.workers < 1:
        parser.error("--workers must be at least 1")
    if options.device.type != "cpu":
        parser.error("--device: this benchmark is of loaders on the CPU")
    with tempfile.TemporaryDirectory(prefix="fastsc-bench-") as temporary:
        source = options.data
        if source is None:
            from fastsc.photographs import write_photographs

            source = write_photographs(Path(temporary) / "photographs")
        source = source / "train" if (source / "train").is_dir() else source
        folder = linked_folder(source, Path(temporary) / "links")
        cases, skipped = make_cases(folder, options.workers)
        if options.only:
            cases = [case for case in cases if any(word in case.name for word in options.only)]
            if not cases:
                parser.error(f"--only {' '.join(options.only)}: no case has this in its name")
        index = scan(folder, progress=False, use_cache=False)
        rows = [*measure(cases, rounds=options.rounds, warmup=1), *skipped]
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


if __name__ == "__main__":
    main()
