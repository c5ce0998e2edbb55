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

Front = Literal["none", "rgb", "luma", "rgb-luma", "rgb-luma-minmax"]


class FrontConv2d(nn.Conv2d):
    """A convolution of `front_end` of its input; the state holds what nn.Conv2d's holds."""

    front: Front

    def forward(self, input: Tensor) -> Tensor:
        """Normalized images (N, 3, H, W) -> what the convolution gives for their front-end."""
        return super().forward(front_end(input, self.front, IMAGENET_MEAN, IMAGENET_STD))


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
