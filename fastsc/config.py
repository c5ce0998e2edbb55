"""What a run can be told: frozen dataclasses, one a concern.

The strings under the fields are the `--help`. Field names are unique over the sections, so that
the options and a recipe's YAML are flat. `TrainConfig.check` finds what no type can say; paths are
looked at when they are used.
"""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Self

import tyro

from fastsc.pipelines.errors import UserError

Dir = Annotated[str, tyro.conf.arg(metavar="DIR")]
Count = Annotated[int | None, tyro.conf.arg(metavar="N")]
Strengths = Annotated[tuple[float, float, float, float], tyro.conf.arg(metavar="B C S H")]


@dataclass(frozen=True)
class DataConfig:
    """Images: where they are, how they are cut, how the second view is perturbed."""

    data: Annotated[str, tyro.conf.arg(metavar="DIR", help_behavior_hint="(required)")] = ""
    """An ImageFolder: DIR/train/CLASS/* and DIR/val/CLASS/* (or DIR/test/CLASS/*)."""
    val: Dir = "auto"
    """Folder of validation images, CLASS/*. auto: DIR/val, else DIR/test; none: no validation."""
    pipeline: Literal["dali", "cpu", "memory"] = "dali"
    """Who loads. dali: NVIDIA DALI, decodes on the GPU where there is one; cpu: threads of this
    process with the fastest JPEG decoder installed; memory: small images (CIFAR), all held as one
    array. Crops, flips and perturbations of an image are the same in each; never replaced silently
    by another."""
    resolution: int = 224
    """Side of the square that the model sees, in pixels. Cost grows with its square."""
    crop: Literal["rrc", "pad", "none"] = "rrc"
    """Training crop. rrc: random area of 8 to 100 % and aspect 3/4 to 4/3, resized; pad: resized,
    4 black pixels of border, then a random square (small images); none: the central square."""
    flip: bool = True
    """Mirror half of the training images left to right; both views of an image alike."""
    val_crop: float = 0.875
    """Central part of the image kept at validation, as a fraction of its shorter side, in (0, 1].
    0.875 is ImageNet's 224 of 256; 1 keeps all (small images)."""
    val_every: int = 1
    """Validate after every so many epochs, and after the last."""
    strengths: Strengths = (0.4, 0.4, 0.4, 0.1)
    """Of the perturbation: brightness, contrast, saturation, hue. An image's factors are uniform in
    [max(0, 1 - s), 1 + s], its hue shift in [-s, s] turns (at most 0.5). 0 0 0 0: no
    perturbation."""
    workers: Count = None
    """Threads that decode. None: one a core that this process may use, at most 16."""
    on_bad_image: Literal["raise", "skip"] = "raise"
    """A broken image. raise: stop, name the file, exit 2, resumable; skip: put another in its place
    in the batch, and write a bad_image line to the log."""
    verify: bool = False
    """Decode every image once before training starts: finds truncated files at the price of one
    epoch's decoding."""


@dataclass(frozen=True)
class MethodConfig:
    """Semantic continuity: loss = CE + alpha * DS(clean view, perturbed view)."""

    # The default pair is the one of our sketch (small ResNets, CIFAR-100, 20,000 images, 10 epochs;
    # top-1 / top-1 perturbed / ds_relative) that lowers ds_relative well under both baselines at no
    # cost in accuracy: cosine at 3 with CE on both views 55.5 / 52.7 / 0.156, where CE alone gives
    # 54.9 / 43.0 / 0.346 and CE on both views 55.4 / 50.9 / 0.209. Cosine at 10 and relative at 1
    # go lower (0.132, 0.131) for 1 to 2 points of top-1; l2 at 1, the paper's plain reading,
    # collapses the features (top-1 2 %). A cosine has no scale that a network could shrink.
    alpha: float = 3.0
    """Weight of DS in the loss; 0 trains without it (DS is still logged). It belongs to the kind of
    DS: cosine bears 1 to 10, relative about 1, l2 about 0.1; l2 at 1 collapses the features."""
    ds: Literal["l2", "relative", "cosine", "js"] = "cosine"
    """Distance of the two representations. l2: Euclidean, the paper's plain reading, can be cheated
    by shrinking the features; relative: l2 over the mean distance of different images of the batch;
    cosine: 1 - cosine, blind to scale; js: Jensen-Shannon divergence of the predictions (needs
    --ds-at logits)."""
    ds_at: Literal["features", "logits"] = "features"
    """Where DS is taken: features, the input of the classifier's last linear layer (after pooling),
    or logits, its output."""
    detach_scale: bool = False
    """With --ds relative: hold the scale constant in the gradient. Pulls harder the smaller the
    scale gets, and collapsed at alpha 1 in our trials."""
    stop_gradient: Literal["none", "clean", "perturbed"] = "none"
    """The view whose representation gets no gradient from DS: a fixed target for the other."""
    ce_views: Literal["clean", "both"] = "both"
    """Views that get cross-entropy. clean: the paper's loss; both: the mean of the two, so that the
    second forward pass also serves as augmentation (a stronger baseline)."""


@dataclass(frozen=True)
class ModelConfig:
    """The classifier."""

    model: str = "resnet50"
    """A torchvision name (resnet18, convnext_tiny, …) or timm:NAME, with fresh weights."""
    stem: Literal["imagenet", "cifar"] = "imagenet"
    """imagenet: the architecture's own; cifar: a 3x3 convolution of stride 1 without max-pooling,
    for ResNets on images of about 32 pixels."""
    num_classes: Count = None
    """Outputs of the classifier. None: as many as the training folder has classes."""


@dataclass(frozen=True)
class OptimConfig:
    """SGD with momentum; no weight decay on norms and biases."""

    epochs: int = 90
    """Passes over the training images; the schedule ends with the last."""
    max_steps: Count = None
    """Stop after so many steps, validate and write everything, for trials. The schedule stays that
    of --epochs."""
    batch_size: int = 256
    """Unique images a step; the model sees twice as many, one clean and one perturbed view each."""
    lr: float = 0.1
    """Base learning rate, for 256 images: the peak is lr * batch size / 256, and is printed."""
    momentum: float = 0.9
    """Of SGD, in [0, 1)."""
    nesterov: bool = True
    """Nesterov's form of the momentum."""
    weight_decay: float = 1e-4
    """On weights of convolutions and linear layers only."""
    label_smoothing: float = 0.1
    """Part of the target spread evenly over all classes, in [0, 1)."""
    schedule: Literal["cosine", "linear", "step", "constant"] = "cosine"
    """Learning rate after the warm-up. cosine, linear: down to zero; step: a tenth after 1/3, 2/3
    and 8/9 of the run (epochs 30, 60, 80 of 90); constant: stays."""
    warmup_epochs: float = 5.0
    """Linear rise of the learning rate from zero, in epochs; never more than half of the run."""


@dataclass(frozen=True)
class RunConfig:
    """The run: its folder, its machine, its repetition."""

    out: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """The run's folder: config.yaml, log.jsonl, checkpoints/, weights.safetensors.
    None: runs/RECIPE-DATE-TIME. A folder with files in it needs --resume."""
    resume: bool = False
    """Go on in --out from the newest whole checkpoint; without one, start over and say so."""
    checkpoint_steps: Count = None
    """Write a checkpoint every so many steps, besides epoch ends and --checkpoint-minutes."""
    checkpoint_minutes: float = 5.0
    """Write a checkpoint when so many minutes have passed since the last: what a crash may cost."""
    device: str = "auto"
    """cuda, cuda:N or cpu. auto: cuda where there is one, else cpu."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Of the forward pass; weights, pooling and losses stay float32. fp16 scales its gradients.
    auto: bf16 where the device computes it natively, else fp32."""
    seed: int = 0
    """Of the initial weights and, by (seed, epoch, image), of order, crops, flips and factors."""
    deterministic: bool = False
    """Only deterministic GPU kernels: repeats and resumes are bit-exact there too, and slower. On
    a CPU they are anyway, with the same versions and thread count."""
    log_every: int = 10
    """Steps from one line of log.jsonl to the next, 1 to 10; first and last are always written."""


SECTIONS = ("data", "method", "model", "optim", "run")


@dataclass(frozen=True)
class TrainConfig:
    """All of a training run. `config.optim.lr`, or `config.flat()["lr"]`."""

    recipe: Annotated[
        tyro.conf.Positional[str],
        tyro.conf.arg(metavar="RECIPE", help_behavior_hint="(required)"),
    ] = ""
    """A recipe by name (--list-recipes prints them) or a path to a YAML file of the same fields,
    such as a run's config.yaml. Options given on the command line win over it."""
    data: DataConfig = field(default_factory=DataConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def flat(self) -> dict[str, Any]:
        """Every field by its name, in the order of the sections, `recipe` first."""
        values: dict[str, Any] = {"recipe": self.recipe}
        for name in SECTIONS:
            section = getattr(self, name)
            values |= {f.name: getattr(section, f.name) for f in dataclasses.fields(section)}
        return values

    def replace(self, **values: Any) -> Self:
        """A copy with fields of any section changed by their flat names: replace(out="x", lr=1)."""
        changes: dict[str, Any] = {}
        if "recipe" in values:
            changes["recipe"] = values.pop("recipe")
        for name in SECTIONS:
            section = getattr(self, name)
            fields = [f.name for f in dataclasses.fields(section)]
            mine = {key: values.pop(key) for key in fields if key in values}
            if mine:
                changes[name] = dataclasses.replace(section, **mine)
        if values:
            raise TypeError(f"no such fields: {', '.join(values)}")
        return dataclasses.replace(self, **changes)

    def check(self) -> None:
        """Raise UserError, one line, for the first value that cannot be meant."""
        values = self.flat()
        if not self.data.data:
            raise UserError("--data is missing: the folder of images, with train/CLASS/* in it")
        for name, low, high in _RANGES:
            if (value := values[name]) is not None:
                _check_range(name, value, low, high)
        for name, value, high in zip(
            ("brightness", "contrast", "saturation", "hue"),
            self.data.strengths,
            (math.inf, math.inf, math.inf, 0.5),
            strict=True,
        ):
            _check_range(f"strengths: {name}", value, 0, high)
        for name in ("momentum", "label_smoothing"):
            if values[name] == 1:
                raise UserError(f"--{_option(name)} must be below 1")
        for name in ("lr", "val_crop", "checkpoint_minutes"):
            if values[name] == 0:
                raise UserError(f"--{_option(name)} must be above 0")
        self._check_together()

    def _check_together(self) -> None:
        method, optim = self.method, self.optim
        if method.ds == "js" and method.ds_at != "logits":
            raise UserError("--ds js compares predictions: add --ds-at logits")
        if method.detach_scale and method.ds != "relative":
            raise UserError(
                f"--detach-scale belongs to --ds relative; --ds {method.ds} has no scale"
            )
        if method.ds == "relative" and optim.batch_size < 2:
            raise UserError(
                "--ds relative measures between images: --batch-size must be at least 2"
            )
        if optim.nesterov and optim.momentum == 0:
            raise UserError("--nesterov needs --momentum above 0 (or give --no-nesterov)")
        if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", self.run.device):
            raise UserError(f"--device must be auto, cpu, cuda or cuda:N, not {self.run.device!r}")
        for name in ("val", "model"):
            if not self.flat()[name]:
                raise UserError(f"--{name} is empty")


# Field, lowest and highest value, both allowed.
_RANGES: tuple[tuple[str, float, float], ...] = (
    ("resolution", 8, 4096),
    ("val_crop", 0, 1),
    ("val_every", 1, math.inf),
    ("workers", 1, 1024),
    ("alpha", 0, math.inf),
    ("num_classes", 2, math.inf),
    ("epochs", 1, math.inf),
    ("max_steps", 1, math.inf),
    ("batch_size", 1, math.inf),
    ("lr", 0, math.inf),
    ("momentum", 0, 1),
    ("weight_decay", 0, math.inf),
    ("label_smoothing", 0, 1),
    ("warmup_epochs", 0, math.inf),
    ("checkpoint_steps", 1, math.inf),
    ("checkpoint_minutes", 0, math.inf),
    ("seed", 0, 2**63 - 1),
    ("log_every", 1, 10),
)


def _option(name: str) -> str:
    return name.replace("_", "-")


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not math.isfinite(value):
        raise UserError(f"--{_option(name)} must be a finite number, not {value}")
    if value < low:
        raise UserError(f"--{_option(name)} must be at least {low:g}, not {value:g}")
    if value > high:
        raise UserError(f"--{_option(name)} must be at most {high:g}, not {value:g}")
