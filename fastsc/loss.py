"""The training loss: cross-entropy and semantic continuity."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastsc.kernels import ds as ds_of
from fastsc.kernels.distance import scale_rows, wide

Kind = Literal["l2", "relative", "cosine", "js", "mse", "sq"]


class LossParts(NamedTuple):
    """One step's loss, with gradient, and its parts without: float32 scalars on the device."""

    loss: Tensor
    """ce + alpha * ds; the only one with a gradient."""
    ce: Tensor
    """Cross-entropy over the views that get it, label smoothing included."""
    ds: Tensor
    """DS of the kind and place that are trained, before alpha."""
    ds_relative: Tensor
    """mean ||f_i - f'_i|| / mean ||f_i - f_(i+1)|| over this batch; NaN for a batch of one."""


class ContinuityLoss(nn.Module):
    """loss = CE(f(x), y) + alpha * DS(f(x), f(x')), Wu et al., arXiv 2011.09789.

    x' is x after a perturbation that leaves its meaning alone, DS a distance of the two
    representations (`fastsc.kernels.ds` defines the kinds):

        l2        mean_i ||f_i - f'_i||_2, the paper's plain reading
        relative  l2 over mean_i ||f_i - f_(i+1)||_2, i + 1 cyclic: blind to a common scale
        cosine    mean_i 1 - cos(f_i, f'_i)
        js        Jensen-Shannon divergence of softmax(logits); at="logits" only
        mse       mean (f_i - f'_i)^2 over images and dimensions; cheated by shrinking, as l2
        sq        mean ||f_i - f'_i||^2 over twice the variance of the pairs' midpoints: blind to a
                  common scale and to a common offset; alpha about 16, rising

    Losses that others train with are among them, on the views that there are here:

    - Logit pairing (Kannan, Kurakin and Goodfellow, arXiv 1803.06373) is ds="mse" at="logits", for
      pairs of one image. Theirs are an image and its adversarial example (ALP), or two images
      drawn at random (CLP, which is not here); cross-entropy is on both: ce_views="both".
    - AugMix's consistency (Hendrycks et al., arXiv 1912.02781) for two views is ds="js" at="logits"
      ce_views="clean" alpha=12. It equals timm's JsdCrossEntropy(num_splits=2, alpha=12, smoothing)
      of the same label_smoothing, but for timm's clamping of the mean distribution at 1e-7. AugMix
      itself has three views (num_splits=3): the clean one and two that its chains of augmentations
      make, all compared with their common mean. Here the second view is the perturbed one, and
      there is no third.

    It needs no trainer of ours:

        loss_of = ContinuityLoss(alpha=3.0, ds="cosine")
        parts = loss_of(logits, logits_perturbed, target, features, features_perturbed)
        parts.loss.backward()

    Args:
        alpha: weight of DS, >= 0. With 0, DS is computed for the log only.
        ds: kind of distance.
        at: "features" or "logits": the representation that DS compares.
        ce_views: "clean" (the paper's loss) or "both" (the mean of the two views' CE).
        stop_gradient: the view whose representation gets no gradient from DS: "none", "clean" or
            "perturbed".
        detach_scale: for "relative", hold the between-image distance constant in the gradient.
        label_smoothing: in [0, 1), of the cross-entropy.
        gather: representations (N, D) of this process -> those of all, with gradients: what the
            scale of "relative" and "sq" is taken over. Left out: this process's own.
    """

    def __init__(
        self,
        alpha: float = 3.0,
        ds: Kind = "cosine",
        *,
        at: Literal["features", "logits"] = "features",
        ce_views: Literal["clean", "both"] = "both",
        stop_gradient: Literal["none", "clean", "perturbed"] = "none",
        detach_scale: bool = False,
        label_smoothing: float = 0.0,
        impl: str = "auto",
        gather: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        for name, value, known in (
            ("ds", ds, get_args(Kind)),
            ("at", at, ("features", "logits")),
            ("ce_views", ce_views, ("clean", "both")),
            ("stop_gradient", stop_gradient, ("none", "clean", "perturbed")),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, not {value!r}")
        if not 0 <= alpha < float("inf"):
            raise ValueError(f"alpha must be finite and at least 0, not {alpha}")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), not {label_smoothing}")
        if ds == "js" and at != "logits":
            raise ValueError('ds="js" compares predictions: give at="logits"')
        self.alpha, self.kind, self.at, self.ce_views = float(alpha), ds, at, ce_views
        self.stop_gradient, self.detach_scale = stop_gradient, detach_scale
        self.label_smoothing, self.impl, self.gather = label_smoothing, impl, gather

    def forward(
        self,
        logits_clean: Tensor,
        logits_perturbed: Tensor,
        target: Tensor,
        features_clean: Tensor | None = None,
        features_perturbed: Tensor | None = None,
        *,
        measured: bool = True,
        ds: Tensor | None = None,
        alpha: float | None = None,
    ) -> LossParts:
        """Logits (N, C), target (N,) int64 (or (N, C) probabilities), features (N, D); any dtype.

        Row i of each belongs to image i. The perturbed ones may be of the first M images alone:
        cross-entropy on both views is then the mean over all N + M of them, and DS over M. Features
        may be left out with at="logits"; ds_relative is then of the logits. Everything is computed
        in float32 (float64 stays), under autocast too. `measured` False spares ds_relative (NaN).
        `ds` is the distance where it is there already, with its gradient: what
        `fastsc.kernels.pool_ds` measures on its way through the last feature map. Kind, place and
        stop-gradient are then its maker's. `alpha` is the weight of DS in this step, where it is
        another than the loss has.
        """
        alpha = self.alpha if alpha is None else alpha
        if self.at == "features" and (features_clean is None or features_perturbed is None):
            raise ValueError('at="features" needs features_clean and features_perturbed')
        with torch.autocast(logits_clean.device.type, enabled=False):
            logits = wide(logits_clean), wide(logits_perturbed)
            features = logits
            if features_clean is not None and features_perturbed is not None:
                features = wide(features_clean), wide(features_perturbed)
            ce = self._ce(*logits, target)
            if ds is None:
                ds = self._ds(*(features if self.at == "features" else logits), alpha)
            loss = ce + alpha * ds if alpha else ce
            relative = self._ds_relative(*features, measured)
            return LossParts(loss, ce.detach(), ds.detach(), relative)

    def _ce(self, clean: Tensor, perturbed: Tensor, target: Tensor) -> Tensor:
        ce = functional.cross_entropy(clean, target, label_smoothing=self.label_smoothing)
        if self.ce_views == "clean":
            return ce
        n, m = len(clean), len(perturbed)
        other = functional.cross_entropy(
            perturbed, target[:m], label_smoothing=self.label_smoothing
        )
        return (ce + other) / 2 if m == n else (n * ce + m * other) / (n + m)

    def _ds(self, f: Tensor, g: Tensor, alpha: float) -> Tensor:
        f = f[: len(g)]
        if alpha == 0:
            f, g = f.detach(), g.detach()
        if self.stop_gradient == "clean":
            f = f.detach()
        elif self.stop_gradient == "perturbed":
            g = g.detach()
        others = scale_rows(f, g, self.kind) if self.gather else None
        if self.gather and others is not None:
            others = self.gather(others)
        return ds_of(f, g, self.kind, impl=self.impl, detach_scale=self.detach_scale, others=others)

    @torch.no_grad()
    def _ds_relative(self, f: Tensor, g: Tensor, measured: bool) -> Tensor:
        f = f[: len(g)]
        if f.shape[0] < 2 or not measured:  # no other image to compare with
            return f.new_full((), float("nan"))
        return ds_of(f, g, "relative", impl=self.impl)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, ds={self.kind}, at={self.at}, ce_views={self.ce_views}"
