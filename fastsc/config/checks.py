"""What no type can say of a configuration: its fields' rules, and what options are together."""

from __future__ import annotations

import re

from fastsc.cli.packages import installed
from fastsc.config.rules import MAX_EPOCHS, Rules, spelled
from fastsc.config.schema import STEERED_ALPHA, TrainConfig, field_types
from fastsc.errors import UserError
from fastsc.pipelines.fields import shown
from fastsc.pipelines.perturb_list import parse_list

MAX_STRENGTH = 1000


def check(config: TrainConfig) -> None:
    """Raises UserError, one line, for the first value that cannot be meant."""
    if not config.data.data:
        raise UserError("--data is missing: the folder of images, with train/CLASS/* in it")
    check_ranges(config)
    for name, value in config.flat().items():
        if name != "recipe" and field_types()[name] is str and not value:
            raise UserError(f"{spelled(name)} is empty")
    _check_needs(config)
    _check_method(config)
    _check_resolutions(config)
    optim, run = config.optim, config.run
    if optim.optimizer == "sgd" and optim.nesterov and optim.momentum == 0:
        raise UserError("--nesterov needs --momentum above 0 (or give --no-nesterov)")
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", run.device):
        raise UserError(f"--device must be auto, cpu, cuda or cuda:N, not {run.device!r}")
    if run.compile_mode != "default" and optim.accumulate > 1:
        # The parts' gradients would lie in the graph's own memory, which its next run writes over.
        raise UserError(
            f"--compile-mode {run.compile_mode} records CUDA graphs, which cannot --accumulate; "
            "take --compile-mode default"
        )


def check_ranges(config: TrainConfig) -> None:
    """Raises UserError, one line, for the first number that no run can mean."""
    values = config.flat()
    for name, rules in config.rules().items():
        if isinstance(values[name], (int, float)):
            rules.check_range(spelled(name), values[name])
    check_strengths(config.data.strengths)
    parse_list(config.data.perturb)
    for name, low in (("mean", 0.0), ("std", 1e-6)):
        for value in values[name]:
            Rules(low=low, high=1).check_range(spelled(name), value)


def check_strengths(strengths: tuple[float, float, float, float]) -> None:
    """Raises UserError, one line, for the first strength out of its range."""
    names = ("brightness", "contrast", "saturation", "hue")
    for name, value in zip(names, strengths, strict=True):
        rules = Rules(low=0, high=0.5 if name == "hue" else MAX_STRENGTH)
        rules.check_range(f"--strengths: {name}", value)


def check_packages(config: TrainConfig) -> None:
    """Raises UserError for something that is asked for and whose package is not installed."""
    run, model = config.run, config.model.model
    leave = "leave the option out"
    wanted = (
        ("--tensorboard", run.tensorboard, "tensorboard", "torch.utils.tensorboard", leave),
        ("--wandb", run.wandb, "wandb", "wandb", leave),
        ("--ema", config.optim.ema is not None, "timm", "timm", leave),
        ("--optimizer lamb", config.optim.optimizer == "lamb", "timm", "timm", "take adamw"),
        (f"--model {model}", model.startswith("timm:"), "timm", "timm", "take another model"),
    )
    for option, asked, package, module, else_do in wanted:
        if asked and not installed(module):
            raise UserError(
                f"{option}: {package} is not installed; pip install {package}, or {else_do}"
            )


def _at_default(config: TrainConfig) -> set[str]:
    """The fields that have their defaults."""
    values, defaults = config.flat(), TrainConfig().flat()
    return {name for name, value in values.items() if value == defaults[name]}


def _check_needs(config: TrainConfig) -> None:
    values, usual = config.flat(), _at_default(config)
    for name, rules in config.rules().items():
        value = values[name]
        if rules.needs is None or name in usual or rules.when not in (None, value):
            continue
        other, wanted = rules.needs
        if values[other] != wanted:
            needed = spelled(other, wanted)
            raise UserError(f"{spelled(name, value)} belongs to {needed}: add it")


def _check_method(config: TrainConfig) -> None:
    method, optim = config.method, config.optim
    if method.alpha_warmup_epochs and method.alpha == 0:
        raise UserError("--alpha-warmup-epochs raises alpha from zero, and --alpha is 0")
    if optim.batch_size % optim.accumulate:
        raise UserError(
            f"--batch-size {optim.batch_size} cannot be cut into {optim.accumulate} equal parts: "
            "make it a multiple of --accumulate"
        )
    n_pairs = max(1, round(method.paired_fraction * optim.batch_size))  # as pipelines.plan has it
    if method.ds in ("relative", "sq") and n_pairs // optim.accumulate < 2:
        raise UserError(
            f"--ds {method.ds} measures between images: --batch-size must be at least 2, in each "
            "part of --accumulate and with --paired-fraction"
        )
    if method.objective == "self":
        _check_self(config)
    if method.bn == "frozen" and config.model.init is None:
        raise UserError("--bn frozen keeps statistics, which fresh weights have not: name --init")
    if method.bn == "frozen" and method.sync_bn:
        raise UserError("--sync-bn gathers statistics of batch norm, which --bn frozen keeps")
    if config.model.freeze and config.model.init is None:
        raise UserError("--freeze keeps weights, which would be random ones: name --init")
    if method.ds_target is not None or method.keep is not None:
        _check_steered(config, n_pairs)


def _check_self(config: TrainConfig) -> None:
    """What --objective self cannot go with."""
    data, method = config.data, config.method
    if config.model.init is None:
        raise UserError("repair (--objective self) is of a network: name it with --init first")
    if method.plain:
        raise UserError("--objective self has nothing to learn from --alpha 0 --ce-views clean")
    if config.optim.label_smoothing:
        raise UserError("--objective self has no labels to smooth: --label-smoothing 0")
    if data.pipeline == "ffcv":
        raise UserError("--objective self reads images that need no labels: --pipeline cpu or dali")
    if method.keep is not None and data.val == "none":
        raise UserError("--keep is of held-out images: leave --val none out")


def _check_steered(config: TrainConfig, n_pairs: int) -> None:
    """What a multiplier cannot go with, of --ds-target or of --keep."""
    method = config.method
    option = "--ds-target" if method.keep is None else "--keep"
    if method.ds_target is not None and method.keep is not None:
        raise UserError("--ds-target and --keep both steer alpha: leave one out")
    if method.alpha == 0:
        raise UserError(f"{option} multiplies alpha, and --alpha is 0: begin above 0")
    low, high = STEERED_ALPHA
    if not low <= method.alpha <= high:
        raise UserError(
            f"{option} keeps alpha between {low:g} and {high:g}: --alpha {method.alpha:g} "
            "cannot be its start"
        )
    if method.alpha_warmup_epochs:
        raise UserError(f"{option} moves alpha itself: leave --alpha-warmup-epochs out")
    if not any(config.data.strengths) and not config.data.perturb:
        raise UserError(f"{option} needs a perturbation, and --strengths is 0 0 0 0")
    if n_pairs < 2:
        raise UserError(
            f"{option} measures between images: --batch-size must be at least 2, and with "
            "--paired-fraction at least 2 pairs"
        )


def _check_resolutions(config: TrainConfig) -> None:
    data = config.data
    first, last = data.resolution_ramp
    if data.min_resolution is None:
        if (first, last) != (0, 0):
            raise UserError("--resolution-ramp belongs to --min-resolution: add it")
        return
    if data.min_resolution > data.resolution:
        raise UserError(
            f"--min-resolution {data.min_resolution} is above --resolution {data.resolution}"
        )
    if (first, last) == (0, 0):
        raise UserError(
            "--min-resolution needs --resolution-ramp FIRST LAST: the epochs over which it rises"
        )
    if not 0 <= first <= last <= MAX_EPOCHS:
        raise UserError(
            f"--resolution-ramp {shown(first)} {shown(last)}: give two epochs from 0 to "
            f"{MAX_EPOCHS:,}, the earlier one first"
        )
