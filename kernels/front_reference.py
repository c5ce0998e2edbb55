"""A fixed front-end: light, contrast and saturation of each image taken out.

Early layers of convolutions and ReLUs pass a gain of their input on. Here each image is brought to
a common one first, as divisive normalization (Heeger, 1992) and instance norms in early layers
(IBN-Net, arXiv 1807.09441) do; permuted AdaIN (arXiv 2010.05785) trains against the same statistics
instead. It is prior knowledge of what the perturbation changes: gains, offsets, saturation.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastsc.kernels.distance import wide

CHANNELS = {"rgb": 3, "luma": 3, "rgb-luma": 6, "rgb-luma-minmax": 8}
LUMA = (0.2989, 0.587, 0.114)
FLOOR = 0.02**2  # added to variances: an image of one grey stays one
GREY = 0.3  # of the luma's spread, added to the colors': a grey image's noise is no color


def reference(x: Tensor, front: str, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """See `fastsc.kernels.front.front_end`."""
    with torch.autocast(x.device.type, enabled=False):
        scales = zip(wide(x).split(1, 1), std, mean, strict=True)
        channels = [channel * scale + shift for channel, scale, shift in scales]
        r = torch.cat(channels, 1)
        y = LUMA[0] * channels[0] + LUMA[1] * channels[1] + LUMA[2] * channels[2]
        spread = _spread(y)
        parts = []
        if front != "luma":
            parts.append(_centered(r) / _spread(r))
        if front != "rgb":
            parts.append(_centered(y) / spread + _balanced(r - y, spread))
        if front == "rgb-luma-minmax":
            parts += [_centered(v) / spread for v in (r.amax(1, True), r.amin(1, True))]
        out = torch.cat(parts, 1).to(x.dtype)
        return out.contiguous(memory_format=torch.channels_last)


def _centered(x: Tensor) -> Tensor:
    return x - x.mean((2, 3), keepdim=True)


def _spread(x: Tensor) -> Tensor:
    return (_centered(x).square().mean((2, 3), keepdim=True) + FLOOR).sqrt()


def _balanced(colors: Tensor, spread: Tensor) -> Tensor:
    square = colors.square().mean((1, 2, 3), keepdim=True)
    grey = square == 0  # where the root has no gradient
    rms = torch.where(grey, 0.0, torch.where(grey, 1.0, square).sqrt())
    return colors / (rms + GREY * spread)


__all__ = ["CHANNELS", "FLOOR", "GREY", "LUMA", "reference"]
