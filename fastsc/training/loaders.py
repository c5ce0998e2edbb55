"""From a run's options and its image folders to its loaders."""

from __future__ import annotations

from collections.abc import Callable

import torch

from fastsc.config import TrainConfig
from fastsc.datasets.folders import Data, workers_of
from fastsc.distributed.ranks import Ranks
from fastsc.pipelines import BadImage, Index, Pipeline, build
from fastsc.pipelines.plan import n_paired

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
    workers = workers_of(d, ranks)

    def loader(index: Index, *, train: bool) -> Pipeline:
        return build(
            d.pipeline,
            index,
            batch_size=config.optim.batch_size,
            resolution=d.resolution if train else d.val_resolution or d.resolution,
            train=train,
            crop=d.crop,
            flip=d.flip,
            val_crop=d.val_crop,
            strengths=d.strengths,
            seed=config.run.seed,
            device=device,
            dtype=dtype if train else torch.float32,
            workers=workers,
            on_bad_image=d.on_bad_image,
            timeout=d.loader_timeout,
            decode=d.decode,
            prefetch=d.prefetch,
            report=report,
            paired_fraction=paired_fraction(config, ranks),
            rank=ranks.rank,
            world_size=ranks.world_size,
        )

    train = loader(data.train, train=True)
    return train, None if data.val is None else loader(data.val, train=False)
