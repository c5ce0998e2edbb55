"""Packages that fastsc can do without: imported where they are used, or what to install is said."""

from __future__ import annotations

import importlib

from fastsc.config import TrainConfig
from fastsc.pipelines.errors import UserError


def installed(module: str) -> bool:
    """Whether a module can be imported; imports it."""
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True


def needed(package: str, what: str) -> None:
    """Raises UserError where `what` cannot go on for want of a package."""
    if not installed(package):
        raise UserError(f"{what} needs {package}: pip install {package}")


def check_packages(config: TrainConfig) -> None:
    """Raises UserError for something that is asked for and whose package is not installed."""
    run, model = config.run, config.model.model
    leave = "leave the option out"
    wanted = (
        ("--tensorboard", run.tensorboard, "tensorboard", "torch.utils.tensorboard", leave),
        ("--wandb", run.wandb, "wandb", "wandb", leave),
        ("--ema", config.optim.ema is not None, "timm", "timm", leave),
        (f"--model {model}", model.startswith("timm:"), "timm", "timm", "take another model"),
    )
    for option, asked, package, module, else_do in wanted:
        if asked and not installed(module):
            raise UserError(
                f"{option}: {package} is not installed; pip install {package}, or {else_do}"
            )
