"""The front-end: against plain arithmetic in float64, and in networks, weights and exports."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastsc.config import TrainConfig
from fastsc.config.recipes import configure
from fastsc.errors import UserError
from fastsc.evaluation.models.sources import load_source
from fastsc.export import main
from fastsc.models.build import build_model, build_net
from fastsc.models.front import CHANNELS, Front, add_front, front_end
from fastsc.pipelines import IMAGENET_MEAN, IMAGENET_STD
from fastsc.reproduction.records import science
from fastsc.run.checkpoint import export_safetensors

FRONTS = [front for front in CHANNELS if front != "none"]
NAME = "fastsc:resnet8w4"
MEAN, STD = (
    torch.tensor(x, dtype=torch.float64).view(3, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_STD)
)


def images() -> Tensor:
    """(5, 3, 6, 7) float64 on [0, 1]: random, grey, black, white, with a black border."""
    generator = torch.Generator().manual_seed(0)
    color = torch.rand(3, 6, 7, generator=generator, dtype=torch.float64)
    grey = color[:1].expand(3, 6, 7)
    border = color.clone()
    border[:, :2] = border[:, :, :1] = 0
    return torch.stack([color, grey, torch.zeros_like(color), torch.ones_like(color), border])


def normalized(r: Tensor) -> Tensor:
    return (r - MEAN) / STD


def oracle(r: NDArray[np.float64], front: str) -> NDArray[np.float64]:
    """One image (3, H, W) on [0, 1], as the formulas stand."""
    y = 0.2989 * r[0] + 0.587 * r[1] + 0.114 * r[2]
    s = math.sqrt(y.var() + 0.02**2)
    c = r - y
    q = math.sqrt((c**2).mean())
    z1 = [(p - p.mean()) / math.sqrt(p.var() + 0.02**2) for p in r]
    z2 = [(y - y.mean()) / s + p / (q + 0.3 * s) for p in c]
    more = [(v - v.mean()) / s for v in (r.max(0), r.min(0))]
    return np.stack({"z1": z1, "z2": z2, "c2": z1 + z2, "c4": z1 + z2 + more}[front])


@pytest.mark.parametrize("front", FRONTS)
def test_is_the_formula(front: Front) -> None:
    for r in (images(), images()[:, :, 2:3, 2:3]):  # one pixel, too
        expected = torch.from_numpy(np.stack([oracle(image.numpy(), front) for image in r]))
        found = front_end(normalized(r), front)
        assert found.shape[1] == CHANNELS[front]
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            single = front_end(normalized(r).float(), front)
        torch.testing.assert_close(single.double(), expected, rtol=0, atol=1e-4)
        assert single.is_contiguous(memory_format=torch.channels_last)
    assert front_end(normalized(images()).bfloat16(), front).dtype == torch.bfloat16


@pytest.mark.parametrize("front", FRONTS)
def test_gradients(front: Front) -> None:
    x = normalized(images())
    inside = x[[0, 4], :, :3, :3].clone().requires_grad_()
    inside.data[1] += 0.01 * torch.arange(27).view(3, 3, 3)  # no ties of channels
    assert torch.autograd.gradcheck(lambda x: front_end(x, front), (inside,))
    x.requires_grad_()
    front_end(x, front).square().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_a_gain_and_an_offset_of_the_channels_hardly_move_z1() -> None:
    """By the floor alone: a gain a moves z1 by at most |z1| FLOOR |1 - 1/a²| / 2 var."""
    r = images()[:1] / 2
    gain = torch.tensor([0.8, 1.2, 1.5], dtype=torch.float64).view(3, 1, 1)
    before = front_end(normalized(r), "z1")
    after = front_end(normalized(gain * r + 0.1), "z1")
    least = r.var((2, 3), correction=0).min()
    bound = before.abs().max() * 0.02**2 * (1 / 0.8**2 - 1) / (2 * least) * 1.1
    assert (after - before).abs().max() <= bound < 0.02
    assert (front_end(normalized(r + 0.1), "z1") - before).abs().max() < 1e-12


@pytest.mark.parametrize("name", [NAME, "resnet18"])
@pytest.mark.parametrize("front", FRONTS)
def test_in_a_network(front: Front, name: str) -> None:
    torch.manual_seed(0)
    net = build_net(name, 3, "imagenet", 32, front=front).eval()
    weight = net.get_parameter("conv1.weight")
    assert weight.shape[1] == CHANNELS[front]
    assert list(net.state_dict()) == list(build_net(name, 3, "imagenet", 32).state_dict())
    x = torch.randn(2, 3, 32, 32).requires_grad_()
    seen: list[Tensor] = []
    net.get_submodule("conv1").register_forward_hook(lambda m, a, out: seen.append(out))
    net(x).sum().backward()
    conv = net.get_submodule("conv1")
    expected = torch.nn.functional.conv2d(
        front_end(x, front), weight, stride=conv.stride, padding=conv.padding
    )
    torch.testing.assert_close(seen[0], expected)
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


def test_networks_of_others() -> None:
    assert build_model("timm:test_vit", 3, "imagenet", 160, front="c4").feature_dim > 0
    net = build_net(NAME, 3, "cifar", 32)
    net.extra = nn.Conv2d(3, 4, 1)
    with pytest.raises(UserError, match="--front c2: model two has no one plain convolution"):
        add_front(net, "two", "c2")


@pytest.mark.parametrize("front", ["z1", "c4"])
def test_weights_evaluation_and_export_know_it(
    front: Front, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    net = build_net(NAME, 3, "cifar", 32, front=front).eval()
    run = tmp_path / "run"
    run.mkdir()
    metadata = {
        "architecture": NAME, "classes": ["a", "b", "c"], "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD, "resolution": 32, "val_crop": 1, "stem": "cifar", "blurpool": False,
        "front": front, "step": 1,
    }  # fmt: skip
    export_safetensors(run / "weights.safetensors", net, metadata)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(load_source(str(run)).classifier(x)[1], net(x))
    assert main([str(run), "--to", str(tmp_path / "model.pt2")]) == 0
    assert main([str(run), "--to", str(tmp_path / "hub")]) == 2
    assert f"--front {front}" in capsys.readouterr().err


def test_no_record_is_orphaned() -> None:
    assert "front" not in science(configure("cifar100", data="d"))
    config: TrainConfig = configure("cifar100", data="d", front="c2")
    assert science(config)["front"] == "c2"
