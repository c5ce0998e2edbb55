"""A network of yours made more continuous, without labels: `python examples/repair.py PHOTOS`."""

import sys

import torch
import torchvision
from torchvision.transforms import v2

from fastsc import repair


def main(folder: str, model: torch.nn.Module, resolution: int = 224) -> float:
    square = v2.Compose([v2.PILToTensor(), v2.Resize(resolution), v2.CenterCrop(resolution)])
    photos = torchvision.datasets.ImageFolder(folder, square)  # bytes, not normalized
    parts = torch.utils.data.random_split(photos, [0.9, 0.1])
    images, held_out = (torch.utils.data.DataLoader(part, batch_size=16) for part in parts)
    result = repair(model, images, held_out=held_out, keep=0.98)
    print(f"ds_relative {result.before:.3f} -> {result.after:.3f}, {result.agreement:.1%} kept")
    return result.after


if __name__ == "__main__":
    main(sys.argv[1], torchvision.models.resnet50(weights="DEFAULT"))
