"""What a resumed run may change, and what it must find as it was."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastsc.cli.entry import MISTAKE
from fastsc.config.recipes import load_recipe
from fastsc.config.rules import spelled
from fastsc.config.schema import TrainConfig, plain_options, untagged
from fastsc.config.yaml_text import parse_yaml
from fastsc.distributed.ranks import Ranks
from fastsc.distributed.signals import EXIT_RESUMABLE
from fastsc.errors import UserError
from fastsc.pipelines.reading import read_text
from fastsc.run import checkpoint
from fastsc.run.log import read_log

# Fields that --init brings.
OF_SOURCE = (
    "model", "stem", "blurpool", "front", "num_classes",
    "resolution", "val_resolution", "min_resolution", "resolution_ramp",
    "val_crop", "mean", "std", "interpolation",
)  # fmt: skip


def exported_step(weights: Path) -> int | None:
    """The step of an exported file: one of an earlier, shorter run is not this run's."""
    try:
        step: int = checkpoint.read_metadata(weights).whole("step")
    except UserError:
        return None  # not there, or damaged: written again
    return step


def kept(path: Path, config: TrainConfig) -> dict[str, Any]:
    """What a resume leaves as it was, by the run's config.yaml: whether it compiles, where that is
    auto, and what it did without an option that is younger. Nothing where that cannot be read."""
    with suppress(UserError):
        then, rules = parse_yaml(read_text(path, str(path)), str(path)), config.rules()
        values = {k: r.before for k, r in rules.items() if r.before is not None and k not in then}
        if config.run.compile == "auto":
            values["compile"] = load_recipe(str(path)).run.compile
        return values
    return {}


def of_begun(config: TrainConfig, begun: Path) -> dict[str, Any]:
    """What the run had of its --init, for a resume's configuration, less what was given anew."""
    then = load_recipe(str(begun)).flat()
    return {name: then[name] for name in OF_SOURCE if name not in config.given}


def ended_for_good(log: Path) -> int:
    """The exit status of this torchrun job's run, if it would be wrong to start that anew; else 0.

    torchrun starts a job anew that ended with another status than 0. SIGUSR1 and SIGINT come from a
    person or a scheduler, and a mistake would only be made again. SIGTERM does not count: torchrun
    itself ends processes by it, to start them anew with more or less machines.
    """
    last = read_log(log)[-1:] if log.exists() else []
    for event in last:
        if event["event"] != "end" or (event.get("time") or 0) < _parent_began():
            break  # an earlier job's
        status, reason = event.get("status"), event.get("reason")
        if status == MISTAKE or reason in ("stopped by SIGUSR1", "stopped by SIGINT"):
            return int(status or EXIT_RESUMABLE)
    return 0


def _parent_began() -> float:
    """When the process that started this one, torchrun's agent, began: seconds since 1970."""
    fields = Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()
    ticks = int(fields[19])  # the 22nd of proc(5), since the machine's start
    up = float(Path("/proc/uptime").read_text().split()[0])
    return time.time() - up + ticks / os.sysconf("SC_CLK_TCK")


def check_same_options(config: TrainConfig, ranks: Ranks) -> None:
    """Raises UserError for the first option that is another one on the main rank."""
    mine, rules = plain_options(config), config.rules()
    theirs = ranks.broadcast(mine)
    for key in mine:
        if rules[key].part != "local" and mine[key] != theirs[key]:
            raise UserError(
                f"{spelled(key)} is {mine[key]} for rank {ranks.rank} and {theirs[key]} "
                "for rank 0: start every process with the same options"
            )


def check_unchanged(then: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises UserError for the first option of `plain_options` that changes the science."""
    defaults = plain_options(TrainConfig())
    for key, rules in TrainConfig().rules().items():
        older = defaults[key] if rules.before is None else rules.before
        before = then.get(key, older)  # of an option that is younger than the checkpoint
        if (rules.part, rules.resume) != ("science", "refused"):
            continue
        # Weights are loaded over those that the tag of timm's names.
        if (untagged(now[key]) != untagged(before)) if key == "model" else now[key] != before:
            raise UserError(
                f"cannot resume: {spelled(key)} has changed ({before} then, {now[key]} now); "
                "resume with what the run began with, or start a new one"
            )
