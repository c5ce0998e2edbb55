"""The front-end before a network's first convolution; its formulas are in `fastsc.kernels`."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from fastsc.errors import UserError
from fastsc.kernels import front_end
from fastsc.kernels.front_reference import CHANNELS
from fastsc.pipelines import IMAGENET_MEAN, IMAGENET_STD

RGB = tuple[float, float, float]
Front = Literal["none", "rgb", "luma", "rgb-luma", "rgb-luma-minmax"]


class FrontConv2d(nn.Conv2d):
    """A convolution of `front_end` of its input; the state holds what nn.Conv2d's holds."""

    front: Front
    mean: RGB = IMAGENET_MEAN
    std: RGB = IMAGENET_STD

    def forward(self, input: Tensor) -> Tensor:
        """Normalized images (N, 3, H, W) -> what the convolution gives for their front-end."""
        return super().forward(front_end(input, self.front, self.mean, self.std))


def tell_normalization(net: nn.Module, mean: RGB, std: RGB) -> None:
    """Tells a net's front-end, if it has one, how its images are normalized; else ImageNet's way.

    mean, std: Of R, G, B on [0, 1].
    """
    for module in net.modules():
        if isinstance(module, FrontConv2d):
            module.mean, module.std = mean, std


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
