"""Networks that a function of somebody's own gives."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from fastsc.evaluation.models.sources import ModelOptions, load_classifier, load_source
from fastsc.loading.libraries import (
    imagenet_synsets,
)
from fastsc.pipelines import IMAGENET_MEAN, IMAGENET_STD
from tests.fastsc.evaluation.models.test_sources import refused

MODULE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, n=3):
        super().__init__()
        self.head = nn.Linear(3, n)

    def forward(self, x):
        return self.head(x.mean((2, 3)))

thousand = lambda: Net(1000)
ready = Net()
half = lambda: Net().half()

class Groups:
    net = staticmethod(Net)

class Segmentation(Net):
    def forward(self, x):
        return {"out": x}

class Map(Net):
    def forward(self, x):
        return x + self.head.weight.sum()

class Odd(Net):
    def forward(self, x, y):
        return x

def broken():
    raise KeyError("no\\nsuch thing")

def numbers():
    return [1, 2]

def leaves():
    raise SystemExit(3)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module in the current directory."""
    name = "nets_of_a_stranger"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield name
    sys.modules.pop(name, None)


def test_a_function_of_ones_own(module: str) -> None:
    source = load_source(f"{module}:Net")
    model, seen = source.classifier, source.classifier.preprocessing
    assert (seen.resolution, seen.resize, seen.val_crop) == (224, 256, 0.875)
    assert (seen.mean, seen.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert (model.n_classes, model.classes, source.synsets) == (3, None, None)
    assert model.name == f"{module}:Net"
    assert load_classifier(f"{module}:ready").n_classes == 3
    assert load_classifier(f"{module}:Groups.net").n_classes == 3


def test_a_thousand_outputs_are_likely_imagenets(module: str) -> None:
    source = load_source(f"{module}:thousand")
    assert source.synsets == imagenet_synsets()
    assert source.classifier.classes is None


def test_half_precision_becomes_float32(module: str) -> None:
    features, _ = load_classifier(f"{module}:half")(torch.rand(1, 3, 224, 224))
    assert features.dtype == torch.float32


def test_a_function_with_weights_of_a_file(module: str, tmp_path: Path) -> None:
    net = nn.ModuleDict({"head": nn.Linear(3, 3)})
    torch.save(net.state_dict(), tmp_path / "w.pt")
    model = load_classifier(f"{module}:Net", ModelOptions(weights=tmp_path / "w.pt"))
    assert torch.equal(model.net.head.weight, net["head"].weight)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("function", "line"),
    [
        ("absent", "has no attribute 'absent'"),
        ("broken", "KeyError"),
        ("numbers", "gives list, not a torch.nn.Module"),
        ("leaves", "SystemExit: 3"),
        ("Segmentation", "does not return one tensor of logits"),
        ("Map", "is not a classifier"),
        ("Odd", "cannot be asked: TypeError"),
    ],
)
def test_what_is_no_classifier(function: str, line: str, module: str) -> None:
    assert line in refused(f"{module}:{function}")


def test_modules_that_cannot_be_imported(module: str, tmp_path: Path) -> None:
    assert "No module named 'no_such_module'" in refused("no_such_module:net")
    (tmp_path / "wrong_syntax.py").write_text("def net(:\n")
    assert "SyntaxError" in refused("wrong_syntax:net")
