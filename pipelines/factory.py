"""`build`: one call for every pipeline, with the options checked."""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Callable
from typing import get_args

import torch

from fastsc.pipelines.base import Pipeline
from fastsc.pipelines.batch import BadImage
from fastsc.pipelines.beton import BetonIndex, open_beton
from fastsc.pipelines.cpu import default_workers
from fastsc.pipelines.errors import UserError
from fastsc.pipelines.index import Index, scan
from fastsc.pipelines.plan import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Crop,
    Decode,
    Interpolation,
    OnBadImage,
    Settings,
    n_paired,
)

# Imported when asked for: a backend that is not installed troubles nobody else.
PIPELINES = {
    "dali": ("fastsc.pipelines.dali", "DaliPipeline"),
    "cpu": ("fastsc.pipelines.cpu", "CpuPipeline"),
    "ffcv": ("fastsc.pipelines.ffcv", "FfcvPipeline"),
    "memory": ("fastsc.pipelines.memory", "MemoryPipeline"),
}


def build(
    pipeline: str,
    data: Index | str | os.PathLike[str],
    *,
    batch_size: int,
    resolution: int,
    train: bool = True,
    crop: Crop = "rrc",
    flip: bool = True,
    val_crop: float = 0.875,
    strengths: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1),
    mean: tuple[float, float, float] = IMAGENET_MEAN,
    std: tuple[float, float, float] = IMAGENET_STD,
    seed: int = 0,
    paired: bool = True,
    paired_fraction: float = 1.0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    workers: int | None = None,
    on_bad_image: OnBadImage = "raise",
    rank: int = 0,
    world_size: int = 1,
    timeout: float = 120.0,
    decode: Decode = "auto",
    prefetch: bool = True,
    interpolation: Interpolation = "bilinear",
    report: Callable[[BadImage], None] | None = None,
) -> Pipeline:
    """A loader of paired clean and perturbed views of one decode.

    Crops, flips, factors and the order are pure functions of (seed, epoch, dataset index): the
    same for every pipeline, batch size, number of workers and number of ranks.

    Args:
        pipeline: "dali", "cpu", "ffcv" or "memory".
        data: An index (`scan`), or a folder with one folder of images a class; for "ffcv" an index
            (`open_beton`), or a beton.
        batch_size: Unique images of a step over all ranks; a multiple of world_size in training.
        resolution: Side of the square output, in pixels.
        train: Shuffle, crop and flip, and drop the last partial batch; else every image once, in
            the index's order, from its central square, with factors of a fixed key.
        crop: In training: "rrc" (torchvision's random resized crop), "pad" (resize, pad by 4
            black pixels and crop), "none" (the central square).
        flip: In training, mirror every other image.
        val_crop: At validation, side of the central square as a fraction of the shorter side.
        strengths: Brightness, contrast, saturation, hue: factors are U[max(0, 1 - s), 1 + s), hue
            U[-s, s) in turns of the colour circle.
        mean, std: Normalization of R, G, B on [0, 1].
        seed: A whole number from 0 to 2**64 - 1.
        paired: False yields the clean view alone (PairBatch.perturbed is None).
        paired_fraction: In training, part of each batch with a perturbed view, in (0, 1]: M =
            round(paired_fraction * batch_size) rows, at least one, the first of the batch; a
            multiple of world_size.
        device: Where the views are wanted. What crosses to a GPU is one uint8 view.
        dtype: float32, bfloat16 or float16 views.
        workers: Decoding threads. Default: the cores that this process may use, at most 16.
        on_bad_image: What to do with a file that cannot be decoded: "raise" a UserError that names
            it; "skip": fill its slot with a keyed substitute in training, leave it out of
            validation.
        rank, world_size: This process's share of every batch.
        timeout: Seconds to wait for a batch before saying which stage hangs.
        decode: Where "dali" decodes and resizes: "cpu", "gpu", or "auto", the device.
        prefetch: On a GPU: make each batch one ahead, on a stream beside the consumer's.
        interpolation: Of the antialiased resize: "bilinear", or "bicubic" for networks that were
            trained so; "ffcv" has neither, and only takes the default.
        report: Called once for every file that turns out to be broken while decoding.

    Returns:
        An object with `__iter__` (one epoch of PairBatch), `__len__` (batches an epoch),
        `set_epoch`, `state_dict`, `load_state_dict`, `close`.

    Raises:
        UserError: A name, a size or the folder is wrong, or files are broken and on_bad_image is
            "raise"; the message is one line that says what to do.
    """
    if pipeline not in PIPELINES:
        raise UserError(f"no pipeline named {pipeline}; there are {', '.join(PIPELINES)}")
    index = _index_of(pipeline, data)
    index.require(on_bad_image)
    settings = Settings(
        batch_size=batch_size,
        resolution=resolution,
        train=train,
        crop=crop,
        flip=flip,
        val_crop=val_crop,
        strengths=strengths,
        mean=mean,
        std=std,
        seed=seed,
        paired=paired,
        paired_fraction=paired_fraction,
        device=_device(device),
        dtype=dtype,
        workers=default_workers() if workers is None else workers,
        on_bad_image=on_bad_image,
        rank=rank,
        world_size=world_size,
        timeout=timeout,
        decode=decode,
        prefetch=prefetch,
        interpolation=interpolation,
    )
    _check(settings, index)
    if decode == "gpu" and (pipeline != "dali" or settings.device.type != "cuda"):
        what = f"{pipeline} on {settings.device}"
        raise UserError(f"decode gpu is for the pipeline dali on a GPU, not for {what}")
    if interpolation != "bilinear" and pipeline == "ffcv":
        raise UserError(
            f"--pipeline ffcv has no {interpolation} resize (it averages areas); "
            "take --pipeline cpu or dali"
        )
    module, name = PIPELINES[pipeline]
    loader: Pipeline = getattr(importlib.import_module(module), name)(index, settings, report)
    loader.warm_up()
    return loader


def _index_of(pipeline: str, data: Index | str | os.PathLike[str]) -> Index:
    if not isinstance(data, Index):
        return open_beton(data) if pipeline == "ffcv" else scan(data)
    if isinstance(data, BetonIndex) != (pipeline == "ffcv"):
        kind = "a beton" if pipeline == "ffcv" else "an image folder, and not a beton"
        raise UserError(f"{data.root}: --pipeline {pipeline} reads {kind}")
    return data


def _device(name: torch.device | str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device must be cpu, cuda or cuda:N, not {name!r}") from None
    if str(device) == "cuda":  # DALI wants a number
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _check(s: Settings, index: Index) -> None:
    for name, value in (
        ("batch_size", s.batch_size),
        ("resolution", s.resolution),
        ("workers", s.workers),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"{name} must be a whole number of at least 1, not {value!r}")
    for name, choice, known in (
        ("crop", s.crop, get_args(Crop)),
        ("on_bad_image", s.on_bad_image, get_args(OnBadImage)),
        ("decode", s.decode, get_args(Decode)),
        ("interpolation", s.interpolation, get_args(Interpolation)),
        ("dtype", s.dtype, (torch.float32, torch.bfloat16, torch.float16)),
    ):
        if choice not in known:
            raise UserError(f"{name} must be one of {', '.join(map(str, known))}, not {choice!r}")
    if s.seed % 1 or not 0 <= s.seed < 2**64:
        raise UserError(f"seed must be a whole number from 0 to 2**64 - 1, not {s.seed}")
    if len(s.strengths) != 4 or not all(math.isfinite(x) and x >= 0 for x in s.strengths):
        raise UserError(f"strengths must be four numbers of at least 0, not {s.strengths}")
    if s.strengths[3] > 0.5:
        raise UserError(f"the strength of hue must be at most 0.5, not {s.strengths[3]}")
    if not s.timeout > 0:
        raise UserError(f"timeout must be above 0 seconds, not {s.timeout}")
    if not 0 < s.val_crop <= 1:
        raise UserError(f"val_crop must lie in (0, 1], not {s.val_crop}")
    if not 0 < s.paired_fraction <= 1:
        raise UserError(f"paired_fraction must lie in (0, 1], not {s.paired_fraction}")
    if not 0 <= s.rank < s.world_size:
        raise UserError(f"rank {s.rank} of {s.world_size} ranks does not exist")
    if s.batch_size < s.world_size or (s.train and s.batch_size % s.world_size):
        raise UserError(f"batch size {s.batch_size} is not a multiple of {s.world_size} ranks")
    m = n_paired(s.batch_size, s.paired_fraction)
    if s.train and m % s.world_size:
        raise UserError(
            f"paired_fraction {s.paired_fraction:g} of {s.batch_size} images is {m} pairs, which "
            f"{s.world_size} ranks cannot share equally"
        )
    n_usable = len(index) - len(index.left_out)
    if s.train and n_usable < s.batch_size:
        raise UserError(
            f"{index.root}: {n_usable} images are less than one batch of {s.batch_size}; "
            "take a smaller --batch-size"
        )
