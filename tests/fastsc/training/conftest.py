"""What a repair begins with, and an end of it that takes no time."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from fastsc.models.build import build_net


@pytest.fixture(scope="module")
def flat(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The training images without their folders: 32 of no class."""
    folder = tmp_path_factory.mktemp("flat")
    for path in image_folder.glob("train/*/*.jpg"):
        shutil.copy(path, folder / f"{path.parent.name}-{path.name}")
    return folder


@pytest.fixture(scope="module")
def init(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file of weights whose norms have seen images."""
    torch.manual_seed(3)
    trained = build_net("fastsc:resnet8w4", 5, "cifar", 32)
    for _ in range(5):
        trained.train()(torch.randn(16, 3, 32, 32))
    path = tmp_path_factory.mktemp("init") / "weights.pt"
    torch.save({"state_dict": {f"module.{k}": v for k, v in trained.state_dict().items()}}, path)
    return str(path)


@pytest.fixture
def no_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a repair takes most of the time of so short a run."""
    monkeypatch.setattr("fastsc.train.conclude", lambda *_: None)
