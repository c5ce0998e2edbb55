"""Weights to begin with, `--init SOURCE`: of which network, and how it wants its images."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from fastsc.cli.console import printable
from fastsc.config import TrainConfig
from fastsc.config.rules import spelled
from fastsc.config.schema import untagged
from fastsc.errors import UserError
from fastsc.loading.downloads import n_outputs
from fastsc.loading.libraries import IMAGENET_CLASSES, Architecture, Net, imagenet_names, loaded
from fastsc.loading.nets import FORMS, KEYS, is_function, load_net, network, stored_preprocessing
from fastsc.loading.parts import walk
from fastsc.loading.preprocessing import Preprocessing
from fastsc.loading.state_dicts import WeightsFile
from fastsc.loading.weight_files import is_safetensors, read_file
from fastsc.models.probe import probe
from fastsc.run.checkpoint import check_weights, load_model_state, read_metadata

# Fields that weights of another network do not fit.
_ARCHITECTURE = "model", "stem", "blurpool", "front"
_PLAIN = {"stem": "imagenet", "blurpool": False, "front": "none"}  # of others' networks
# A recipe's, which are of its own resolution.
_OTHER_SIDES = {"val_resolution": None, "min_resolution": None, "resolution_ramp": (0, 0)}


@dataclass(frozen=True, eq=False, kw_only=True)
class Source:
    """A network with weights to begin with.

    Attributes:
        title: What messages call it.
        state: Its weights, on the CPU.
        fields: Of a configuration, as far as they are known of it.
        classes: Names of its outputs.
        hash: Of names and values of the weights.
        notes: What a user should know of how they were read, one line each.
    """

    title: str
    state: Mapping[str, Any]
    fields: Mapping[str, Any]
    classes: tuple[str, ...]
    hash: str
    notes: tuple[str, ...]


def open_source(config: TrainConfig) -> tuple[Source, TrainConfig]:
    """What --init names, and the configuration with what is known of it in the place of a recipe's.

    Raises:
        UserError: There is no such thing, nothing of it can be read, or it is another network than
            the user named; one line.
    """
    init = config.model.init
    assert init is not None
    try:
        with torch.random.fork_rng(devices=[]):  # of fresh weights, which are written over
            net, fields = _open(init, config)
        net.net.float()  # weights of half precision train in full, as they are evaluated in it
        side = config.data.resolution
        if "resolution" in fields and "resolution" not in config.given:
            side = fields["resolution"]
            fields |= _OTHER_SIDES
        n = probe(net.net, init, side).logits.shape[-1]
        check_weights(net.net, init)
    except UserError as error:
        raise UserError(_of_training(str(error))) from None
    state = {key: _plain(value) for key, value in net.net.state_dict().items()}
    if config.method.objective == "self":
        fields["num_classes"] = n
    for name in (*_ARCHITECTURE, "num_classes"):
        wanted = config.flat()[name]
        if name in fields and name in config.given and not _same(fields[name], wanted):
            raise UserError(
                f"--init {init}: its network has {spelled(name, fields[name])}, not "
                f"{spelled(name, wanted)}; leave the option out"
            )
    source = Source(
        title=f"--init {init}",
        state=state,
        fields=fields,
        classes=_names(net, n),
        hash=_hash(state),
        notes=net.notes,
    )
    return source, config.replace(**{k: v for k, v in fields.items() if k not in config.given})


def take_weights(net: nn.Module, source: Source, n: int) -> str | None:
    """Gives a network the source's weights, in place.

    Args:
        net: With fresh weights and n outputs. A head for another number keeps these.
        source: Of the same network.
        n: Outputs.

    Returns:
        The name of the head that is new; None where there is none.

    Raises:
        UserError: Something is missing there, unknown here, or of another shape.
    """
    own, state, head = net.state_dict(), dict(source.state), None
    if n_outputs(state, net, n) != n:
        others = [key for key in own if key in state and own[key].shape != state[key].shape]
        state |= {key: own[key] for key in others}
        head = others[0].rpartition(".")[0]
    load_model_state(net, state, source.title)
    return head


def other_classes(theirs: Sequence[str], ours: Sequence[str]) -> str | None:
    """How outputs that are kept differ from a folder's classes; None: not, or names are unknown."""
    theirs, ours = list(theirs), list(map(printable, ours))
    if theirs == list(map(str, range(len(theirs)))):
        return None
    if theirs == list(imagenet_names()) and all(re.fullmatch(r"n\d{8}", name) for name in ours):
        return None  # WordNet's names, in whose order these are
    for i, (old, new) in enumerate(zip(theirs, ours, strict=False)):
        if old != new:
            return f"its head is kept, whose output {i} was {old!r} and is {new!r} now"
    return None


# --- forms ----------------------------------------------------------------------------------------


def _open(init: str, config: TrainConfig) -> tuple[Net, dict[str, Any]]:
    """The network, and the fields that are known of it."""
    path, own = Path(init), config.model.model
    side = config.data.resolution if "resolution" in config.given else None
    if init == "pretrained":
        if is_function(own) or own.startswith("fastsc:"):
            raise UserError(f"--init pretrained: no library has weights of --model {own}")
        init = own if own.startswith("timm:") else f"torchvision:{own}"
    if init.startswith(("torchvision:", "timm:")):
        net = load_net(init, resolution=side)
        return net, _fields(init.removeprefix("torchvision:"), net)
    if path.is_dir() or (path.is_file() and _is_ours(path)):
        net = load_net(init)
        assert net.architecture is not None
        name, stem, blurpool, front = net.architecture
        fields = _fields(name, net) | {"stem": stem, "blurpool": blurpool, "front": front}
        return net, fields
    if path.is_file():
        try:
            return _of_file(path, config, side)
        except UserError as error:
            raise UserError(_without_use(path) or _with_advice(error, config)) from None
    if is_function(init):
        name = own if "model" in config.given else init
        return load_net(init), {"model": name, **_PLAIN} if is_function(name) else {}
    if path.suffix in (".pt", ".pth", ".safetensors"):
        raise UserError(f"--init {init}: no such file")
    if init in torchvision.models.list_models():
        raise UserError(f"--init {init}: no such file; did you mean torchvision:{init}?")
    raise UserError(f"--init {init}: unknown; a source is pretrained, {FORMS}, or a .pt file")


def _of_file(path: Path, config: TrainConfig, side: int | None) -> tuple[Net, dict[str, Any]]:
    """The weights of somebody's file, for the network that the configuration names."""
    model, file = config.model, WeightsFile(path, option="--init")
    name, given = model.model, config.given
    if is_function(name):
        net = load_net(name, file)
        ours = stored_preprocessing(file, name) is not None
        return net, _PLAIN | (_of_images(net) if ours else {})
    # The weights' shapes tell a stem, but not these: a recipe's are for the network that it names.
    blurpool, front = model.blurpool, model.front
    if "model" in given:
        blurpool, front = blurpool and "blurpool" in given, front if "front" in given else "none"
    if not name.startswith("fastsc:") and Architecture(
        name, model.stem, blurpool, front
    ) == Architecture(name, "imagenet", False):
        library = name if name.startswith("timm:") else f"torchvision:{name}"
        net = load_net(library, file, resolution=side)
        return net, _fields(name, net)

    def built(n: int) -> nn.Module:
        return network(
            name, n, model.stem, config.data.resolution,
            blurpool=blurpool, front=front,
        )  # fmt: skip

    own, notes = loaded(name, file, built)
    return Net(net=own, preprocessing=Preprocessing(), notes=notes, order="likely"), {
        "blurpool": blurpool,
        "front": front,
    }


def _fields(name: str, net: Net) -> dict[str, Any]:
    """What a library or a file of ours says of a network."""
    return {"model": name, **_PLAIN, **_of_images(net)}


def _of_images(net: Net) -> dict[str, Any]:
    seen = net.preprocessing
    return {
        "resolution": seen.resolution,
        "val_crop": seen.val_crop,
        "mean": seen.mean,
        "std": seen.std,
        "interpolation": seen.interpolation,
    }


def _is_ours(path: Path) -> bool:
    """Whether a run of ours wrote a weights file, of a network that is built by its name."""
    if not is_safetensors(path):
        return False
    with suppress(UserError):
        stored = read_metadata(path).values
        return all(key in stored for key in KEYS) and not is_function(str(stored["architecture"]))
    return False


def _without_use(path: Path) -> str | None:
    """What a file's names tell of weights that are of no use here."""
    with suppress(UserError):
        parts = list(walk(read_file(path, f"--init {path}")))
        names = [".".join(where) for where, _ in parts]
        if any(".lora_" in name for name in names):
            return (
                f"--init {path}: a LoRA adapter, which is added to another network's weights; "
                "merge it into these, and save the whole"
            )
        if any("_packed_params" in name for name in names) or any(
            isinstance(value, Tensor) and value.is_quantized for _, value in parts
        ):
            return (
                f"--init {path}: weights of a quantized network, which cannot be trained; take "
                "those that it was made from"
            )
    return None


def _of_training(line: str) -> str:
    """An evaluation's message in the words of --init."""
    line = re.sub("^model ", "--init ", line)
    line = re.sub(
        "(; name a file .*?) with --weights FILE.*", r"\1 with --model NAME --init FILE", line
    )
    return re.sub(r"(\S+) --weights ", r"--model \1 --init ", line)


def _with_advice(error: UserError, config: TrainConfig) -> str:
    line = str(error)
    if "model" in config.given or "holds another model" not in line:
        return line
    return f"{line}; this is compared with {config.model.model}: --model NAME says another"


# --- values ---------------------------------------------------------------------------------------


def _names(net: Net, n: int) -> tuple[str, ...]:
    if net.classes is not None:
        return net.classes
    if net.order == "imagenet" and n == IMAGENET_CLASSES:
        return imagenet_names()
    return tuple(map(str, range(n)))


def _same(theirs: object, wanted: object) -> bool:
    """Whether two values of a field are one, a tag of timm's weights aside."""
    if isinstance(theirs, str) and isinstance(wanted, str):
        return untagged(theirs) == untagged(wanted)
    return theirs == wanted


def _plain(value: Any) -> Any:
    return value.detach().cpu() if isinstance(value, Tensor) else value


def _hash(state: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    for key, value in state.items():
        digest.update(key.encode())
        if isinstance(value, Tensor) and not value.is_quantized and value.numel():
            digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
