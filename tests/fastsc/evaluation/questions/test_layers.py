"""Stages of networks that one knows, and their distances against hooks of the test's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from fastsc.evaluation.models.classifier import Classifier
from fastsc.evaluation.questions.continuity.layers import find_stages, profile
from fastsc.evaluation.views import Viewer
from fastsc.loading.preprocessing import Preprocessing
from fastsc.models.build import build_model
from fastsc.pipelines import build, keyed
from tests.fastsc.evaluation import tiny

SIDE = 32
RESNET = ["conv1", "layer1", "layer2", "layer3", "layer4"]
STAGES = {
    "resnet18": RESNET,
    "vgg11": [f"features.{i}" for i in (0, 3, 6, 8, 11, 13, 16, 18)],
    "mobilenet_v3_small": [f"features.{i}" for i in range(13)],
    "regnet_y_400mf": ["stem", *(f"trunk_output.block{i}" for i in range(1, 5))],
    "vit_b_32": ["conv_proj", *(f"encoder.layers.encoder_layer_{i}" for i in range(12))],
    "swin_t": [f"features.{i}" for i in range(8)],
    "timm:resnet10t": RESNET,
    "timm:convnext_atto": ["stem", *(f"stages.{i}" for i in range(4))],
    "timm:vit_tiny_patch16_224": ["patch_embed", *(f"blocks.{i}" for i in range(12))],
}


def classifier(name: str) -> Classifier:
    if name.startswith("timm:"):
        options = {"img_size": SIDE} if "vit" in name else {}
        net = timm.create_model(name[5:], num_classes=5, **options)
    else:
        options = {"image_size": SIDE} if name.startswith("vit") else {}
        net = torchvision.models.get_model(name, weights=None, num_classes=5, **options)
    return Classifier(net, name, Preprocessing(SIDE, SIDE))


@pytest.mark.heavy
@pytest.mark.parametrize(
    "name",
    # Nested as regnet's are, and a list of blocks as mobilenet's.
    [
        pytest.param(name, marks=pytest.mark.slow if name in ("vit_b_32", "swin_t") else ())
        for name in STAGES
    ],
)
def test_stages_of_well_known_networks(name: str) -> None:
    assert list(find_stages(classifier(name))) == STAGES[name]


def test_a_list_of_blocks_is_opened_for_it_is_never_called() -> None:
    class Blocks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 3)
            self.norm = nn.BatchNorm2d(4)
            self.blocks = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(3))
            self.fc = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(self.stem(x))
            for block in self.blocks:
                x = x + block(x)
            logits: Tensor = self.fc(x.mean((2, 3)))
            return logits

    assert find_stages(tiny.classifier(Blocks())) == ("stem", "blocks.0", "blocks.1", "blocks.2")


def test_a_network_in_another_module_has_its_own_stages() -> None:
    class Centered(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net
            self.register_buffer("mean", torch.full((3, 1, 1), 0.5))

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.net(x - self.mean)
            return logits

    net = build_model("fastsc:resnet8w8", 4, "cifar", SIDE).net
    wrapped = nn.Sequential(nn.Identity(), Centered(net))
    model = Classifier(wrapped, "wrapped", Preprocessing(SIDE, SIDE))
    within = ("conv1", "layer1", "layer2", "layer3")
    assert find_stages(model) == tuple(f"1.net.{name}" for name in within)
    # The last layer alone has none.
    assert find_stages(tiny.classifier(nn.Sequential(nn.Flatten(), nn.Linear(192, 2)))) == ()


def test_distances_are_those_of_averaged_maps(image_folder: Path) -> None:
    torch.manual_seed(0)
    net = build_model("fastsc:resnet8w8", 4, "cifar", SIDE).net
    model = Classifier(net, "small", Preprocessing(SIDE, SIDE))
    loader = build(
        "cpu", image_folder / "val", batch_size=5, resolution=SIDE, train=False, workers=1
    )
    index = loader.index.usable[1:]  # not all of them
    found = profile(Viewer(model, loader), index)
    assert found["stages"].tolist() == ["conv1", "layer1", "layer2", "layer3", "representation"]

    maps: list[Tensor] = []
    hook = net.get_submodule("layer2").register_forward_hook(lambda m, a, out: maps.append(out))
    views = [(batch.clean, batch.perturbed) for batch in loader]
    with torch.no_grad():
        for view in (torch.cat(list(column))[1:] for column in zip(*views, strict=True)):
            net(view)
    hook.remove()
    f, g = (stage.mean((2, 3)) for stage in maps)
    after = np.empty(len(index), np.int64)
    cycle = keyed.cycle(index, len(loader.index))
    after[cycle] = np.roll(cycle, -1)
    for name, other in (("moved", g), ("between", f[after]), ("shuffled", g[after])):
        expected = (f - other).norm(dim=1).numpy()
        np.testing.assert_allclose(found[f"{name}/layer2"], expected, rtol=1e-4)
    assert not net.layer2._forward_hooks, "no hook stays behind"


def test_a_stage_that_gives_no_map_is_passed_over(tmp_path: Path) -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.conv(x), x

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pair, self.stage, self.unused = Pair(), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)
            self.fc = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.fc(self.stage(self.pair(x)[0]).mean((2, 3)))
            return logits

    loader = tiny.loader(tmp_path, {"a": tiny.constant(0.2, 0.7)})
    found = profile(Viewer(tiny.classifier(Net()), loader), loader.index.usable)
    assert found["stages"].tolist() == ["stage", "representation"]
