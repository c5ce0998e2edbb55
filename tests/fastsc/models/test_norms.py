"""Split batch norm against two forward passes, blur against its filter, DS at a stage."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from fastsc.errors import UserError
from fastsc.models.blurpool import BlurConv2d, add_blurpool
from fastsc.models.build import build_model
from fastsc.models.features import FeatureModel
from fastsc.models.norms import convert
from fastsc.models.representation import Represented
from fastsc.models.views import Views

NAME = "fastsc:resnet8w4"


def split_net() -> tuple[nn.Module, nn.Module, Views]:
    """A plain network, its copy with split norms, and what tells these of views."""
    torch.manual_seed(0)
    plain = build_model(NAME, 5, "cifar", 16).net.double()
    split = copy.deepcopy(plain)
    views = Views()
    convert(split, NAME, views, split=True, sync=False, on_gpu=False)
    return plain, split, views


@pytest.mark.parametrize("m", [6, 2])
def test_split_is_two_forward_passes(m: int) -> None:
    plain, split, views = split_net()
    clean, perturbed = torch.rand(6, 3, 16, 16).double(), 3 * torch.rand(m, 3, 16, 16).double()
    a, b = plain(clean), plain(perturbed)
    views.n_clean, views.n_rows = 6, 6 + m
    both = split(torch.cat([clean, perturbed]))
    torch.testing.assert_close(both, torch.cat([a, b]), rtol=1e-10, atol=1e-12)
    (a.square().sum() + b.sum()).backward()
    (both[:6].square().sum() + both[6:].sum()).backward()
    for (name, p), (other, q) in zip(plain.named_parameters(), split.named_parameters()):
        assert name == other
        torch.testing.assert_close(q.grad, p.grad, rtol=1e-8, atol=1e-10)
    for (name, p), (other, q) in zip(plain.named_buffers(), split.named_buffers()):
        assert name == other
        torch.testing.assert_close(q, p, rtol=1e-10, atol=1e-12)
    assert list(plain.state_dict()) == list(split.state_dict())


def test_joint_statistics_differ_from_split_ones() -> None:
    plain, split, views = split_net()
    x = torch.cat([torch.rand(4, 3, 16, 16), 3 * torch.rand(4, 3, 16, 16)]).double()
    views.n_clean, views.n_rows = 4, 8
    assert not torch.allclose(plain(x), split(x), rtol=1e-2)
    plain.eval(), split.eval()
    split.load_state_dict(plain.state_dict())
    assert torch.equal(plain(x), split(x)), "evaluation is plain batch norm"


def test_views_of_one_kind_are_one_batch() -> None:
    plain, split, views = split_net()
    x = torch.rand(4, 3, 16, 16).double()
    for n_clean in (None, 4):
        views.n_clean, views.n_rows = n_clean, 4
        assert torch.equal(plain(x), split(x))


def test_windows_of_an_image_are_of_its_view() -> None:
    """Whose network cuts images into windows before a norm, which then sees these as rows."""

    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            four = x.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5)
            return self.norm(four.reshape(-1, 3, 8, 8))

    views, plain = Views(), Windows().double()
    split = copy.deepcopy(plain)
    convert(split, NAME, views, split=True, sync=False, on_gpu=False)
    clean, perturbed = torch.rand(6, 3, 16, 16).double(), 3 * torch.rand(2, 3, 16, 16).double()
    expected = torch.cat([plain(clean), plain(perturbed)])
    views.n_clean, views.n_rows = 6, 8
    assert torch.equal(split(torch.cat([clean, perturbed])), expected)
    for mine, theirs in zip(split.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-14)


def test_a_norm_of_another_kind_is_refused() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm1d(4))
    with pytest.raises(UserError, match=r"--bn split knows nn\.BatchNorm2d, .* BatchNorm1d"):
        convert(net, "x", Views(), split=True, sync=False, on_gpu=False)
    before = list(map(type, net.modules()))
    convert(net, "x", Views(), split=False, sync=False, on_gpu=False)
    assert list(map(type, net.modules())) == before


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize("split", [False, True])
def test_a_norm_with_an_activation_in_it_is_refused(split: bool, on_gpu: bool) -> None:
    """timm's: torch's own conversion drops the activation."""
    net = timm.create_model("test_efficientnet")
    with pytest.raises(UserError, match="BatchNormAct2d"):
        convert(net, "timm:test_efficientnet", Views(), split=split, sync=True, on_gpu=on_gpu)


def test_a_model_without_batch_norm_is_refused() -> None:
    with pytest.raises(UserError, match="--sync-bn: model x has no batch norm"):
        convert(
            nn.Sequential(nn.GroupNorm(1, 4)), "x", Views(), split=False, sync=True, on_gpu=False
        )


# --- blur -----------------------------------------------------------------------------------------


def blurred(x: Tensor) -> Tensor:
    """The 3 × 3 binomial filter as nine shifted sums."""
    padded = functional.pad(x, (1, 1, 1, 1))
    out = torch.zeros_like(x)
    height, width = x.shape[2:]
    for dy, a in enumerate((1, 2, 1)):
        for dx, b in enumerate((1, 2, 1)):
            out += a * b / 16 * padded[:, :, dy : dy + height, dx : dx + width]
    return out


def test_a_blurred_convolution_is_the_filter_and_the_convolution() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(16, 8, 3, stride=2, padding=1).double()
    x = torch.rand(2, 16, 9, 7).double()
    new = copy.deepcopy(conv)
    weight = new.weight
    assert add_blurpool(new) == 1
    torch.testing.assert_close(new(x), conv(blurred(x)), rtol=1e-12, atol=1e-12)
    assert list(new.state_dict()) == ["weight", "bias"]
    assert new.weight is weight
    assert copy.deepcopy(new)(x).equal(new(x))


def test_blurpool_is_put_before_strided_convolutions_of_16_channels() -> None:
    """ffcv-imagenet's rule, by an own walk over the names."""
    net: Any = torchvision.models.resnet18(num_classes=5)
    expected = {
        name
        for name, module in net.named_modules()
        if isinstance(module, nn.Conv2d) and module.stride[0] == 2 and name != "conv1"
    }
    before = net.state_dict()
    assert add_blurpool(net) == len(expected) == 6
    assert {n for n, m in net.named_modules() if isinstance(m, BlurConv2d)} == expected
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert list(before) == list(net.state_dict())
    with pytest.raises(UserError, match="--blurpool"):
        build_model(NAME, 5, "cifar", 32, blurpool=True)


# --- where DS is taken ----------------------------------------------------------------------------


def test_representation_is_features_logits_or_a_pooled_stage() -> None:
    torch.manual_seed(0)
    model = build_model(NAME, 5, "cifar", 32).eval()
    x = torch.rand(2, 3, 32, 32)
    net: Any = model.net
    with torch.no_grad():
        stage = net.layer2(net.layer1(net.relu(net.bn1(net.conv1(x)))))
        features, logits, at_stage, _ = Represented(model, "layer2")(x)
        assert torch.equal(at_stage, stage.mean((2, 3)))
        assert Represented(model, "features")(x).representation.equal(features)
        assert Represented(model, "logits")(x).representation.equal(logits)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert Represented(model, "layer2")(x).representation.dtype == torch.float32
    tokens = build_model("timm:test_vit", 5, "imagenet", 160).eval()
    with torch.no_grad():
        assert Represented(tokens, "blocks.1")(torch.rand(2, 3, 160, 160)).representation.shape == (
            2,
            64,
        )


def test_a_stage_with_channels_last_in_its_shape_is_averaged_over_positions() -> None:
    torch.manual_seed(0)
    net = torchvision.models.SwinTransformer([4, 4], 8, [1, 1], [1, 1], [4, 4], num_classes=5)
    model = FeatureModel(net, "swin", 5, 64).eval()
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        stage = net.features[:4](x)
        assert stage.shape == (2, 8, 8, 16)
        found = Represented(model, "features.3")(x).representation
    assert torch.equal(found, stage.mean((1, 2)))


def test_a_vector_is_kept_before_what_works_in_place_on_it() -> None:
    torch.manual_seed(0)
    body = nn.Conv2d(3, 4, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 9)
    net = nn.Sequential(*body, nn.ReLU(inplace=True), nn.Linear(9, 5))
    model = FeatureModel(net, "sequential", 5, 32).eval()
    with torch.no_grad():
        found = Represented(model, "3")(torch.rand(2, 3, 32, 32)).representation
    assert found.min() < 0


def test_a_module_that_does_not_run_is_named() -> None:
    net = torchvision.models.VisionTransformer(32, 16, 1, 2, 8, 8, num_classes=5)
    model = FeatureModel(net, "vit", 5, 32)
    name = "encoder.layers.encoder_layer_0.self_attention.out_proj"
    with pytest.raises(UserError, match="does not call it"), torch.no_grad():
        Represented(model, name).eval()(torch.rand(1, 3, 32, 32))


def test_a_stage_whose_rows_are_no_images_is_refused() -> None:
    """Whose first axis is that of positions, as torch's encoder has it by default."""

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.TransformerEncoderLayer(3, 1, 8, 0.0)
            self.head = nn.Linear(3, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.encoder(x.flatten(2).permute(2, 0, 1)).mean(0))

    model = FeatureModel(Tokens(), "tokens", 5, 4)
    with pytest.raises(UserError, match="encoder: its output has 16 rows for 2 images"):
        Represented(model, "encoder").eval()(torch.rand(2, 3, 4, 4))


def test_an_unknown_stage_is_named_with_near_ones() -> None:
    model = build_model(NAME, 5, "cifar", 32)
    with pytest.raises(UserError, match=r"--ds-at layer7: .* layer"):
        Represented(model, "layer7")


def test_a_copy_keeps_its_own_stage() -> None:
    """As an EMA makes one."""
    torch.manual_seed(0)
    one = Represented(build_model(NAME, 5, "cifar", 32), "layer2").eval()
    two = copy.deepcopy(one)
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        for p in two.parameters():
            p.mul_(2)
        first, second = one(x).representation, two(x).representation
        assert not first.equal(second)
        assert one(x).representation.equal(first)
