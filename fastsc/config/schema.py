"""What a run can be told: frozen dataclasses, one per concern.

A field is all there is of an option: its type, its default, its `Rules`, and the string under it,
which is the `--help`. Field names are unique over the sections, so that the options and a recipe's
YAML are flat. `fastsc.config.checks` has what several options together must be; paths are checked
when they are used.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, Any, Literal, Self, get_type_hints

from fastsc.config.rules import (
    MAX_BATCH,
    MAX_EPOCHS,
    MAX_SEED,
    MAX_STEPS,
    WEEK,
    Rules,
    option,
)


def _tyro(name: str, **how: object) -> object:
    """tyro's mark on a field; nothing where the command line's parser is missing."""
    try:
        from tyro import conf
    except ModuleNotFoundError:
        return None
    mark: Any = getattr(conf, name)
    return mark(**how) if how else mark


def _shown(metavar: str, *, required: bool = False) -> object:
    """How a field is shown in --help."""
    hint = "(required)" if required else None
    return _tyro("arg", metavar=metavar, help_behavior_hint=hint)


Dir = Annotated[str, _shown("DIR")]
Count = Annotated[int | None, _shown("N")]
Number = Annotated[float | None, _shown("X")]
Epochs = Annotated[tuple[int, int], _shown("FIRST LAST")]
Color = Annotated[tuple[float, float, float], _shown("R G B")]
Patterns = Annotated[tuple[str, ...], _shown("PATTERN …")]
Strengths = Annotated[tuple[float, float, float, float], _shown("B C S H")]
Names = Annotated[tuple[str, ...], _shown("NAME[=STRENGTH]")]

Switch = Literal["auto"] | bool  # --NAME, --no-NAME, or --NAME auto

DEFAULT_ALPHA = {"sq": 16.0}  # of --ds; of the kinds that are not here, the field's own
STEERED_ALPHA = (1e-3, 1e4)  # where --ds-target keeps alpha


@dataclass(frozen=True)
class DataConfig:
    """Images: where they are, how they are cut, how the second view is perturbed."""

    data: Annotated[str, _shown("DIR", required=True)] = option("", part="local")
    """An ImageFolder: DIR/train/CLASS/* and DIR/val/CLASS/* (or DIR/test/CLASS/*). Or tars, not
    unpacked: DIR/train/*.tar and DIR/val/*.tar, or DIR/train-000.tar, DIR/val-000.tar and so on. Or
    LIST.csv, with the columns path, label and split. With --pipeline ffcv a folder with train.beton
    and val.beton, made by `python -m fastsc.prepare beton`."""
    label_key: Annotated[str | None, _shown("NAME")] = option(None, part="local")
    """In WebDataset's tars, the field of every KEY.json that is the label. None: KEY.cls, else the
    field label."""
    val: Dir = option("auto", part="local")
    """Validation images: a folder of CLASS/* or *.tar, or a list. auto: DIR/val, else DIR/test;
    none: no validation. With --pipeline ffcv an FFCV dataset; auto: DIR/val.beton."""
    pipeline: Literal["dali", "cpu", "ffcv", "memory"] = option("dali", resume="allowed")
    """Who loads. dali: NVIDIA DALI, decodes on the GPU where there is one; cpu: threads of this
    process with the fastest JPEG decoder installed; ffcv: FFCV datasets (.beton) of shrunk images,
    by FFCV's decoder; memory: small images (CIFAR), all held as one array. Crops, flips and
    perturbations of an image are the same in each; never replaced silently by another."""
    resolution: int = option(224, low=8, high=4096)
    """Side of the square that the model sees, in pixels. Cost grows with its square."""
    min_resolution: Count = option(None, low=8, high=4096)
    """Progressive resolution: train at this side first. It rises over --resolution-ramp to
    --resolution, in multiples of 32. None: one resolution throughout."""
    resolution_ramp: Epochs = (0, 0)
    """With --min-resolution: up to epoch FIRST the smaller side, from LAST on --resolution, counted
    from 0; in between the nearest multiple of 32 of the straight line."""
    crop: Literal["rrc", "pad", "reflect", "none"] = "rrc"
    """Training crop. rrc: random area of 8 to 100 % and aspect 3/4 to 4/3, resized; pad: resized,
    4 black pixels of border, then a random square (small images); reflect: the same with a border
    mirrored at the image's edges, which --front wants; none: the central square."""
    flip: bool = True
    """Mirror half of the training images left to right; both views of an image alike."""
    val_crop: float = option(0.875, above=0, high=1)
    """Central part of the image kept at validation, as a fraction of its shorter side, in (0, 1].
    0.875 is ImageNet's 224 of 256; 1 keeps all (small images)."""
    val_resolution: Count = option(None, low=8, high=4096, resume="allowed")
    """Side of the validation images. None: --resolution."""
    val_flip: bool = option(False, resume="allowed")
    """At validation, add the logits of the mirrored image (test-time augmentation). DS and
    ds_relative are of the image as it is."""
    val_precision: Literal["fp32", "tf32", "bf16"] = option("fp32", resume="allowed", since="0.2")
    """Of validation. tf32: float32 with the products of a GPU's tensor cores, three digits and
    several times as fast there; bf16: as --precision bf16."""
    val_every: int = option(1, low=1, high=MAX_EPOCHS, part="machine")
    """Validate after every so many epochs, and after the last."""
    mean: Color = option((0.485, 0.456, 0.406), since="0.1.0")
    """Of R, G and B on [0, 1], which is subtracted from the views: ImageNet's, or with --init the
    network's own."""
    std: Color = option((0.229, 0.224, 0.225), since="0.1.0")
    """Of R, G and B on [0, 1], by which the views are divided; likewise."""
    interpolation: Literal["bilinear", "bicubic"] = option("bilinear", since="0.1.0")
    """Of the antialiased resize; with --init that of the network. --pipeline ffcv averages areas,
    and takes the default alone."""
    strengths: Strengths = (0.4, 0.4, 0.4, 0.1)
    """Of the perturbation: brightness, contrast, saturation, hue. An image's factors are uniform in
    [max(0, 1 - s), 1 + s], its hue shift in [-s, s] turns (at most 0.5). 0 0 0 0: no
    perturbation."""
    perturb: Names = option((), since="0.1.0")
    """What becomes the perturbed view is changed by these before --strengths, on bytes, in this
    order: gamma, temperature, exposure, grayscale, blur, sharpness, noise, jpeg, posterize, each as
    NAME or NAME=STRENGTH (docs/perturbations.md), or a function of one's own, module:function."""
    workers: Count = option(None, low=1, high=1024, part="local")
    """Threads that decode, of each process. None: its share of the cores that the processes of this
    machine may use, at most 16. As many read files for --pipeline dali, but at least 4."""
    decode: Literal["auto", "gpu", "cpu"] = option(
        "auto", part="machine", when="gpu", needs=("pipeline", "dali")
    )
    """Where --pipeline dali decodes and resizes. auto: on the GPU where the run has one; cpu: there
    never. The other pipelines decode on the CPU."""
    decode_hardware: float = option(0.0, low=0, high=1, part="local", needs=("pipeline", "dali"))
    """Part of a batch, in [0, 1], that --pipeline dali gives to the JPEG engines of a GPU that has
    them (A100, H100; DALI's hw_decoder_load, 0.65 by its own default). They write without waiting
    for earlier work on their stream, so that a busy GPU may spoil images, and they round otherwise
    than the other decoder."""
    exact_decode: bool = option(False, since="0.1.0", before=True)
    """Of JPEGs whose crop is at least twice the output's size, decode every pixel with --pipeline
    cpu, too. Without it their crop is decoded at a half, a quarter or an eighth in training, which
    is faster and by half a level of 255 another image. The other pipelines, and validation, decode
    every pixel anyway."""
    prefetch: bool = option(True, part="machine")
    """With a GPU: copy the next batch there and make its views while the step at hand runs, on a
    stream of its own. Without: before each step."""
    on_bad_image: Literal["raise", "skip"] = option("raise", part="machine")
    """A broken image. raise: stop, name the file, exit 2, resumable; skip: put another in its place
    in the batch, and write a bad_image line to the log."""
    loader_timeout: float = option(120.0, above=0, high=WEEK, part="local")
    """Seconds without a batch after which the run stops and names the stage and the file that it
    waits for: a dead mount, a hanging decoder."""
    verify: bool = option(False, part="machine")
    """Decode every image once before training starts: finds truncated files at the price of one
    epoch's decoding."""


@dataclass(frozen=True)
class MethodConfig:
    """Semantic continuity: loss = CE + alpha * DS(clean view, perturbed view)."""

    # docs/reproduction-details.md sets the default beside other settings. A cosine has no scale
    # that could be shrunk; l2 at 1, the paper's plain reading, collapses the features, and a cosine
    # at 100 from the first step costs two fifths of top-1: a weight that rises over the whole run
    # leaves the early epochs to the cross-entropy.
    alpha: float = option(30.0, low=0, high=1_000_000)
    """Weight of DS in the loss; 0 trains without it (DS is still logged). It belongs to the kind of
    DS: cosine bears 10 to 100, rising, sq 8 to 32, rising, relative about 1, l2 about 0.1; l2 at 1
    collapses the features. With --ds sq the default is 16."""
    ds: Literal["l2", "relative", "cosine", "js", "mse", "sq"] = option(
        "cosine", when="js", needs=("ds_at", "logits")
    )
    """Distance of the two representations. l2: Euclidean, the paper's plain reading, can be cheated
    by shrinking the features; relative: l2 over the mean distance of different images of the batch;
    cosine: 1 - cosine, blind to scale; js: Jensen-Shannon divergence of the predictions (needs
    --ds-at logits), AugMix's with --ce-views clean --alpha 12; mse: mean squared difference, the
    loss of logit pairing with --ds-at logits; cheated by shrinking, as l2; sq: mean squared
    distance over twice the variance of the pairs' midpoints, blind to a common scale and offset."""
    ds_target: Number = option(None, above=0, high=1_000_000)
    """A wanted ds_relative, in place of a fixed alpha: --alpha is then where alpha begins. Every 10
    steps it rises where the training batches' ds_relative is above the target and falls where it
    is below, between 0.001 and 10000, and it backs off where the features collapse. None: alpha
    stays."""
    alpha_warmup_epochs: Number = option(None, low=0, high=MAX_EPOCHS)
    """Linear rise of alpha from zero, in epochs: features first, continuity then. None: over the
    whole run; 0: none."""
    ds_at: str = "features"
    """Where DS is taken: features, the input of the classifier's last linear layer (after pooling);
    logits, its output; or a module of the model by name (layer3, stages.2), whose output is
    averaged over all positions."""
    detach_scale: bool = option(False, needs=("ds", "relative"))
    """With --ds relative: hold the scale constant in the gradient. Pulls harder the smaller the
    scale gets, and collapsed at alpha 1 in our trials."""
    stop_gradient: Literal["none", "clean", "perturbed"] = "none"
    """The view whose representation gets no gradient from DS: a fixed target for the other."""
    ce_views: Literal["clean", "both"] = "both"
    """Views that get cross-entropy. clean: the paper's loss; both: the mean of the two, so that the
    second forward pass also serves as augmentation (a stronger baseline)."""
    paired_fraction: float = option(1.0, above=0, high=1)
    """Part of each batch that has a perturbed view, in (0, 1]: the first images of the batch in the
    epoch's keyed order. What a step costs falls with it; CE and DS are means over the views that
    there are."""
    bn: Literal["joint", "split", "frozen"] = "joint"
    """Statistics of batch norm in training. joint: over clean and perturbed views together; split:
    each kind of view by its own, as if it were a forward pass of its own; frozen: the running ones
    of --init, which stay (scales and shifts are trained, unless --freeze names them)."""
    sync_bn: bool = False
    """With several processes: statistics of batch norm over the images of all of them. Without,
    each normalizes by its own share; the running statistics are averaged before validation."""

    objective: Literal["labels", "self"] = option("labels", since="0.1.0")
    """What takes the place of the labels. self: the answers to the clean view that the network of
    --init gave before it was trained, as probabilities: the loss is the KL divergence from them, of
    both views, plus alpha * DS. The images then need no labels, and may lie in one folder. Top-1 of
    a validation is agreement with those answers."""
    keep: Number = option(None, above=0, below=1, since="0.1.0", needs=("objective", "self"))
    """Least agreement with the old answers on held-out images (--val, else a keyed tenth of the
    images). Alpha then rises while fewer of the training images' answers change, and falls with the
    learning rate where more do; an end that breaks the bound is drawn back on the line to the
    weights of before, as far as it takes. None: alpha stays, and the end is exported as it is."""

    @property
    def plain(self) -> bool:
        """Cross-entropy on the clean views alone: the perturbed ones are evaluated for the log."""
        return self.alpha == 0 and self.ce_views == "clean"


def untagged(model: str) -> str:
    """A model's name without the tag of weights that timm's may have: timm:resnet50.a1_in1k."""
    return model.partition(".")[0] if model.startswith("timm:") else model


@dataclass(frozen=True)
class ModelConfig:
    """The classifier."""

    model: str = option("resnet50")
    """A torchvision name (resnet18, convnext_tiny, …), timm:NAME, or fastsc:resnet8wWIDTH, a small
    ResNet for CPUs (resnet11w…, resnet14w… are deeper), or module:function, which returns an
    nn.Module; with fresh weights, unless there is --init, which also names it."""
    init: Annotated[str | None, _shown("SOURCE")] = option(None, since="0.1.0")
    """Weights to begin with. pretrained: those of the library of --model; a run's folder; a
    .safetensors, .pt or .pth file, of which nothing is run; torchvision:NAME, timm:NAME; or
    module:function, which returns an nn.Module. A head for another number of classes is made anew.
    What is known of the source (architecture, mean, std, resolution, interpolation, val_crop) takes
    the recipe's place; options that are given win over it."""
    freeze: Patterns = option((), since="0.1.0")
    """Parameters that stay as they are: names, names of modules (layer1), or patterns of these
    (layer[12].*, *.bias)."""
    stem: Literal["imagenet", "cifar"] = option("imagenet", resume="elsewhere")
    """imagenet: the architecture's own; cifar: a 3x3 convolution of stride 1 without max-pooling,
    for ResNets on images of about 32 pixels."""
    num_classes: Count = option(None, low=2, high=10_000_000, resume="elsewhere")
    """Outputs of the classifier. None: as many as the training folder has classes."""
    blurpool: bool = False
    """Blur before strided convolutions of 16 and more input channels (3x3 binomial; Zhang,
    arXiv 1904.11486, as ffcv-imagenet does it). The weights keep their names."""
    front: Literal["none", "rgb", "luma", "rgb-luma", "rgb-luma-minmax"] = option(
        "none", since="0.1.0"
    )
    """A fixed front-end before the first convolution, which takes each image's light, contrast and
    saturation out (docs/training.md). rgb: each color channel normalized; luma: luma normalized and
    color balanced; rgb-luma: both, six channels; rgb-luma-minmax: also the largest and the smallest
    of each pixel's channels, eight. Crops padded with black spoil it: take --crop reflect."""


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer; no weight decay on norms and biases."""

    optimizer: Literal["sgd", "adamw", "lamb"] = option("sgd", since="0.1.0")
    """sgd: with momentum; adamw: Loshchilov and Hutter (arXiv 1711.05101), by torch; lamb: You et
    al. (arXiv 1904.00962), by timm. The latter two with betas 0.9 and 0.999."""
    epochs: int = option(90, low=1, high=MAX_EPOCHS, resume="allowed")
    """Passes over the training images; the schedule ends with the last."""
    max_steps: Count = option(None, low=1, high=MAX_STEPS, resume="allowed")
    """Stop after so many steps, validate and write everything, for trials. The schedule stays that
    of --epochs."""
    batch_size: int = option(256, low=1, high=MAX_BATCH, resume="elsewhere")
    """Unique images per step, over all processes and accumulation steps; the model sees twice as
    many, one clean and one perturbed view each."""
    accumulate: int = option(1, low=1, high=MAX_BATCH)
    """Work through a batch in so many parts, one after the other, before the optimizer steps: as
    much less memory. Exact for losses that are means over images; --ds relative and sq then measure
    their scale within a part, and batch norm its statistics."""
    lr: float = option(0.1, above=0, high=1e30)
    """Base learning rate, for 256 images: the peak is lr * batch size / 256, and is printed."""
    lr_layer_decay: float = option(1.0, above=0, high=1, since="0.1.0")
    """Multiple of the learning rate from each layer to the one before it, counted from the head
    back, in (0, 1]: the first layers, of a network that has learned them, move least."""
    lr_head: float = option(1.0, above=0, high=1e6, since="0.1.0")
    """Multiple of the learning rate for the classifier's last linear layer."""
    momentum: float = option(0.9, low=0, below=1, needs=("optimizer", "sgd"))
    """Of SGD, in [0, 1)."""
    nesterov: bool = True
    """Nesterov's form of the momentum."""
    weight_decay: float = option(1e-4, low=0, high=1e30)
    """On parameters of two dimensions and more: weights of convolutions and linear layers, and
    tables as of positions; not on biases and norms."""
    label_smoothing: float = option(0.1, low=0, below=1)
    """Part of the target spread evenly over all classes, in [0, 1)."""
    schedule: Literal["cosine", "linear", "step", "constant"] = "cosine"
    """Learning rate after the warm-up. cosine, linear: down to zero; step: a tenth after 1/3, 2/3
    and 8/9 of the run (epochs 30, 60, 80 of 90); constant: stays."""
    warmup_epochs: float = option(5.0, low=0, high=MAX_EPOCHS)
    """Linear rise of the learning rate from zero, in epochs; never more than half of the run."""
    clip_grad: Number = option(None, above=0, high=10**12)
    """Scale the gradient down to this Euclidean norm where it is longer. None: never."""
    ema: Number = option(None, above=0, below=1)
    """Decay, in (0, 1), of a running average of the weights, which is then what is validated and
    exported. It starts short, as timm's with warm-up, and reaches this decay later. None: no
    average."""


@dataclass(frozen=True)
class RunConfig:
    """The run: its folder, its machine, its repetition."""

    out: Annotated[str | None, _shown("DIR")] = option(None, part="local")
    """The run's folder: config.yaml, log.jsonl, checkpoints/, weights.safetensors.
    None: runs/RECIPE-DATE-TIME. A folder with files in it needs --resume."""
    resume: bool = option(False, part="machine")
    """Go on in --out from the newest whole checkpoint; without one, start over and say so."""
    checkpoint_steps: Count = option(None, low=1, high=MAX_STEPS, part="machine")
    """Write a checkpoint every so many steps, besides epoch ends and --checkpoint-minutes."""
    checkpoint_minutes: float = option(5.0, above=0, high=WEEK, part="machine")
    """Write a checkpoint when so many minutes have passed since the last: what a crash may cost."""
    keep_checkpoints: int = option(2, low=2, high=1_000_000, part="machine")
    """The newest so many stay, at least 2: should the last be damaged, a resume takes the one
    before. That of the best validation (top-1) stays besides."""
    on_nan: Literal["stop", "skip"] = option("stop", part="machine")
    """A step whose loss is not finite. stop: end, resumable from the last checkpoint before it;
    skip: leave weights and statistics as they were, and go on (it waits for the GPU at every step,
    and checks the gradient too; fp16 halves its scale, as at every overflow). Either way the log
    says which images they were, and `python -m fastsc.replay` shows them."""
    rank_timeout: float = option(1800.0, above=0, high=WEEK, part="machine")
    """With several processes: seconds that one waits for the others before it ends, resumable: a
    cut network, a dead machine. Longer than the slowest thing that one does alone, such as the
    first scan of a folder."""
    disk_timeout: float = option(120.0, above=0, high=WEEK, part="machine")
    """Seconds that the disks of --data and --out have for one call (a write, an fsync, the headers
    of 64 files) before the process ends, resumable: one that hangs cannot be waited for. After a
    signal they have 30 seconds, after two none. Loading has --loader-timeout."""
    device: str = option("auto", part="machine")
    """cuda, cuda:N or cpu. auto: cuda where there is one, else cpu."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Of the forward pass; weights, pooling and losses stay float32. fp16 scales its gradients.
    auto: bf16 where the device computes it natively, else fp32."""
    seed: int = option(0, low=0, high=MAX_SEED, resume="elsewhere")
    """Of the initial weights and, by (seed, epoch, image), of order, crops, flips and factors."""
    deterministic: bool = option(False, part="machine")
    """Only deterministic GPU kernels: repeats and resumes are bit-exact there too, and slower. On
    a CPU they are anyway, with the same versions and thread count."""
    channels_last: bool = option(True, part="machine")
    """Weights and views with the channels innermost in memory, as tensor cores and CPUs convolve
    them."""
    fused_optimizer: bool = option(True, part="machine")
    """The optimizer's step in one pass over all weights; else several, tensor list by list."""
    compile: Switch = option("auto", part="machine")
    """torch.compile the training step's model: one static graph per resolution. Start-up takes
    minutes; each new graph is logged. auto: on a GPU, where --epochs are long enough to repay it,
    and without --deterministic; decided once, a resume keeps it."""
    pooling: Literal["auto", "fused", "separate"] = option(
        "auto", part="machine", when="fused", needs=("channels_last", True)
    )
    """Global average pooling and DS. fused: in one pass over the last feature map, and one over its
    gradient; separate: the model's own pooling, then DS; auto: fused on a GPU, where the model ends
    in such a pooling and DS is taken there."""
    compile_mode: Literal["default", "reduce-overhead", "max-autotune"] = option(
        "default", part="machine", needs=("compile", True)
    )
    """Of --compile. reduce-overhead: CUDA graphs; max-autotune: also searches for kernels."""
    tensorboard: bool = option(False, part="local")
    """Also write the log's figures for TensorBoard, into OUT/tensorboard."""
    wandb: bool = option(False, part="local")
    """Also send the log's figures to Weights & Biases (project fastsc, or $WANDB_PROJECT)."""
    csv: bool = option(False, part="local")
    """Also write OUT/steps.csv and OUT/epochs.csv."""
    log_every: int = option(10, low=1, high=MAX_STEPS, part="machine")
    """Steps from one line of log.jsonl to the next; first and last are always written. What warns
    of a collapse and of losses that are not finite looks at every tenth step at least."""


SECTIONS = ("data", "method", "model", "optim", "run")


@dataclass(frozen=True)
class TrainConfig:
    """All of a training run. `config.optim.lr`, or `config.flat()["lr"]`."""

    recipe: Annotated[str, _tyro("Positional"), _shown("RECIPE", required=True)] = option(
        "", part="local"
    )
    """A recipe by name (--list-recipes prints them) or a path to a YAML file of the same fields,
    such as a run's config.yaml. Options given on the command line win over it."""
    data: DataConfig = field(default_factory=DataConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)
    given: Annotated[frozenset[str], _tyro("SuppressFixed")] = field(
        default=frozenset(), compare=False
    )
    """Fields that a user named, on the command line, in Python or in a recipe of theirs: what is
    known of --init does not win over these."""

    def flat(self) -> dict[str, Any]:
        """Every field by its name, in the order of the sections, `recipe` first."""
        return {f.name: getattr(section, f.name) for section, f in self.fields()}

    def rules(self) -> dict[str, Rules]:
        """What every field says of its option, in the order of `flat`."""
        return {f.name: f.metadata.get("rules", Rules()) for _, f in self.fields()}

    def fields(self) -> Iterator[tuple[Any, dataclasses.Field[Any]]]:
        """Every field, and what has it: a section, or of `recipe` the configuration itself."""
        yield self, dataclasses.fields(self)[0]
        for name in SECTIONS:
            section = getattr(self, name)
            yield from ((section, f) for f in dataclasses.fields(section))

    def replace(self, **values: Any) -> Self:
        """A copy with fields of any section changed by their flat names: replace(out="x", lr=1)."""
        changes: dict[str, Any] = {}
        for own in ("recipe", "given"):
            if own in values:
                changes[own] = values.pop(own)
        for name in SECTIONS:
            section = getattr(self, name)
            fields = [f.name for f in dataclasses.fields(section)]
            mine = {key: values.pop(key) for key in fields if key in values}
            if mine:
                changes[name] = dataclasses.replace(section, **mine)
        if values:
            raise TypeError(f"no such fields: {', '.join(values)}")
        return dataclasses.replace(self, **changes)


def plain_options(config: TrainConfig) -> dict[str, Any]:
    """`flat`, as JSON, YAML and checkpoints hold it: lists in place of tuples."""
    values = config.flat().items()
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values}


@cache
def field_types() -> dict[str, Any]:
    """The type of every field by its name, in the order of the sections, `recipe` first."""
    return {f.name: get_type_hints(type(section))[f.name] for section, f in TrainConfig().fields()}
