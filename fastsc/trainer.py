"""Alias for callers from Python: `fastsc.training.loop.train`, which runs a configuration."""

from fastsc.training.loop import train

__all__ = ["train"]
