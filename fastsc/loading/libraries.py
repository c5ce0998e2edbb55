"""Networks of torchvision and timm, with their weights, their classes and how they want images."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NamedTuple

import torchvision
from torch import nn

from fastsc.cli.packages import needed
from fastsc.errors import UserError
from fastsc.loading.downloads import downloads, n_outputs
from fastsc.loading.preprocessing import Preprocessing, rgb
from fastsc.loading.state_dicts import WeightsFile, read_weights
from fastsc.models.build import Stem, build_net
from fastsc.models.front import Front
from fastsc.pipelines.fields import did_you_mean
from fastsc.pipelines.plan import Interpolation
from fastsc.run.checkpoint import load_model_state

AUXILIARY = "aux1.", "aux2.", "AuxLogits."  # classifiers that only training runs
_HALF = (0.5, 0.5, 0.5)


class Architecture(NamedTuple):
    """What `models.build.build_net` makes a network of."""

    name: str
    stem: Stem
    blurpool: bool
    front: Front = "none"


@dataclass(frozen=True, eq=False, kw_only=True)
class Net:
    """A network, and how it wants its images.

    Attributes:
        classes: Names of its outputs, where they are its own.
        order: What its outputs are, should they be 1,000: ImageNet's classes; likely these; or
            `classes`.
        strengths: Brightness, contrast, saturation, hue that its run trained with.
        perturb: What its run perturbed with besides.
        notes: What a user should know of how it was made, one line each.
        architecture: Of a network of ours.
    """

    net: nn.Module
    preprocessing: Preprocessing
    classes: tuple[str, ...] | None = None
    order: Literal["imagenet", "likely", "own"] = "imagenet"
    strengths: tuple[float, float, float, float] | None = None
    perturb: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    architecture: Architecture | None = None


def torchvision_net(
    name: str, weights: WeightsFile | None, pretrained: bool, resolution: int | None
) -> Net:
    """A classifier of torchvision.

    Args:
        name: As torchvision.models.list_models() has it.
        weights: A file of them, with any number of classes.
        pretrained: Without a file: torchvision's own, or fresh ones.
        resolution: Side of the images, for networks that are built for one. Default: its own.

    Raises:
        UserError: There is no such classifier, or its weights cannot be had or do not fit.
    """
    models, title = torchvision.models, f"torchvision:{name}"
    known = models.list_models(module=models)
    if name not in known:
        if name in models.list_models():
            raise UserError(f"model {title} is not a classifier of images")
        raise UserError(
            f"model {title}: torchvision has none of this name{did_you_mean(name, known, 3)}"
        )
    entries = models.get_model_weights(name)
    # A file from torchvision's server has its entry's name, and need not be the default's.
    file = None if weights is None else weights.path.name
    entry = next((e for e in entries if e.url.rpartition("/")[2] == file), entries.DEFAULT)
    seen = entry.transforms()
    mean, std = seen.mean, seen.std
    chosen: tuple[str, ...] = ()  # of the file
    if weights is not None:
        side = resolution or seen.crop_size[0]
        net, chosen = loaded(
            name, weights, lambda n: build_net(name, n, "imagenet", side), passed_over=AUXILIARY
        )
        if file == entry.url.rpartition("/")[2] and hasattr(net, "transform_input"):
            mean = std = _HALF
    elif pretrained:
        with downloads(title):
            net = models.get_model(name, weights=entry)
        if _as_built(net):
            mean = std = _HALF
    else:
        net = build_net(name, 1000, "imagenet", resolution or seen.crop_size[0])
    interpolation, notes = _interpolation(title, seen.interpolation.value)
    preprocessing = Preprocessing(
        resolution=seen.crop_size[0],
        resize=seen.resize_size[0],
        mean=rgb(mean),
        std=rgb(std),
        interpolation=interpolation,
    )
    return Net(net=net, preprocessing=preprocessing, notes=notes + chosen)


def _as_built(net: nn.Module) -> bool:
    """Makes of torchvision's pretrained network, in place, what `build_net` builds of its name.

    That is what trains, with its state dict alone: without auxiliary classifiers, and without
    `transform_input`, by which googlenet and inception_v3 bring ImageNet's normalization to that
    which their weights were trained with, 0.5 and 0.5.

    Returns:
        Whether it wants its images normalized by these.
    """
    for name in AUXILIARY:
        if hasattr(net, part := name.rstrip(".")):
            setattr(net, part, None)
            net.aux_logits = False  # type: ignore[assignment]
    transformed = bool(getattr(net, "transform_input", False))
    if transformed:
        net.transform_input = False  # type: ignore[assignment]
    return transformed


def timm_net(
    name: str, weights: WeightsFile | None, pretrained: bool, resolution: int | None
) -> Net:
    """A classifier of timm; arguments and errors as in `torchvision_net`."""
    title = f"timm:{name}"
    needed("timm", f"model {title}")
    import timm
    from timm.data import resolve_data_config

    config = None
    with contextlib.suppress(RuntimeError):  # an unknown tag
        config = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if config is None:
        near = did_you_mean(name, timm.list_models(pretrained="." in name), 3, "timm:")
        raise UserError(f"model {title}: timm has none of this name{near}")
    asked = resolve_data_config(pretrained_cfg=config.to_dict())
    channels, height, width = asked["input_size"]
    if channels != 3 or height != width:
        raise UserError(f"model {title} takes images of {asked['input_size']}, not square RGB ones")
    size: dict[str, Any] = {}
    if resolution is not None and config.fixed_input_size:
        size = {"img_size": resolution}
    resolution = resolution or height
    chosen: tuple[str, ...] = ()
    if weights is not None:
        side = resolution
        net, chosen = loaded(
            title, weights, lambda n: build_net(title, n, "imagenet", side), config.num_classes
        )
    elif pretrained:
        if not config.num_classes:
            raise UserError(
                f"model {title}: its pretrained weights have no classifier; name a file that has "
                "one with --weights FILE"
            )
        with downloads(title):
            net = timm.create_model(name, pretrained=True, **size)
    else:
        net = build_net(title, config.num_classes or 1000, "imagenet", resolution)
    interpolation, notes = _interpolation(title, asked["interpolation"])
    if asked["crop_mode"] != "center":
        notes += (
            f"{title}: timm fits its images in by {asked['crop_mode']}; here it sees the central "
            "square, whose shape is kept",
        )
    # timm resizes the shorter side to whole pixels.
    preprocessing = Preprocessing(
        resolution=height,
        resize=max(height, math.floor(height / asked["crop_pct"])),
        mean=rgb(asked["mean"]),
        std=rgb(asked["std"]),
        interpolation=interpolation,
    )
    return Net(net=net, preprocessing=preprocessing, notes=notes + chosen)


def loaded(
    title: str,
    file: WeightsFile,
    built: Callable[[int], nn.Module],
    n: int = 1000,
    passed_over: tuple[str, ...] = (),
) -> tuple[nn.Module, tuple[str, ...]]:
    """A network with weights of a file, and as many outputs as these have; with notes on the file.

    Args:
        title: What `build_net` calls it.
        file: The weights.
        built: The network with fresh weights and so many outputs.
        n: Outputs to begin with; 0: 1,000.
        passed_over: See `read_weights`.

    Raises:
        UserError: The file cannot be read, or is another network's.
    """
    n = n or 1000
    net = built(n)
    state, notes = read_weights(file, net, passed_over)
    if (own := n_outputs(state, net, n)) != n:
        net = built(own)
    own_state = net.state_dict()
    fits = {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in own_state.items()}
    if title.startswith("timm:") and not fits:
        # Weights as their authors published them, or for another resolution: as timm loads them.
        convert = getattr(sys.modules[type(net).__module__], "checkpoint_filter_fn", None)
        with contextlib.suppress(Exception):  # of another model: the error is raised below
            state = state if convert is None else convert(dict(state), net)
    load_model_state(net, state, file.path)
    return net, notes


def _interpolation(title: str, name: str) -> tuple[Interpolation, tuple[str, ...]]:
    if name == "bilinear":
        return "bilinear", ()
    if name == "bicubic":
        return "bicubic", ()
    return "bicubic", (f"{title}: its images are resized by {name}; here by bicubic",)


# --- ImageNet -------------------------------------------------------------------------------------


IMAGENET_CLASSES = 1000


@cache
def imagenet_synsets() -> tuple[str, ...]:
    """WordNet names of ImageNet's 1,000 classes, in the order of every network's outputs."""
    needed("timm", "the order of ImageNet's classes")
    from timm.data import ImageNetInfo

    return tuple(ImageNetInfo().label_names())


@cache
def imagenet_lemmas() -> tuple[str, ...]:
    """All that WordNet calls these classes, separated by commas: "tench, Tinca tinca"."""
    needed("timm", "the names of ImageNet's classes")
    from timm.data import ImageNetInfo

    return tuple(ImageNetInfo().label_descriptions())


@cache
def imagenet_names() -> tuple[str, ...]:
    """What these classes are called in short, all different: "tench"."""
    return tuple(torchvision.models.ResNet18_Weights.DEFAULT.meta["categories"])
