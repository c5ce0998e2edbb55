"""What no type can say of a configuration: ranges, and options that do not go together."""

from __future__ import annotations

import math
import re

from fastsc.cli.packages import installed
from fastsc.config.schema import STEERED_ALPHA, TrainConfig
from fastsc.errors import UserError
from fastsc.pipelines.fields import shown

# Beyond what any real run asks for; without an end, a number is too large for what is made of it.
MAX_EPOCHS = 1_000_000
MAX_BATCH = 2**24
MAX_IMAGES = 10**12
MAX_SEED = 2**63 - 1
MAX_STRENGTH = 1000
WEEK = 86400 * 7  # seconds; as minutes, 420 days

MAX_SHOWN = 10**15  # written in full
# Field, lowest and highest value, both allowed.
_RANGES: tuple[tuple[str, float, float], ...] = (
    ("resolution", 8, 4096),
    ("min_resolution", 8, 4096),
    ("val_crop", 0, 1),
    ("val_resolution", 8, 4096),
    ("val_every", 1, MAX_EPOCHS),
    ("workers", 1, 1024),
    ("loader_timeout", 0, WEEK),
    ("alpha", 0, 1_000_000),
    ("ds_target", 0, 1_000_000),
    ("alpha_warmup_epochs", 0, MAX_EPOCHS),
    ("paired_fraction", 0, 1),
    ("num_classes", 2, 10_000_000),
    ("epochs", 1, MAX_EPOCHS),
    ("max_steps", 1, 10**12),
    ("batch_size", 1, MAX_BATCH),
    ("accumulate", 1, MAX_BATCH),
    ("lr", 0, 1e30),
    ("momentum", 0, 1),
    ("weight_decay", 0, 1e30),
    ("label_smoothing", 0, 1),
    ("warmup_epochs", 0, MAX_EPOCHS),
    ("clip_grad", 0, 10**12),
    ("ema", 0, 1),
    ("checkpoint_steps", 1, 10**12),
    ("checkpoint_minutes", 0, WEEK),
    ("keep_checkpoints", 2, 1_000_000),
    ("rank_timeout", 0, WEEK),
    ("disk_timeout", 0, WEEK),
    ("seed", 0, MAX_SEED),
    ("log_every", 1, 10),
)
_BELOW_ONE = ("momentum", "label_smoothing", "ema")
_ABOVE_ZERO = (
    "lr",
    "val_crop",
    "loader_timeout",
    "checkpoint_minutes",
    "rank_timeout",
    "disk_timeout",
    "paired_fraction",
    "ds_target",
    "clip_grad",
    "ema",
)


def check(config: TrainConfig) -> None:
    """Raises UserError, one line, for the first value that cannot be meant."""
    if not config.data.data:
        raise UserError("--data is missing: the folder of images, with train/CLASS/* in it")
    check_ranges(config)
    values = config.flat()
    for name in ("val", "model", "ds_at"):
        if not values[name]:
            raise UserError(f"--{_option(name)} is empty")
    _check_method(config)
    _check_resolutions(config)
    optim, run = config.optim, config.run
    if optim.nesterov and optim.momentum == 0:
        raise UserError("--nesterov needs --momentum above 0 (or give --no-nesterov)")
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", run.device):
        raise UserError(f"--device must be auto, cpu, cuda or cuda:N, not {run.device!r}")
    if config.data.decode == "gpu" and config.data.pipeline != "dali":
        raise UserError(f"--decode gpu belongs to --pipeline dali, not {config.data.pipeline}")
    if run.pooling == "fused" and not run.channels_last:
        raise UserError("--pooling fused reads channels-last maps: leave --no-channels-last out")
    if run.compile_mode != "default" and not run.compile:
        raise UserError(f"--compile-mode {run.compile_mode} belongs to --compile: add it")
    if run.compile_mode != "default" and optim.accumulate > 1:
        # The parts' gradients would lie in the graph's own memory, which its next run writes over.
        raise UserError(
            f"--compile-mode {run.compile_mode} records CUDA graphs, which cannot --accumulate; "
            "take --compile-mode default"
        )


def check_ranges(config: TrainConfig) -> None:
    """Raises UserError, one line, for the first number that no run can mean."""
    values = config.flat()
    for name, low, high in _RANGES:
        if (value := values[name]) is not None:
            _check_range(name, value, low, high)
    check_strengths(config.data.strengths)
    for name in _BELOW_ONE:
        if values[name] == 1:
            raise UserError(f"--{_option(name)} must be below 1")
    for name in _ABOVE_ZERO:
        if values[name] == 0:
            raise UserError(f"--{_option(name)} must be above 0")


def check_strengths(strengths: tuple[float, float, float, float]) -> None:
    """Raises UserError, one line, for the first strength out of its range."""
    for name, value, high in zip(
        ("brightness", "contrast", "saturation", "hue"),
        strengths,
        (MAX_STRENGTH, MAX_STRENGTH, MAX_STRENGTH, 0.5),
        strict=True,
    ):
        _check_range(f"strengths: {name}", value, 0, high)


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


def _check_method(config: TrainConfig) -> None:
    method, optim = config.method, config.optim
    if method.ds == "js" and method.ds_at != "logits":
        raise UserError("--ds js compares predictions: add --ds-at logits")
    if method.detach_scale and method.ds != "relative":
        raise UserError(f"--detach-scale belongs to --ds relative; --ds {method.ds} has no scale")
    if method.alpha_warmup_epochs and method.alpha == 0:
        raise UserError("--alpha-warmup-epochs raises alpha from zero, and --alpha is 0")
    if optim.batch_size % optim.accumulate:
        raise UserError(
            f"--batch-size {optim.batch_size} cannot be cut into {optim.accumulate} equal parts: "
            "make it a multiple of --accumulate"
        )
    n_pairs = max(1, round(method.paired_fraction * optim.batch_size))  # as pipelines.plan has it
    if method.ds == "relative" and n_pairs // optim.accumulate < 2:
        raise UserError(
            "--ds relative measures between images: --batch-size must be at least 2, in each part "
            "of --accumulate and with --paired-fraction"
        )
    if method.ds_target is not None:
        _check_target(config, n_pairs)


def _check_target(config: TrainConfig, n_pairs: int) -> None:
    method = config.method
    if method.alpha == 0:
        raise UserError("--ds-target multiplies alpha, and --alpha is 0: begin above 0")
    low, high = STEERED_ALPHA
    if not low <= method.alpha <= high:
        raise UserError(
            f"--ds-target keeps alpha between {low:g} and {high:g}: --alpha {method.alpha:g} "
            "cannot be its start"
        )
    if method.alpha_warmup_epochs:
        raise UserError("--ds-target moves alpha itself: leave --alpha-warmup-epochs out")
    if not any(config.data.strengths):
        raise UserError("--ds-target needs a perturbation, and --strengths is 0 0 0 0")
    if n_pairs < 2:
        raise UserError(
            "--ds-target measures between images: --batch-size must be at least 2, and with "
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


def _option(name: str) -> str:
    return name.replace("_", "-")


def _shown(bound: float) -> str:
    return f"{bound:,}" if bound < MAX_SHOWN else f"{bound:g}"


def _check_range(name: str, value: float, low: float, high: float) -> None:
    """Raises UserError outside of the range; whole numbers may be larger than any float."""
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"--{_option(name)} must be a finite number, not {value}")
    if low <= value <= high:
        return
    found = shown(value) if isinstance(value, int) else f"{value:g}"
    option, limits = f"--{_option(name)}", f"(from {_shown(low)} to {_shown(high)})"
    if value < low and name in _ABOVE_ZERO:
        raise UserError(f"{option} must be above 0, not {found}")
    if value < low:
        raise UserError(f"{option} must be at least {_shown(low)}, not {found} {limits}")
    raise UserError(f"{option} must be at most {_shown(high)}, not {found} {limits}")
