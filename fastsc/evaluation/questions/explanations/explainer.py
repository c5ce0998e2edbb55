"""The maps of images and of their perturbed views, and what they come to: columns an image."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fastsc.evaluation.questions.explanations import agreement
from fastsc.evaluation.questions.explanations.attribution import (
    Explained,
    UnitViewer,
    integrated_gradients,
    lime,
    randomized,
    segments,
)
from fastsc.evaluation.questions.explanations.grad_cam import Layer, grad_cam
from fastsc.evaluation.results.answers import Arrays
from fastsc.evaluation.views import Indices, following, slices

IG, GRAD_CAM, LIME = METHODS = ("IG", "Grad-CAM", "LIME")
AGREEMENTS = ("rank", "ssim", "overlap")
AT_ONCE = 16  # images of 224 px in one backward pass, whose activations are all held
CALIBRATION = 16  # images that the batch norm of the network with random weights is fitted to
TAKEN = 8  # equal shares of the pixels, of insertion and deletion
BLUR = 1 / 16  # of the side: the standard deviation of what pixels are inserted into
SHOWN = 56  # pixels of a side of the maps on the page, at most


@dataclass(frozen=True, eq=False)
class Explainer:
    """What makes maps: the methods, their settings, and a network with random weights."""

    viewer: UnitViewer
    layer: Layer | None
    index: Indices
    steps: int
    samples: int
    seed: int

    @property
    def at_once(self) -> int:
        settings = self.viewer.settings
        fits = round(AT_ONCE * (224 / settings.resolution) ** 2)
        passes = self.viewer.model.passes
        bounds = (n for n in (passes.forward, passes.backward) if n is not None)
        return max(1, min(fits, settings.batch_size, *bounds))

    @cached_property
    def random(self) -> Explained:
        pixels = self.pixels(self.index[:CALIBRATION])
        return randomized(self.viewer.explained, self.viewer.view(pixels), self.seed)

    def pixels(self, index: Indices) -> Tensor:
        """(m, R, R, 3) uint8."""
        # Batches come out of a pool, and the next may take the place of the last.
        batches = self.viewer.images(index, "explanations: images")
        return torch.cat([images.pixels.clone() for images in batches])

    def maps(
        self, method: str, net: Explained, images: Tensor, targets: Tensor, index: Indices,
        parts: list[NDArray[np.int64]],
    ) -> Tensor:  # fmt: skip
        """(m, R, R) float32 of images (m, 3, R, R); `parts` are LIME's segments."""
        if method == IG:
            attributions = integrated_gradients(
                net, images, targets, steps=self.steps, at_once=self.at_once
            )
            return attributions.sum(1)
        if method == GRAD_CAM:
            assert self.layer is not None
            return grad_cam(net, self.layer, images, targets, at_once=self.at_once)
        return torch.stack(
            [
                lime(
                    net, image, int(target), own,
                    samples=self.samples, seed=_key(self.seed, int(i)), at_once=self.at_once,
                )
                for image, target, i, own in zip(images, targets, index, parts, strict=True)
            ]
        )  # fmt: skip


def _key(seed: int, index: int) -> int:
    return int(np.random.SeedSequence((seed, index)).generate_state(1, np.uint32)[0])


def explain(explainer: Explainer, method: str, index: Indices) -> Arrays:
    """Columns (m,) of a method, and "maps" (m, 2, s, s)."""
    viewer, net = explainer.viewer, explainer.viewer.explained
    pixels, factors = explainer.pixels(index), viewer.loader.plan().factors[index]
    before, after = viewer.respond(pixels), viewer.respond(pixels, factors)
    clean, perturbed = viewer.view(pixels), viewer.view(pixels, factors)
    targets = before.predicted.to(clean.device)
    other = following(index, viewer.loader)
    f, g = before.features.double(), after.features.double()
    columns = {
        "predicted": before.predicted.numpy(),
        "predicted_perturbed": after.predicted.numpy(),
        "changed": (before.predicted != after.predicted).double().numpy(),
        "moved": (f - g).norm(dim=1).numpy(),
        "between": (f - f[other]).norm(dim=1).numpy(),
    }
    parts = [segments(image) for image in clean] if method == LIME else []
    make = partial(explainer.maps, method, targets=targets, index=index, parts=parts)
    own, moved = make(net=net, images=clean), make(net=net, images=perturbed)
    drawn = make(net=explainer.random, images=clean).cpu().numpy()
    a, b = own.cpu().numpy(), moved.cpu().numpy()
    for suffix, compared in (("", b), ("_other", a[other]), ("_random", drawn)):
        columns |= _agreements(a, compared, suffix)
    columns["empty"] = np.array(
        [float(agreement.empty(x) or agreement.empty(y)) for x, y in zip(a, b, strict=True)]
    )
    columns["entropy"] = np.array([agreement.entropy(attribution) for attribution in a])
    columns["gini"] = np.array([agreement.gini(attribution) for attribution in a])
    columns |= _faithful(explainer, clean, own, targets)
    if method == IG:
        columns |= _completeness(net, clean, own, targets)
    columns["maps"] = np.stack([_small(a), _small(b)], axis=1)
    return columns


def explain_pairs(explainer: Explainer, method: str, pairs: Indices) -> Arrays:
    """Columns (k,) of a method's maps of the two pictures of pairs, and of another: (k, 3).

    Both of the logit of what the first is predicted as. `rank_other`: of the first and of the third
    of its own logit, what agreement means nothing.
    """
    viewer, net = explainer.viewer, explainer.viewer.explained
    every, rows = np.unique(pairs, return_inverse=True)
    pixels = explainer.pixels(every)
    a, b, c = (viewer.view(pixels[torch.from_numpy(side)]) for side in rows.reshape(-1, 3).T)
    with torch.no_grad():
        targets, others = (net(images)[1].argmax(1) for images in (a, c))
    make = partial(explainer.maps, method, net, parts=[])
    first, second, other = (
        make(images=images, targets=of, index=index).cpu().numpy()
        for images, of, index in (
            (a, targets, pairs[:, 0]), (b, targets, pairs[:, 0]), (c, others, pairs[:, 2]),
        )
    )  # fmt: skip
    return _agreements(first, second, "") | _agreements(first, other, "_other")


def _agreements(a: NDArray[np.float32], b: NDArray[np.float32], suffix: str) -> Arrays:
    functions = (agreement.spearman, agreement.similarity, agreement.overlap)
    return {
        f"{name}{suffix}": np.array(
            [
                0.0 if agreement.empty(x) or agreement.empty(y) else of(x, y)
                for x, y in zip(a, b, strict=True)
            ]
        )
        for name, of in zip(AGREEMENTS, functions, strict=True)
    }


@torch.no_grad()
def _faithful(explainer: Explainer, images: Tensor, maps: Tensor, targets: Tensor) -> Arrays:
    """Columns "insertion" and "deletion" of maps (m, R, R)."""
    from scipy.ndimage import gaussian_filter

    net, parts = explainer.viewer.explained, []
    for image, attribution, target in zip(images, maps.to(images.device), targets, strict=True):
        width = BLUR * image.shape[-1]
        blurred = gaussian_filter(image.cpu().numpy(), (0, width, width))

        def confidence(x: Tensor, target: Tensor = target) -> Tensor:
            chunks = [
                net(x[rows].contiguous(memory_format=torch.channels_last))[1].softmax(1)[:, target]
                for rows in slices(len(x), explainer.at_once)
            ]
            return torch.cat(chunks)

        start = torch.from_numpy(blurred).to(image.device)
        parts.append(
            agreement.insertion_deletion(confidence, image, attribution, start, net.mean, TAKEN)
        )
    insertion, deletion = np.array(parts).T
    return {"insertion": insertion, "deletion": deletion}


@torch.no_grad()
def _completeness(net: Explained, images: Tensor, maps: Tensor, targets: Tensor) -> Arrays:
    """How far a map's sum is from the difference that it is to explain, z(x) - z(black)."""
    ends = [net(x)[1].double().gather(1, targets[:, None])[:, 0] for x in (images, images * 0)]
    difference = ends[0] - ends[1]
    gap = maps.double().sum((1, 2)) - difference
    return {
        "gap": gap.abs().cpu().numpy(),
        "difference": difference.abs().cpu().numpy(),
    }


def _small(maps: NDArray[np.float32]) -> NDArray[np.float16]:
    """(m, R, R) -> (m, s, s): as they are drawn on the page, averaged to at most 56 pixels."""
    size = min(SHOWN, maps.shape[-1])
    pooled = F.adaptive_avg_pool2d(torch.from_numpy(maps)[:, None], size)[:, 0].numpy()
    return np.stack([agreement.drawn(attribution) for attribution in pooled]).astype(np.float16)
