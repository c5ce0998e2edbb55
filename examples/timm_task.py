"""Semantic continuity as a task of timm: `python examples/timm_task.py PHOTOS`.

PHOTOS is a folder with one folder of images a class. The task measures how far the features of two
views of an image lie apart, for every model of timm, under its DDP and EMA; timm's own transform
and data set feed it (with the prefetcher's transform, so that images come as bytes).
"""

import sys
from typing import Any

import timm
import torch
from timm.data import create_transform
from timm.data.loader import fast_collate
from timm.optim import create_optimizer_v2
from timm.task import ClassificationTask
from torch import Tensor
from torch.utils.data import DataLoader

from fastsc import ColorJitter, ContinuityLoss, SharedDraws


class ContinuityTask(ClassificationTask):
    def __init__(self, model: torch.nn.Module, *, alpha: float = 3.0, **options: Any) -> None:
        super().__init__(model, **options)
        self.jitter, self.loss_of = ColorJitter(), ContinuityLoss(alpha, "cosine", ce_views="both")
        model.get_classifier().register_forward_pre_hook(self._keep)  # also what DDP calls

    def _keep(self, _module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.features = inputs[0]

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        with SharedDraws(len(input)):  # one dropout mask for both views of an image
            logits = self.trainable_module(torch.cat(self.jitter.pair(input)))
        f, g = self.features.chunk(2)
        parts = self.loss_of(*logits.chunk(2), target, f, g)
        return {**parts._asdict(), "output": logits.chunk(2)[0]}


def main(folder: str, epochs: int = 1, resolution: int = 224, model: str = "resnet18") -> float:
    # The task jitters: timm's own jitter would leave no clean view.
    transform = create_transform(
        resolution, is_training=True, use_prefetcher=True, color_jitter=None
    )
    photos = timm.data.create_dataset("", root=folder, transform=transform)
    loader = DataLoader(photos, 16, shuffle=True, drop_last=True, collate_fn=fast_collate)
    n_classes = len(photos.reader.class_to_idx)
    task = ContinuityTask(timm.create_model(model, num_classes=n_classes))
    optimizer = create_optimizer_v2(task.get_trainable_module(), opt="sgd", lr=0.1)
    loss = float("nan")
    for _ in range(epochs):
        for images, target in loader:
            result = task(images, target)
            optimizer.zero_grad()
            result["loss"].backward()
            optimizer.step()
            loss = result["loss"].item()
            print(f"loss {loss:.3f}  ds_relative {result['ds_relative']:.3f}")
    return loss


if __name__ == "__main__":
    main(sys.argv[1])
