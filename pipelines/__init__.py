"""Pipelines: everything between files on disk and a PairBatch on the device.

from fastsc.pipelines import build

loader = build("cpu", "photos/train", batch_size=64, resolution=224)
for epoch in range(90):
    loader.set_epoch(epoch)
    for clean, perturbed, target, index in loader:
        ...
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastsc.pipelines.arrow import from_dataset
    from fastsc.pipelines.base import Pipeline
    from fastsc.pipelines.batch import BadImage, PairBatch
    from fastsc.pipelines.beton import BetonIndex, open_beton
    from fastsc.pipelines.errors import UserError
    from fastsc.pipelines.factory import PIPELINES, build
    from fastsc.pipelines.index import Index, scan
    from fastsc.pipelines.plan import IMAGENET_MEAN, IMAGENET_STD

# Imported when asked for: a command's --help, or its word on a mistake, should not wait for torch.
_HOME = {
    "IMAGENET_MEAN": "plan",
    "IMAGENET_STD": "plan",
    "PIPELINES": "factory",
    "BadImage": "batch",
    "BetonIndex": "beton",
    "Index": "index",
    "PairBatch": "batch",
    "Pipeline": "base",
    "UserError": "errors",
    "build": "factory",
    "from_dataset": "arrow",
    "open_beton": "beton",
    "scan": "index",
}

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "PIPELINES",
    "BadImage",
    "BetonIndex",
    "Index",
    "PairBatch",
    "Pipeline",
    "UserError",
    "build",
    "from_dataset",
    "open_beton",
    "scan",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
