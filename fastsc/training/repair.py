"""Repair in a loop of one's own: a module and batches of images in, the module repaired."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastsc.config import STEERED_ALPHA
from fastsc.errors import UserError
from fastsc.jitter import ColorJitter
from fastsc.kernels import ds
from fastsc.loss import ContinuityLoss
from fastsc.models.features import FeatureModel
from fastsc.models.probe import device_of, probe
from fastsc.pipelines import IMAGENET_MEAN, IMAGENET_STD
from fastsc.training.alpha import Keeper
from fastsc.training.answers import SHORT, divergence
from fastsc.training.collapse import spread
from fastsc.training.drawback import between, farthest, keeps
from fastsc.training.optimizer import set_lr


class Repaired(NamedTuple):
    """What a repair has come to, on the held-out images.

    Attributes:
        holds: Whether as many answers stayed as should; else the model is as it was.
        agreement: Part of the images with their old answer.
        before, after: ds_relative.
    """

    holds: bool
    agreement: float
    before: float
    after: float


@torch.inference_mode(False)
@torch.enable_grad()
def repair(
    model: nn.Module,
    images: Iterable[Any],
    *,
    held_out: Iterable[Any] | None = None,
    keep: float = 0.98,
    alpha: float = 8.0,
    lr: float = 1e-4,
    epochs: int = 10,
    strengths: Sequence[float] = (0.4, 0.4, 0.4, 0.1),
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    seed: int = 0,
) -> Repaired:
    """Makes a classifier more continuous, in place, without labels: what the recipe `repair` does.

    The loss is the KL divergence from its own answers before, on both views, plus alpha · DS (sq).
    The classifier runs in evaluation mode throughout; AdamW with a cosine. Alpha rises while less
    than 1 - keep of the answers change, and falls with the learning rate where more do. At the end
    the held-out images are asked, and where fewer keep their answers, the weights are drawn back on
    the line to those of before, as far as it takes.

    Args:
        model: Takes normalized images (N, 3, H, W), returns logits (N, C), and has a linear layer
            before them. Parameters that require no gradient stay.
        images: Batches, as often as it is iterated over: (N, 3, H, W) or (N, H, W, 3) uint8, or
            tuples that begin with one. All of one size.
        held_out: Likewise; None: the images themselves.
        keep: Least agreement with the old answers, in (0, 1).
        alpha: Weight of DS at the start, in [0.001, 10,000].
        lr: The peak of the learning rate.
        epochs: Passes over the images, at least 1.
        strengths: Of brightness, contrast, saturation and hue.
        mean, std: Of R, G and B on [0, 1], by which the model's images are normalized.
        seed: Of the factors.

    Raises:
        UserError: The model has no linear classifier or nothing to train, there are no images, no
            batch has two, or less than two are held out.
        ValueError: Images are not as above (an iterator has them once), or a number is out of its
            range.
    """
    low, high = STEERED_ALPHA
    if not (0 < keep < 1 and low <= alpha <= high and lr > 0 and epochs >= 1):
        raise ValueError(
            f"keep must lie in (0, 1), alpha in [{low:g}, {high:g}], lr be above 0, and epochs be "
            "1 at least"
        )
    asked = images if held_out is None else held_out
    if isinstance(images, Iterator) or isinstance(asked, Iterator):
        what = "a list or a loader, no iterator"
        raise ValueError(f"images are iterated over in every epoch: {what}")  # noqa: TRY004
    sizes = [(len(batch), batch.shape[-1]) for batch in map(_uint8, images)]
    if not sizes:
        raise UserError("repair: there are no images")
    n_batches, size = sum(n > 1 for n, _ in sizes), sizes[0][1]
    if not n_batches:
        raise UserError("repair: DS compares images, and no batch has two")
    if sum(len(_uint8(batch)) for batch in asked) < 2:
        raise UserError("repair: DS compares images, and less than two are held out")
    if not any(p.requires_grad for p in model.parameters()):
        raise UserError("repair: no parameter of the model requires a gradient")
    name = type(model).__name__
    # Copies of both, since hooks tell the features; the model itself gets the weights at the end.
    shown = [copy.deepcopy(model) for _ in range(2)]
    n_classes = probe(model, name, size).logits.shape[-1]
    student, teacher = (FeatureModel(net, name, n_classes, size).eval() for net in shown)
    views = _Views(ColorJitter(*strengths), mean, std, device_of(model))
    loss_of, keeper = ContinuityLoss(alpha, "sq"), Keeper(alpha, keep, epochs * n_batches)
    parameters = [p for p in student.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
    random = torch.Generator().manual_seed(seed)
    before = _measured(student, teacher, asked, views).ds_relative
    step, total, changed = 0, epochs * n_batches, torch.zeros((), device=views.device)
    for _ in range(epochs):
        for batch in map(_uint8, images):
            if len(batch) < 2:
                continue
            share = keeper.rate() * 0.5 * (1 + math.cos(math.pi * min(step / total, 1.0)))
            set_lr(optimizer, lr * share)
            clean, perturbed = views(batch, random)
            with torch.no_grad():
                answers = teacher(clean)[1].float().softmax(1)
            features, logits = student(torch.cat([clean, perturbed]))
            (f, g), (y, z) = features.chunk(2), logits.chunk(2)
            parts = loss_of(y, z, answers, f, g, alpha=keeper.value, measured=False)
            optimizer.zero_grad()
            divergence(parts, answers, len(z)).loss.backward()
            optimizer.step()
            changed = changed + SHORT * (_disagreement(y, answers) - changed)
            if keeper.observes(step):
                keeper.update(float(changed), spread(f.detach()))
            step += 1
    after = copy.deepcopy(student.net.state_dict())
    points = {0.0: _Point(1.0, before)}

    def holds(share: float) -> bool:
        student.net.load_state_dict(between(teacher.net.state_dict(), after, share))
        points[share] = _measured(student, teacher, asked, views)
        return keeps(*points[share], keep)

    share = farthest(holds)
    model.load_state_dict(between(teacher.net.state_dict(), after, share))
    return Repaired(share > 0, points[share].agreement, before, points[share].ds_relative)


class _Point(NamedTuple):
    """Of a network, compared with its answers before."""

    agreement: float
    ds_relative: float


class _Views:
    """uint8 images (N, 3, H, W) and a generator of factors -> clean and perturbed views there."""

    def __init__(
        self,
        jitter: ColorJitter,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
    ) -> None:
        self.jitter, self.mean, self.std, self.device = jitter, mean, std, device

    def __call__(self, images: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
        factors = self.jitter.sample(len(images), random)
        return self.jitter.pair(images.to(self.device), factors, mean=self.mean, std=self.std)


@torch.no_grad()
def _measured(
    student: FeatureModel, teacher: FeatureModel, images: Iterable[Any], views: _Views
) -> _Point:
    """Over all images, with the same factors at every call."""
    random, changed, pairs = torch.Generator().manual_seed(0), list[Tensor](), list[Tensor]()
    for batch in map(_uint8, images):
        clean, perturbed = views(batch, random)
        features, logits = student(clean)
        changed.append((logits.argmax(1) != teacher(clean)[1].argmax(1)).float())
        pairs.append(torch.stack([features, student(perturbed)[0]]))
    f, g = torch.cat(pairs, 1)
    return _Point(1 - float(torch.cat(changed).mean()), float(ds(f, g, "relative")))


def _disagreement(logits: Tensor, answers: Tensor) -> Tensor:
    return (logits.detach().argmax(1) != answers.argmax(1)).float().mean()


def _uint8(batch: Any) -> Tensor:
    """(N, 3, H, W) of a batch as a loader gives it."""
    images = batch[0] if isinstance(batch, tuple | list) else batch
    if not isinstance(images, Tensor) or images.dtype != torch.uint8 or images.ndim != 4:
        raise ValueError("images must be batches (N, 3, H, W) or (N, H, W, 3) of uint8")
    if images.shape[1] != 3 and images.shape[3] == 3:
        images = images.permute(0, 3, 1, 2)
    return images
