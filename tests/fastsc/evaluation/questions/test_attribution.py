"""Attribution maps against captum, closed forms of linear models, and a regression of one's own."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from captum.attr import IntegratedGradients, LayerAttribution, LayerGradCam
from sklearn.linear_model import Ridge
from torch import Tensor, nn

from fastsc.errors import UserError
from fastsc.evaluation.models.classifier import Classifier
from fastsc.evaluation.questions.explanations.attribution import (
    Explained,
    check_gradient,
    integrated_gradients,
    lime,
    randomized,
    segments,
)
from fastsc.evaluation.questions.explanations.grad_cam import find_layer, grad_cam
from fastsc.loading.preprocessing import Preprocessing
from tests.fastsc.evaluation import tiny

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
SIDE = tiny.SIDE


def explained(net: nn.Module, size: int = SIDE) -> Explained:
    return Explained(
        Classifier(net, "tiny", Preprocessing(resolution=size, resize=size)), MEAN, STD
    )


def convolutional() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.Conv2d(6, 5, 3, stride=2, padding=1),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 4),
    )


def some(n: int, size: int = SIDE) -> tuple[Tensor, Tensor]:
    """Images on [0, 1] and outputs to be explained."""
    x = torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(1))
    return x.contiguous(memory_format=torch.channels_last), torch.arange(n) % 4


# --- integrated gradients ------------------------------------------------------------------------


def test_integrated_gradients_are_captums() -> None:
    net = explained(convolutional())
    x, targets = some(5)
    expected = IntegratedGradients(lambda v: net(v)[1]).attribute(
        x, baselines=0.0, target=targets, n_steps=9
    )
    for at_once in (1, 7, 9, 1000):  # a pass may end in the middle of an image
        found = integrated_gradients(net, x, targets, steps=9, at_once=at_once)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert expected.abs().max() > 0.01


def test_integrated_gradients_of_a_linear_model() -> None:
    linear = nn.Linear(3 * SIDE * SIDE, 4)
    net = explained(nn.Sequential(nn.Flatten(), linear))
    x, targets = some(3)
    found = integrated_gradients(net, x, targets, steps=2, at_once=4)
    weight = linear.weight[targets].view_as(x) / torch.tensor(STD)[:, None, None]
    torch.testing.assert_close(found, weight * x, atol=1e-6, rtol=1e-5)


def test_integrated_gradients_are_complete() -> None:
    net = explained(convolutional())
    x, targets = some(4)
    found = integrated_gradients(net, x, targets, steps=200, at_once=64).sum((1, 2, 3))
    ends = [net(v)[1].gather(1, targets[:, None])[:, 0] for v in (x, torch.zeros_like(x))]
    torch.testing.assert_close(found, ends[0] - ends[1], atol=1e-3, rtol=1e-2)


class Cut(nn.Module):
    """Logits that do not depend on the image by anything that can be derived."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * SIDE * SIDE, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(x.detach().flatten(1))
        return logits


@pytest.mark.parametrize("trainable", [False, True])
def test_a_model_that_lets_no_gradient_through(trainable: bool) -> None:
    net = explained(Cut()).requires_grad_(trainable)
    with pytest.raises(UserError, match="explanations: model tiny lets no gradient through"):
        check_gradient(net)
    check_gradient(explained(convolutional()))


# --- Grad-CAM ------------------------------------------------------------------------------------


def test_grad_cam_is_captums() -> None:
    net = explained(convolutional())
    x, targets = some(6)
    layer = find_layer(net)
    assert layer is not None
    assert (layer.name, layer.layout) == ("4", "channels first")  # the ReLU in front of the pool
    cam = LayerGradCam(lambda v: net(v)[1], net.net[4])  # type: ignore[index]
    expected = LayerAttribution.interpolate(
        cam.attribute(x, targets, relu_attributions=True), (SIDE, SIDE), "bilinear"
    )
    for at_once in (1, 4, 100):
        found = grad_cam(net, layer, x, targets, at_once=at_once)
        torch.testing.assert_close(found, expected[:, 0], atol=1e-5, rtol=1e-4)
    assert (expected > 0).any()
    assert len(net.net[4]._forward_hooks) == 1  # type: ignore[index]  # the model's own


def test_grad_cam_of_resnet_is_captums() -> None:
    torch.manual_seed(0)
    net = explained(torchvision.models.resnet18(num_classes=4), 64)
    x, targets = some(2, 64)
    layer = find_layer(net)
    assert layer is not None
    assert layer.name == "layer4"
    cam = LayerGradCam(lambda v: net(v)[1], net.net.layer4)
    expected = LayerAttribution.interpolate(
        cam.attribute(x, targets, relu_attributions=True), (64, 64), "bilinear"
    )
    found = grad_cam(net, layer, x, targets, at_once=2)
    torch.testing.assert_close(found, expected[:, 0], atol=1e-4, rtol=1e-4)


def test_grad_cam_of_a_network_that_works_in_bfloat16_is_float32() -> None:
    net, narrow = explained(convolutional()), convolutional().bfloat16()
    narrow.register_forward_pre_hook(lambda _, args: (args[0].bfloat16(),))
    x, targets = some(6)
    layer = find_layer(net)
    assert layer is not None
    found = grad_cam(explained(narrow), layer, x, targets, at_once=4)
    assert found.dtype == torch.float32  # numpy has no bfloat16
    expected = grad_cam(net, layer, x, targets, at_once=4)
    torch.testing.assert_close(found, expected, atol=0.05 * float(expected.max()), rtol=0.05)


class Laid(nn.Module):
    """One function whose last map `mark` sees in any layout."""

    def __init__(self, layout: str) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.layout = layout
        self.conv = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.linear = nn.Linear(6, 4)
        self.mark = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).tanh()
        if self.layout == "channels first":
            x = self.mark(x).square().mean((2, 3))
        elif self.layout == "channels last":
            x = self.mark(x.permute(0, 2, 3, 1)).square().mean((1, 2))
        else:
            tokens = x.flatten(2).transpose(1, 2)
            tokens = torch.cat([torch.ones_like(tokens[:, :2]), tokens], 1)
            x = self.mark(tokens)[:, 2:].square().mean(1)
        logits: Tensor = self.linear(x)
        return logits


@pytest.mark.parametrize(("layout", "prefix"), [("channels last", 0), ("tokens", 2)])
def test_grad_cam_in_every_layout(layout: str, prefix: int) -> None:
    x, targets = some(4)
    plain = explained(Laid("channels first"))
    cam = LayerGradCam(lambda v: plain(v)[1], plain.net.mark)
    small = cam.attribute(x, targets, relu_attributions=True)
    expected = LayerAttribution.interpolate(small, (SIDE, SIDE), "bilinear")[:, 0]
    net = explained(Laid(layout))
    layer = find_layer(net)
    assert layer is not None
    assert (layer.name, layer.layout, layer.prefix) == ("mark", layout, prefix)
    found = grad_cam(net, layer, x, targets, at_once=3)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert (expected > 0).any()


def test_layers_of_transformers() -> None:
    from timm.models.swin_transformer import SwinTransformer
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    options: Any = {"img_size": 32, "embed_dim": 24, "num_classes": 4}
    vit: Any = {"patch_size": 8, "depth": 2, "num_heads": 2, **options}
    of_torchvision = torchvision.models.VisionTransformer(32, 8, 2, 2, 24, 48, num_classes=4)
    nn.init.normal_(of_torchvision.heads.head.weight)
    nets = {
        # The class token alone is read: the last place where the others count.
        "blocks.1.norm1": (VisionTransformer(**vit), "tokens", 1),
        "encoder.layers.encoder_layer_1.ln_1": (of_torchvision, "tokens", 1),
        "norm": (
            VisionTransformer(**vit, global_pool="avg", class_token=False, fc_norm=False),
            "tokens",
            0,
        ),
    }
    swin = SwinTransformer(patch_size=2, window_size=4, depths=(1, 1), num_heads=(1, 2), **options)
    found = []
    for name, (net, layout, prefix) in nets.items():
        layer = find_layer(explained(net, 32))
        assert layer is not None
        found.append((layer.name, layer.layout, layer.prefix) == (name, layout, prefix))
        x, targets = some(2, 32)
        cam = grad_cam(explained(net, 32), layer, x, targets, at_once=2)
        assert cam.shape == (2, 32, 32)
        assert cam.isfinite().all()
    assert all(found)
    layer = find_layer(explained(swin, 32))
    assert layer is not None
    assert (layer.name, layer.layout) == ("norm", "channels last")


def test_a_network_without_positions() -> None:
    assert find_layer(explained(nn.Sequential(nn.Flatten(), nn.Linear(192, 4)))) is None
    only_one = nn.Sequential(nn.Conv2d(3, 6, SIDE), nn.Flatten(), nn.Linear(6, 4))
    assert find_layer(explained(only_one)) is None


# --- LIME ----------------------------------------------------------------------------------------


def quarters() -> Any:
    return np.arange(4).reshape(2, 2).repeat(SIDE // 2, 0).repeat(SIDE // 2, 1)


def test_lime_is_a_weighted_ridge_regression() -> None:
    net = explained(convolutional())
    (image,), _ = some(1)
    parts, samples = quarters(), 40
    found = lime(net, image, 2, parts, samples=samples, seed=11, at_once=7)
    torch.manual_seed(11)
    kept = torch.stack([torch.bernoulli(torch.full((4,), 0.5)) for _ in range(samples)])
    logits = net(image * kept[:, torch.from_numpy(parts)][:, None])[1][:, 2]
    distance = 1 - np.sqrt(kept.mean(1).numpy())  # cosine of a mask and of all ones
    weights = np.exp(-((distance / 0.25) ** 2) / 2)
    slopes = Ridge(alpha=1.0).fit(kept.numpy(), logits.numpy(), weights).coef_
    np.testing.assert_allclose(found.numpy(), slopes[parts], rtol=1e-3, atol=1e-5)
    assert np.ptp(slopes) > 0.01


def test_lime_of_a_linear_model_is_what_each_segment_adds() -> None:
    linear = nn.Linear(3 * SIDE * SIDE, 4)
    net = explained(nn.Sequential(nn.Flatten(), linear))
    (image,), _ = some(1)
    parts = quarters()
    weight = linear.weight[3].view(3, SIDE, SIDE) / torch.tensor(STD)[:, None, None]
    share = (weight * image).sum(0).detach().numpy()
    adds = np.array([share[parts == part].sum() for part in range(4)])
    found = lime(net, image, 3, parts, samples=2000, seed=0, at_once=500).numpy()
    np.testing.assert_allclose(found, adds[parts], atol=0.02 * np.abs(adds).max())


def test_lime_leaves_the_generator_alone_and_has_a_seed() -> None:
    net = explained(convolutional())
    (image,), _ = some(1)
    torch.manual_seed(7)
    before = torch.rand(1)
    torch.manual_seed(7)
    maps = [lime(net, image, 0, quarters(), samples=9, seed=seed, at_once=4) for seed in (0, 0, 1)]
    assert torch.equal(torch.rand(1), before)
    assert torch.equal(maps[0], maps[1])
    assert not torch.equal(maps[0], maps[2])


def test_segments_are_numbered_without_gaps() -> None:
    image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    parts = segments(image)
    assert parts.shape == (32, 32)
    assert 20 < parts.max() < 80
    assert np.array_equal(np.unique(parts), np.arange(parts.max() + 1))


# --- random weights ------------------------------------------------------------------------------


class Tokens(nn.Module):
    """A parameter that no module draws, beside layers that have their own way to."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.arange(50.0))
        self.net = convolutional()
        self.attention = nn.MultiheadAttention(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x + self.token[0] * 0)
        return logits


def test_randomized_weights_are_all_drawn_again() -> None:
    net = explained(Tokens())
    before = copy.deepcopy(net.state_dict())
    x, _ = some(6)
    found = randomized(net, x, 3)
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key]), key  # the trained one stays
    mine, theirs = (dict(one.net.named_parameters()) for one in (found, net))
    for key in ("token", "net.0.weight", "net.7.weight", "attention.in_proj_weight"):
        assert not (mine[key] == theirs[key]).all(), key
        assert (mine[key] == theirs[key]).float().mean() < 0.2, key
    assert mine["token"].sort().values.tolist() == list(range(50))
    again, other = randomized(net, x, 3), randomized(net, x, 4)
    assert torch.equal(found(x)[1], again(x)[1])
    assert not torch.equal(found(x)[1], other(x)[1])
    assert not any(module.training for module in found.modules())


def test_batch_norm_of_random_weights_fits_the_images() -> None:
    net = explained(convolutional())
    net.net[1].running_mean.fill_(100)  # type: ignore[index]
    x, _ = some(6)
    found = randomized(net, x, 0).net
    normalized = (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    out = found[1](found[0](normalized))  # type: ignore[index]
    torch.testing.assert_close(out.mean((0, 2, 3)), torch.zeros(6), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.std((0, 2, 3)), torch.ones(6), atol=1e-3, rtol=0)
    assert found[1].momentum == 0.1  # type: ignore[index]
