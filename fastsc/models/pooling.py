"""Global average pooling and DS in one, in the place of a model's own pooling.

The last feature map is the largest thing that pooling and DS read. Here it is read once for both,
and its gradient is written once (`fastsc.kernels.pool_ds`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastsc.kernels import pool_ds
from fastsc.kernels.distance import wide
from fastsc.models.features import FeatureModel, untouched
from fastsc.models.probe import recorded


class PoolDS:
    """Takes the last feature map of a `FeatureModel` and gives its means; keeps DS of the views.

    Attributes:
        n_clean: Clean views in the batch that is under way; None pools nothing: the map goes on as
            it is, and the model's own pooling does its work.
    """

    def __init__(
        self,
        kind: str,
        *,
        stop_gradient: str = "none",
        detach_scale: bool = False,
        impl: str = "auto",
    ) -> None:
        self.kind, self.stop_gradient, self.detach_scale = kind, stop_gradient, detach_scale
        self.impl = impl
        self.n_clean: int | None = None
        self._ds: Tensor | None = None

    def __call__(self, maps: Tensor) -> Tensor:
        """(R, C, H, W) -> means (R, C, 1, 1) float32, which any average leaves as they are."""
        if self.n_clean is None:
            return wide(maps)
        features, self._ds = pool_ds(
            maps,
            self.kind,
            n_clean=self.n_clean,
            stop_gradient=self.stop_gradient,
            detach_scale=self.detach_scale,
            impl=self.impl,
        )
        return features[:, :, None, None]

    def take(self) -> Tensor:
        """DS of the forward pass that has just run."""
        ds, self._ds = self._ds, None
        assert ds is not None, "the model's last feature map did not come by"
        return ds

    def forget(self) -> None:
        """After a forward pass, whole or not: the map goes on as it is."""
        self.n_clean = self._ds = None


@torch.no_grad()
def ends_in_average_pooling(model: FeatureModel, resolution: int) -> bool:
    """Whether the features are the plain mean of the last map, as a pass of random images tells.

    Not so where something comes between: a ReLU (torchvision's densenet), a norm (ConvNeXt),
    dropout, tokens (ViT); or where the map has but one position. The pass is in training mode,
    where dropout drops and batch norm, new as it is, does something. Nothing of it stays.
    """
    if model.feature_map is None:
        return False
    x = torch.randn(3, 3, resolution, resolution, generator=torch.Generator().manual_seed(0))
    with untouched(model), recorded(model.feature_map) as calls:
        features, _ = model.train()(x.to(next(model.parameters())))
    maps = [output for _, output in calls]
    if len(maps) != 1 or maps[0].ndim != 4 or maps[0].shape[:2] != features.shape:
        return False
    means = maps[0].to(features.dtype).mean((2, 3))
    return torch.allclose(features, means, rtol=1e-4, atol=1e-5 * float(means.abs().max()))
