"""torchvision's reference training script at our dtype and memory layout.

`python -m bench.train_torchvision SCRIPT [--layout nchw] [--precision fp32] SCRIPT'S OPTIONS`

SCRIPT is references/classification/train.py of github.com/pytorch/vision, which has no option for
either: its --amp is CUDA's float16. What is changed from outside: --amp autocasts to bfloat16 on
the device in use and scales nothing; the model's weights are channels-last; `timm:NAME` names a
model too; and what follows the training, one pass over the validation images, is left out. Its
loader, its step and its log are its own.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torchvision
from torch import nn


def load(script: Path) -> ModuleType:
    """The script as a module; its neighbours (utils, presets, …) are what it imports by name."""
    sys.path.insert(0, str(script.parent.resolve()))
    spec = importlib.util.spec_from_file_location("torchvision_reference", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its functions may be sent to worker processes
    spec.loader.exec_module(module)
    return module


def model_maker(channels_last: bool) -> Any:
    """torchvision.models.get_model, in the layout wanted and with timm's models besides."""
    own = torchvision.models.get_model

    @functools.wraps(own)
    def get_model(name: str, **options: Any) -> nn.Module:
        net: nn.Module
        if name.startswith("timm:"):
            import timm

            net = timm.create_model(name.removeprefix("timm:"), num_classes=options["num_classes"])
        else:
            net = own(name, **options)
        return net.to(memory_format=torch.channels_last) if channels_last else net

    return get_model


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.train_torchvision", add_help=False)
    parser.add_argument("script", type=Path)
    parser.add_argument("--layout", choices=("nhwc", "nchw"), default="nhwc")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    ours, theirs = parser.parse_known_args(arguments)
    script = load(ours.script)
    if ours.precision == "bf16":
        theirs.append("--amp")
    options = script.get_args_parser().parse_args(theirs)
    device = torch.device(options.device).type

    def autocast(enabled: bool = True) -> torch.autocast:
        return torch.autocast(device, torch.bfloat16, enabled=enabled)

    def scaler() -> torch.amp.GradScaler:
        return torch.amp.GradScaler(device, enabled=False)

    torch.cuda.amp.autocast, torch.cuda.amp.GradScaler = autocast, scaler  # type: ignore[misc,assignment]
    torchvision.models.get_model = model_maker(ours.layout == "nhwc")
    script.evaluate = lambda *_, **__: 0.0  # type: ignore[attr-defined]
    script.main(options)


if __name__ == "__main__":
    main()
