"""A folder that timm and the Hugging Face hub load: config.json, model.safetensors, README.md."""

from __future__ import annotations

import json
from collections import defaultdict, deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastsc.cli.packages import needed
from fastsc.errors import UserError, first_line
from fastsc.exporting.card import Figures, model_card
from fastsc.exporting.place import made_whole
from fastsc.exporting.trained import CLOSE, Trained

# torchvision's networks that timm has under another name. Whether two compute the same is tried.
TIMM_NAMES = {
    "vit_b_16": "vit_base_patch16_224",
    "vit_b_32": "vit_base_patch32_224",
    "vit_l_16": "vit_large_patch16_224",
    "vit_l_32": "vit_large_patch32_224",
    "vit_h_14": "vit_huge_patch14_224",
    "swin_t": "swin_tiny_patch4_window7_224",
    "swin_s": "swin_small_patch4_window7_224",
    "swin_b": "swin_base_patch4_window7_224",
    "mobilenet_v2": "mobilenetv2_100",
}
OTHERWISE = "take FILE.onnx or FILE.pt2, which hold any network"


def write_folder(target: Path, trained: Trained, figures: Figures | None) -> list[str]:
    """Writes the folder, loads it by timm, and compares its logits with the network's.

    Returns:
        What a person should know of it, a line each.

    Raises:
        UserError: timm has no such network, or the disk does not take it; nothing is left behind.
    """
    needed("timm", str(target))
    needed("safetensors", str(target))
    import safetensors.torch
    import timm

    name, arguments, state = timm_form(trained)
    with made_whole(target, folder=True) as part:
        config = config_of(trained, name, arguments)
        (part / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        try:
            safetensors.torch.save_file(state, part / "model.safetensors", {"format": "pt"})
        except safetensors.SafetensorError as error:  # a full disk, among others
            raise OSError(str(error)) from None
        card = model_card(trained, name, figures)
        (part / "README.md").write_text(card, encoding="utf-8")
        loaded = timm.create_model(f"local-dir:{part}", pretrained=True).eval()
        images = trained.images(2)
        with torch.no_grad():
            difference = trained.difference(loaded(images), images)
        if not difference <= CLOSE:
            raise UserError(
                f"{target}: timm's {name} computes other logits from these weights "
                f"({difference:.2g} of the largest); {OTHERWISE}"
            )
    return [
        f"wrote {target}: config.json, model.safetensors, README.md",
        f"timm.create_model('local-dir:{target}', pretrained=True) gives logits that differ from "
        f"the network's by {difference:.1g} of the largest",
    ]


def timm_form(trained: Trained) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """timm's name of the network, the arguments that it is built with, its weights by timm's names.

    Raises:
        UserError: timm has no network that computes the same.
    """
    import timm

    architecture, stem, blurpool, front = trained.architecture
    name = architecture.removeprefix("timm:").partition(".")[0]  # without a tag of weights
    name = TIMM_NAMES.get(name, name) if architecture == name else name
    if stem == "cifar" and not architecture.startswith("fastsc:"):
        raise UserError(f"--stem cifar: timm's {name} has no stem for small images; {OTHERWISE}")
    if front != "none":
        raise UserError(f"--front {front}: timm's {name} has no such front-end; {OTHERWISE}")
    if blurpool:
        raise UserError(f"--blurpool: timm's {name} does not blur as this run did; {OTHERWISE}")
    if architecture.startswith("fastsc:") or not timm.is_model(name):
        raise UserError(f"timm has no network like {architecture}; {OTHERWISE}")
    arguments: dict[str, Any] = {}
    settings = timm.get_pretrained_cfg(name)
    if settings is not None and settings.fixed_input_size:
        arguments["img_size"] = trained.preprocessing.resolution
    try:
        twin = timm.create_model(
            name, pretrained=False, num_classes=len(trained.classes), **arguments
        )
        state = renamed(trained.net.state_dict(), twin.state_dict())
        twin.load_state_dict(state)
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        raise UserError(
            f"timm's {name} is another network than {architecture}: {first_line(error)}; "
            f"{OTHERWISE}"
        ) from None
    return name, arguments, state


def renamed(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state under the names, and in the shapes, of another implementation of its network.

    By name, where the names are the same. Else tensors are matched in their order among those of
    one shape, dimensions of size 1 aside, which fits networks that list their layers in the order
    of the forward pass. Whether the logits come out the same is for the caller to see.

    Raises:
        ValueError: The two have other tensors.
    """
    if state.keys() == wanted.keys():
        matched = {key: state[key] for key in wanted}
    else:
        waiting: dict[tuple[int, ...], deque[Tensor]] = defaultdict(deque)
        for tensor in state.values():
            waiting[_squeezed(tensor)].append(tensor)
        matched = {}
        for key, tensor in wanted.items():
            if not (of_shape := waiting[_squeezed(tensor)]):
                raise ValueError(f"no weights for {key} {tuple(tensor.shape)}")
            matched[key] = of_shape.popleft().reshape(tensor.shape)
        left = [tensor for queue in waiting.values() for tensor in queue]
        if any(tensor.is_floating_point() for tensor in left):  # others are made when it is built
            raise ValueError("it has fewer weights")
    return {
        key: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for key, tensor in matched.items()
    }


def _squeezed(tensor: Tensor) -> tuple[int, ...]:
    return tuple(side for side in tensor.shape if side != 1)


def config_of(trained: Trained, name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """config.json as timm reads it."""
    import timm

    preprocessing = trained.preprocessing
    side = preprocessing.resolution
    settings = timm.get_pretrained_cfg(name)
    of_network = {} if settings is None else settings.to_dict()
    return {
        "architecture": name,
        "num_classes": len(trained.classes),
        "label_names": list(trained.classes),
        **({"model_args": dict(arguments)} if arguments else {}),
        "pretrained_cfg": {
            **{
                key: of_network[key]
                for key in ("first_conv", "classifier", "fixed_input_size")
                if key in of_network
            },
            "input_size": [3, side, side],
            "interpolation": preprocessing.interpolation,
            "crop_pct": preprocessing.val_crop,
            "crop_mode": "center",
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
            "num_classes": len(trained.classes),
        },
    }
