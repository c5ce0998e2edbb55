"""Attribution maps: what in an image a classifier's output rests on.

Of images on [0, 1], before they are normalized, and of the logit of one output. What is absent is
black: the baseline of integrated gradients, and what LIME puts in the place of a segment.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastsc.errors import UserError, first_line
from fastsc.evaluation.models.classifier import Classifier
from fastsc.evaluation.models.passes import Passes
from fastsc.evaluation.views import Factors, Response, Viewer, slices
from fastsc.models.probe import device_of
from fastsc.pipelines import Pipeline

SEGMENTS = 50  # about, of an image
SMOOTH = 1.0  # pixels: noise would tear segments to pieces
KERNEL_WIDTH = 0.25  # of LIME, on the cosine distance of masks: that of its authors' package
RIDGE = 1.0  # theirs too

BATCH_NORMS = nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm


class Explained(nn.Module):
    """A classifier that takes images on [0, 1]: x (N, 3, R, R) -> features (N, D), logits (N, C).

    Args:
        model: In eval mode.
        mean, std: Of R, G, B, by which it wants them normalized.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: Classifier, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.model = model
        device = device_of(model)
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values, device=device)[:, None, None])
        self.eval()

    @property
    def net(self) -> nn.Module:
        """The architecture as its library builds it."""
        return self.model.net

    @property
    def resolution(self) -> int:
        """Pixels of a side."""
        return self.model.preprocessing.resolution

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = self.model((x - self.mean) / self.std)
        return features, logits


class UnitViewer(Viewer):
    """A viewer whose views are on [0, 1] and float32; `explained` answers to them."""

    def __init__(self, model: Classifier, loader: Pipeline) -> None:
        super().__init__(model, loader)
        self.explained = Explained(model, self.settings.mean, self.settings.std)
        self.settings = replace(
            self.settings, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), dtype=torch.float32
        )

    @torch.inference_mode()
    def respond(self, pixels: Tensor, factors: Factors | None = None) -> Response:
        """The answer to a batch of `images`, in float32."""
        features, logits = self.explained(self.view(pixels, factors))
        return Response(features.float().cpu(), logits.float().cpu())


def check_gradient(explained: Explained) -> None:
    """Raises UserError where the outputs do not depend on the image by what can be derived."""
    size, name = explained.resolution, explained.model.name
    noise = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    x = noise.to(explained.mean.device).requires_grad_()
    grad: Tensor | None = None
    try:
        with torch.enable_grad():
            score = explained(x)[1][:, 0].sum()
            if score.requires_grad:
                (grad,) = torch.autograd.grad(score, x, allow_unused=True)
    except Exception as error:  # noqa: BLE001, a model's forward can raise anything
        raise UserError(
            f"explanations: model {name} cannot be derived ({first_line(error)}); take its "
            "differentiable form"
        ) from None
    if grad is None or not grad.isfinite().all() or not grad.any():
        what = "no gradient" if grad is None else "a gradient that is not finite, or of zeros,"
        raise UserError(
            f"explanations: model {name} lets {what} through to its input; take its "
            "differentiable form"
        )


def integrated_gradients(
    explained: Explained, images: Tensor, targets: Tensor, *, steps: int, at_once: int
) -> Tensor:
    """Integrated gradients from black, of each pixel and channel.

    Sundararajan et al., arXiv 1703.01365: x ∫₀¹ ∂z_k(αx)/∂x dα, by Gauss-Legendre quadrature as
    captum has it. Points of many images go through the network together.

    Args:
        explained: The network.
        images: (m, 3, R, R) on [0, 1].
        targets: (m,) int64, the outputs to be explained.
        steps: Points between black and the image.
        at_once: Points in one pass.

    Returns:
        (m, 3, R, R) float32; its sum is about z_k(x) - z_k(0).
    """
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    options: Any = {"dtype": images.dtype, "device": images.device}
    at, weight = torch.tensor((1 + nodes) / 2, **options), torch.tensor(weights / 2, **options)
    total = torch.zeros_like(images, memory_format=torch.contiguous_format)
    for points in slices(len(images) * steps, at_once):
        flat = torch.arange(points.start, points.stop, device=images.device)
        image, step = flat // steps, flat % steps
        x = images[image] * at[step][:, None, None, None]
        x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
        with torch.enable_grad():
            chosen = explained(x)[1].gather(1, targets[image, None]).sum()
        (grad,) = torch.autograd.grad(chosen, x)
        # A product, not index_add: that sums in any order on a GPU.
        rows = slice(points.start // steps, (points.stop - 1) // steps + 1)
        own = torch.arange(rows.start, rows.stop, device=images.device)[:, None] == image
        total[rows] += ((own * weight[step]) @ grad.flatten(1)).view_as(total[rows])
    return total * images


def segments(image: Tensor) -> NDArray[np.int64]:
    """(3, R, R) on [0, 1] -> (R, R), the number of each pixel's segment, from 0 without gaps.

    SLIC (Achanta et al., IEEE TPAMI 34, 2012) of the image smoothed by a pixel.
    """
    from skimage.segmentation import slic

    pixels = image.permute(1, 2, 0).double().cpu().numpy()
    labels = slic(pixels, n_segments=SEGMENTS, sigma=SMOOTH, start_label=0)
    return np.unique(labels, return_inverse=True)[1].reshape(labels.shape).astype(np.int64)


class _Ridge:
    """The weighted ridge regression that captum fits, and whose slopes it reads."""

    def fit(self, samples: Iterable[Sequence[Tensor]]) -> None:
        """Of batches of what was kept (b, S), the logit (b,) and the weight (b,)."""
        from sklearn.linear_model import Ridge

        kept, logit, weight = (torch.cat(column).cpu().numpy() for column in zip(*samples))
        self.slopes = torch.from_numpy(Ridge(alpha=RIDGE).fit(kept, logit, weight).coef_)

    def representation(self) -> Tensor:
        return self.slopes


def lime(
    explained: Explained,
    image: Tensor,
    target: int,
    parts: NDArray[np.int64],
    *,
    samples: int,
    seed: int,
    at_once: int,
) -> Tensor:
    """LIME (Ribeiro et al., arXiv 1602.04938), through captum.

    Each sample keeps every segment with probability one half and has the others black. The map is
    the slope of a segment in a ridge regression of the logit on what was kept, samples weighted by
    exp(-d² / (2 · 0.25²)), d the cosine distance of their masks from all ones.

    Args:
        explained: The network.
        image: (3, R, R) on [0, 1].
        target: The output to be explained.
        parts: (R, R), from `segments`.
        samples: Forward passes of the network, but for one.
        seed: Of what is kept; views with as many segments and one seed keep the same.
        at_once: Samples in one pass.

    Returns:
        (R, R) float32 on the CPU.
    """
    from captum.attr import Lime

    def alike(_: Tensor, __: Tensor, kept: Tensor, **___: object) -> Tensor:
        distance = 1 - kept.float().mean().sqrt()
        return torch.exp(-(distance**2) / (2 * KERNEL_WIDTH**2))

    def logits(x: Tensor) -> Tensor:
        return explained(x.contiguous(memory_format=torch.channels_last))[1].float()

    mask = torch.from_numpy(parts).to(image.device)[None, None]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        slopes = Lime(logits, _Ridge(), alike).attribute(
            image[None],
            target=target,
            feature_mask=mask,
            n_samples=samples,
            perturbations_per_eval=at_once,
            return_input_shape=False,
        )
    slope_map: Tensor = slopes.flatten().float().cpu()[torch.from_numpy(parts)]
    return slope_map


@torch.no_grad()
def randomized(explained: Explained, images: Tensor, seed: int) -> Explained:
    """A copy of the network that has learnt nothing, to see what a map shows of the image alone.

    Adebayo et al., arXiv 1810.03292. All weights are drawn again by the modules' own
    `reset_parameters`; those that no module draws (tokens, scales) are shuffled, each in itself.
    Statistics of batch norm are those of the copy itself over `images`: with the trained ones, or
    none, its activations would vanish or grow from layer to layer.

    Args:
        explained: The trained network, which stays as it is.
        images: (m, 3, R, R) on [0, 1], at least two.
        seed: Of the weights.
    """
    device = explained.mean.device
    drawn = copy.deepcopy(explained).cpu()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for parameter in drawn.parameters():
            parameter.copy_(
                parameter.flatten()[torch.randperm(parameter.numel())].view_as(parameter)
            )
        for module in drawn.modules():
            for name in ("reset_parameters", "_reset_parameters"):
                reset = getattr(module, name, None)
                if callable(reset):
                    reset()
    drawn = drawn.to(device)
    norms = [module for module in drawn.modules() if isinstance(module, BATCH_NORMS)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # the plain mean over passes, of which there is one
        norm.train()
    passes, drawn.model.passes = drawn.model.passes, Passes()  # and one it has to be
    try:
        drawn(images)
    finally:
        drawn.model.passes = passes
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return drawn.eval()
