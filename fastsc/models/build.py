"""Classifiers by name, from torchvision and timm, that also return their representation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torchvision
from torch import nn

from fastsc.cli.packages import needed
from fastsc.errors import SPEAKING, UserError, one_line
from fastsc.models.blurpool import add_blurpool
from fastsc.models.features import FeatureModel
from fastsc.models.front import Front, add_front
from fastsc.models.smallnets import SmallResNet, small_model
from fastsc.pipelines.fields import did_you_mean

Stem = Literal["imagenet", "cifar"]


def build_model(
    name: str,
    num_classes: int,
    stem: Stem,
    resolution: int,
    *,
    blurpool: bool = False,
    front: Front = "none",
) -> FeatureModel:
    """A classifier with fresh weights on the CPU, ready for images of `resolution` pixels a side.

    name: a torchvision classification model, `timm:NAME`, or one of our `smallnets` as
    `fastsc:NAME`. The weights are a function of torch's global generator: call torch.manual_seed
    before. Raises UserError for a name that nobody knows
    (with near ones), an architecture that has no linear classifier, gives another number of
    outputs, does not run at this resolution, or has no stem, strided or first convolution to
    change.
    """
    net = build_net(name, num_classes, stem, resolution, blurpool=blurpool, front=front)
    return FeatureModel(net, name, num_classes, resolution)


def build_net(
    name: str,
    num_classes: int,
    stem: Stem,
    resolution: int,
    *,
    blurpool: bool = False,
    front: Front = "none",
) -> nn.Module:
    """What `build_model` puts hooks on: the architecture alone, not yet run."""
    with one_line(f"model {name} cannot be built", (*SPEAKING, TypeError)):
        if name.startswith("timm:"):
            net = _timm_model(name.removeprefix("timm:"), num_classes, resolution)
        elif name.startswith("fastsc:"):
            net = small_model(name.removeprefix("fastsc:"), num_classes)
        else:
            net = _torchvision_model(name, num_classes, resolution)
    if stem == "cifar" and not isinstance(net, SmallResNet):  # which has no other
        _use_cifar_stem(net, name)
    if blurpool and not add_blurpool(net):
        raise UserError(f"--blurpool: model {name} has no strided convolution to blur for")
    add_front(net, name, front)
    return net


# --- by name --------------------------------------------------------------------------------------


def _torchvision_model(name: str, num_classes: int, resolution: int) -> nn.Module:
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise UserError(f"unknown model {name!r}{_near(name, known)}")
    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        # Auxiliary classifiers would return a tuple in training, and get no loss here.
        options |= {"aux_logits": False, "init_weights": True}
    if name.startswith("vit_"):
        options["image_size"] = resolution
    if name.startswith("maxvit"):
        options["input_size"] = (resolution, resolution)
    model: nn.Module = torchvision.models.get_model(
        name, weights=None, num_classes=num_classes, **options
    )
    return model


def _timm_model(name: str, num_classes: int, resolution: int) -> nn.Module:
    needed("timm", f"--model timm:{name}")
    import timm  # slow to import, and only wanted for its names

    if not timm.is_model(name):
        raise UserError(f"unknown model 'timm:{name}'{_near(name, timm.list_models(), 'timm:')}")
    options: dict[str, Any] = {}
    config = timm.get_pretrained_cfg(name)
    if config is not None and config.fixed_input_size:
        options["img_size"] = resolution
    model: nn.Module = timm.create_model(name, pretrained=False, num_classes=num_classes, **options)
    return model


def _use_cifar_stem(net: nn.Module, name: str) -> None:
    """He et al. (arXiv 1512.03385, section 4.2): 3x3, stride 1, no max-pooling."""
    stem = [getattr(net, part, None) for part in ("conv1", "bn1", "maxpool")]
    if not all(isinstance(part, nn.Module) for part in stem):
        raise UserError(f"--stem cifar is for ResNets, and {name} has no conv1, bn1 and maxpool")
    # The norm after it tells the width: a deep stem (timm's resnet10t) is a sequence here.
    width = net.get_parameter("bn1.weight").shape[0]
    net.conv1 = nn.Conv2d(3, width, 3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    net.maxpool = nn.Identity()


def _near(name: str, known: Iterable[str], prefix: str = "") -> str:
    listed = "; torchvision.models.list_models() and timm.list_models() list them"
    return did_you_mean(name, known, 3, prefix) or listed
