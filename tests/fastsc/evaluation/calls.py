"""Calls of the command on a few images and tiny networks, and what they wrote."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from fastsc import evaluate

NETS = '''
import torch
from torch import nn
from fastsc.models.smallnets import SmallResNet

def small(seed=0, n=4):
    torch.manual_seed(seed)
    return SmallResNet(8, n)

def smooth():
    """Without kinks, at which a rounding, and so a batch, would choose between gradients."""
    net = small()
    for block in list(net.modules()):
        for name, layer in list(block.named_children()):
            if isinstance(layer, nn.ReLU):
                setattr(block, name, nn.SiLU())
            if isinstance(layer, nn.MaxPool2d):
                setattr(block, name, nn.AvgPool2d(layer.kernel_size))
    return net

def other():
    return small(1)

def nan():
    net = small()
    net.layer1.conv1.weight.data[0] = float("nan")
    return net

def seven():
    return small(0, 7)

class Blind(SmallResNet):
    def forward(self, x):
        return super().forward((x > 0).float())

def blind():
    torch.manual_seed(0)
    return Blind(8, 4)

def maps():
    return nn.Conv2d(3, 4, 3)

def collapsed():
    net = small()
    net.layer1.conv1.weight.data.zero_()
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.weight.data.zero_()
    return net
'''


FAST = ("--resolution", "32", "--resize", "36", "--images", "4", "--workers", "1")


def results(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "results.json").read_text())
    return found


def figure(out: Path, name: str, model: str | None = None) -> dict[str, Any]:
    (row,) = (
        r for r in results(out)["results"] if r["name"] == name and model in (None, r["model"])
    )
    return row


def figures(out: Path) -> dict[str, float]:
    """Every figure; NaN where it is undefined.

    Not the ends of the intervals: of four images a bootstrap's quantiles jump at a rounding.
    """
    return {
        f"{row['question']}/{row['name']}": math.nan if row["value"] is None else row["value"]
        for row in results(out)["results"]
    }


def asked(*words: object) -> int:
    return evaluate.main([str(word) for word in (*FAST, *words)])


def mistake(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line of a call that ends with status 2 and writes nothing."""
    assert asked(*words, "--out", "out") == 2
    found = capsys.readouterr().err
    assert found.startswith("fastsc.evaluate: ")
    assert found.count("\n") == 1
    assert not Path("out").exists()
    return found
