"""A whole network taught another data set's classes: the dear part of transfer."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from fastsc.config import OptimConfig
from fastsc.evaluation.models.classifier import Classifier
from fastsc.evaluation.results.answers import Arrays
from fastsc.evaluation.views import Images, Indices, Viewer
from fastsc.pipelines import Pipeline, keyed
from fastsc.training.optimizer import lr_at, make_optimizer, set_lr

EPOCHS = 10  # at most
PASSES = 5_000  # images at most, of all epochs together: five minutes at 17 gradients a second
OPTIMIZER = OptimConfig(
    lr=0.04, momentum=0.9, nesterov=True, weight_decay=1e-4, schedule="cosine", warmup_epochs=1.0
)


class Tuned(nn.Module):
    """A copy of a classifier whose representation is read by a fresh linear layer.

    forward(x (N, 3, H, W)) -> logits (N, C). What the representation was read by before, and
    dropout right before it, take no part.
    """

    def __init__(self, model: Classifier, dim: int, n_classes: int) -> None:
        super().__init__()
        self.body = copy.deepcopy(model).requires_grad_(True)
        self.head = nn.Linear(dim, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        features, _ = self.body(x)
        logits: Tensor = self.head(features)
        return logits


def epochs_of(n: int) -> int:
    """How often n images are trained on: 10 times, less where that is too many; at least once."""
    return max(1, min(EPOCHS, PASSES // n))


def fine_tuned(
    model: Classifier,
    train: Pipeline,
    test: Pipeline,
    index: Indices,
    targets: NDArray[np.int64],
    tested: Indices,
    *,
    dim: int,
    seed: int,
) -> Arrays:
    """What a fine-tuned copy of a model answers to test images.

    SGD with Nesterov momentum 0.9, weight decay 1e-4 on weights alone, cross-entropy, cosine
    schedule after a warm-up of one epoch to a rate of 0.04 for 256 images, all layers alike, in
    float32; images as in validation and half of the time mirrored, in the loader's batches. No
    perturbed views: what holds in other colors afterwards was there before.

    Args:
        model: Is not changed.
        train, test: Loaders.
        index: (n,) dataset indices to learn from, `targets` (n,) their classes 0 … C - 1.
        tested: (m,) dataset indices of the test part.
        dim: Of the representation.
        seed: Of the new layer, the order and the mirroring.

    Returns:
        "tuned" and "tuned_perturbed", (m,) predicted classes; "finite" (), whether all losses were.
    """
    device = train.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed % 2**63)
        net = Tuned(model, dim, int(targets.max()) + 1).to(device)
        net = net.to(memory_format=torch.channels_last)
        finite = _learn(net, Viewer(model, train, torch.float32), index, targets, seed)
        # Dropout and the like are off again from here on.
        predicted = _answers(net.eval(), Viewer(model, test, torch.float32), tested)
    return {**predicted, "finite": np.array(finite)}


def _learn(
    net: Tuned, viewer: Viewer, index: Indices, targets: NDArray[np.int64], seed: int
) -> bool:
    """Trains in place; whether every loss was finite."""
    size, epochs = viewer.settings.batch_size, epochs_of(len(index))
    config = replace(OPTIMIZER, batch_size=min(size, len(index)), epochs=epochs)
    optimizer, steps = make_optimizer(net, config), -(-len(index) // size)
    n, place = len(viewer.loader.index), {int(i): row for row, i in enumerate(index)}
    finite = True
    net.train()
    for epoch in range(epochs):
        order = keyed.order(seed, epoch, index, n)
        mirrored = torch.from_numpy(keyed.flips(seed, epoch, n)[order])
        label = torch.from_numpy(targets[[place[int(i)] for i in order]])
        title = f"transfer: fine-tuning, epoch {epoch + 1} of {epochs}"
        for step, images in enumerate(viewer.images(order, title)):
            if len(images.pixels) == 1 and len(index) > 1:
                continue  # batch norm has no statistics of one
            flip = mirrored[images.rows].to(images.pixels.device)[:, None, None, None]
            pixels = torch.where(flip, images.pixels.flip(2), images.pixels).contiguous()
            set_lr(optimizer, lr_at(epoch * steps + step, config, steps))
            with torch.enable_grad():
                logits = net(viewer.view(pixels))
                loss = F.cross_entropy(logits, label[images.rows].to(logits.device))
                optimizer.zero_grad()
                loss.backward()
            finite = finite and bool(loss.isfinite())
            optimizer.step()
    return finite


@torch.inference_mode()
def _answers(net: Tuned, viewer: Viewer, index: Indices) -> Arrays:
    factors = viewer.loader.plan().factors[index]

    def answer(images: Images) -> dict[str, Tensor]:
        views = {"tuned": None, "tuned_perturbed": factors[images.rows]}
        return {name: net(viewer.view(images.pixels, f)).argmax(1) for name, f in views.items()}

    return viewer.columns(index, "transfer: the fine-tuned network's answers", answer)
