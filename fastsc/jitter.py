"""Color jitter with factors of each image's own, for anybody's training loop."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastsc.kernels import pair_view
from fastsc.kernels.arguments import MAX_GAIN, check_rows, check_values
from fastsc.kernels.color import PERMUTATIONS, color_jitter
from fastsc.pipelines import keyed
from fastsc.pipelines.perturb_list import words_of
from fastsc.pipelines.perturbing import Perturbations, perturbations
from fastsc.pipelines.plan import IMAGENET_MEAN, IMAGENET_STD

ORDERS = ("fixed", "random")
_LAST_INDEX = 2**30  # the keyed tables have a row for every image up to the last


class ColorJitter(nn.Module):
    """torchvision's ColorJitter for batches: every image draws its own factors.

    torchvision.transforms.v2.ColorJitter draws one set of factors, and one order, for a whole
    batch. Here row i of the batch gets row i of the factors: brightness, contrast and saturation
    uniform in [max(0, 1 - s), 1 + s], hue uniform in [-s, s] turns of the color circle, applied in
    that order, each clamped to [0, 1]. One image's result equals torchvision's functionals.
    It runs on the images' device and is differentiable in float images.

        jitter = ColorJitter(0.4, 0.4, 0.4, 0.1)
        perturbed = jitter(images)                            # from torch's global generator
        factors = jitter.sample(len(images), generator=g)     # or from yours, to use again
        factors = jitter.keyed(index, seed=0, epoch=3)        # or of the images' numbers
        perturbed = jitter(images, factors)
        clean, perturbed = jitter.pair(images_u8, factors)    # both normalized, in one fast pass

    Args:
        brightness: strength, >= 0.
        contrast: strength, >= 0.
        saturation: strength, >= 0.
        hue: strength, 0 to 0.5.
        perturb: as `fastsc.pipelines.build` takes it: "blur=2", "module:function". Applied before
            the colors change, to uint8 images alone; their random numbers, (N, k), are further
            columns of the factors.
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
        perturb: Sequence[str] = (),
    ) -> None:
        super().__init__()
        given = {
            "brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue,
        }  # fmt: skip
        for name, strength in given.items():
            high = 0.5 if name == "hue" else MAX_GAIN - 1
            if not (isinstance(strength, (int, float)) and 0 <= strength <= high):
                raise ValueError(f"{name} must be a number from 0 to {high:g}, not {strength}")
        self.strengths = (float(brightness), float(contrast), float(saturation), float(hue))
        if order not in ORDERS:
            raise ValueError(f"order must be one of {', '.join(ORDERS)}, not {order!r}")
        self.order = order
        self.perturb = perturbations(words_of(perturb))

    # --- drawing ----------------------------------------------------------------------------------

    def sample(
        self,
        n: int,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Factors (n, 4) float32: brightness, contrast, saturation, hue; and what `perturb` takes.

        Drawn where the generator lives (the CPU without one, so that every device sees the same
        draws), then moved to `device`.
        """
        source = generator.device if generator is not None else torch.device("cpu")
        how: Any = {"generator": generator, "device": source, "dtype": torch.float32}
        u, rest = torch.rand(n, 4, **how), torch.rand(n, self.perturb.n_uniforms, **how)
        low = [max(0.0, 1 - s) for s in self.strengths[:3]] + [-self.strengths[3]]
        high = [1 + s for s in self.strengths[:3]] + [self.strengths[3]]
        lows, highs = torch.tensor([low, high], dtype=torch.float32, device=source)
        drawn = torch.cat([torch.lerp(lows, highs, u), rest], 1)
        return drawn.to(device if device is not None else source)

    def sample_order(
        self,
        n: int,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor | None:
        """Orders (n,) int64, rows of `kernels.color.PERMUTATIONS`; None where it is fixed."""
        if self.order == "fixed":
            return None
        source = generator.device if generator is not None else torch.device("cpu")
        drawn = torch.randint(len(PERMUTATIONS), (n,), generator=generator, device=source)
        return drawn.to(device if device is not None else source)

    def keyed(self, index: Tensor | Sequence[int], *, seed: int = 0, epoch: int = 0) -> Tensor:
        """Factors (N, 4 + k) float32 on the CPU that are a function of (seed, epoch, index) alone.

        The pipelines' own draws: an image gets the same in any batch, on any rank, after a resume,
        and from a loader of ours with these strengths.

        Args:
            index: (N,) places, from 0 on, of the images in their data set, below 2**30. On a GPU
                they stall it.
            seed: From 0 to 2**64 - 1.
            epoch: From 0 to 2**56 - 1.

        Raises:
            ValueError: One of them is out of range.
        """
        rows = _rows(index, seed, epoch)
        n = _table_size(rows)
        factors = torch.from_numpy(_factors(seed, epoch, n, self.strengths)[rows])
        if not self.perturb:
            return factors
        uniforms = torch.from_numpy(_uniforms(self.perturb, seed, epoch, n)[rows])
        return torch.cat([factors, uniforms], 1)

    def keyed_order(
        self, index: Tensor | Sequence[int], *, seed: int = 0, epoch: int = 0
    ) -> Tensor | None:
        """Orders (N,) int64 on the CPU, a function of (seed, epoch, index); None where fixed."""
        if self.order == "fixed":
            return None
        rows = _rows(index, seed, epoch)
        return torch.from_numpy(_orders(seed, epoch, _table_size(rows))[rows])

    # --- applying ---------------------------------------------------------------------------------

    def forward(
        self, x: Tensor, factors: Tensor | None = None, order: Tensor | None = None
    ) -> Tensor:
        """x (N, 3, H, W) or (3, H, W), float on [0, 1] or uint8 on [0, 255] -> the same kind.

        factors (N, 4 + k) and order (N,), as `sample` and `sample_order` draw them; new ones where
        they are left out. uint8 is rounded to the nearest; 16-bit floats are computed in float32.
        """
        if x.ndim not in (3, 4) or x.shape[-3] != 3:
            raise ValueError(f"images must be (N, 3, H, W) or (3, H, W), not {tuple(x.shape)}")
        if not (x.is_floating_point() or x.dtype == torch.uint8):
            raise ValueError(f"images must be float on [0, 1] or uint8, not {x.dtype}")
        batch = x if x.ndim == 4 else x.unsqueeze(0)
        factors, order = self._drawn(batch, factors, order)
        if self.perturb:
            if x.dtype != torch.uint8:
                raise ValueError(f"images must be uint8 for perturb to change them, not {x.dtype}")
            batch, factors = self._second(batch.permute(0, 2, 3, 1), factors)
            batch = batch.permute(0, 3, 1, 2)
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
            factors: As in `forward`, on any device.
            order: As in `forward`, on any device.
            mean: Of R, G and B, on the scale [0, 1].
            std: Standard deviation of R, G and B, on that scale.
            dtype: float32, bfloat16 or float16.
            threads: On the CPU, in the fixed order.

        Returns:
            Two (N, 3, H, W) in channels-last memory; `fastsc.kernels.pair_view` says how exact.
        """
        if x.ndim != 4 or x.shape[1] != 3 or x.dtype != torch.uint8:
            raise ValueError(f"images must be (N, 3, H, W) uint8, not {tuple(x.shape)} {x.dtype}")
        factors, order = self._drawn(x, factors, order)
        nhwc, second = x.permute(0, 2, 3, 1), None
        if self.perturb:
            second, factors = self._second(nhwc, factors)
        return pair_view(
            nhwc, factors.float(), mean, std,
            dtype=dtype, order=order, threads=threads, second=second,
        )  # fmt: skip

    def _second(self, nhwc: Tensor, factors: Tensor) -> tuple[Tensor, Tensor]:
        """(N, H, W, 3) uint8 changed by `perturb`, and the factors of the colors."""
        uniforms = factors[:, 4:].float().cpu().numpy()
        if not ((uniforms >= 0) & (uniforms <= 1)).all():
            raise ValueError("factors out of range: what perturb takes must be from 0 to 1")
        return self.perturb(nhwc, uniforms), factors[:, :4].contiguous()

    def _drawn(
        self, batch: Tensor, factors: Tensor | None, order: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        n = batch.shape[0]
        if factors is None:
            factors = self.sample(n)
        elif factors.shape != (n, k := 4 + self.perturb.n_uniforms):
            raise ValueError(
                f"factors must be ({n}, {k}), one row an image, not {tuple(factors.shape)}"
            )
        if order is None:
            order = self.sample_order(n)
        elif order.shape != (n,) or order.is_floating_point():
            what = f"{tuple(order.shape)} {order.dtype}"
            raise ValueError(f"order must be ({n},) whole numbers, one an image, not {what}")
        check_values(factors[:, :4])
        factors = _to(batch.device, factors)
        if order is None:
            return factors, None
        order = order.long()
        check_rows(order)
        return factors, _to(batch.device, order)

    def extra_repr(self) -> str:
        names = ("brightness", "contrast", "saturation", "hue")
        strengths = ", ".join(f"{n}={s:g}" for n, s in zip(names, self.strengths, strict=True))
        if self.order != "fixed":
            strengths += f", order={self.order}"
        if self.perturb:
            strengths += f", perturb={tuple(str(entry) for entry in self.perturb.entries)}"
        return strengths


def _to(device: torch.device, drawn: Tensor) -> Tensor:
    if device.type == "cuda" and drawn.device.type == "cpu":
        return drawn.pin_memory().to(device, non_blocking=True)  # else the CPU waits for the GPU
    return drawn.to(device)


def _rows(index: Tensor | Sequence[int], seed: int, epoch: int) -> NDArray[np.int64]:
    for name, value, bits in (("seed", seed, 64), ("epoch", epoch, 56)):
        if not 0 <= value < 2**bits:
            raise ValueError(f"{name} must be from 0 to 2**{bits} - 1, not {value}")
    rows = torch.as_tensor(index).cpu()
    if rows.numel() == 0:
        return np.empty(0, np.int64)
    whole = rows.ndim == 1 and not rows.is_floating_point()
    if not (whole and int(rows.min()) >= 0 and int(rows.max()) < _LAST_INDEX):
        raise ValueError(
            "index must be (N,) whole numbers from 0 to 2**30 - 1, the images' places in their data"
        )
    return rows.numpy().astype(np.int64)


def _table_size(rows: NDArray[np.int64]) -> int:
    """A power of two: one table serves the batches of an epoch; its rows do not depend on it."""
    return 1 << int(rows.max(initial=0)).bit_length()


_factors = functools.lru_cache(maxsize=4)(keyed.factors)
_uniforms = functools.lru_cache(maxsize=4)(Perturbations.uniforms)
_orders = functools.lru_cache(maxsize=4)(keyed.permutations)
