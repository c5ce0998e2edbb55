"""Pictures as training never showed them: ImageNet-C's corruptions, and color casts.

The corruptions are those of Hendrycks & Dietterich (arXiv 1903.12261), with the paper's parameters,
by the package imagecorruptions-imaug. The parameters are lengths in pixels of 224: the smaller an
image, the coarser its blur and its weather, and 32 px are worse off here than in CIFAR-10-C. Of the
fifteen, brightness and contrast are of a kind with what training here varies, at other strengths.

The casts change colors alone, pixel by pixel, in ways that no brightness, contrast, saturation and
hue within the usual box does.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastsc.cli.packages import installed
from fastsc.errors import UserError

Pixels = NDArray[np.uint8]  # (R, R, 3) RGB

CORRUPTIONS = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
}
WITH_DEGREES = (
    "warm", "cool", "gamma_darker", "gamma_brighter", "sepia", "posterize", "solarize",
)  # fmt: skip
WITHOUT_DEGREES = ("channel_swap", "grayscale", "inversion")
GROUPS = {**CORRUPTIONS, "colour": (*WITH_DEGREES, *WITHOUT_DEGREES)}
KINDS = tuple(itertools.chain(*GROUPS.values()))
SEVERITIES = (1, 2, 3, 4, 5)
LEAST_SIDE = 32  # pixels, of the corruptions

# By severity.
GAINS = (0.1, 0.2, 0.3, 0.4, 0.5)  # more of one end of the spectrum, less of the other
GAMMAS = (1.25, 1.5, 2.0, 2.5, 3.0)
SHARES = (0.2, 0.4, 0.6, 0.8, 1.0)  # of sepia in what is seen
BITS = (5, 4, 3, 2, 1)
THRESHOLDS = (224, 192, 160, 128, 96)  # of 255: what is lighter is inverted
# Rows R, G, B: the common recipe of sepia, as in Microsoft's examples of color matrices.
SEPIA = ((0.393, 0.769, 0.189), (0.349, 0.686, 0.168), (0.272, 0.534, 0.131))
SWAPS = tuple(itertools.permutations(range(3)))[1:]  # without the one that changes nothing


def severities_of(kind: str, severities: tuple[int, ...]) -> tuple[int, ...]:
    """Those at which a kind is evaluated: 5 where it has no degrees."""
    return (SEVERITIES[-1],) if kind in WITHOUT_DEGREES else severities


def case_of(kind: str, severity: int) -> tuple[str, ...]:
    """A kind and, where it has degrees, the severity."""
    return (kind,) if kind in WITHOUT_DEGREES else (kind, str(severity))


def case_name(kind: str, severity: int) -> str:
    """ "fog/3"; "grayscale", which has no degrees."""
    return "/".join(case_of(kind, severity))


def require_library() -> None:
    """Raises UserError where the corruptions cannot be had.

    A package by the name of imagecorruptions holds a module of the same name, and is too old.
    """
    if not installed("imagecorruptions"):
        raise UserError(
            "shifts: imagecorruptions-imaug is not installed; pip install imagecorruptions-imaug"
        )


def shift(pixels: Pixels, kind: str, severity: int, *, index: int, seed: int = 0) -> Pixels:
    """One image under one of `KINDS`, a pure function of its arguments.

    Casts, by severity, on x in 0 … 255:
        warm, cool: red × (1 ± g) and blue × (1 ∓ g), g = .1, .2, .3, .4, .5.
        gamma_darker, gamma_brighter: 255 · (x / 255)^γ, γ = 1.25, 1.5, 2, 2.5, 3, or one over it.
        sepia: (1 - t) · x + t · sepia(x), t = .2, .4, .6, .8, 1.
        posterize: the upper 5, 4, 3, 2, 1 bits of x.
        solarize: 255 - x where x is at least 224, 192, 160, 128, 96.
        channel_swap: R, G and B in one of the five other orders, drawn for the image.
        grayscale, inversion: as they say.

    Args:
        pixels: (R, R, 3) uint8 RGB, of at least 32 × 32 for a corruption.
        kind: What happens to it.
        severity: 1 to 5; of no account where a kind has no degrees.
        index: The image's dataset index, which keys the draws with seed, kind and severity.
        seed: Of the draws.

    Returns:
        (R, R, 3) uint8, a new array.
    """
    assert kind in KINDS, kind
    assert severity in SEVERITIES, severity
    key = _key(seed, index, kind, severity)
    if kind in GROUPS["colour"]:
        image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
        return np.ascontiguousarray(_cast(image, kind, severity, key).permute(1, 2, 0).numpy())
    # Two of them have generators of their own, and take a seed.
    own = {"seed": int(key[0])} if kind in ("impulse_noise", "glass_blur") else {}
    with _seeded(key):
        return np.array(_library().corrupt(pixels, severity, kind, **own), np.uint8)


@functools.cache
def _library() -> Any:
    """The package imagecorruptions, whose compiled loop is kept on the disk from now on.

    It would be compiled for seconds by every process: the package does not ask numba to keep it.
    """
    import imagecorruptions
    from imagecorruptions import corruptions

    loop: Any = getattr(corruptions, "_shuffle_pixels_njit_glass_blur", None)
    with suppress(RuntimeError, AttributeError):  # no folder for it, or a version without the loop
        loop.enable_caching()
    return imagecorruptions


def _key(seed: int, index: int, kind: str, severity: int) -> NDArray[np.uint32]:
    """(8,) numbers that differ wherever one of the arguments does."""
    digest = hashlib.sha256(f"{seed}/{index}/{kind}/{severity}".encode()).digest()
    return np.frombuffer(digest, "<u4")


@contextmanager
def _seeded(key: NDArray[np.uint32]) -> Iterator[None]:
    """Numpy's global generator, from which the library draws, seeded, and put back afterwards."""
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(key)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002


def _cast(image: Tensor, kind: str, severity: int, key: NDArray[np.uint32]) -> Tensor:
    """(3, R, R) uint8 -> the same in other colors."""
    from torchvision.transforms.v2 import functional as F

    at = severity - 1
    cast: Tensor
    if kind in ("warm", "cool"):
        cast = gained(image, GAINS[at] if kind == "warm" else -GAINS[at])
    elif kind in ("gamma_darker", "gamma_brighter"):
        cast = F.adjust_gamma(image, GAMMAS[at] if kind == "gamma_darker" else 1 / GAMMAS[at])
    elif kind == "sepia":
        cast = sepia(image, SHARES[at])
    elif kind == "posterize":
        cast = F.posterize(image, BITS[at])
    elif kind == "solarize":
        cast = F.solarize(image, THRESHOLDS[at])
    elif kind == "channel_swap":
        cast = F.permute_channels(image, list(SWAPS[int(key[0]) % len(SWAPS)]))
    elif kind == "grayscale":
        cast = F.rgb_to_grayscale(image, num_output_channels=3)
    else:
        assert kind == "inversion", kind
        cast = F.invert(image)
    return cast


def gained(image: Tensor, gain: float) -> Tensor:
    """(3, R, R) uint8 as under a warmer light, or with a negative gain under a cooler one."""
    gains = torch.tensor((1 + gain, 1.0, 1 - gain))[:, None, None]
    return (image * gains).round().clamp(0, 255).byte()


def sepia(image: Tensor, share: float) -> Tensor:
    """(3, R, R) uint8 blended with its sepia: 0 is the image, 1 an old photograph."""
    brown = torch.einsum("oc,chw->ohw", torch.tensor(SEPIA), image.float()).clamp(0, 255)
    return torch.lerp(image.float(), brown, share).round().byte()
