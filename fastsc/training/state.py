"""A training as it stands: the step's state and the position in the data, to save and restore."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastsc.config import TrainConfig
from fastsc.datasets.folders import Data
from fastsc.distributed.devices import DTYPES, Precision, set_determinism
from fastsc.distributed.ranks import Ranks
from fastsc.errors import UserError
from fastsc.loading.source import Source, other_classes
from fastsc.pipelines import BadImage, PairBatch
from fastsc.pipelines.plan import n_paired
from fastsc.pipelines.reading import blamed
from fastsc.run import checkpoint
from fastsc.run.environment import environment
from fastsc.run.reporter import Report
from fastsc.run.resume import check_unchanged, plain_options
from fastsc.run.validation import Validation
from fastsc.training.alpha import Alpha, Keeper, Multiplier
from fastsc.training.collapse import CollapseWatch
from fastsc.training.compiling import repays
from fastsc.training.figures import Measured
from fastsc.training.loaders import build_loaders
from fastsc.training.nonfinite import LossWatch
from fastsc.training.optimizer import lr_at, peak_lr
from fastsc.training.schedules import resolution_at, resolutions
from fastsc.training.setup import NOISY, prepare
from fastsc.training.step import Step
from fastsc.training.throughput import Meter


@dataclass(frozen=True)
class Unreported:
    """A measured step whose figures are on their way."""

    step: int
    epoch: int
    measured: Measured
    taken: tuple[int, float] | None
    """Of the meter; None where the step has no line in the log."""


class Training:
    """The step, the loaders, and what was seen of the features so far.

    Attributes:
        config: What it was made from, with --compile auto decided.
    """

    def __init__(
        self,
        config: TrainConfig,
        data: Data,
        device: torch.device,
        precision: Precision,
        ranks: Ranks,
        source: Source | None = None,
    ) -> None:
        self.data, self.ranks = data, ranks
        self.validated_step = -1  # the one after which an epoch was last validated and logged
        self.best: tuple[float, int | None] = (-1.0, None)  # of a validation, and its step
        self.last_validation: Validation | None = None
        self.drawn: dict[str, Any] | None = None  # weights to export in place of the last step's
        self.holds = False  # whether what is exported keeps as many answers as --keep says
        self.agreement_at_end: float | None = None  # where --keep is
        self.losses = LossWatch(ranks)
        self.watch = CollapseWatch()
        self.meter = Meter(ranks.world_size)
        self.unreported: Unreported | None = None
        set_determinism(device, config.run.deterministic)
        n_classes = len(data.train.classes)
        labelled = config.method.objective == "labels"
        if labelled and (asked := config.model.num_classes or n_classes) < n_classes:
            raise UserError(f"--num-classes {asked}: {data.train.root} has {n_classes}")
        _check_shares(config, ranks)
        self.n_outputs = config.model.num_classes or max(n_classes, 2)
        model = prepare(config, self.n_outputs, device, precision, ranks, source)
        self.begun_from: dict[str, Any] = {}  # of the source, for the log and the export
        if source is not None:
            self.begun_from = {
                "init_hash": source.hash,
                "init_classes": list(source.classes),
                "new_head": model.new_head,
                "init_notes": list(source.notes),
            }
        self._bad_images: list[BadImage] = []
        self.loader, self.val_loader = build_loaders(
            config, data, device, DTYPES[precision], self._bad_images.append, ranks
        )
        self.steps_per_epoch = len(self.loader)
        if config.run.compile == "auto":
            config = config.replace(compile=repays(config, model, device, self.steps_per_epoch))
        self.config = config
        self.core = Step(config, model, device, precision, ranks)
        self.total_steps = config.optim.epochs * self.steps_per_epoch
        self.total_steps = min(self.total_steps, config.optim.max_steps or self.total_steps)
        method = config.method
        self.alpha = Alpha(method, self.steps_per_epoch, config.optim.epochs)
        if method.ds_target is not None:
            self.alpha = Multiplier(method.alpha, method.ds_target)
        elif method.keep is not None:
            self.alpha = Keeper(method.alpha, method.keep, self.total_steps)

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.core.step

    @property
    def ended(self) -> bool:
        """Whether all steps are done."""
        return self.step >= self.total_steps

    @property
    def finished(self) -> bool:
        """Whether all steps are done and the last epoch is validated."""
        return self.ended and self.validated_step == self.step

    def begin_epoch(self) -> int:
        """Sets the loader to the present epoch's resolution; returns the epoch."""
        self.loader.set_resolution(resolution_at(self.loader.epoch, self.config.data))
        return self.loader.epoch

    def train_step(self, batch: PairBatch, *, measured: bool) -> Measured | None:
        """The next step; its figures if they are `measured`, with its learning rate and alpha."""
        lr = lr_at(self.step, self.config.optim, self.steps_per_epoch) * self.alpha.rate()
        alpha = self.alpha.alpha(self.step)
        figures = self.core.train_step(batch, lr=lr, alpha=alpha, measured=measured)
        self.losses.note(self.step, self.core.last_loss, batch.index)
        if figures is not None:
            figures.more |= {"lr": lr, "alpha": alpha}
        return figures

    @property
    def looks_at_every_loss(self) -> bool:
        """Whether that costs no wait: on a CPU, or where the step waited for its loss anyway."""
        return self.core.device.type == "cpu" or self.config.run.on_nan == "skip"

    def validates(self, epoch: int) -> bool:
        """Whether there is a validation after this epoch."""
        wanted = (epoch + 1) % self.config.data.val_every == 0 or self.step == self.total_steps
        return self.val_loader is not None and wanted

    def validated(self, val: Validation | None) -> None:
        """The present epoch has come to its end, with this validation if there was one."""
        self.validated_step = self.step
        self.last_validation = val
        if val is not None and self.config.method.keep is None and val.top1 > self.best[0]:
            self.best = val.top1, self.step

    def take_bad_images(self) -> list[BadImage]:
        """Files that turned out to be broken since the last call, of all ranks on the main one."""
        mine, self._bad_images[:] = list(self._bad_images), []
        shares = self.ranks.gather_values(mine)
        return [] if shares is None else [image for share in shares for image in share]

    def synchronize(self) -> None:
        """Gives every rank the same running statistics, before they are used."""
        for net in self._nets:
            self.ranks.average_buffers(net)

    @property
    def _nets(self) -> list[nn.Module]:
        return [model.net for model in (self.core.model, self.core.ema) if model is not None]

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs to go on as if it had not stopped; on the main rank.

        All ranks must ask for it together.
        """
        core = self.core
        local: dict[str, Any] = {"rng": checkpoint.rng_state(), "buffers": None}
        more: dict[str, Any] = {}
        if self.begun_from:
            more["begun_from"] = self.begun_from
        if core.teacher is not None:
            more["before"] = core.teacher.net.state_dict()
            local["disagreement"] = float(core.disagreement)
        if not self.ranks.single_process:
            local["buffers"] = [[b.cpu().clone() for b in net.buffers()] for net in self._nets]
        return more | {
            "step": self.step,
            "validated_step": self.validated_step,
            "best": list(self.best),
            "model": core.model.net.state_dict(),
            "ema": None if core.ema is None else core.ema.net.state_dict(),
            "optimizer": core.optimizer.state_dict(),
            "scaler": core.scaler.state_dict(),
            "pipeline": self.loader.state_dict(),
            "watch": self.watch.state_dict(),
            "multiplier": self.alpha.state_dict(),
            "ranks": self.ranks.gather_values(local),
            "config": plain_options(self.config),
            "world_size": self.ranks.world_size,
            "accumulation": self.config.optim.accumulate,
        }

    def load_state_dict(self, state: dict[str, Any], source: Path) -> None:
        """Continues from a checkpoint; a UserError says what does not fit."""
        core = self.core
        with blamed(f"{source} is not a checkpoint of a training run"):
            check_unchanged(state["config"], plain_options(self.config))
            checkpoint.load_model_state(core.model.net, state["model"], source)
            if core.ema is not None:
                checkpoint.load_model_state(core.ema.net, state["ema"], source)
            self.begun_from = dict(state.get("begun_from", {}))
            if core.teacher is not None:
                checkpoint.load_model_state(core.teacher.net, state["before"], source)
            self.loader.load_state_dict(state["pipeline"])
            # Which kernel steps is this machine's affair; torch places the state as it wants it.
            for group, own in zip(
                state["optimizer"]["param_groups"], core.optimizer.param_groups, strict=False
            ):
                group.update({key: own[key] for key in ("fused", "foreach") if key in own})
            core.optimizer.load_state_dict(state["optimizer"])
            core.scaler.load_state_dict(state["scaler"])
            self.watch.load_state_dict(state["watch"])
            self.alpha.load_state_dict(state.get("multiplier"))
            core.step, self.validated_step = int(state["step"]), int(state["validated_step"])
            top1, step = state.get("best", self.best)
            self.best = float(top1), None if step is None else int(step)
            self._load_ranks(state["ranks"])
            int(state["world_size"])  # which the log names

    def _load_ranks(self, shares: list[dict[str, Any]]) -> None:
        """What differed between the ranks: its own again, or fresh ones for another number."""
        if len(shares) == self.ranks.world_size:
            checkpoint.set_rng_state(shares[self.ranks.rank]["rng"])
        else:
            torch.manual_seed(hash((self.config.run.seed, self.step, self.ranks.rank)) % 2**63)
        if self.core.teacher is not None:
            local = [share["disagreement"] for share in shares]
            whole = sum(local) / len(local)
            own = local[self.ranks.rank] if len(shares) == self.ranks.world_size else whole
            self.core.disagreement.fill_(own)
        if shares[0]["buffers"] is None:
            return
        for i, net in enumerate(self._nets):
            for k, buffer in enumerate(net.buffers()):
                if len(shares) == self.ranks.world_size:
                    buffer.copy_(shares[self.ranks.rank]["buffers"][i][k])
                elif buffer.is_floating_point():
                    values = torch.stack([share["buffers"][i][k] for share in shares])
                    buffer.copy_(values.double().mean(0))  # as `average_buffers` has it

    def export(self, path: Path, *, before: bool = False) -> None:
        """The weights under the architecture's own names, with what one needs to use them.

        before: Those of the network whose answers were kept.
        """
        data, model = self.config.data, self.config.model
        teacher = self.core.teacher
        classes = self.data.train.classes if teacher is None else self.begun_from["init_classes"]
        metadata = {
            "architecture": model.model,
            "classes": list(classes),
            "mean": data.mean,
            "std": data.std,
            "interpolation": data.interpolation,
            "resolution": data.val_resolution or data.resolution,
            "val_crop": data.val_crop,
            "stem": model.stem,
            "blurpool": model.blurpool,
            "front": model.front,
            "step": self.step,
        }
        if before and teacher is not None:
            exported: nn.Module | dict[str, Any] = teacher.net
        else:
            exported = self.core.best.net if self.drawn is None else self.drawn
        checkpoint.export_safetensors(path, exported, metadata)

    def header(self) -> dict[str, Any]:
        """The log's first line: versions, hardware, and every option that changes the science."""
        data, config = self.data, self.config
        n_images = len(data.train) - len(data.train.left_out)
        own = self.loader.settings.perturbations.own
        begun_from = {k: v for k, v in self.begun_from.items() if k != "init_classes"}
        return {
            **environment(),
            **config.flat(),
            **begun_from,
            "decoder": self.loader.decoder,
            "device": str(self.core.device),
            "view_noise": self.core.model.view_noise,
            "features": self.core.model.model.features_from,
            "pooling": "separate" if self.core.model.pool is None else "fused",
            "world_size": self.ranks.world_size,
            "accumulation": config.optim.accumulate,
            "pairs": n_paired(config.optim.batch_size, self.loader.settings.paired_fraction),
            "threads": torch.get_num_threads(),
            "images": n_images,
            "images_left_out": sum(len(index.left_out) for index in data if index is not None),
            "val_images": 0 if data.val is None else len(data.val) - len(data.val.left_out),
            "index_hash": data.train.hash,
            "val_index_hash": None if data.val is None else data.val.hash,
            "classes": len(data.train.classes),
            "parameters": sum(p.numel() for p in self.core.model.parameters()),
            "steps_per_epoch": self.steps_per_epoch,
            "total_steps": self.total_steps,
            "peak_lr": peak_lr(config.optim),
            **({"perturb_sources": {f.name: f.source for f in own.values()}} if own else {}),
        }

    def close(self) -> None:
        """Ends the loaders' threads."""
        self.loader.close()
        if self.val_loader is not None:
            self.val_loader.close()


def introduce(training: Training, report: Report, saved: checkpoint.Loaded | None) -> None:
    """The header of a new run, or the line of a resumed one, for the log and for a person."""
    config = training.config
    n_epochs = -(-training.total_steps // training.steps_per_epoch)
    if (most := resolutions(config.data, n_epochs)[-1]) < config.data.resolution:
        what = f"--resolution-ramp goes on after this run (epochs: {n_epochs}): it trains at"
        report.say(f"warning: {what} {most} px at most, not at {config.data.resolution}")
    if saved is not None:
        for skipped in saved.skipped:
            report.say(f"passed over the broken checkpoint {skipped}")
        epoch, now, then = training.loader.epoch, plain_options(config), saved.state["config"]
        changed = {key: now[key] for key in now if now[key] != then.get(key)} | environment()
        if (world_size := training.ranks.world_size) != saved.state["world_size"]:
            changed["world_size"] = world_size
        report.event(
            "resume",
            epoch=epoch,
            step=training.step,
            checkpoint=saved.path.name,
            passed_over=saved.skipped,
            changed=changed,
            **training.header(),
        )
        report.say(f"resuming at epoch {epoch + 1}, step {training.step}, from {saved.path}")
        return
    header, data = training.header(), training.data
    report.event("header", **header)
    ranks = f" × {header['world_size']} processes" if not training.ranks.single_process else ""
    report.say(
        f"{config.model.model} on {header['images']} images of {header['classes']} classes, "
        f"{training.core.device}{ranks}, {config.run.precision}; pipeline {config.data.pipeline} "
        f"({header['decoder']}); {header['total_steps']} steps; peak lr {header['peak_lr']:g} "
        f"= {config.optim.lr:g} × {config.optim.batch_size} / 256"
    )
    if (noise := training.core.model.view_noise) > NOISY:
        report.warning(
            training.step,
            f"two equal views of an image lie {noise:.2g} of the distance between images apart: "
            f"the model draws at random what the views do not share, and DS measures that, too",
        )
    if begun_from := training.begun_from:
        begins = f"begins with --init {config.model.init}, weights {begun_from['init_hash']}"
        if (head := begun_from["new_head"]) is not None:
            n = len(begun_from["init_classes"])
            begins += f"; {head} is new, for {training.n_outputs} outputs in place of {n}"
        report.say(begins)
        for note in begun_from["init_notes"]:
            report.say(f"note: {note}")
        if config.method.objective == "labels" and begun_from["new_head"] is None:
            other = other_classes(begun_from["init_classes"], data.train.classes)
            if other is not None:
                report.warning(training.step, f"--init {config.model.init}: {other}")
    for index in filter(None, (data.train, data.val)):
        if line := index.passed_over_line():
            report.say(line)
        for image in index.bad_images():
            report.bad_image(image)


def _check_shares(config: TrainConfig, ranks: Ranks) -> None:
    """Raises UserError where a batch does not divide over ranks and accumulation steps."""
    size, parts = config.optim.batch_size, config.optim.accumulate
    shares = ranks.world_size * parts
    if size % shares:
        raise UserError(
            f"--batch-size {size} is not a multiple of {ranks.world_size} processes × {parts} "
            "accumulation steps: every one works on the same number of images"
        )
    m = n_paired(size, config.method.paired_fraction)
    if m % shares:
        near = min(size, max(1, round(m / shares)) * shares)
        raise UserError(
            f"--paired-fraction {config.method.paired_fraction:g} of {size} images is {m} pairs: "
            f"not a multiple of {ranks.world_size} processes × {parts} accumulation steps; take "
            f"{near / size:g} ({near} pairs)"
        )
