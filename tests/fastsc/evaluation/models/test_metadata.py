"""Weights files of fastsc whose header is damaged, or says what no run has written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fastsc.errors import UserError
from fastsc.evaluation.models import sources
from fastsc.loading import nets
from fastsc.models.build import build_net
from fastsc.pipelines import IMAGENET_MEAN, IMAGENET_STD
from fastsc.run.checkpoint import export_safetensors


def refused(path: Path) -> str:
    """The line that says why a file is no model."""
    with pytest.raises(UserError) as caught:
        sources.load_source(str(path))
    assert "\n" not in str(caught.value)
    return str(caught.value)


METADATA = {
    "architecture": "fastsc:resnet8w1", "classes": ["a", "b"], "resolution": 16,
    "stem": "imagenet", "val_crop": 0.875, "mean": IMAGENET_MEAN, "std": IMAGENET_STD,
    "blurpool": False, "step": 3,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architecture": 3}, "architecture must be a text"),
        ({"architecture": "none"}, "unknown model"),
        ({"classes": 3}, "classes must be a list of texts"),
        ({"classes": "ab"}, "classes must be a list of texts"),
        ({"classes": [1, 2]}, "classes must be a list of texts"),
        ({"classes": None}, "classes must be a list of texts"),
        ({"resolution": "16"}, "resolution must be a whole number"),
        ({"resolution": -16}, "resolution must be a whole number"),
        ({"resolution": 16.5}, "resolution must be a whole number"),
        ({"resolution": 10**30}, "resolution must be a whole number"),
        ({"stem": "none"}, "stem must be one of imagenet, cifar"),
        ({"val_crop": 0}, "val_crop must be a finite number"),
        ({"val_crop": "all"}, "val_crop must be a finite number"),
        ({"val_crop": 10**400}, "val_crop must be a finite number"),
        ({"mean": 3}, "mean must be a list of 3 numbers"),
        ({"mean": [0, 0]}, "mean must be a list of 3 numbers"),
        ({"std": [0, 1, 1]}, "std must be a list of 3 numbers"),
        ({"std": ["a", 1, 1]}, "std must be a list of 3 numbers"),
        ({"blurpool": "yes"}, "blurpool must be true or false"),
        ({"val_crop": float("nan")}, "NaN is no number"),
    ],
)
def test_metadata_of_another_type_or_range(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    net = build_net("fastsc:resnet8w1", 2, "imagenet", 16)
    path = tmp_path / "net.safetensors"
    export_safetensors(path, net, METADATA | changes)
    assert said in refused(path)


def test_a_file_that_names_a_giant_is_refused_before_it_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices: list[torch.device] = []

    def built(*args: Any, **options: Any) -> nn.Module:
        net = build_net(*args, **options)
        devices.append(next(net.parameters()).device)
        return net

    monkeypatch.setattr(nets, "build_net", built)
    path = tmp_path / "net.safetensors"
    net = build_net("fastsc:resnet8w1", 2, "imagenet", 16)
    export_safetensors(path, net, METADATA | {"architecture": "fastsc:resnet50w1024"})
    assert "holds another model" in refused(path)
    assert {device.type for device in devices} == {"meta"}


@pytest.mark.parametrize("damage", ["cut", "longer than any", "empty", "not JSON"])
def test_a_damaged_header_is_one_line(damage: str, tmp_path: Path) -> None:
    net = build_net("fastsc:resnet8w1", 2, "imagenet", 16)
    path = tmp_path / "net.safetensors"
    export_safetensors(path, net, METADATA)
    content = path.read_bytes()
    path.write_bytes({
        "cut": content[:50],
        "longer than any": (2**63).to_bytes(8, "little") + content[8:],
        "empty": b"",
        "not JSON": content[:8] + b"[" * (len(content) - 8),
    }[damage])  # fmt: skip
    assert "is not a weights file of fastsc" in refused(path)
