"""From what a user calls a model to its network: runs, files, torchvision, timm, own functions."""

from __future__ import annotations

import copy
import importlib
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import FunctionType
from typing import Any, cast, get_args

import torch
import torchvision
from torch import Tensor, nn

from fastsc.cli.console import printable
from fastsc.config.recipes import load_recipe
from fastsc.errors import UserError, first_line
from fastsc.loading.downloads import n_outputs
from fastsc.loading.libraries import Architecture, Net, timm_net, torchvision_net
from fastsc.loading.preprocessing import Preprocessing, rgb, whole
from fastsc.loading.state_dicts import WeightsFile, read_weights
from fastsc.loading.weight_files import foreign_format, is_safetensors
from fastsc.models.build import Stem, build_net
from fastsc.models.front import Front, tell_normalization
from fastsc.models.probe import probe
from fastsc.pipelines import IMAGENET_MEAN, IMAGENET_STD
from fastsc.pipelines.fields import Fields
from fastsc.pipelines.plan import Interpolation
from fastsc.run.checkpoint import (
    check_model_state,
    load_model_state,
    load_safetensors,
    read_metadata,
)

KEYS = "architecture", "classes", "resolution", "stem"  # of our metadata, in every version
_DEFAULTS = {
    "val_crop": 0.875,
    "mean": IMAGENET_MEAN,
    "std": IMAGENET_STD,
    "interpolation": "bilinear",
    "blurpool": False,
    "front": "none",
}
MAX_SIDE = 16_384  # pixels of an image that a network sees
FORMS = (
    "a run's folder, a .safetensors file of fastsc, torchvision:NAME, timm:NAME, module:function"
)


def load_net(
    model: str,
    file: WeightsFile | None = None,
    pretrained: bool = True,
    resolution: int | None = None,
) -> Net:
    """A network by what a user calls it.

    Args:
        model: A run's folder, a .safetensors file of ours, `torchvision:NAME`, `timm:NAME`, or
            `module:function`, which is importable, from the current directory too, and returns
            an nn.Module (or is one).
        file: Weights for the last three.
        pretrained: Without a file: a library's own weights, or fresh ones.
        resolution: Side of the images, for a library's networks that are built for one.

    Raises:
        UserError: There is no such thing, or its weights cannot be had or do not fit; one line.
    """
    kind, _, name = model.partition(":")
    path = Path(model)
    if kind in ("torchvision", "timm") and name:
        of_library = torchvision_net if kind == "torchvision" else timm_net
        seen = None if file is None else stored_preprocessing(file, model)
        net = of_library(name, file, pretrained, resolution)
        return net if seen is None else replace(net, preprocessing=seen)
    if path.is_dir() or path.is_file():
        if file is not None:
            raise UserError(
                f"--weights {file.path}: {model} has weights of its own; the option is for "
                "torchvision:NAME, timm:NAME and module:function"
            )
        return _run(path) if path.is_dir() else _file(path, path.parent / "config.yaml")
    if is_function(model):
        return _function(kind, name, file)
    raise UserError(f"model {model}: {_unknown(model)}")


def network(
    name: str, n: int, stem: Stem, resolution: int, *, blurpool: bool = False, front: Front = "none"
) -> nn.Module:
    """What `build_net` builds, or what `module:function` returns; with n outputs.

    Raises:
        UserError: As there; or a stem, blurpool or front was asked for of a function's network.
    """
    if not is_function(name):
        return build_net(name, n, stem, resolution, blurpool=blurpool, front=front)
    if stem != "imagenet" or blurpool or front != "none":
        raise UserError(
            f"model {name}: --stem, --blurpool and --front are for networks that are built by name"
        )
    module, _, function = name.partition(":")
    net = _function(module, function, None).net.float()  # what trains does so in float32
    shown = probe(net, name, resolution)
    if shown.heads and shown.logits.shape[-1] != n:
        _renew(net, shown.heads[-1].call.module, n)
    return net


def _renew(net: nn.Module, head: nn.Module, n: int) -> None:
    """Puts a fresh layer with n outputs in the place of a classifier's."""
    bias = getattr(head, "bias", None) is not None
    if isinstance(head, nn.Linear):
        fresh: nn.Module = nn.Linear(head.in_features, n, bias)
    elif isinstance(head, nn.Conv2d):
        fresh = nn.Conv2d(head.in_channels, n, 1, bias=bias)
    else:
        return  # what does not fit, `FeatureModel` tells
    for module in net.modules():
        for name, child in module.named_children():
            if child is head:
                setattr(module, name, fresh)


def is_function(model: str) -> bool:
    """Whether a model is called as a function of a module is: `module:function`."""
    kind, _, name = model.partition(":")
    own = kind in ("torchvision", "timm", "fastsc")
    return bool(name) and not own and Path(model).suffix != ".safetensors" and os.sep not in kind


def _unknown(model: str) -> str:
    if model in torchvision.models.list_models():
        return f"no such folder or file; did you mean torchvision:{model}?"
    if os.sep in model or model.endswith(".safetensors"):
        return "no such folder or file"
    return f"unknown; a model is {FORMS}"


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
    preprocessing = _preprocessing(metadata)
    if is_function(name := metadata.text("architecture")):
        raise UserError(
            f"model {path}: its network is {name}, whose code no file has run; name it: {name} "
            f"--weights {path}"
        )
    stem = metadata.text("stem", ("imagenet", "cifar"))
    architecture = Architecture(
        name,
        "cifar" if stem == "cifar" else "imagenet",
        metadata.flag("blurpool"),
        cast("Front", metadata.text("front", get_args(Front))),
    )
    net, n = _filled(architecture, preprocessing, max(len(classes), 2), state, path)
    return Net(
        net=net,
        preprocessing=preprocessing,
        classes=classes + tuple(f"output {i}" for i in range(len(classes), n)),
        order="own",
        strengths=None if run is None else run.data.strengths,
        perturb=() if run is None else run.data.perturb,
        architecture=architecture,
    )


def _preprocessing(metadata: Fields) -> Preprocessing:
    resolution = metadata.whole("resolution", 1, MAX_SIDE)
    return Preprocessing(
        resolution=resolution,
        resize=whole(resolution / Fraction(metadata.number("val_crop", 1e-6, 1))),
        mean=rgb(metadata.numbers("mean", 3, 0, 1)),
        std=rgb(metadata.numbers("std", 3, 1e-6, 1)),
        interpolation=(
            "bicubic"
            if metadata.text("interpolation", get_args(Interpolation)) == "bicubic"
            else "bilinear"
        ),
    )


def stored_preprocessing(file: WeightsFile, model: str) -> Preprocessing | None:
    """What a weights file of ours says of its network's images; None: it is another's.

    Raises:
        UserError: It is of a network with parts that `model`, which is to have the weights, has
            not, and that no name or shape of a weight tells.
    """
    stored: Mapping[str, Any] = {}
    if file.path.is_file() and is_safetensors(file.path):
        with suppress(UserError):
            stored = read_metadata(file.path).values
    if not all(key in stored for key in KEYS):
        return None
    metadata = Fields({**_DEFAULTS, **stored}, str(file.path))
    front = metadata.text("front", get_args(Front))
    if front != "none" or metadata.flag("blurpool"):
        part = "--blurpool" if front == "none" else f"--front {front}"
        raise UserError(
            f"{file.option} {file.path}: its network has {part}, and {model} has not; name the "
            "file in the model's place"
        )
    return _preprocessing(metadata)


def _filled(
    architecture: Architecture,
    preprocessing: Preprocessing,
    n: int,
    state: Mapping[str, Tensor],
    path: Path,
) -> tuple[nn.Module, int]:
    """The network of this architecture with the state's weights, and its number of outputs.

    With --num-classes there are outputs without a name after the n of the classes.
    """
    name, stem, blurpool, front = architecture

    def built(n: int, device: str) -> nn.Module:
        with torch.device(device):
            return build_net(
                name, n, stem, preprocessing.resolution, blurpool=blurpool, front=front
            )

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
    tell_normalization(net, preprocessing.mean, preprocessing.std)
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
    net = _own_copy(_unwrapped(net))
    notes: tuple[str, ...] = ()
    seen = None if file is None else stored_preprocessing(file, title)
    if file is not None:
        state, notes = read_weights(file, net)
        load_model_state(net, state, file.path)
    return Net(net=net, preprocessing=seen or Preprocessing(), order="likely", notes=notes)


def _own_copy(net: nn.Module) -> nn.Module:
    """A copy, since a module's object, or a function that remembers its network, gives the same
    one each time, and two of a page's models would share their weights.

    The network itself where it cannot be copied, or where a function stands in a forward's place:
    that function would go on with the weights of the original.
    """
    if any(isinstance(vars(module).get("forward"), FunctionType) for module in net.modules()):
        return net
    try:
        return copy.deepcopy(net)
    except Exception:  # noqa: BLE001, tensors within a graph, or whatever a user's module holds
        return net


def _unwrapped(net: nn.Module) -> nn.Module:
    """The network in torch.compile's and DataParallel's wrappers, which hide its parts."""
    wrappers = nn.DataParallel, nn.parallel.DistributedDataParallel
    while True:
        inner = net.module if isinstance(net, wrappers) else getattr(net, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return net
        net = inner
