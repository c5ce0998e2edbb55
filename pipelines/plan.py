"""All of an epoch's random choices as tables, one row a dataset index."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from fastsc.pipelines import keyed
from fastsc.pipelines.index import Index

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Crop = Literal["rrc", "pad", "none"]
OnBadImage = Literal["raise", "skip"]
Decode = Literal["auto", "gpu", "cpu"]
Interpolation = Literal["bilinear", "bicubic"]


@dataclass(frozen=True)
class Settings:
    """What a pipeline is asked for; `fastsc.pipelines.build` documents every field."""

    batch_size: int
    resolution: int
    train: bool
    crop: Crop
    flip: bool
    val_crop: float
    strengths: tuple[float, float, float, float]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    seed: int
    paired: bool
    paired_fraction: float
    device: torch.device
    dtype: torch.dtype
    workers: int
    on_bad_image: OnBadImage
    rank: int
    world_size: int
    timeout: float
    decode: Decode = "auto"
    prefetch: bool = True
    interpolation: Interpolation = "bilinear"

    @property
    def decodes_on_gpu(self) -> bool:
        """Whether a pipeline that can decode on the GPU does."""
        return self.device.type == "cuda" and self.decode != "cpu"

    def n_paired(self, n: int) -> int:
        """How many of the n rows of this rank's batch get a perturbed view, the first ones.

        The order of an epoch is keyed, so that the first rows of a batch are a keyed choice; dealt
        out like cards, they are the same images for any number of ranks.
        """
        if not self.train:
            return n
        assert n == self.batch_size // self.world_size, "training has whole batches"
        return n_paired(self.batch_size, self.paired_fraction) // self.world_size


def n_paired(batch_size: int, fraction: float) -> int:
    """Images of a global batch that have a perturbed view: the fraction, rounded, at least one."""
    return max(1, round(fraction * batch_size))


@dataclass(frozen=True, eq=False)
class Plan:
    """One epoch: tables over all n dataset indices, and the order of the usable ones.

    Attributes:
        order: (m,) int64, the usable dataset indices in the order of this epoch, all ranks'.
        boxes: (n, 4) int32 pixels: top, left, height, width of the region that is resized.
        shifts: (n, 2) int32 output pixels, by which the resized region is read off-centre with
            black around it (crop "pad"), before the flip; None where nothing is shifted.
        flips: (n,) bool, mirrored left to right.
        factors: (n, 4) float32: brightness, contrast, saturation, hue of the perturbed view.
    """

    seed: int
    epoch: int
    usable: NDArray[np.int64]
    order: NDArray[np.int64]
    boxes: NDArray[np.int32]
    shifts: NDArray[np.int32] | None
    flips: NDArray[np.bool_]
    factors: NDArray[np.float32]

    def shift(self, index: int) -> tuple[int, int]:
        """The row of `shifts` of a dataset index; (0, 0) where nothing is shifted."""
        if self.shifts is None:
            return 0, 0
        dy, dx = self.shifts[index].tolist()
        return dy, dx

    def substitute(self, index: int, attempt: int) -> int:
        """The dataset index that takes the slot of one that cannot be decoded."""
        return keyed.substitute(self.seed, self.epoch, index, self.usable, attempt)


def make_plan(index: Index, settings: Settings, epoch: int) -> Plan:
    """The plan of one epoch: a pure function of the index, the seed, the epoch and the options.

    Validation takes every image once, in the index's order, from its central square, with factors
    of a fixed key.
    """
    n, usable = len(index), index.usable
    sizes = index.heights, index.widths
    train, seed = settings.train, settings.seed
    if not train:
        seed, epoch = keyed.VALIDATION_SEED, keyed.VALIDATION_EPOCH
    if train and settings.crop == "rrc":
        boxes = keyed.random_resized_crops(seed, epoch, *sizes)
    else:
        boxes = keyed.central_squares(*sizes, 1.0 if train else settings.val_crop)
    padded = train and settings.crop == "pad"
    return Plan(
        seed=seed,
        epoch=epoch,
        usable=usable,
        order=keyed.order(seed, epoch, usable, n) if train else usable,
        boxes=boxes,
        shifts=keyed.pad_shifts(seed, epoch, n) if padded else None,
        flips=keyed.flips(seed, epoch, n) if train and settings.flip else np.zeros(n, np.bool_),
        factors=keyed.factors(seed, epoch, n, settings.strengths),
    )


def local_batches(plan: Plan, settings: Settings, start: int) -> list[NDArray[np.int64]]:
    """This rank's share of every global batch from number `start` on, as dataset indices.

    Global batch k is order[k·B : (k + 1)·B], dealt out over the ranks like cards. Training drops
    the last partial global batch; validation keeps it, and a rank may then get nothing of it.
    """
    size, m = settings.batch_size, len(plan.order)
    stop = m // size * size if settings.train else m
    shares = (
        plan.order[at : min(at + size, stop)][settings.rank :: settings.world_size]
        for at in range(start * size, stop, size)
    )
    return [share for share in shares if len(share)]
