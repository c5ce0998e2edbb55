"""The rows of bench.train: ours, the peers', and ours with one option changed."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from bench.common import Skipped
from bench.train_runs import (
    Options,
    Setting,
    Speeds,
    fastsc_command,
    read_fastsc,
    read_timm,
    read_torchvision,
    timm_command,
    torchvision_command,
)

SMALL_MODEL, SMALL_SIZE = "timm:test_resnet", 64  # 0.4 ms an image on two cores: loaders need more

PEERS = {
    "timm": "train.py of github.com/huggingface/pytorch-image-models",
    "torchvision": "references/classification/train.py of github.com/pytorch/vision",
}


PROGRAMS = {
    "timm": (timm_command, read_timm),
    "torchvision": (torchvision_command, read_torchvision),
}


@dataclass(frozen=True)
class Training:
    """One row: how its process is started, and where its rates are found afterwards."""

    name: str
    setting: Setting
    command: Callable[[Path], list[str]]  # of the folder that it may write into
    read: Callable[[str, Path], Speeds]  # of what it printed, and that folder
    against: str | None = None  # the row that it is compared with
    once: bool = False  # in the first round alone


@dataclass(frozen=True)
class Technique:
    """An option of the configuration that is not at its default. where: any, cpu, gpu.

    slow: it compiles for tens of seconds on a CPU, or for minutes on a GPU; with --full alone.
    """

    options: Options
    where: str = "any"
    slow_on: tuple[str, ...] = field(default=())


TECHNIQUES = {
    "fp32": Technique({"precision": "fp32"}),
    "fp16": Technique({"precision": "fp16"}, "gpu"),
    "nchw": Technique({"channels_last": False}),
    "fused-pooling": Technique({"pooling": "fused"}, "cpu"),  # a GPU's default
    "separate-pooling": Technique({"pooling": "separate"}, "gpu"),
    "unfused-optimizer": Technique({"fused_optimizer": False}),
    "half": Technique({"paired_fraction": 0.5}),
    "accumulate": Technique({"accumulate": 2}),
    "compile": Technique({"compile": True}, slow_on=("cpu",)),
    "graphs": Technique({"compile": True, "compile_mode": "reduce-overhead"}, "gpu"),
    "autotune": Technique(
        {"compile": True, "compile_mode": "max-autotune"}, "gpu", slow_on=("gpu",)
    ),
    "cpu-decode": Technique({"decode": "cpu"}, "gpu"),
    "no-prefetch": Technique({"prefetch": False}, "gpu"),
}


def fastsc(
    name: str,
    setting: Setting,
    recipe: str,
    options: Options | None = None,
    against: str | None = None,
    once: bool = False,
) -> Training:
    """A training of ours, its rates in its log.jsonl."""
    return Training(
        name,
        setting,
        lambda out: fastsc_command(setting, out / "run", recipe, options or {}),
        lambda _, out: read_fastsc((out / "run" / "log.jsonl").read_text()),
        against,
        once,
    )


def peer(name: str, program: str, setting: Setting, script: Path, against: str) -> Training:
    """A training of another program, its rates in what it prints."""
    command, read = PROGRAMS[program]
    return Training(
        name,
        setting,
        lambda out: command(setting, out, script),
        lambda said, _: read(said, setting.batch),
        against,
    )


def headline(
    setting: Setting, suffix: str, scripts: dict[str, Path | None]
) -> list[Training | Skipped]:
    """Ours, single and paired, and the peers; row names end in `suffix`."""
    single = f"train/fastsc/single{suffix}"
    rows: list[Training | Skipped] = [
        fastsc(single, setting, "imagenet-plain"),
        fastsc(f"train/fastsc/pair{suffix}", setting, "imagenet", against=single),
    ]
    for program, source in PEERS.items():
        name, script = f"train/{program}/single{suffix}", scripts[program]
        if script is None:
            rows.append(Skipped(name, f"not given: --{program}-script FILE, {source}"))
        else:
            rows.append(peer(name, program, setting, script, single))
    return rows


def technique_rows(setting: Setting, *, full: bool) -> list[Training | Skipped]:
    """The paired training with one option changed each, or why it is not run here."""
    here = "gpu" if setting.device.startswith("cuda") else "cpu"
    rows: list[Training | Skipped] = []
    for word, technique in TECHNIQUES.items():
        name, pair = f"train/fastsc/pair-{word}", "train/fastsc/pair"
        if technique.where not in ("any", here):
            why = "needs a GPU" if technique.where == "gpu" else "a GPU's default"
            rows.append(Skipped(name, why))
        elif here in technique.slow_on and not full:
            rows.append(Skipped(name, "with --full: it compiles for long"))
        else:
            options = technique.options
            rows.append(fastsc(name, setting, "imagenet", options, pair, once=not full))
    return rows


def all_rows(
    options: argparse.Namespace, setting: Setting, small: Setting
) -> list[Training | Skipped]:
    """Every row, the ones that goals are about first: time may run out."""
    scripts = {"timm": options.timm_script, "torchvision": options.torchvision_script}
    return [
        *headline(setting, "", scripts),
        *headline(small, f"-{SMALL_SIZE}", scripts),
        *technique_rows(setting, full=options.full),
    ]
