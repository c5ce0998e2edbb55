"""Blur before strided convolutions, against aliasing."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

MIN_CHANNELS = 16  # the stem's three colors stay sharp


class BlurConv2d(nn.Conv2d):
    """A convolution of a blurred input: [1 2 1] ⊗ [1 2 1] / 16, zeros outside.

    Zhang (arXiv 1904.11486) blurs between a dense convolution and the subsampling. ffcv-imagenet
    blurs before the strided convolution, which costs a quarter of it, and so do we. The state
    holds what nn.Conv2d's holds.
    """

    blur: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) -> what the convolution gives for the blurred input."""
        kernel = self.blur.to(input.dtype)
        blurred = functional.conv2d(input, kernel, padding=1, groups=self.in_channels)
        return super().forward(blurred)


def add_blurpool(net: nn.Module) -> int:
    """Blurs for each strided convolution of 16 and more input channels; returns how many."""
    convs = [
        module
        for module in net.modules()
        # Not one of its subclasses, which may compute something else.
        if type(module) is nn.Conv2d
        and max(module.stride) > 1
        and module.in_channels >= MIN_CHANNELS
    ]
    line = torch.tensor([1.0, 2.0, 1.0])
    for conv in convs:
        square = (line[:, None] * line / 16).to(conv.weight)
        kernel = square.expand(conv.in_channels, 1, 3, 3).contiguous()
        conv.__class__ = BlurConv2d
        conv.register_buffer("blur", kernel, persistent=False)
    return len(convs)
