"""Weights files of networks that nobody trained: export is a matter of names and arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from fastsc.models.build import build_net
from fastsc.run.checkpoint import export_safetensors

CLASSES = ("ant", "bee", "caf\udce9", "dog", "elk")
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)

Run = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path) -> Run:
    def make(
        architecture: str = "timm:test_resnet",
        side: int = 64,
        stem: str = "imagenet",
        blurpool: bool = False,
    ) -> Path:
        """A run's folder that holds weights.safetensors alone."""
        folder = tmp_path / "run"
        folder.mkdir()
        torch.manual_seed(1)
        net = build_net(architecture, len(CLASSES), stem, side, blurpool=blurpool)  # type: ignore[arg-type]
        randomize(net)
        metadata = {
            "architecture": architecture,
            "classes": CLASSES,
            "mean": MEAN,
            "std": STD,
            "resolution": side,
            "val_crop": 0.8,
            "stem": stem,
            "blurpool": blurpool,
            "step": 7,
        }
        export_safetensors(folder / "weights.safetensors", net, metadata)
        return folder

    return make


@torch.no_grad()
def randomize(net: nn.Module) -> None:
    """Fresh weights hide mistakes: norms are the identity, and layer scales nearly nothing."""
    for tensor in (*net.parameters(), *net.buffers()):
        if tensor.is_floating_point() and tensor.squeeze().ndim <= 1:
            tensor.uniform_(0.5, 1.5)
