"""`python -m fastsc.demo`: the main job on photographs that packages ship, and a picture of it.

Ten photographs out of scikit-image and scikit-learn are cut into an ImageFolder of JPEG files: a
photograph is a class, its images are random crops of it. A small ResNet is trained on them as a
user would do it, by command. The table and the picture compare the network at its first and its
last step on validation crops, each next to the same crop with other colors.

The numbers show that the program works. They are no result about ImageNet.
"""

from __future__ import annotations

import math
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Group
from rich.table import Table

from fastsc.cli.console import write_line, write_table
from fastsc.cli.entry import say
from fastsc.cli.lock import locked
from fastsc.cli.parser import Parser, whole
from fastsc.datasets.photographs import PER_CLASS, PHOTOGRAPHS, free_name, write_photographs
from fastsc.run.log import read_log

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float64]

MODEL, RESOLUTION, BATCH_SIZE, SEED = "resnet18", 128, 32, 0
MAX_STEPS = 100_000  # a demo of hours on a CPU


class Measured(NamedTuple):
    """One network on the N validation pairs."""

    top1: float  # of the clean views
    ds: float  # of the run's kind
    ds_relative: float
    absolute: Floats  # (n,) ‖f - f'‖₂ of the pairs that are shown
    relative: Floats  # (n,) the same over the mean distance of two different images


def run(words: list[str]) -> int:
    """The whole demo. Returns the exit status: that of the training, if it fails."""
    parser = Parser(prog="python -m fastsc.demo", description="A small real run.")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="default: %(default)s")
    parser.add_argument(
        "--steps", type=whole(1, MAX_STEPS), default=80, help="default: %(default)s"
    )
    args = parser.parse_args(words)
    with locked(args.out):
        return demo(args.out, args.steps)


def demo(out: Path, steps: int) -> int:
    """Photographs, training, table, picture; all written below `out`."""
    photos = write_photographs(out / "photos")
    n_train, n_val = (len(PHOTOGRAPHS) * n for n in PER_CLASS.values())
    write_line(f"{photos}: {n_train} + {n_val} JPEG crops of {len(PHOTOGRAPHS)} photographs")

    if not has_dali():
        write_line(
            "DALI is not installed (pip install nvidia-dali-cuda130): the demo takes --pipeline cpu"
        )
    run = free_name(out / "run")
    pipeline = "dali" if has_dali() else "cpu"
    command = training_command(photos, run, steps, pipeline)
    write_line(f"\n$ {shlex.join(['python', *command])}\n")
    status = subprocess.run([sys.executable, *command]).returncode
    if status != 0:
        say("fastsc.demo", f"the training ended with status {status}")
        return status

    clean, perturbed, names, before, after = compare(run)
    write_table(results_table(read_log(run / "log.jsonl"), before, after))
    picture = out / "pairs.png"
    draw_pairs(picture, clean, perturbed, names, before, after)
    write_line(
        f"\nWrote {picture}: clean and perturbed pairs, and their distance before and after\n"
        f"      {run}: config.yaml, log.jsonl, checkpoints/, weights.safetensors\n"
        "\nNext, with your own images in DIR/train/CLASS/ and DIR/val/CLASS/:\n"
        f"  python -m fastsc.train imagenet --pipeline {pipeline} --data DIR"
    )
    return 0


def has_dali() -> bool:
    """Whether DALI is installed, without importing it."""
    return find_spec("nvidia") is not None and find_spec("nvidia.dali") is not None


# ---- the run -------------------------------------------------------------------------------------


def training_command(photos: Path, run: Path, steps: int, pipeline: str) -> list[str]:
    """The main job's arguments for Python: the imagenet recipe, made small."""
    steps_per_epoch = len(PHOTOGRAPHS) * PER_CLASS["train"] // BATCH_SIZE
    options = {
        "pipeline": pipeline,
        "data": photos,
        "out": run,
        "model": MODEL,
        "resolution": RESOLUTION,
        "batch-size": BATCH_SIZE,
        "epochs": math.ceil(steps / steps_per_epoch),
        "max-steps": steps,
        "warmup-epochs": 1,
        "lr": 0.4,  # for 256 images: 0.05 here
        "seed": SEED,
    }
    words = ["-m", "fastsc.train", "imagenet"]
    for name, value in options.items():
        words += [f"--{name}", str(value)]
    return words


def compare(run: Path) -> tuple[Bytes, Bytes, list[str], Measured, Measured]:
    """The network before and after a run of ours, on the run's own validation pairs.

    Returns:
        clean, perturbed (n, R, R, 3) of the first pair of each class; their classes' names; and the
        measures at the first and the last step.
    """
    import torch  # heavy, and idle while the training runs in another process

    from fastsc.config.recipes import load_recipe
    from fastsc.models.build import build_model
    from fastsc.models.representation import Represented
    from fastsc.pipelines import IMAGENET_MEAN, IMAGENET_STD, build, scan
    from fastsc.run.checkpoint import load_model_state, load_safetensors
    from fastsc.training.validate import validate

    config = load_recipe(str(run / "config.yaml"))
    index = scan(Path(config.data.data) / "val")
    loader = build(
        config.data.pipeline,
        index,
        batch_size=len(index),
        resolution=config.data.resolution,
        train=False,
        val_crop=config.data.val_crop,
        strengths=config.data.strengths,
    )
    (batch,) = loader
    assert batch.perturbed is not None
    _, first = np.unique(batch.target.numpy(), return_index=True)
    clean, perturbed = batch.clean[first], batch.perturbed[first]
    both = torch.cat([batch.clean, batch.perturbed])

    def measure() -> Measured:
        whole = validate(represented, loader, config.method.ds)
        assert whole is not None  # nothing stops it
        with torch.inference_mode():
            f, g = model.eval()(both)[0].chunk(2)
        moved = (f - g).norm(dim=1).double().numpy()
        relative = moved * (whole.ds_relative / moved.mean())
        return Measured(whole.top1, whole.ds, whole.ds_relative, moved[first], relative[first])

    torch.manual_seed(config.run.seed)  # the initial weights are a function of the seed
    model = build_model(
        config.model.model, len(index.classes), config.model.stem, config.data.resolution
    )
    represented = Represented(model, config.method.ds_at)
    before = measure()
    weights, _ = load_safetensors(run / "weights.safetensors")
    load_model_state(model.net, weights, run)
    after = measure()
    loader.close()

    def pixels(view: torch.Tensor) -> Bytes:  # (n, 3, H, W) normalized -> (n, H, W, 3)
        rgb = view.permute(0, 2, 3, 1) * torch.tensor(IMAGENET_STD) + torch.tensor(IMAGENET_MEAN)
        return (rgb * 255).round().clamp(0, 255).byte().numpy()

    return pixels(clean), pixels(perturbed), list(index.classes), before, after


def results_table(log: list[dict[str, Any]], before: Measured, after: Measured) -> Group:
    """What the run took, and the network at its first and last step."""
    header = next(line for line in log if line["event"] == "header")
    steps = [line for line in log if line["event"] == "step"]
    # The first steps pay for start-up: the median of the rest is the run's speed.
    settled = steps[len(steps) // 4 :]
    speed, wait = (
        float(np.median([line[key] for line in settled if line[key] is not None]))
        for key in ("pairs_per_s", "loader_wait")
    )
    table = Table(
        title=f"{steps[-1]['step']} steps of {BATCH_SIZE} pairs",
    )
    table.add_column("validation")
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    table.add_row("top-1, clean", f"{before.top1:.1%}", f"{after.top1:.1%}")
    table.add_row(f"ds ({header['ds']})", f"{before.ds:.4f}", f"{after.ds:.4f}")
    table.add_row(
        "ds_relative", f"{before.ds_relative:.3f}", f"{after.ds_relative:.3f}", style="bold"
    )
    return Group(
        table,
        f"{MODEL} at {RESOLUTION} px, --pipeline {header['pipeline']} on {header['device']}: "
        f"{speed:.0f} pairs/s, {wait:.0%} of the time waiting for the loader.",
        "Read ds_relative: an untrained network puts all images at nearly one point,",
        "so that ds alone is small there and means nothing.",
    )


# ---- the picture ---------------------------------------------------------------------------------


def draw_pairs(
    path: Path, clean: Bytes, perturbed: Bytes, names: list[str], before: Measured, after: Measured
) -> None:
    """Writes a PNG: each clean image above its perturbed one, and their distances underneath.

    Args:
        path: The file to write.
        clean, perturbed: (n, H, W, 3) RGB, row i is pair i of `before` and `after`.
        names: n captions.
        before, after: Distances of at least n pairs.
    """
    from matplotlib.figure import Figure

    columns = min(5, len(names))
    bands = math.ceil(len(names) / columns)
    figure = Figure(figsize=(0.4 + 2.3 * columns, 1.1 + 5 * bands), layout="constrained")
    figure.suptitle(
        "The same image in other colors: how far does its representation move?\n"
        "Above the clean image, below the perturbed one. Distance ‖f − f′‖ in units of the mean\n"
        "distance between different images, and alone (in brackets), untrained → after training.\n"
        f"All validation pairs: {before.ds_relative:.2f} → {after.ds_relative:.2f}.",
        x=0.02, ha="left", fontsize=10, linespacing=1.4,
    )  # fmt: skip
    grid = figure.subplots(2 * bands, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for i, name in enumerate(names):
        band, column = divmod(i, columns)
        above, below = grid[2 * band : 2 * band + 2, column]
        for axes, image in ((above, clean[i]), (below, perturbed[i])):
            axes.imshow(image, interpolation="lanczos")
        above.set_title(name, weight="bold", size=10)
        below.text(
            0, -0.03,
            f"{before.relative[i]:.2f} → {after.relative[i]:.2f}\n"
            f"({before.absolute[i]:.3g} → {after.absolute[i]:.3g})",
            transform=below.transAxes, va="top",
        )  # fmt: skip
    figure.savefig(path, dpi=110)
