"""`python -m fastsc.colormnist_demo`: is a network less fooled by colors that lie?

Color MNIST (`fastsc.datasets.colormnist`) is made from real digits, small networks are trained on
it by command, as a user would do it, and all are asked about the same test digits in colors that
are right, random and reversed:

    CE              plain cross-entropy
    CE, both views  cross-entropy on both views: augmentation at the constraint's cost
    constraint      the recipe: CE on both views + alpha · DS

The last two are trained twice: with the recipe's perturbation, and with hues turned through the
whole circle, which colors the second view at random and so is itself a cure for this bias.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib.util import find_spec
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

from rich.table import Table

from fastsc.cli.children import Children
from fastsc.cli.console import write_line, write_table
from fastsc.cli.entry import say
from fastsc.cli.lock import locked
from fastsc.cli.parser import Parser, folder_name, whole
from fastsc.config.checks import MAX_EPOCHS
from fastsc.datasets.colormnist import CORRELATION, prepared
from fastsc.datasets.digits import PACKAGED
from fastsc.datasets.photographs import free_name
from fastsc.demos.colormnist_figure import Bar, draw
from fastsc.errors import UserError
from fastsc.pipelines.progress import tracked
from fastsc.run.environment import environment

RECIPE = "colormnist"
SPLITS = ("val", "aligned", "random", "reversed")
MAX_SEEDS = 100
MAX_AT_ONCE = 4  # trainings, each on a core of its own


class Arm(NamedTuple):
    """One way to train: its options over the recipe's."""

    key: str
    label: str
    hue: float  # strength, in turns
    options: tuple[str, ...]


def arms() -> list[Arm]:
    """What is compared, in the order of the table."""
    from fastsc.config.recipes import load_recipe

    strengths = load_recipe(RECIPE).data.strengths
    hue, whole = strengths[3], 0.5
    circle = ("--strengths", *(f"{s:g}" for s in (*strengths[:3], whole)))
    plain = ("--alpha", "0", "--ce-views", "clean")
    both = ("--alpha", "0", "--ce-views", "both")
    return [
        Arm("ce", "CE", 0.0, plain),
        Arm("both", "CE, both views", hue, both),
        Arm("constraint", "constraint", hue, ()),
        Arm("both-circle", "CE, both views", whole, (*both, *circle)),
        Arm("constraint-circle", "constraint", whole, circle),
    ]


class Score(NamedTuple):
    """One network on one folder."""

    arm: str
    seed: int
    split: str
    top1: float
    ds_relative: float  # under the recipe's perturbation, whatever the training's was
    n: int


def run(words: list[str]) -> int:
    """The whole demo. Returns the exit status: that of a training, if it fails."""
    parser = Parser(
        prog="python -m fastsc.colormnist_demo", description="Color bias, with and without."
    )
    add = parser.add_argument
    add("--out", type=folder_name, default=Path("runs/colormnist"), help="default: %(default)s")
    add(
        "--seeds",
        type=whole(1, MAX_SEEDS),
        default=1,
        metavar="N",
        help="trainings of each kind (default: 1)",
    )
    add("--epochs", type=whole(1, MAX_EPOCHS), metavar="N", help="default: the recipe's")
    add("--correlation", type=float, default=CORRELATION, metavar="P", help="default: %(default)s")
    add("--digits", type=Path, metavar="PATH", help=f"default: {PACKAGED}'s 5,000")
    args = parser.parse_args(words)
    with locked(args.out):
        return demo(args.out, args.seeds, args.epochs, args.correlation, args.digits)


def demo(
    out: Path, n_seeds: int, epochs: int | None, correlation: float, digits: Path | None
) -> int:
    """Data, trainings, table, picture, results.json; all written below `out`."""
    if find_spec("matplotlib") is None:
        raise UserError("the picture needs matplotlib: pip install 'fastsc[eval]'")
    began = time.monotonic()
    data, metadata = out / "data", prepared(out / "data", correlation, digits)
    counts = {name: split["n"] for name, split in metadata["splits"].items()}
    write_line(
        f"{data}: {counts['train']} training digits, {correlation:g} of them in their class's "
        f"color; {counts['random']} test digits, colored three ways"
    )
    runs = free_name(out / "trained")
    kinds = arms()
    more = () if epochs is None else ("--epochs", str(epochs))
    commands = {
        (arm.key, seed): training_command(data, runs / f"{arm.key}-{seed}", seed, arm, more)
        for seed in range(n_seeds)
        for arm in kinds
    }
    for arm in kinds:
        write_line(f"$ {shlex.join(['python', *commands[arm.key, 0]])}")
    if n_seeds > 1:
        write_line(f"… and each with the seeds 1 to {n_seeds - 1}")
    if (status := train_all(list(commands.values()))) != 0:
        return status

    scores = [
        score
        for key, seed in tracked(commands, "Testing", len(commands))
        for score in measure(runs / f"{key}-{seed}", data, key, seed)
    ]
    write_table(results_table(kinds, scores), columns=120)
    for line in verdict(kinds, scores):
        write_line(line)
    text = json.dumps(
        {
            "metadata": environment() | {"data": metadata, "epochs": epochs},
            "results": [score._asdict() for score in scores],
        },
        indent=1,
    )
    (out / "results.json").write_text(text + "\n", encoding="utf-8")
    bars = [
        Bar(arm.label, arm.hue, split, of(scores, arm.key, split))
        for arm in kinds
        for split in SPLITS[1:]
    ]
    draw(out / "bias.png", data, bars, correlation)
    write_line(
        f"\nWrote {out / 'bias.png'} and {out / 'results.json'}; the networks are in {runs}. "
        f"{time.monotonic() - began:.0f} s."
    )
    return 0


# ---- the runs ------------------------------------------------------------------------------------


def training_command(
    data: Path, run: Path, seed: int, arm: Arm, more: tuple[str, ...]
) -> list[str]:
    """A training's arguments for Python."""
    words = ["-m", "fastsc.train", RECIPE, "--data", str(data), "--out", str(run)]
    return [*words, "--seed", str(seed), *arm.options, *more]


def train_all(commands: list[list[str]]) -> int:
    """Runs all trainings, a few at a time; the first status that is not 0 ends it.

    The networks are so small that a second thread costs more than it brings, above all where other
    programs want the cores too.
    """
    variables = {"OMP_NUM_THREADS": "1", **os.environ}
    children = Children()

    def train(command: list[str]) -> subprocess.CompletedProcess[str]:
        return children.run(
            [sys.executable, *command],
            env=variables,
            stdout=subprocess.DEVNULL,  # what it says is in the run's log
            stderr=subprocess.PIPE,
            text=True,
            errors="backslashreplace",
        )

    at_once = min(len(os.sched_getaffinity(0)), MAX_AT_ONCE)
    with ThreadPoolExecutor(at_once) as pool:
        try:
            done = as_completed([pool.submit(train, command) for command in commands])
            title = f"Training {len(commands)} networks"
            for future in tracked(done, title, len(commands)):
                if (run := future.result()).returncode != 0:
                    sys.stderr.write(f"{run.stderr.strip()}\n")
                    ended = f"a training ended with status {run.returncode}"
                    say("fastsc.colormnist_demo", ended)
                    return run.returncode
        except KeyboardInterrupt:
            children.end()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
    return 0


def measure(run: Path, data: Path, arm: str, seed: int) -> list[Score]:
    """A trained network on each of the folders, under the recipe's perturbation."""
    import torch  # heavy, and idle while the trainings run in other processes

    from fastsc.config.recipes import load_recipe
    from fastsc.datasets.colormnist import CLASSES
    from fastsc.models.build import build_model
    from fastsc.models.representation import Represented
    from fastsc.pipelines import build
    from fastsc.run.checkpoint import load_model_state, load_safetensors
    from fastsc.training.validate import validate

    torch.set_num_threads(1)  # as in `train_all`
    config, recipe = load_recipe(str(run / "config.yaml")), load_recipe(RECIPE)
    model = build_model(
        config.model.model,
        CLASSES,
        config.model.stem,
        config.data.resolution,
        blurpool=config.model.blurpool,
        front=config.model.front,
    )
    weights, _ = load_safetensors(run / "weights.safetensors")
    load_model_state(model.net, weights, run)
    represented = Represented(model, config.method.ds_at)
    scores = []
    for split in SPLITS:
        loader = build(
            config.data.pipeline,
            data / split,
            batch_size=250,
            resolution=config.data.resolution,
            train=False,
            val_crop=config.data.val_crop,
            strengths=recipe.data.strengths,
        )
        validation = validate(represented, loader, config.method.ds)
        assert validation is not None  # nothing stops it
        loader.close()
        scores.append(
            Score(arm, seed, split, validation.top1, validation.ds_relative, validation.n)
        )
    return scores


# ---- the table -----------------------------------------------------------------------------------


def of(scores: list[Score], arm: str, split: str, what: str = "top1") -> list[float]:
    """One measure of one arm on one folder, one number per seed."""
    return [getattr(s, what) for s in scores if (s.arm, s.split) == (arm, split)]


def results_table(kinds: list[Arm], scores: list[Score]) -> Table:
    """One row per arm: mean over the seeds, and the standard deviation where there are several."""
    n = next(score.n for score in scores if score.split == "random")
    table = Table(title=f"Accuracy on {n} test digits, by their color")
    table.add_column("training", no_wrap=True)
    for heading in ("hue ±", "val", *SPLITS[1:], "ds_relative"):
        table.add_column(heading, justify="right")
    for arm in kinds:
        row = [arm.label, f"{arm.hue:g}" if arm.hue else ""]
        row += [_spread(of(scores, arm.key, split), 100, 1) for split in SPLITS]
        row.append(_spread(of(scores, arm.key, "random", "ds_relative"), 1, 3))
        last = arm is kinds[0] or arm.key == "constraint"
        table.add_row(*row, style="bold" if arm.label == "constraint" else "", end_section=last)
    return table


def verdict(kinds: list[Arm], scores: list[Score]) -> list[str]:
    """What the constraint added to its honest baseline, in this run's own numbers."""
    lines = [
        "val is colored as the training digits are; ds_relative is on the random colors, under",
        "the recipe's perturbation.",
    ]
    for baseline, constraint in ((kinds[1], kinds[2]), (kinds[3], kinds[4])):
        gain = mean(of(scores, constraint.key, "random")) - mean(of(scores, baseline.key, "random"))
        lines.append(
            f"With hues turned by up to ±{baseline.hue:g} the constraint adds {100 * gain:+.1f} "
            "points on random colors to CE on both views."
        )
    return lines


def _spread(values: list[float], scale: float, digits: int) -> str:
    text = f"{scale * mean(values):.{digits}f}"
    if len(values) > 1:
        text += f" ± {scale * stdev(values):.{digits}f}"
    return text
