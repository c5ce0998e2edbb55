"""The front-end in networks, weights and exports. Its arithmetic: tests/kernels/test_front.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fastsc.config import TrainConfig
from fastsc.config.recipes import configure
from fastsc.errors import UserError
from fastsc.evaluation.models.sources import ModelOptions, load_source
from fastsc.export import main
from fastsc.exporting.trained import load_trained
from fastsc.kernels import front_end
from fastsc.kernels.front_reference import CHANNELS
from fastsc.models.build import build_model, build_net
from fastsc.models.front import Front, add_front, tell_normalization
from fastsc.pipelines import IMAGENET_MEAN, IMAGENET_STD
from fastsc.reproduction.records import science
from fastsc.run.checkpoint import export_safetensors

FRONTS = list(CHANNELS)
NAME = "fastsc:resnet8w4"


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
        front_end(x, front, IMAGENET_MEAN, IMAGENET_STD),
        weight,
        stride=conv.stride,
        padding=conv.padding,
    )
    torch.testing.assert_close(seen[0], expected)
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


def test_networks_of_others() -> None:
    assert build_model("timm:test_vit", 3, "imagenet", 160, front="rgb-luma-minmax").feature_dim > 0
    net = build_net(NAME, 3, "cifar", 32)
    net.extra = nn.Conv2d(3, 4, 1)
    with pytest.raises(UserError, match="--front rgb-luma: model two has no one plain convolution"):
        add_front(net, "two", "rgb-luma")


@pytest.mark.heavy
@pytest.mark.parametrize("front", ["rgb", "rgb-luma-minmax"])
def test_weights_evaluation_and_export_know_it(
    front: Front, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    net = build_net(NAME, 3, "cifar", 32, front=front).eval()
    x, (mean, std) = torch.randn(2, 3, 32, 32), ((0.5, 0.4, 0.6), (0.25, 0.3, 0.2))
    with torch.no_grad():
        usual = net(x)
        tell_normalization(net, mean, std)
        assert not torch.allclose(net(x), usual)
    run = tmp_path / "run"
    run.mkdir()
    metadata = {
        "architecture": NAME, "classes": ["a", "b", "c"], "mean": mean,
        "std": std, "resolution": 32, "val_crop": 1, "stem": "cifar", "blurpool": False,
        "front": front, "step": 1,
    }  # fmt: skip
    export_safetensors(run / "weights.safetensors", net, metadata)
    with torch.no_grad():
        assert torch.equal(load_source(str(run)).classifier(x)[1], net(x))
        assert torch.equal(load_trained(str(run)).net(x), net(x))
        other = load_source(str(run), ModelOptions(mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.5)))
        r = x * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)
        seen = (r - torch.tensor((0.1, 0.2, 0.3)).view(3, 1, 1)) / 0.5
        torch.testing.assert_close(other.classifier(seen)[1], net(x), rtol=1e-4, atol=1e-4)
    assert main([str(run), "--to", str(tmp_path / "model.pt2")]) == 0
    assert main([str(run), "--to", str(tmp_path / "hub")]) == 2
    assert f"--front {front}" in capsys.readouterr().err


@pytest.mark.heavy
@pytest.mark.parametrize("part", ["--front rgb", "--blurpool"])
def test_weights_do_not_lose_it_in_a_network_of_a_library(part: str, tmp_path: Path) -> None:
    """Neither changes a name or a shape of the weights."""
    front: Front = "rgb" if "front" in part else "none"
    blurpool = front == "none"
    net = build_net("resnet18", 3, "imagenet", 32, front=front, blurpool=blurpool)
    metadata = {
        "architecture": "resnet18", "classes": ["a", "b", "c"], "mean": (0.5, 0.4, 0.6),
        "std": (0.25, 0.3, 0.2), "resolution": 32, "val_crop": 1, "stem": "imagenet",
        "blurpool": False, "front": "none", "step": 1,
    }  # fmt: skip
    file = tmp_path / "weights.safetensors"
    export_safetensors(file, net, metadata | {"blurpool": blurpool, "front": front})
    options = ModelOptions(weights=file)
    for name in ("torchvision:resnet18", "torchvision.models:resnet18"):
        with pytest.raises(UserError, match=f"its network has {part}, and {name} has not"):
            load_source(name, options)
    export_safetensors(file, build_net("resnet18", 3, "imagenet", 32), metadata)
    seen = load_source("torchvision:resnet18", options).classifier.preprocessing
    assert (seen.mean, seen.std, seen.resolution) == ((0.5, 0.4, 0.6), (0.25, 0.3, 0.2), 32)


def test_no_record_is_orphaned() -> None:
    assert "front" not in science(configure("cifar100", data="d"))
    config: TrainConfig = configure("cifar100", data="d", front="rgb-luma")
    assert science(config)["front"] == "rgb-luma"
