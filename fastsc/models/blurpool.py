"""Blur in front of strided convolutions, against aliasing."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

MIN_CHANNELS = 16  # the stem's three colours stay sharp


class BlurConv2d(nn.Conv2d):
    """A convolution of a blurred input: [1 2 1] ⊗ [1 2 1] / 16, zeros outside.

    Zhang (arXiv 1904.11486) blurs between a dense convolution and the subsampling. ffcv-imagenet
    blurs in front of the strided convolution, which costs a quarter of it, and so do we. The state
    holds what nn.Conv2d's holds.
    """

    blur: Tensor

    @classmethod
    def of(cls, conv: nn.Conv2d) -> BlurConv2d:
        """The same convolution, its parameters included, behind a blur."""
        new = cls.__new__(cls)
        new.__dict__ = dict(conv.__dict__)
        new._buffers = dict(conv._buffers)
        new._non_persistent_buffers_set = set(conv._non_persistent_buffers_set)
        line = torch.tensor([1.0, 2.0, 1.0])
        square = (line[:, None] * line / 16).to(conv.weight)
        kernel = square.expand(conv.in_channels, 1, 3, 3).contiguous()
        new.register_buffer("blur", kernel, persistent=False)
        return new

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) -> what the convolution gives for the blurred input."""
        kernel = self.blur.to(input.dtype)
        blurred = functional.conv2d(input, kernel, padding=1, groups=self.in_channels)
        return super().forward(blurred)


def add_blurpool(net: nn.Module) -> int:
    """Replaces each strided convolution of 16 and more input channels; returns how many."""
    n = 0
    for module in list(net.modules()):
        for name, child in module.named_children():
            if not isinstance(child, nn.Conv2d) or type(child) is not nn.Conv2d:
                continue  # not one of its subclasses, which may compute something else
            if max(child.stride) > 1 and child.in_channels >= MIN_CHANNELS:
                setattr(module, name, BlurConv2d.of(child))
                n += 1
    return n
