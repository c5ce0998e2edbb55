"""From what a user calls a model to a classifier: runs, files, torchvision, timm, own functions."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import cast, get_args

import torch
import torchvision
from torch import Tensor, nn

from fastsc.cli.console import printable
from fastsc.config.recipes import load_recipe
from fastsc.errors import UserError, first_line
from fastsc.evaluation.models.classifier import Classifier, Interpolation, Preprocessing
from fastsc.evaluation.models.libraries import (
    IMAGENET_CLASSES,
    RGB,
    Architecture,
    Net,
    imagenet_names,
    imagenet_synsets,
    rgb,
    timm_net,
    torchvision_net,
)
from fastsc.evaluation.models.state_dicts import WeightsFile, read_weights
from fastsc.evaluation.models.weight_files import foreign_format, is_safetensors
from fastsc.evaluation.models.weights import n_outputs
from fastsc.models.build import build_net
from fastsc.models.front import Front
from fastsc.pipelines import IMAGENET_MEAN, IMAGENET_STD
from fastsc.pipelines.fields import Fields
from fastsc.run.checkpoint import check_model_state, load_model_state, load_safetensors

KEYS = "architecture", "classes", "resolution", "stem"  # of our metadata, in every version
_DEFAULTS = {
    "val_crop": 0.875,
    "mean": IMAGENET_MEAN,
    "std": IMAGENET_STD,
    "blurpool": False,
    "front": "none",
}
MAX_SIDE = 16_384  # pixels of an image that a network sees
FORMS = (
    "a run's folder, a .safetensors file of fastsc, torchvision:NAME, timm:NAME, module:function"
)


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
        loaded = _net(model, options)
    classifier, notes = _in_float32(loaded, model, options)
    of_imagenet = loaded.order != "own" and classifier.n_classes == IMAGENET_CLASSES
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
    tensors = (*loaded.net.parameters(), *loaded.net.buffers())
    others = [
        (tensor, tensor.detach().clone())
        for tensor in tensors
        if tensor.is_floating_point() and tensor.dtype != torch.float32 and not tensor.is_meta
    ]
    loaded.net.float()
    try:
        return _classifier(loaded, model, options), ()
    except UserError:
        if not others:
            raise
        for tensor, before in others:
            tensor.data = before
        try:
            classifier = _classifier(loaded, model, options)
        except UserError:
            loaded.net.float()
        else:
            dtype = str(others[0][1].dtype).removeprefix("torch.")
            return classifier, (f"its weights stay in {dtype}, which its forward casts to",)
        raise


def _classifier(loaded: Net, model: str, options: ModelOptions) -> Classifier:
    try:
        return Classifier(
            loaded.net,
            model,
            _changed(loaded.preprocessing, options),
            classes=loaded.classes,
            features=options.features,
        )
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001, a user's forward can raise anything
        raise UserError(
            f"model {model} cannot be asked: {type(error).__name__}: {first_line(error)}"
        ) from None


def _net(model: str, options: ModelOptions) -> Net:
    kind, _, name = model.partition(":")
    path, file = Path(model), _weights_file(options)
    of_library = file, options.pretrained, options.resolution
    if kind == "torchvision" and name:
        return torchvision_net(name, *of_library)
    if kind == "timm" and name:
        return timm_net(name, *of_library)
    if path.is_dir() or path.is_file():
        _without_weights(model, options)
        return _run(path) if path.is_dir() else _file(path, path.parent / "config.yaml")
    if name and path.suffix != ".safetensors" and os.sep not in kind:
        return _function(kind, name, file)
    raise UserError(f"model {model}: {_unknown(model)}")


def _weights_file(options: ModelOptions) -> WeightsFile | None:
    if options.weights is not None:
        return WeightsFile(options.weights, options.weights_key)
    if options.weights_key is not None:
        raise UserError(f"--weights-key {options.weights_key}: is a part of a --weights FILE")
    return None


def _unknown(model: str) -> str:
    if model in torchvision.models.list_models():
        return f"no such folder or file; did you mean torchvision:{model}?"
    if os.sep in model or model.endswith(".safetensors"):
        return "no such folder or file"
    return f"unknown; a model is {FORMS}"


def _without_weights(model: str, options: ModelOptions) -> None:
    if options.weights is not None:
        raise UserError(
            f"--weights {options.weights}: {model} has weights of its own; the option is for "
            "torchvision:NAME, timm:NAME and module:function"
        )


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


def whole(length: float | Fraction) -> int | Fraction:
    """A length in pixels, exactly; an int where it is one."""
    exact = Fraction(length)
    return int(exact) if exact.denominator == 1 else exact


# --- of fastsc ------------------------------------------------------------------------------------


def _run(folder: Path) -> Net:
    config, weights = folder / "config.yaml", folder / "weights.safetensors"
    if not config.is_file() and not weights.is_file():
        raise UserError(f"model {folder}: not a run's folder, which has a config.yaml")
    if not weights.is_file():
        raise UserError(
            f"model {folder}: this run has no weights.safetensors yet; let it end, or go on with "
            f"it: python -m fastsc.train {config} --out {folder} --resume"
        )
    return _file(weights, config)


def _file(path: Path, config: Path) -> Net:
    """A weights file of ours; what an older one does not say, its run's options do."""
    if (what := foreign_format(path)) is not None:
        raise UserError(f"model {path} is not a weights file of fastsc: it is {what}")
    try:
        if not is_safetensors(path):
            raise UserError(f"{path} is not a weights file of fastsc: torch.save wrote it")
        state, stored = load_safetensors(path)
        missing = next((k for k in KEYS if k not in stored), None)
        if missing is not None:
            raise UserError(f"{path} is not a weights file of fastsc: it has no {missing}")
    except UserError as error:
        raise UserError(
            f"model {error}; if it is another's, name its architecture: timm:NAME --weights {path}"
        ) from None
    run = None
    if config.is_file():
        try:
            run = load_recipe(str(config))
        except UserError:
            if "val_crop" not in stored:
                raise
    of_run = {} if run is None else run.flat()
    metadata = Fields({**_DEFAULTS, **of_run, **stored}, f"model {path}")
    classes = tuple(map(printable, metadata.texts("classes")))
    resolution = metadata.whole("resolution", 1, MAX_SIDE)
    preprocessing = Preprocessing(
        resolution=resolution,
        resize=whole(resolution / Fraction(metadata.number("val_crop", 1e-6, 1))),
        mean=rgb(metadata.numbers("mean", 3, 0, 1)),
        std=rgb(metadata.numbers("std", 3, 1e-6, 1)),
    )
    stem = metadata.text("stem", ("imagenet", "cifar"))
    architecture = Architecture(
        metadata.text("architecture"),
        "cifar" if stem == "cifar" else "imagenet",
        metadata.flag("blurpool"),
        cast("Front", metadata.text("front", get_args(Front))),
    )
    net, n = _filled(architecture, resolution, max(len(classes), 2), state, path)
    return Net(
        net=net,
        preprocessing=preprocessing,
        classes=classes + tuple(f"output {i}" for i in range(len(classes), n)),
        order="own",
        strengths=None if run is None else run.data.strengths,
        perturb=() if run is None else run.data.perturb,
        architecture=architecture,
    )


def _filled(
    architecture: Architecture, resolution: int, n: int, state: Mapping[str, Tensor], path: Path
) -> tuple[nn.Module, int]:
    """The network of this architecture with the state's weights, and its number of outputs.

    With --num-classes there are outputs without a name after the n of the classes.
    """
    name, stem, blurpool, front = architecture

    def built(n: int, device: str) -> nn.Module:
        with torch.device(device):
            return build_net(name, n, stem, resolution, blurpool=blurpool, front=front)

    # By shapes first: a file of a few bytes can name a network of gigabytes.
    device = "meta"
    try:
        shapes = built(n, device)
    except (UserError, NotImplementedError):  # one of timm's that computes with its weights
        device = "cpu"
        shapes = built(n, device)
    if (more := n_outputs(state, shapes, n)) != n:
        n, shapes = more, built(more, device)
    check_model_state(shapes, state, path)
    net = shapes if device == "cpu" else built(n, "cpu")
    load_model_state(net, state, path)
    return net, n


# --- of others ------------------------------------------------------------------------------------


def _function(module: str, name: str, file: WeightsFile | None) -> Net:
    title = f"{module}:{name}"
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        target = importlib.import_module(module)
        for part in name.split("."):
            target = getattr(target, part)
        net = target if isinstance(target, nn.Module) or not callable(target) else target()
    except (Exception, SystemExit) as error:  # noqa: BLE001, a user's code can raise anything
        raise UserError(f"model {title}: {type(error).__name__}: {first_line(error)}") from None
    if not isinstance(net, nn.Module):
        raise UserError(f"model {title}: gives {type(net).__name__}, not a torch.nn.Module")
    net = _unwrapped(net)
    notes: tuple[str, ...] = ()
    if file is not None:
        state, notes = read_weights(file, net)
        load_model_state(net, state, file.path)
    return Net(net=net, preprocessing=Preprocessing(), order="likely", notes=notes)


def _unwrapped(net: nn.Module) -> nn.Module:
    """The network in torch.compile's and DataParallel's wrappers, which hide its parts."""
    wrappers = nn.DataParallel, nn.parallel.DistributedDataParallel
    while True:
        inner = net.module if isinstance(net, wrappers) else getattr(net, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return net
        net = inner
