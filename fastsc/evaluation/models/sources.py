"""From what a user calls a model to a classifier, which an evaluation asks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor, nn

from fastsc.errors import UserError, first_line
from fastsc.evaluation.models.classifier import Classifier
from fastsc.loading.libraries import (
    IMAGENET_CLASSES,
    Architecture,
    Net,
    imagenet_names,
    imagenet_synsets,
)
from fastsc.loading.nets import load_net
from fastsc.loading.preprocessing import RGB, Preprocessing, rgb, whole
from fastsc.loading.state_dicts import WeightsFile
from fastsc.models.front import tell_normalization
from fastsc.pipelines.plan import Interpolation


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Options of a model besides its name; None: as the model itself says.

    Attributes:
        weights: A file for torchvision:, timm: and module:function.
        weights_key: The dotted path of the part of that file to take; see `state_dicts`.
        pretrained: False: torchvision: and timm: models with fresh weights.
        features: The module whose output is the representation; see `Classifier`.
        mean, std, resolution, resize, interpolation: See `Preprocessing`. A resolution alone
            leaves the share of the image that the model sees as it is.
    """

    weights: Path | None = None
    weights_key: str | None = None
    pretrained: bool = True
    features: str | None = None
    mean: RGB | None = None
    std: RGB | None = None
    resolution: int | None = None
    resize: int | None = None
    interpolation: Interpolation | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Source:
    """A classifier, and what else is known of it.

    Attributes:
        synsets: WordNet names of its outputs ("n01440764"), where these are ImageNet's classes.
        strengths: Brightness, contrast, saturation, hue that its run trained with.
        perturb: What its run perturbed with besides; see `config`.
        notes: What a user should know of how it was made, one line each.
        architecture: Of a network of ours.
    """

    classifier: Classifier
    synsets: tuple[str, ...] | None = None
    strengths: tuple[float, float, float, float] | None = None
    perturb: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    architecture: Architecture | None = None


def load_classifier(model: str, options: ModelOptions | None = None) -> Classifier:
    """The classifier of `load_source`."""
    return load_source(model, options).classifier


def load_source(model: str, options: ModelOptions | None = None) -> Source:
    """A classifier by what a user calls it, in float32; nothing is moved to a device.

    Args:
        model: A run's folder, a .safetensors file of ours, `torchvision:NAME`, `timm:NAME`, or
            `module:function`, which is importable, from the current directory too, and returns
            an nn.Module (or is one).
        options: See `ModelOptions`.

    Raises:
        UserError: There is no such thing, its weights cannot be had or do not fit, or it is no
            classifier; one line.
    """
    options = options or ModelOptions()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # of fresh weights
        loaded = load_net(model, _weights_file(options), options.pretrained, options.resolution)
    classifier, notes = _in_float32(loaded, model, options)
    # A repaired network's outputs are its own, by the names of those of before.
    of_imagenet = classifier.n_classes == IMAGENET_CLASSES and (
        loaded.order != "own" or classifier.classes == imagenet_names()
    )
    if of_imagenet and loaded.order == "imagenet":
        classifier.classes = imagenet_names()
    return Source(
        classifier=classifier,
        synsets=imagenet_synsets() if of_imagenet else None,
        strengths=loaded.strengths,
        perturb=loaded.perturb,
        notes=loaded.notes + notes,
        architecture=loaded.architecture,
    )


def _in_float32(
    loaded: Net, model: str, options: ModelOptions
) -> tuple[Classifier, tuple[str, ...]]:
    """A classifier with its weights in float32, or as they are where its forward casts to these."""
    others = {
        name: tensor.detach().clone()
        for name, tensor in _tensors(loaded.net).items()
        if tensor.is_floating_point() and tensor.dtype != torch.float32 and not tensor.is_meta
    }
    loaded.net.float()
    try:
        return _classifier(loaded, model, options), ()
    except UserError:
        if not others:
            raise
        # By name: `float` changed the parameters, but put others in the place of the buffers.
        tensors = _tensors(loaded.net)
        for name, before in others.items():
            tensors[name].data = before
        try:
            classifier = _classifier(loaded, model, options)
        except UserError:
            loaded.net.float()
        else:
            dtype = str(next(iter(others.values())).dtype).removeprefix("torch.")
            return classifier, (f"its weights stay in {dtype}, which its forward casts to",)
        raise


def _tensors(net: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, those that modules share by each of their names."""
    parameters = net.named_parameters(remove_duplicate=False)
    return {**dict(parameters), **dict(net.named_buffers(remove_duplicate=False))}


def _classifier(loaded: Net, model: str, options: ModelOptions) -> Classifier:
    seen = _changed(loaded.preprocessing, options)
    tell_normalization(loaded.net, seen.mean, seen.std)
    try:
        return Classifier(
            loaded.net,
            model,
            seen,
            classes=loaded.classes,
            features=options.features,
        )
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001, a user's forward can raise anything
        raise UserError(
            f"model {model} cannot be asked: {type(error).__name__}: {first_line(error)}"
        ) from None


def _weights_file(options: ModelOptions) -> WeightsFile | None:
    if options.weights is not None:
        return WeightsFile(options.weights, options.weights_key)
    if options.weights_key is not None:
        raise UserError(f"--weights-key {options.weights_key}: is a part of a --weights FILE")
    return None


def _changed(asked: Preprocessing, options: ModelOptions) -> Preprocessing:
    """The preprocessing with what the user wants otherwise."""
    resolution = options.resolution or asked.resolution
    # The same share of the image, unless the user says how long its shorter side is.
    share = asked.resolution / Fraction(asked.resize)
    resize = whole(options.resize or resolution / share)
    if resize < resolution:
        raise UserError(
            f"--resize {resize}: less than the {resolution} pixels that the model sees; "
            "take at least as much, or another --resolution"
        )
    for option, value, least in (("--mean", options.mean, 0.0), ("--std", options.std, 1e-6)):
        if value is not None and not all(least <= x <= 1 for x in value):
            numbers = " ".join(map(str, value))
            raise UserError(f"{option} {numbers}: of pixels on [0, 1], such as 0.5")
    return replace(
        asked,
        resolution=resolution,
        resize=resize,
        mean=rgb(options.mean or asked.mean),
        std=rgb(options.std or asked.std),
        interpolation=options.interpolation or asked.interpolation,
    )
