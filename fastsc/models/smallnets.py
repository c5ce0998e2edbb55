"""Residual networks for images of about 32 pixels, small enough to train on a CPU.

torchvision and timm have nothing between LeNet and ResNet-18, which takes half an hour for one
epoch of CIFAR-100 on two cores.
"""

from __future__ import annotations

import re

from torch import Tensor, nn

NAME = re.compile(r"resnet(\d+)w(\d+)")
DEPTHS = range(8, 51, 3)
EXAMPLE = "resnet8w32"


class Residual(nn.Module):
    """x + relu(norm(3 × 3 convolution of x))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, C, H, W) -> the same shape."""
        out: Tensor = x + self.relu(self.bn(self.conv(x)))
        return out


class Stage(nn.Module):
    """3 × 3 convolution, halved by max-pooling, and residual blocks of one convolution each.

    In the manner of Page's ResNet-9 ("How to train your ResNet", 2018): pooling before the
    norm keeps what is memory-bound, which on a CPU takes most of the time, at the smaller size.
    """

    def __init__(self, channels: int, wide: int, more: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, wide, 3, padding=1, bias=False)
        self.pool = nn.MaxPool2d(2)
        self.bn1 = nn.BatchNorm2d(wide)
        self.conv2 = nn.Conv2d(wide, wide, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(wide)
        self.relu = nn.ReLU(inplace=True)
        self.more = nn.Sequential(*(Residual(wide) for _ in range(more)))

    def forward(self, x: Tensor) -> Tensor:
        """x (N, C, H, W) -> (N, wide, H // 2, W // 2)."""
        x = self.relu(self.bn1(self.pool(self.conv1(x))))
        out: Tensor = self.more(x + self.relu(self.bn2(self.conv2(x))))
        return out


class SmallResNet(nn.Module):
    """A stem at full size, stages of width, 2 and 4 width, a linear classifier.

    Eight layers; each further block a stage makes it three layers deeper.
    """

    def __init__(self, width: int, num_classes: int, depth: int = 8) -> None:
        super().__init__()
        stem, more = max(width // 3, 8), (depth - 8) // 3
        self.conv1 = nn.Conv2d(3, stem, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = Stage(stem, width, more)
        self.layer2 = Stage(width, 2 * width, more)
        self.layer3 = Stage(2 * width, 4 * width, more)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, 3, H, W), H and W at least 8 -> logits (N, num_classes)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


def small_model(name: str, num_classes: int) -> SmallResNet:
    """`resnet8w32`: eight layers, 32 channels in the first stage; `resnet14w32`: fourteen.

    Raises:
        ValueError: No such name.
    """
    match = NAME.fullmatch(name)
    if match is None or int(match[1]) not in DEPTHS or not 1 <= int(match[2]) <= 1024:
        raise ValueError(
            "fastsc: has resnetDEPTHwWIDTH, depth 8, 11, 14, … 50 and width 1 to 1024, as "
            f"fastsc:{EXAMPLE}"
        )
    return SmallResNet(int(match[2]), num_classes, int(match[1]))
