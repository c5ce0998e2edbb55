"""Whole networks in training give two equal views equal features, whatever they draw."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastsc.config.recipes import configure
from fastsc.distributed.ranks import Ranks
from fastsc.models.build import build_model
from fastsc.models.representation import Represented
from fastsc.training.setup import build, view_noise

pytestmark = pytest.mark.heavy

SIX = {
    "swin_t": 32, "efficientnet_b0": 96, "inception_v3": 80, "vgg11": 32,
    "timm:ghostnet_050": 32, "timm:convit_tiny": 224,
}  # fmt: skip
# Dropout modules of a classifier, which efficientnet_b0 has, too.
BEHIND = ("inception_v3", "vgg11")
# One of each family of torchvision's that has a linear classifier, and of timm's with noise.
FAMILIES = (
    "alexnet convnext_tiny densenet121 efficientnet_v2_s googlenet maxvit_t mnasnet0_5 "
    "mobilenet_v2 mobilenet_v3_small regnet_y_400mf resnet18 resnext50_32x4d shufflenet_v2_x0_5 "
    "swin_v2_t vgg11_bn vit_b_32 wide_resnet50_2 timm:beit_base_patch16_224 timm:caformer_s18 "
    "timm:cait_xxs24_224 timm:coat_tiny timm:coatnet_nano_rw_224 timm:convformer_s18 "
    "timm:convmixer_768_32 timm:deit3_small_patch16_224 timm:edgenext_xx_small "
    "timm:efficientformer_l1 timm:efficientnet_lite0 timm:fastvit_t8 timm:fbnetc_100 "
    "timm:gcvit_xxtiny timm:hgnet_tiny timm:hrnet_w18_small timm:inception_v4 timm:levit_128s "
    "timm:maxvit_tiny_rw_224 timm:mixer_s32_224 timm:mobilenetv4_conv_small timm:mvitv2_tiny "
    "timm:nasnetalarge timm:pit_ti_224 timm:poolformer_s12 timm:pvt_v2_b0 timm:regnetx_002 "
    "timm:repvgg_a0 timm:rexnet_100 timm:tf_efficientnet_b0 timm:twins_svt_small "
    "timm:vit_tiny_patch16_224 timm:xcit_nano_12_p16_224 "
).split()


def built(name: str, side: int) -> Represented:
    torch.manual_seed(0)
    config = configure("imagenet", data="DIR", model=name, resolution=side, precision="fp32")
    return build(config, 10, torch.device("cpu"), Ranks())


def apart(model: nn.Module, side: int) -> float:
    """The largest difference of the features of two equal views in training, nothing shared."""
    images = torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        f, g = model.train()(torch.cat([images, images]))[0].chunk(2)
    return float((f - g).abs().max())


@pytest.mark.parametrize(
    ("name", "side"),
    [
        pytest.param(name, side, marks=pytest.mark.slow if name in BEHIND else ())
        for name, side in SIX.items()
    ],
)
def test_equal_views_have_equal_features(name: str, side: int) -> None:
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    model = built(name, side)
    before = {key: value.clone() for key, value in model.net.state_dict().items()}
    generator = torch.random.get_rng_state()
    assert view_noise(model, side, "fp32", compiled=False) < 1e-5
    assert torch.equal(torch.random.get_rng_state(), generator)
    after = model.net.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


@pytest.mark.parametrize(
    "name", ["efficientnet_b0", pytest.param("swin_t", marks=pytest.mark.slow)]
)
def test_their_modules_alone_share_it_as_under_compile(name: str) -> None:
    model = built(name, SIX[name])
    assert view_noise(model, SIX[name], "fp32", compiled=True) < 1e-5
    assert not model.shares_draws


def test_what_compile_cannot_undo_is_told() -> None:
    """F.dropout in front of the classifier: the features are those behind it, and differ."""
    pytest.importorskip("timm")
    model = built("timm:ghostnet_050", 32)
    assert view_noise(model, 32, "fp32", compiled=True) > 0.1
    assert view_noise(built("timm:ghostnet_050", 32), 32, "fp32", compiled=False) < 1e-5


@pytest.mark.parametrize(
    "name", ["efficientnet_b0", pytest.param("swin_t", marks=pytest.mark.slow)]
)
def test_the_library_alone_would_tell_equal_views_apart(name: str) -> None:
    torch.manual_seed(0)
    assert apart(build_model(name, 10, "imagenet", 32), 32) > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_equal_views_have_equal_features_in_every_family(name: str) -> None:
    side = 224 if name.startswith("timm:") or name in ("maxvit_t", "vit_b_32") else 64
    assert view_noise(built(name, side), side, "fp32", compiled=False) < 1e-4


@pytest.mark.parametrize(
    "name",
    [
        "mobilenet_v2",
        pytest.param("vgg11", marks=pytest.mark.slow),
        pytest.param("inception_v3", marks=pytest.mark.slow),
        "timm:ghostnet_050",
    ],
)
def test_features_are_taken_before_a_final_dropout(name: str) -> None:
    """A module, a module and reshaping behind it, a function."""
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    side = SIX.get(name, 32)
    model = built(name, side).train()
    drops = [m for m in model.modules() if isinstance(m, nn.Dropout)]
    for module in drops[:-1]:
        module.p = 0.0
    x = torch.randn(4, 3, side, side)
    with torch.no_grad():
        one, two = model(x), model(x)
    assert torch.equal(one.features, two.features)
    assert not torch.equal(one.logits, two.logits), "there is no dropout in front of the classifier"
