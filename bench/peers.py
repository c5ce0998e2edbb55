"""What a user would pick instead of our loaders, each as its own documentation has it.

Every maker returns a function that runs one epoch and says how many images it handled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from fastsc.pipelines import IMAGENET_MEAN, IMAGENET_STD, Index

SIZE = 224
BATCH = 32
LISTED = ("gamma", "temperature", "blur")  # before the colors, in the rows "-perturb"
STRENGTHS = (0.4, 0.4, 0.4, 0.1)
PREFETCHED = 2  # DALI's default prefetch_queue_depth
Epoch = Callable[[], int]


def drain(batches: Iterable[Any]) -> int:
    """One epoch; the number of images in it."""
    return sum(len(batch[0]) for batch in batches)


# --- torch's DataLoader --------------------------------------------------------------------------


class PairDataset(Dataset[tuple[torch.Tensor, ...]]):
    """What a user writes: decode, one crop and flip, the jitter on a copy, normalization of both.

    `kind` is "tensor" or "pil" (torchvision transforms v2), "pil-draft" (which draws the crop
    first, and has Pillow scale a JPEG down to what it needs) or "albumentations"; with `listed`,
    what these have of LISTED before the jitter.
    """

    def __init__(
        self, index: Index | None, kind: str, *, paired: bool = True, listed: bool = False
    ) -> None:
        self.files = [] if index is None else [index.path(i) for i in range(len(index))]
        self.kind, self.paired = kind, paired
        if kind == "albumentations":
            import albumentations as A

            self.crop: Any = A.Compose([A.RandomResizedCrop((SIZE, SIZE)), A.HorizontalFlip()])
            ranges = [(1 - s, 1 + s) for s in STRENGTHS[:3]]
            self.jitter: Any = A.ColorJitter(*ranges, (-STRENGTHS[3], STRENGTHS[3]), p=1)
            if listed:
                warm, soft = A.PlanckianJitter(p=1), A.GaussianBlur((13, 13), (0.1, 2), p=1)
                self.jitter = A.Compose([A.RandomGamma((70, 142), p=1), warm, soft, self.jitter])
            self.finish: Any = A.Normalize(IMAGENET_MEAN, IMAGENET_STD)
            return
        from torchvision.transforms import v2

        self.crop = v2.Compose([v2.RandomResizedCrop(SIZE), v2.RandomHorizontalFlip()])
        self.jitter = v2.ColorJitter(*STRENGTHS)
        if listed:  # without a temperature, which torchvision has none of
            gamma = v2.Lambda(lambda x: v2.functional.adjust_gamma(x, 2 ** (torch.rand(()) - 0.5)))
            self.jitter = v2.Compose([gamma, v2.GaussianBlur(13, (0.1, 2.0)), self.jitter])
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
        elif self.kind == "pil-draft":
            image = self._drafted(self.files[i])
        else:
            from PIL import Image

            image = self.crop(Image.open(self.files[i]).convert("RGB"))
        return self.views(image)

    def views(self, image: Any) -> tuple[torch.Tensor, ...]:
        """The views of a crop: of "tensor" and "pil"."""
        if not self.paired:
            return (self.finish(image),)
        return self.finish(image), self.finish(self.jitter(image))

    def _drafted(self, file: str) -> Any:
        from PIL import Image
        from torchvision.transforms import v2
        from torchvision.transforms.v2 import functional

        crop, flip = self.crop.transforms
        image: Any = Image.open(file)
        size = image.size
        box = v2.RandomResizedCrop.get_params(image, crop.scale, crop.ratio)
        shrink = min(box[2:]) / SIZE
        if shrink > 1:
            image.draft("RGB", (int(size[0] / shrink), int(size[1] / shrink)))
        by = image.width / size[0]
        scaled = [round(side * by) for side in box]
        return flip(functional.resized_crop(image.convert("RGB"), *scaled, [SIZE, SIZE]))

    def _albumentations(self, file: str) -> tuple[torch.Tensor, ...]:
        import cv2

        pixels: Any = cv2.imread(file, cv2.IMREAD_COLOR_RGB)
        image = self.crop(image=pixels)["image"]
        jittered = self.jitter(image=image)["image"]
        views = (self.finish(image=view)["image"] for view in (image, jittered))
        return tuple(torch.from_numpy(view).permute(2, 0, 1) for view in views)


def data_loader(dataset: PairDataset, workers: int) -> Epoch:
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


def webdataset(folder: Path, workers: int, *, paired: bool) -> Epoch:
    """WebDataset's own loader of a folder of tars, with torchvision's transforms of tensors."""
    import webdataset as wds
    from torchvision.io import ImageReadMode, decode_image

    transforms = PairDataset(None, "tensor", paired=paired)

    def views(sample: dict[str, Any]) -> tuple[torch.Tensor, ...]:
        content = next(value for key, value in sample.items() if not key.startswith("__"))
        pixels = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        return transforms.views(transforms.crop(decode_image(pixels, ImageReadMode.RGB)))

    tars = sorted(map(str, folder.glob("*.tar")))
    dataset = wds.WebDataset(tars, shardshuffle=len(tars)).shuffle(1000).map(views)
    loader = DataLoader(
        dataset, batch_size=BATCH, num_workers=workers, drop_last=True, persistent_workers=True
    )
    return lambda: drain(loader)


def hf_datasets(index: Index, folder: Path, workers: int, *, paired: bool) -> Epoch:
    """Hugging Face's datasets, the files' bytes in Arrow, with torchvision's transforms of PIL."""
    from datasets import Dataset as HfDataset
    from datasets import Features, Image, load_from_disk
    from torch.utils.data import default_collate

    transforms = PairDataset(None, "pil", paired=paired)
    if not folder.exists():
        files = (Path(index.path(i)) for i in range(len(index)))
        rows = {"image": [{"bytes": file.read_bytes(), "path": None} for file in files]}
        HfDataset.from_dict(rows, features=Features({"image": Image()})).save_to_disk(folder)

    def views(batch: dict[str, Any]) -> dict[str, Any]:
        images = (transforms.crop(image.convert("RGB")) for image in batch["image"])
        return {"views": [transforms.views(image) for image in images]}

    loader = DataLoader(
        load_from_disk(str(folder)).with_transform(views),
        batch_size=BATCH,
        shuffle=True,
        num_workers=workers,
        drop_last=True,
        persistent_workers=True,
        collate_fn=lambda rows: default_collate([row["views"] for row in rows]),
    )
    return lambda: drain(loader)


# --- DALI ----------------------------------------------------------------------------------------


def dali(folder: Path, n: int, workers: int, kind: str) -> Epoch:
    """DALI's own pipelines, its reader shuffling and its decoder drawing the crops.

    "single" ends with uint8 pixels, the least that it can do; "normalized" adds the flip and
    float32; "own-color" makes both float32 views with its color operators, decoding once.
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

    return _dali_epoch(graph(), n)


def dali_keyed(index: Index, boxes: NDArray[np.int32], workers: int, feed: str) -> Epoch:
    """The fastest single uint8 view with crops of our own, fed in one of two ways.

    "reader": DALI's file reader, given the files in our order; "bytes": files read by one of our
    threads into DALI's external source. The crops' boxes come through an external source in both.
    """
    from nvidia.dali import fn, pipeline_def, types

    order = np.random.default_rng(0).permutation(len(index))[: len(index) // BATCH * BATCH]

    def rows(k: int) -> NDArray[np.int64]:
        start = k * BATCH % len(order)
        return order[start : start + BATCH]

    def anchors(k: int) -> tuple[Any, Any]:
        picked = boxes[rows(k)]
        return np.ascontiguousarray(picked[:, :2]), np.ascontiguousarray(picked[:, 2:])

    def files(k: int) -> list[NDArray[np.uint8]]:
        return [np.fromfile(index.path(i), np.uint8) for i in rows(k)]

    @pipeline_def(batch_size=BATCH, num_threads=workers, device_id=None)
    def graph() -> Any:
        if feed == "reader":
            encoded, _ = fn.readers.file(files=[index.path(i) for i in order])
        else:
            encoded = fn.external_source(source=files, dtype=types.UINT8, ndim=1)
        anchor, shape = fn.external_source(
            source=anchors, num_outputs=2, dtype=types.INT32, ndim=1, batch=True
        )
        image = fn.decoders.image_slice(encoded, anchor, shape, axis_names="HW")
        return fn.resize(image, size=[SIZE, SIZE], antialias=True)

    return _dali_epoch(graph(), len(order))


def _dali_epoch(pipe: Any, n: int) -> Epoch:
    """Batches of n images; those that DALI made ahead, in the turns of others, are not counted."""
    pipe.build()

    def run() -> int:
        seen = 0
        for number in range(PREFETCHED + n // BATCH):
            views = [torch.from_dlpack(view.as_tensor()) for view in pipe.run()]
            seen += len(views[0]) if number >= PREFETCHED else 0
        return seen

    return run


# --- FFCV ----------------------------------------------------------------------------------------


def ffcv(beton: Path, workers: int, *, twice: bool = False) -> Epoch:
    """FFCV's own loader: one uint8 view of a random crop; `twice`: two, each decoded for itself."""
    from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.pipeline.pipeline_spec import PipelineSpec

    def view() -> Any:
        return PipelineSpec("image", decoder=RandomResizedCropRGBImageDecoder((SIZE, SIZE)))

    pipelines = {"image": view(), "label": [IntDecoder()]} | ({"second": view()} if twice else {})
    loader = Loader(
        str(beton),
        batch_size=BATCH,
        num_workers=workers,
        order=OrderOption.RANDOM,
        os_cache=True,
        drop_last=True,
        pipelines=pipelines,
    )
    return lambda: drain(loader)
