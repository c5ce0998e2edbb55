"""Semantic continuity in a loop of your own: `python examples/plain_pytorch.py PHOTOS`.

PHOTOS is a folder with one folder of images a class. The loader decodes each image once and gives
both of its views; the loss takes logits and features, wherever they come from.
"""

import sys

import torch
import torchvision

from fastsc import ContinuityLoss
from fastsc.pipelines import build


def main(folder: str, epochs: int = 1, resolution: int = 224) -> list[float]:
    loader = build("cpu", folder, batch_size=16, resolution=resolution)
    backbone = torchvision.models.resnet18()
    head = torch.nn.Linear(512, len(loader.index.classes))
    backbone.fc = torch.nn.Identity()  # what is left gives features
    loss_of = ContinuityLoss(alpha=3.0, ds="cosine", ce_views="both")
    optimizer = torch.optim.SGD([*backbone.parameters(), *head.parameters()], lr=0.1, momentum=0.9)
    losses = []
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        for clean, perturbed, target, _ in loader:
            f, g = backbone(torch.cat([clean, perturbed])).chunk(2)
            parts = loss_of(head(f), head(g), target, f, g)
            optimizer.zero_grad()
            parts.loss.backward()
            optimizer.step()
            losses.append(parts.loss.item())
            print(f"loss {parts.loss:.3f}  ds {parts.ds:.4f}  ds_relative {parts.ds_relative:.3f}")
    loader.close()
    return losses


if __name__ == "__main__":
    main(sys.argv[1])
