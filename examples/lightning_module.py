"""Semantic continuity under Lightning: `python examples/lightning_module.py PHOTOS`.

PHOTOS is a folder with one folder of images a class. The module works with any loader of uint8
images: both views are made where the batch is, on the CPU or on the GPU, in one pass.
"""

import sys

import lightning
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from fastsc import ColorJitter, ContinuityLoss, SharedDraws


class Continuous(lightning.LightningModule):
    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.backbone = torchvision.models.resnet18()
        self.backbone.fc = nn.Identity()
        self.head = nn.Linear(512, n_classes)
        self.jitter = ColorJitter(0.4, 0.4, 0.4, 0.1)
        self.loss_of = ContinuityLoss(alpha=3.0, ds="cosine", ce_views="both")

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, target = batch  # (N, 3, H, W) uint8
        with SharedDraws(len(images)):  # one dropout mask for both views of an image
            f, g = self.backbone(torch.cat(self.jitter.pair(images))).chunk(2)
        parts = self.loss_of(self.head(f), self.head(g), target, f, g)
        self.log_dict({"loss": parts.loss, "ds_relative": parts.ds_relative}, prog_bar=True)
        return parts.loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def main(folder: str, epochs: int = 1, resolution: int = 224) -> float:
    crop = v2.Compose([v2.PILToTensor(), v2.RandomResizedCrop(resolution, antialias=True)])
    photos = torchvision.datasets.ImageFolder(folder, crop)
    loader = DataLoader(photos, batch_size=16, shuffle=True, drop_last=True)
    trainer = lightning.Trainer(
        max_epochs=epochs, logger=False, enable_checkpointing=False, log_every_n_steps=1
    )
    trainer.fit(Continuous(len(photos.classes)), loader)
    return float(trainer.callback_metrics["loss"])


if __name__ == "__main__":
    main(sys.argv[1])
