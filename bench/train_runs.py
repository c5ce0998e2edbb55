"""Whole trainings as processes: their commands, and the rates in what they log.

Every training of a comparison gets the same photographs, model, side, batch, steps, dtype, memory
layout, threads and worker count, and one random resized crop and flip an image, nothing else. The
commands' DATA and OUT stand for folders.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastsc.cli.packages import installed

INTERVAL = 10  # steps from one reading of a rate to the next
# As fastsc's recipe imagenet has them; none of them changes what a step costs.
LR, DECAY, SMOOTHING = 0.0125, 1e-4, 0.1

CONFIGURED = """
import sys
from fastsc.config.recipes import configure
from fastsc.training.loop import train
sys.exit(train(configure({recipe!r}, **{values!r})))
"""  # what `python -m fastsc.train` does, on a machine without the command line's parser


@dataclass(frozen=True)
class Setting:
    """What all trainings of one comparison have in common."""

    device: str
    model: str  # torchvision's name, or timm:NAME
    size: int  # px
    batch: int  # unique images a step
    steps: int
    workers: int
    data: Path  # with train/CLASS/* of steps * batch files, and val/
    classes: int

    @property
    def images(self) -> int:
        return self.steps * self.batch


@dataclass(frozen=True)
class Speeds:
    """A training's readings, without those of its first and of its last steps.

    rates: unique images a second. waits: part of the time in which the step waited for images.
    """

    rates: Sequence[float]
    waits: Sequence[float]


Options = dict[str, Any]


# --- fastsc --------------------------------------------------------------------------------------


def fastsc_values(setting: Setting, out: Path, options: Options) -> Options:
    """Fields of the configuration for a training of ours; `options` win."""
    on_gpu = setting.device.startswith("cuda")
    return {
        "data": str(setting.data), "val": "none", "out": str(out), "device": setting.device,
        "pipeline": "dali" if on_gpu and installed("nvidia.dali") else "cpu",
        "model": setting.model, "resolution": setting.size, "batch_size": setting.batch,
        "max_steps": setting.steps, "workers": setting.workers, "precision": "bf16",
        "log_every": INTERVAL, **options,
    }  # fmt: skip


def fastsc_command(setting: Setting, out: Path, recipe: str, options: Options) -> list[str]:
    """`python -m fastsc.train`, or the same from Python where its parser is not installed."""
    values = fastsc_values(setting, out, options)
    if not installed("tyro"):
        return [sys.executable, "-c", CONFIGURED.format(recipe=recipe, values=values)]
    words = [sys.executable, "-m", "fastsc.train", recipe]
    for name, value in values.items():
        name = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        else:
            words += [f"--{name}", str(value)]
    return words


def read_fastsc(log: str) -> Speeds:
    """From log.jsonl: its figures are already of the steps since the line before."""
    events = [json.loads(line) for line in log.splitlines() if line.strip()]
    steps = [event for event in events if event["event"] == "step" and event["step"] > INTERVAL]
    return Speeds(
        [float(event["pairs_per_s"]) for event in steps[:-1]],
        [float(event["loader_wait"]) for event in steps[:-1]],
    )


# --- timm's train.py -----------------------------------------------------------------------------


def timm_command(setting: Setting, out: Path, script: Path) -> list[str]:
    """Its own options all along. A line a step: others show the last step's rate, or a mean since
    the start of the workers."""
    on_gpu = ["--pin-mem"] if setting.device.startswith("cuda") else []
    size, batch = str(setting.size), str(setting.batch)
    return [
        sys.executable, str(script), str(setting.data), "--val-split", "",
        "--model", setting.model.removeprefix("timm:"), "--num-classes", str(setting.classes),
        "--img-size", size, "--batch-size", batch, "--workers", str(setting.workers),
        "--device", setting.device, "--amp", "--amp-dtype", "bfloat16", "--channels-last",
        "--epochs", "1", "--warmup-epochs", "0", "--opt", "sgd", "--lr", str(LR),
        "--weight-decay", str(DECAY), "--smoothing", str(SMOOTHING), "--color-jitter", "0",
        "--train-interpolation", "bilinear", "--log-interval", "1", "--output", str(out), *on_gpu,
    ]  # fmt: skip


_TIMM = re.compile(
    r"Train: \d+ \[ *(\d+)/\d+ .*?Time: [\d.]+s, *([\d.]+)/s .*?Data: ([\d.]+) \(", re.MULTILINE
)


def read_timm(log: str, batch: int) -> Speeds:
    """Ten steps at a time, since a single step's rate scatters; by the seconds they took."""
    steps = [(batch / float(rate), float(data)) for _, rate, data in _TIMM.findall(log)]
    rates, waits = [], []
    for at in range(INTERVAL, len(steps) - INTERVAL, INTERVAL):
        seconds = sum(step for step, _ in steps[at : at + INTERVAL])
        rates.append(INTERVAL * batch / seconds)
        waits.append(sum(data for _, data in steps[at : at + INTERVAL]) / seconds)
    return Speeds(rates, waits)


# --- torchvision's reference ---------------------------------------------------------------------


def torchvision_command(setting: Setting, out: Path, script: Path) -> list[str]:
    """Through bench.train_torchvision, which gives it bfloat16 and channels-last weights."""
    return [
        sys.executable, "-m", "bench.train_torchvision", str(script),
        "--data-path", str(setting.data), "--model", setting.model, "--device", setting.device,
        "--batch-size", str(setting.batch), "--workers", str(setting.workers), "--epochs", "1",
        "--opt", "sgd_nesterov", "--lr", str(LR), "--weight-decay", str(DECAY),
        "--norm-weight-decay", "0", "--label-smoothing", str(SMOOTHING),
        "--train-crop-size", str(setting.size), "--backend", "pil",
        "--print-freq", str(INTERVAL), "--output-dir", str(out),
    ]  # fmt: skip


_TORCHVISION = re.compile(r"Epoch: \[\d+\] +\[ *(\d+)/\d+\].*? time: ([\d.]+) +data: ([\d.]+)")
_WINDOW = 20  # its smoothed values are means of so many steps


def read_torchvision(log: str, batch: int) -> Speeds:
    """`time` is of whole steps, with the wait for the images in it; its `img/s` is without.

    A reading is a mean of the last 20 steps: those that reach into the first ten are left out. Its
    last line comes before the last steps.
    """
    lines = [(int(i), float(time), float(data)) for i, time, data in _TORCHVISION.findall(log)]
    lines = [line for line in lines if line[0] >= INTERVAL + _WINDOW]
    return Speeds([batch / time for _, time, _ in lines], [data / time for _, time, data in lines])


def shown(command: Iterable[str], places: dict[str, str]) -> str:
    """A command as one types it, with folders of this machine by their names."""
    words = []
    for word in command:
        for path, name in places.items():
            word = word.replace(path, name)
        words.append(word if word and not re.search(r"\s", word) else repr(word))
    return " ".join(words)
