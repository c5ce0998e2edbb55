"""All of an epoch's random choices as tables, one row a dataset index."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from fastsc.kernels.arguments import MAX_GAIN
from fastsc.pipelines import keyed
from fastsc.pipelines.batch import BadImage
from fastsc.pipelines.errors import UserError
from fastsc.pipelines.index import Index
from fastsc.pipelines.perturb_list import words_of
from fastsc.pipelines.perturbing import Perturbations, perturbations
from fastsc.pipelines.threads import default_workers

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

MAX_TIMEOUT = 604_800  # a week, in seconds

Crop = Literal["rrc", "pad", "reflect", "none"]
OnBadImage = Literal["raise", "skip"]
Decode = Literal["auto", "gpu", "cpu"]
Interpolation = Literal["bilinear", "bicubic"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The options of every pipeline.

    Args:
        batch_size: Unique images of a step over all ranks; a multiple of world_size in training.
        resolution: Side of the square output, in pixels.
        train: Shuffle, crop and flip, and drop the last partial batch; else every image once, in
            the index's order, from its central square, with factors of a fixed key.
        crop: In training: "rrc" (torchvision's random resized crop), "pad" (resize, pad by 4
            black pixels and crop), "reflect" (the same, padded by the image mirrored at its edges),
            "none" (the central square).
        flip: In training, mirror every other image.
        val_crop: At validation, side of the central square as a fraction of the shorter side.
        train_crop: Likewise in training, unless `crop` is "rrc".
        strengths: Brightness, contrast, saturation, hue: factors are U[max(0, 1 - s), 1 + s), hue
            U[-s, s) in turns of the color circle.
        perturb: What becomes the perturbed view is changed before that, on bytes, in this order:
            operations as "blur" or "blur=2" (`pipelines.perturb_list` has them and their
            strengths), and functions of one's own as "module:function".
        mean: Mean of R, G and B on [0, 1], which is subtracted from the views.
        std: Standard deviation of R, G and B, which they are divided by.
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
        rank: This process's number, from 0: it loads its share of every batch.
        world_size: The number of processes.
        timeout: Seconds to wait for a batch before saying which stage hangs.
        decode: Where "dali" decodes and resizes: "cpu", "gpu", or "auto", the device.
        decode_hardware: Of a GPU's JPEGs, the part, from 0 to 1, that nvJPEG's hardware decodes.
        exact_decode: "cpu" decodes every pixel of a crop in training, too, also of JPEGs whose crop
            is at least twice the output's size; the other pipelines always do.
        prefetch: On a GPU: make each batch one ahead, on a stream beside the consumer's.
        interpolation: Of the antialiased resize: "bilinear", or "bicubic" for networks that were
            trained so; "ffcv" has neither, and only takes the default.
        report: Called once for every file that turns out to be broken while decoding.

    Raises:
        UserError: A value is out of its range.
    """

    batch_size: int
    resolution: int
    train: bool = True
    crop: Crop = "rrc"
    flip: bool = True
    val_crop: float = 0.875
    train_crop: float = 1.0
    strengths: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    perturb: tuple[str, ...] = ()
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    seed: int = 0
    paired: bool = True
    paired_fraction: float = 1.0
    device: torch.device | str = "cpu"
    dtype: torch.dtype = torch.float32
    workers: int | None = None
    on_bad_image: OnBadImage = "raise"
    rank: int = 0
    world_size: int = 1
    timeout: float = 120.0
    decode: Decode = "auto"
    decode_hardware: float = 0.0
    exact_decode: bool = False
    prefetch: bool = True
    interpolation: Interpolation = "bilinear"
    report: Callable[[BadImage], None] | None = None

    def __post_init__(self) -> None:
        for name, value in (
            ("batch_size", self.batch_size),
            ("resolution", self.resolution),
            ("workers", self.n_workers),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UserError(f"{name} must be a whole number of at least 1, not {value!r}")
        for name, n in (("rank", self.rank), ("world_size", self.world_size)):
            if not _is_whole(n):
                raise UserError(f"{name} must be a whole number, not {n!r}")
        for name in ("timeout", "decode_hardware", "val_crop", "train_crop", "paired_fraction"):
            if not _is_finite(number := getattr(self, name)):
                raise UserError(f"{name} must be a finite number, not {number!r}")
        for name, known in (
            ("crop", get_args(Crop)),
            ("on_bad_image", get_args(OnBadImage)),
            ("decode", get_args(Decode)),
            ("interpolation", get_args(Interpolation)),
            ("dtype", (torch.float32, torch.bfloat16, torch.float16)),
        ):
            if (choice := getattr(self, name)) not in known:
                choices = ", ".join(map(str, known))
                raise UserError(f"{name} must be one of {choices}, not {choice!r}")
        if self.train and self.crop == "reflect" and self.resolution <= keyed.PAD:
            raise UserError(
                f"crop reflect mirrors {keyed.PAD} pixels, which resolution {self.resolution} has "
                "not; take 5 at least"
            )
        if not _is_whole(self.seed) or not 0 <= self.seed < 2**64:
            raise UserError(f"seed must be a whole number from 0 to 2**64 - 1, not {self.seed}")
        object.__setattr__(self, "seed", int(self.seed))
        four = f"strengths must be four numbers of at least 0, not {self.strengths}"
        try:
            object.__setattr__(self, "strengths", tuple(map(float, self.strengths)))  # of an array
        except (TypeError, ValueError):
            raise UserError(four) from None
        if len(self.strengths) != 4 or not all(_is_finite(x) and x >= 0 for x in self.strengths):
            raise UserError(four)
        if max(self.strengths) > MAX_GAIN - 1:
            raise UserError(f"strengths must be at most {MAX_GAIN - 1:,.0f}, not {self.strengths}")
        if self.strengths[3] > 0.5:
            raise UserError(f"the strength of hue must be at most 0.5, not {self.strengths[3]}")
        _ = self.perturbations
        if not 0 < self.timeout <= MAX_TIMEOUT:
            raise UserError(
                f"timeout must be above 0 and at most {MAX_TIMEOUT:,} seconds, not {self.timeout}"
            )
        if not 0 <= self.decode_hardware <= 1:
            raise UserError(f"decode_hardware must lie in [0, 1], not {self.decode_hardware}")
        for name in ("val_crop", "train_crop", "paired_fraction"):
            if not 0 < (part := getattr(self, name)) <= 1:
                raise UserError(f"{name} must lie in (0, 1], not {part}")
        self._check_shares()

    def _check_shares(self) -> None:
        size, world_size = self.batch_size, self.world_size
        if not 0 <= self.rank < world_size:
            raise UserError(f"rank {self.rank} of {world_size} ranks does not exist")
        if size < world_size or (self.train and size % world_size):
            raise UserError(f"batch size {size} is not a multiple of {world_size} ranks")
        m = n_paired(size, self.paired_fraction)
        if self.train and m % world_size:
            raise UserError(
                f"paired_fraction {self.paired_fraction:g} of {size} images is {m} pairs, which "
                f"{world_size} ranks cannot share equally"
            )

    @property
    def perturbations(self) -> Perturbations:
        """`perturb`, ready to be applied."""
        return perturbations(words_of(self.perturb))

    @property
    def n_workers(self) -> int:
        """`workers`, or their default."""
        return default_workers() if self.workers is None else self.workers

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
            a border around it, before the flip; None where nothing is shifted.
        flips: (n,) bool, mirrored left to right.
        factors: (n, 4) float32: brightness, contrast, saturation, hue of the perturbed view.
        uniforms: (n, k) float32 in [0, 1), which `Settings.perturbations` take.
        reflect: Whether that border is the region mirrored (crop "reflect"); else it is black.
    """

    seed: int
    epoch: int
    usable: NDArray[np.int64]
    order: NDArray[np.int64]
    boxes: NDArray[np.int32]
    shifts: NDArray[np.int32] | None
    flips: NDArray[np.bool_]
    factors: NDArray[np.float32]
    uniforms: NDArray[np.float32]
    reflect: bool = False

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
        boxes = keyed.central_squares(*sizes, settings.train_crop if train else settings.val_crop)
    padded = train and settings.crop in ("pad", "reflect")
    return Plan(
        seed=seed,
        epoch=epoch,
        usable=usable,
        order=keyed.order(seed, epoch, usable, n) if train else usable,
        boxes=boxes,
        shifts=keyed.pad_shifts(seed, epoch, n) if padded else None,
        flips=keyed.flips(seed, epoch, n) if train and settings.flip else np.zeros(n, np.bool_),
        factors=keyed.factors(seed, epoch, n, settings.strengths),
        uniforms=settings.perturbations.uniforms(seed, epoch, n),
        reflect=settings.crop == "reflect",
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


def _is_whole(value: object) -> bool:
    return not isinstance(value, bool) and isinstance(value, Integral)


def _is_finite(value: object) -> bool:
    return isinstance(value, Real) and math.isfinite(value)
