"""Colour jitter with factors of each image's own, for anybody's training loop."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fastsc.kernels.colour import color_jitter


class ColorJitter(nn.Module):
    """torchvision's ColorJitter for batches: every image draws its own factors, in a fixed order.

    torchvision.transforms.v2.ColorJitter draws one set of factors, and one order, for a whole
    batch. Here row i of the batch gets row i of the factors: brightness, contrast and saturation
    uniform in [max(0, 1 - s), 1 + s], hue uniform in [-s, s] turns of the colour circle, applied in
    that order, each clamped to [0, 1]. One image's result equals torchvision's functionals.
    It runs on the images' device and is differentiable in float images.

        jitter = ColorJitter(0.4, 0.4, 0.4, 0.1)
        perturbed = jitter(images)                            # from torch's global generator
        factors = jitter.sample(len(images), generator=g)     # or from yours, to use again
        perturbed = jitter(images, factors)

    Args:
        brightness, contrast, saturation: strengths, >= 0.
        hue: strength, 0 to 0.5.
    """

    def __init__(
        self,
        brightness: float = 0.4,
        contrast: float = 0.4,
        saturation: float = 0.4,
        hue: float = 0.1,
    ) -> None:
        super().__init__()
        self.strengths = (float(brightness), float(contrast), float(saturation), float(hue))
        names = ("brightness", "contrast", "saturation", "hue")
        for name, strength, high in zip(names, self.strengths, (*[math.inf] * 3, 0.5), strict=True):
            if not (math.isfinite(strength) and 0 <= strength <= high):
                limit = "from 0 to 0.5" if name == "hue" else "finite and at least 0"
                raise ValueError(f"{name} must be {limit}, not {strength}")

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

    def forward(self, x: Tensor, factors: Tensor | None = None) -> Tensor:
        """x (N, 3, H, W) or (3, H, W), float on [0, 1] or uint8 on [0, 255] -> the same kind.

        factors (N, 4), as `sample` draws them; new ones if left out. uint8 is rounded to the
        nearest; 16-bit floats are computed in float32.
        """
        if x.ndim not in (3, 4) or x.shape[-3] != 3:
            raise ValueError(f"images must be (N, 3, H, W) or (3, H, W), not {tuple(x.shape)}")
        if not (x.is_floating_point() or x.dtype == torch.uint8):
            raise ValueError(f"images must be float on [0, 1] or uint8, not {x.dtype}")
        batch = x if x.ndim == 4 else x.unsqueeze(0)
        if factors is None:
            factors = self.sample(batch.shape[0], device=x.device)
        elif factors.shape != (batch.shape[0], 4):
            raise ValueError(
                f"factors must be ({batch.shape[0]}, 4), one row an image, "
                f"not {tuple(factors.shape)}"
            )
        factors = factors.to(x.device)
        if x.dtype == torch.uint8:
            jittered = color_jitter(batch.float() / 255, factors)
            jittered = (jittered * 255).round().to(torch.uint8)
        else:
            wide = batch if batch.dtype == torch.float64 else batch.float()
            jittered = color_jitter(wide, factors).to(x.dtype)
        return jittered if x.ndim == 4 else jittered.squeeze(0)

    def extra_repr(self) -> str:
        names = ("brightness", "contrast", "saturation", "hue")
        return ", ".join(f"{n}={s:g}" for n, s in zip(names, self.strengths, strict=True))
