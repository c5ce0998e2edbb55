"""Residual networks for images of about 32 pixels, small enough to train on a CPU.

torchvision and timm have nothing between LeNet and ResNet-18, which takes half an hour for one
epoch of CIFAR-100 on two cores.
"""

from __future__ import annotations

import re

from torch import Tensor, nn

NAME = re.compile(r"resnet8w(\d+)")
EXAMPLE = "resnet8w32"


class Stage(nn.Module):
    """3 × 3 convolution, halved by max-pooling, and a residual block of one convolution.

    In the manner of Page's ResNet-9 ("How to train your ResNet", 2018): pooling in front of the
    norm keeps what is memory-bound, which on a CPU takes most of the time, at the smaller size.
    """

    def __init__(self, channels: int, wide: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, wide, 3, padding=1, bias=False)
        self.pool = nn.MaxPool2d(2)
        self.bn1 = nn.BatchNorm2d(wide)
        self.conv2 = nn.Conv2d(wide, wide, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(wide)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, C, H, W) -> (N, wide, H // 2, W // 2)."""
        x = self.relu(self.bn1(self.pool(self.conv1(x))))
        out: Tensor = x + self.relu(self.bn2(self.conv2(x)))
        return out


class SmallResNet(nn.Module):
    """Eight layers: a stem at full size, stages of width, 2 and 4 width, a linear classifier."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        stem = max(width // 3, 8)
        self.conv1 = nn.Conv2d(3, stem, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = Stage(stem, width)
        self.layer2 = Stage(width, 2 * width)
        self.layer3 = Stage(2 * width, 4 * width)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, 3, H, W), H and W at least 8 -> logits (N, num_classes)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


def small_model(name: str, num_classes: int) -> SmallResNet:
    """`resnet8w32`: eight layers, 32 channels in the first stage.

    Raises:
        ValueError: No such name.
    """
    found = NAME.fullmatch(name)
    if found is None or not 1 <= int(found[1]) <= 1024:
        raise ValueError(f"fastsc: has resnet8wWIDTH, width 1 to 1024, as fastsc:{EXAMPLE}")
    return SmallResNet(int(found[1]), num_classes)
