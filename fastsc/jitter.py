"""Colour jitter with factors of each image's own, for anybody's training loop."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastsc.kernels import pair_view
from fastsc.kernels.colour import PERMUTATIONS, color_jitter
from fastsc.pipelines import keyed
from fastsc.pipelines.plan import IMAGENET_MEAN, IMAGENET_STD

ORDERS = ("fixed", "random")


class ColorJitter(nn.Module):
    """torchvision's ColorJitter for batches: every image draws its own factors.

    torchvision.transforms.v2.ColorJitter draws one set of factors, and one order, for a whole
    batch. Here row i of the batch gets row i of the factors: brightness, contrast and saturation
    uniform in [max(0, 1 - s), 1 + s], hue uniform in [-s, s] turns of the colour circle, applied in
    that order, each clamped to [0, 1]. One image's result equals torchvision's functionals.
    It runs on the images' device and is differentiable in float images.

        jitter = ColorJitter(0.4, 0.4, 0.4, 0.1)
        perturbed = jitter(images)                            # from torch's global generator
        factors = jitter.sample(len(images), generator=g)     # or from yours, to use again
        factors = jitter.keyed(index, seed=0, epoch=3)        # or of the images' numbers
        perturbed = jitter(images, factors)
        clean, perturbed = jitter.pair(images_u8, factors)    # both normalized, in one fast pass

    Args:
        brightness, contrast, saturation: strengths, >= 0.
        hue: strength, 0 to 0.5.
        order: "fixed", or "random": the four operations in an order that each image draws. That is
            exact too, but has no kernel of its own and takes three times the arithmetic.
    """

    def __init__(
        self,
        brightness: float = 0.4,
        contrast: float = 0.4,
        saturation: float = 0.4,
        hue: float = 0.1,
        *,
        order: str = "fixed",
    ) -> None:
        super().__init__()
        self.strengths = (float(brightness), float(contrast), float(saturation), float(hue))
        names = ("brightness", "contrast", "saturation", "hue")
        for name, strength, high in zip(names, self.strengths, (*[math.inf] * 3, 0.5), strict=True):
            if not (math.isfinite(strength) and 0 <= strength <= high):
                limit = "from 0 to 0.5" if name == "hue" else "finite and at least 0"
                raise ValueError(f"{name} must be {limit}, not {strength}")
        if order not in ORDERS:
            raise ValueError(f"order must be one of {', '.join(ORDERS)}, not {order!r}")
        self.order = order

    # --- drawing ----------------------------------------------------------------------------------

    def sample(
        self,
        n: int,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Factors (n, 4) float32: brightness, contrast, saturation, hue.

        Drawn where the generator lives (the CPU without one, so that every device sees the same
        draws), then moved to `device`.
        """
        source = generator.device if generator is not None else torch.device("cpu")
        u = torch.rand(n, 4, generator=generator, device=source)
        low = [max(0.0, 1 - s) for s in self.strengths[:3]] + [-self.strengths[3]]
        high = [1 + s for s in self.strengths[:3]] + [self.strengths[3]]
        lows, highs = torch.tensor([low, high], device=source)
        return torch.lerp(lows, highs, u).to(device if device is not None else source)

    def sample_order(
        self,
        n: int,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor | None:
        """Orders (n,) int64, rows of `kernels.colour.PERMUTATIONS`; None where it is fixed."""
        if self.order == "fixed":
            return None
        source = generator.device if generator is not None else torch.device("cpu")
        drawn = torch.randint(len(PERMUTATIONS), (n,), generator=generator, device=source)
        return drawn.to(device if device is not None else source)

    def keyed(self, index: Tensor | Sequence[int], *, seed: int = 0, epoch: int = 0) -> Tensor:
        """Factors (N, 4) float32 on the CPU that are a function of (seed, epoch, index) alone.

        The pipelines' own draws: an image gets the same in any batch, on any rank, after a resume,
        and from a loader of ours with these strengths.

        Args:
            index: (N,) numbers >= 0 of the images in their data set. On a GPU they stall it.
        """
        rows = _rows(index)
        size = _table_size(rows)
        return torch.from_numpy(_factors(seed, epoch, size, self.strengths)[rows])

    def keyed_order(
        self, index: Tensor | Sequence[int], *, seed: int = 0, epoch: int = 0
    ) -> Tensor | None:
        """Orders (N,) int64 on the CPU, a function of (seed, epoch, index); None where fixed."""
        if self.order == "fixed":
            return None
        rows = _rows(index)
        return torch.from_numpy(_orders(seed, epoch, _table_size(rows))[rows])

    # --- applying ---------------------------------------------------------------------------------

    def forward(
        self, x: Tensor, factors: Tensor | None = None, order: Tensor | None = None
    ) -> Tensor:
        """x (N, 3, H, W) or (3, H, W), float on [0, 1] or uint8 on [0, 255] -> the same kind.

        factors (N, 4) and order (N,), as `sample` and `sample_order` draw them; new ones where they
        are left out. uint8 is rounded to the nearest; 16-bit floats are computed in float32.
        """
        if x.ndim not in (3, 4) or x.shape[-3] != 3:
            raise ValueError(f"images must be (N, 3, H, W) or (3, H, W), not {tuple(x.shape)}")
        if not (x.is_floating_point() or x.dtype == torch.uint8):
            raise ValueError(f"images must be float on [0, 1] or uint8, not {x.dtype}")
        batch = x if x.ndim == 4 else x.unsqueeze(0)
        factors, order = self._drawn(batch, factors, order)
        if x.dtype == torch.uint8:
            jittered = color_jitter(batch.float() / 255, factors, order)
            jittered = (jittered * 255).round().to(torch.uint8)
        else:
            wide = batch if batch.dtype == torch.float64 else batch.float()
            jittered = color_jitter(wide, factors, order).to(x.dtype)
        return jittered if x.ndim == 4 else jittered.squeeze(0)

    def pair(
        self,
        x: Tensor,
        factors: Tensor | None = None,
        order: Tensor | None = None,
        *,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        dtype: torch.dtype = torch.float32,
        threads: int = 1,
    ) -> tuple[Tensor, Tensor]:
        """A uint8 batch -> (clean, perturbed), both normalized, by the fastest kernel there is.

        Args:
            x: (N, 3, H, W) uint8; in channels-last memory nothing is copied.
            factors, order: As in `forward`, on any device.
            mean, std: On the scale [0, 1].
            dtype: float32, bfloat16 or float16.
            threads: On the CPU, in the fixed order.

        Returns:
            Two (N, 3, H, W) in channels-last memory; `fastsc.kernels.pair_view` says how exact.
        """
        if x.ndim != 4 or x.shape[1] != 3 or x.dtype != torch.uint8:
            raise ValueError(f"images must be (N, 3, H, W) uint8, not {tuple(x.shape)} {x.dtype}")
        factors, order = self._drawn(x, factors, order)
        nhwc = x.permute(0, 2, 3, 1)
        return pair_view(
            nhwc, factors.float(), mean, std, dtype=dtype, order=order, threads=threads
        )

    def _drawn(
        self, batch: Tensor, factors: Tensor | None, order: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        n = batch.shape[0]
        if factors is None:
            factors = self.sample(n)
        elif factors.shape != (n, 4):
            raise ValueError(
                f"factors must be ({n}, 4), one row an image, not {tuple(factors.shape)}"
            )
        if order is None:
            order = self.sample_order(n)
        elif order.shape != (n,):
            raise ValueError(f"order must be ({n},), one an image, not {tuple(order.shape)}")
        return factors.to(batch.device), None if order is None else order.to(batch.device)

    def extra_repr(self) -> str:
        names = ("brightness", "contrast", "saturation", "hue")
        strengths = ", ".join(f"{n}={s:g}" for n, s in zip(names, self.strengths, strict=True))
        return strengths if self.order == "fixed" else f"{strengths}, order={self.order}"


def _rows(index: Tensor | Sequence[int]) -> NDArray[np.int64]:
    rows = torch.as_tensor(index).cpu()
    if rows.numel() == 0:
        return np.empty(0, np.int64)
    if rows.ndim != 1 or rows.is_floating_point() or int(rows.min()) < 0:
        raise ValueError("index must be (N,) whole numbers >= 0, the images' places in their data")
    return rows.numpy().astype(np.int64)


def _table_size(rows: NDArray[np.int64]) -> int:
    """A power of two: one table serves the batches of an epoch; its rows do not depend on it."""
    return 1 << int(rows.max(initial=0)).bit_length()


_factors = functools.lru_cache(maxsize=4)(keyed.factors)
_orders = functools.lru_cache(maxsize=4)(keyed.permutations)
