"""A fixed front-end: light, contrast and saturation of each image taken out before the first layer.

Early layers of convolutions and ReLUs pass a gain of their input on. Here each image is brought to
a common one first, as divisive normalization (Heeger, 1992) and instance norms in early layers
(IBN-Net, arXiv 1807.09441) do; permuted AdaIN (arXiv 2010.05785) trains against the same statistics
instead. It is prior knowledge of what the perturbation changes: gains, offsets, saturation.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from fastsc.errors import UserError
from fastsc.kernels.distance import wide
from fastsc.pipelines import IMAGENET_MEAN, IMAGENET_STD

Front = Literal["none", "z1", "z2", "c2", "c4"]
CHANNELS = {"none": 3, "z1": 3, "z2": 3, "c2": 6, "c4": 8}
LUMA = (0.2989, 0.587, 0.114)
FLOOR = 0.02**2  # added to variances: an image of one grey stays one
GREY = 0.3  # of the luma's spread, added to the colors': a grey image's noise is no color


class FrontConv2d(nn.Conv2d):
    """A convolution of `front_end` of its input; the state holds what nn.Conv2d's holds."""

    front: Front

    def forward(self, input: Tensor) -> Tensor:
        """Normalized images (N, 3, H, W) -> what the convolution gives for their front-end."""
        return super().forward(front_end(input, self.front))


def front_end(x: Tensor, front: Front) -> Tensor:
    """Normalized images (N, 3, H, W) -> (N, CHANNELS[front], H, W), in their dtype, channels-last.

    With r the image on [0, 1], Y its luma and C = r - Y, mean and population variance over the
    image's positions:

        z1  (r - mean r) / sqrt(var r + FLOOR), each channel by its own
        z2  (Y - mean Y) / s + C / (q + GREY s), s = sqrt(var Y + FLOOR), q the root mean square
            of C over positions and channels
        c2  z1, z2
        c4  c2, and (v - mean v) / s of the largest and of the smallest channel of each pixel

    Computed in float32 (float64 stays), under autocast too; differentiable. A black border, which
    crop "pad" leaves, counts as image.
    """
    with torch.autocast(x.device.type, enabled=False):
        scales = zip(wide(x).split(1, 1), IMAGENET_STD, IMAGENET_MEAN, strict=True)
        channels = [channel * std + mean for channel, std, mean in scales]
        r = torch.cat(channels, 1)
        y = LUMA[0] * channels[0] + LUMA[1] * channels[1] + LUMA[2] * channels[2]
        spread = _spread(y)
        parts = []
        if front != "z2":
            parts.append(_centered(r) / _spread(r))
        if front != "z1":
            parts.append(_centered(y) / spread + _balanced(r - y, spread))
        if front == "c4":
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


def add_front(net: nn.Module, name: str, front: Front) -> None:
    """Puts a front-end before the net's first convolution, which gets its channels.

    A wider convolution gets fresh weights, normal, that keep the scale of what it gives.

    Raises:
        UserError: The net has no plain convolution of three channels.
    """
    assert front in get_args(Front)
    if front == "none":
        return
    convs = [m for m in net.modules() if isinstance(m, nn.Conv2d) and m.in_channels == 3]
    if len(convs) != 1 or type(convs[0]) is not nn.Conv2d or convs[0].groups != 1:
        raise UserError(f"--front {front}: model {name} has no one plain convolution of the colors")
    conv, channels = convs[0], CHANNELS[front]
    conv.__class__ = FrontConv2d
    assert isinstance(conv, FrontConv2d)
    conv.front = front
    if channels != 3:
        old = conv.weight.detach()
        new = torch.randn(len(old), channels, *old.shape[2:], device=old.device)
        conv.weight = nn.Parameter(new * (old.std() * math.sqrt(3 / channels)))
        conv.in_channels = channels
