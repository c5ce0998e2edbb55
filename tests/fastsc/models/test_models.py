"""Models by name: what forward returns, and what building leaves untouched."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from fastsc.errors import UserError
from fastsc.models.build import build_model
from fastsc.models.features import FeatureModel

# Name, resolution, and how the library itself computes the pooled features.
SMALL = [
    ("resnet18", 64),
    ("mobilenet_v2", 64),
    ("mobilenet_v3_small", 64),  # has a dropout that works in place before its classifier
    ("densenet121", 64),  # pools with a function
    ("shufflenet_v2_x0_5", 64),  # pools with Tensor.mean
    ("googlenet", 64),  # has auxiliary classifiers by default
    pytest.param("vit_b_32", 32, marks=pytest.mark.slow),  # as timm's
    ("timm:resnet10t", 64),
    ("timm:mobilenetv3_small_050", 64),
    ("timm:convnext_atto", 32),
    ("timm:vit_tiny_patch16_224", 32),
]


@pytest.mark.heavy
@pytest.mark.parametrize(("name", "resolution"), SMALL)
def test_features_are_the_input_of_the_classifier(name: str, resolution: int) -> None:
    torch.manual_seed(0)
    model = build_model(name, 7, "imagenet", resolution)
    x = torch.rand(2, 3, resolution, resolution)
    model.train()
    features, logits = model(x)
    assert features.requires_grad
    assert (features.dtype, logits.shape) == (torch.float32, (2, 7))
    model.eval()
    features, logits = model(x)
    assert features.shape == (2, model.feature_dim)
    classifier = model.net.get_submodule(model.classifier_name)
    assert torch.equal(classifier(features), logits)
    assert torch.equal(model.net(x), logits), "the bare net is the same function"


def test_equal_images_have_equal_features_in_training_despite_dropout() -> None:
    model = build_model("mobilenet_v3_small", 7, "imagenet", 32).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    x = torch.rand(1, 3, 32, 32).expand(2, -1, -1, -1)
    features, logits = model(x)
    torch.testing.assert_close(features[0], features[1], rtol=1e-4, atol=0)
    assert not torch.allclose(logits[0], logits[1], rtol=1e-2, atol=0), (
        "the dropout still acts on the logits"
    )


def resnet_body(net: Any, x: Tensor) -> Tensor:
    x = net.maxpool(net.relu(net.bn1(net.conv1(x))))
    out: Tensor = net.layer4(net.layer3(net.layer2(net.layer1(x))))
    return out


def test_pooling_is_float32_under_autocast() -> None:
    torch.manual_seed(0)
    model = build_model("resnet18", 7, "imagenet", 128).eval()
    x = torch.rand(2, 3, 128, 128)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        features, _ = model(x)
        model.net.layer4._forward_hooks.clear()
        feature_map = resnet_body(model.net, x)
    assert feature_map.dtype == torch.bfloat16
    exact = feature_map.double().mean((2, 3))
    low = functional.adaptive_avg_pool2d(feature_map, 1).flatten(1)
    assert (features.double() - exact).abs().max() < 1e-6
    assert (low.double() - exact).abs().max() > 1e-4, "the oracle can tell"


def test_names_of_the_state_are_the_architectures_own() -> None:
    model = build_model("resnet18", 7, "cifar", 32)
    reference = torchvision.models.resnet18(num_classes=7)
    assert list(model.net.state_dict()) == list(reference.state_dict())
    assert model.net.state_dict()["conv1.weight"].shape == (64, 3, 3, 3)


def test_initial_weights_are_a_function_of_torchs_seed() -> None:
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(build_model("resnet18", 7, "cifar", 32).net.state_dict())
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert not torch.equal(states[0]["conv1.weight"], states[2]["conv1.weight"])
    torch.manual_seed(0)
    reference = torchvision.models.resnet18(num_classes=7).state_dict()
    torch.manual_seed(0)
    plain = build_model("resnet18", 7, "imagenet", 32).net.state_dict()
    assert all(torch.equal(reference[k], plain[k]) for k in reference)


def test_the_dry_forward_leaves_no_trace() -> None:
    net = torchvision.models.resnet18(num_classes=7)
    net.layer1.eval()
    modes = [m.training for m in net.modules()]
    state = {k: v.clone() for k, v in net.state_dict().items()}
    generator = torch.get_rng_state()
    FeatureModel(net, "resnet18", 7, 32)
    assert [m.training for m in net.modules()] == modes
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in net.modules()) == 2


def test_cifar_stem_keeps_the_size() -> None:
    for name in ("resnet18", "timm:resnet18", "timm:resnet10t"):
        model = build_model(name, 7, "cifar", 32).eval()
        net: Any = model.net
        with torch.no_grad():
            stem = net.maxpool(net.conv1(torch.rand(1, 3, 32, 32)))
            features, logits = model(torch.rand(2, 3, 32, 32))
        assert stem.shape == (1, 64, 32, 32)
        assert (features.shape, logits.shape) == ((2, 512), (2, 7))


def test_a_copy_keeps_its_own_features() -> None:
    """As an EMA makes one: the copy's hooks must not write into the original."""
    model = build_model("resnet18", 7, "cifar", 32).eval()
    other = copy.deepcopy(model)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(0.5)
        x = torch.rand(2, 3, 32, 32)
        features, logits = other(x)
        classifier: Any = other.net.get_submodule("fc")
        assert torch.equal(classifier(features), logits)
        assert not torch.allclose(model(x)[0], features, atol=0)


def test_compiled_models_return_features_too() -> None:
    model = build_model("fastsc:resnet8w4", 7, "cifar", 16).eval()
    compiled = torch.compile(model, backend="eager")
    x = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        for one, other in zip(compiled(x), model(x)):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("name", "stem", "resolution", "words"),
    [
        ("resnet81", "imagenet", 64, "unknown model 'resnet81'; did you mean resnet18"),
        ("timm:resnt18", "imagenet", 64, "did you mean timm:resnet18"),
        ("qqq", "imagenet", 64, "list them"),
        ("", "imagenet", 64, "unknown model"),
        ("fcn_resnet50", "imagenet", 64, "unknown model"),
        ("inception_v3", "imagenet", 32, "does not run on images of 32 pixels"),
        ("vit_b_16", "imagenet", 30, "cannot be built"),
        ("convnext_tiny", "cifar", 32, "--stem cifar is for ResNets"),
        ("timm:mobilenetv3_small_050", "cifar", 32, "--stem cifar is for ResNets"),
    ],
)
def test_mistakes_are_one_line(name: str, stem: Any, resolution: int, words: str) -> None:
    with pytest.raises(UserError) as mistake:
        build_model(name, 7, stem, resolution)
    assert words in str(mistake.value)
    assert "\n" not in str(mistake.value)


def test_a_net_with_another_number_of_outputs_is_refused() -> None:
    with pytest.raises(UserError, match="gives 7 outputs an image, not 8"):
        FeatureModel(torchvision.models.resnet18(num_classes=7), "resnet18", 8, 32)


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 7)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.mean((2, 3))
        return self.fc(x), x


def test_a_net_that_returns_a_tuple_is_refused() -> None:
    with pytest.raises(UserError, match="one tensor"):
        FeatureModel(Pair(), "pair", 7, 32)
