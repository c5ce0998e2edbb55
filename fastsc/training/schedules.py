"""The resolution of the training images over a run: a pure function of the epoch."""

from __future__ import annotations

from fastsc.config import DataConfig

MULTIPLE = 32  # pixels; a network that halves five times sees whole positions


def resolution_at(epoch: int, config: DataConfig) -> int:
    """Side of the training images in epoch 0, 1, …, in pixels.

    As ffcv-imagenet has it: the smaller side up to the ramp's first epoch, the whole one from its
    last, in between the straight line rounded to a multiple of 32.
    """
    if config.min_resolution is None:
        return config.resolution
    first, last = config.resolution_ramp
    if epoch >= last:
        return config.resolution
    if epoch <= first:
        return config.min_resolution
    done = (epoch - first) / (last - first)
    side = config.min_resolution + done * (config.resolution - config.min_resolution)
    return min(config.resolution, max(config.min_resolution, round(side / MULTIPLE) * MULTIPLE))


def resolutions(config: DataConfig, epochs: int) -> list[int]:
    """Every side that a run of so many epochs trains at, ascending."""
    first, last = config.resolution_ramp
    changing = range(min(first, epochs - 1), min(last, epochs - 1) + 1)  # flat before and after
    return sorted({resolution_at(epoch, config) for epoch in changing})
