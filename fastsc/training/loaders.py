"""From a run's options and its image folders to its loaders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

import torch

from fastsc.config import DataConfig, TrainConfig
from fastsc.datasets.folders import Data, workers_of
from fastsc.distributed.ranks import Ranks
from fastsc.pipelines import BadImage, Pipeline, build
from fastsc.pipelines.plan import Settings, n_paired

# What DataConfig and Settings call by the same name means the same: an option is spelled in both.
_SHARED = {field.name for field in fields(DataConfig)} & {field.name for field in fields(Settings)}
LOOKED_AT = 8  # images of a batch at least, and one in so many


def paired_fraction(config: TrainConfig, ranks: Ranks) -> float:
    """The part of each batch that gets a second view; small where it is for the log alone.

    Looking at all of a batch at every tenth step would cost plain training 7 % of its speed.
    """
    size, fraction = config.optim.batch_size, config.method.paired_fraction
    if not config.method.plain:
        return fraction
    shares = ranks.world_size * config.optim.accumulate
    looked_at = -(-max(LOOKED_AT, size // LOOKED_AT) // shares) * shares
    return min(n_paired(size, fraction), looked_at) / size


def build_loaders(
    config: TrainConfig,
    data: Data,
    device: torch.device,
    dtype: torch.dtype,
    report: Callable[[BadImage], None],
    ranks: Ranks,
) -> tuple[Pipeline, Pipeline | None]:
    """This rank's training loader, in `dtype`, and its validation loader, in float32."""
    d = config.data
    options = {name: value for name, value in vars(d).items() if name in _SHARED} | {
        "batch_size": config.optim.batch_size,
        "seed": config.run.seed,
        "device": device,
        "workers": workers_of(d, ranks),
        "timeout": d.loader_timeout,
        "report": report,
        "paired_fraction": paired_fraction(config, ranks),
        "rank": ranks.rank,
        "world_size": ranks.world_size,
    }
    # What a network is repaired on is what it is asked with.
    as_asked = config.method.objective == "self" and d.crop == "none"
    train_crop = d.val_crop if as_asked else 1.0
    train = build(d.pipeline, data.train, **options, dtype=dtype, train_crop=train_crop)
    if data.val is None:
        return train, None
    options["resolution"] = d.val_resolution or d.resolution
    return train, build(d.pipeline, data.val, **options, train=False)
