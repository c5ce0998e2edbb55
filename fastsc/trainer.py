"""The main job: paired training from an image folder to weights, top to bottom."""

from __future__ import annotations

import math
import time
import traceback
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from fastsc import checkpoint
from fastsc.config import TrainConfig
from fastsc.data import Data, build_loaders, open_data
from fastsc.devices import (
    DTYPES,
    Precision,
    autocast,
    pick_device,
    pick_precision,
    set_determinism,
)
from fastsc.display import Display, report_bad_image, report_divergence
from fastsc.folder import RunFolder
from fastsc.kernels import ds
from fastsc.loss import ContinuityLoss, LossParts
from fastsc.meter import Meter
from fastsc.models import build_model
from fastsc.optim import lr_at, make_optimizer, peak_lr, set_lr
from fastsc.pipelines import IMAGENET_MEAN, IMAGENET_STD, BadImage, PairBatch
from fastsc.pipelines.errors import UserError
from fastsc.resume import check_unchanged, exported_step, plain_options
from fastsc.runlog import RunLog, environment
from fastsc.signals import EXIT_RESUMABLE, StopSignal
from fastsc.validate import validate


def train(config: TrainConfig) -> int:
    """Runs or resumes one training. Returns the exit status: 0 done, 75 stopped by a signal.

    Nothing is written before all that the user may have got wrong has been looked at.

    Raises:
        UserError: One line for the user. Once training has begun, the last whole checkpoint stays.
    """
    folder = RunFolder.choose(config)
    device = pick_device(config.run.device)
    precision = pick_precision(config.run.precision, device)
    config = config.replace(precision=precision)
    trainer = Trainer(config, open_data(config.data), device, precision)
    saved = checkpoint.load_newest(folder.checkpoints) if config.run.resume else None
    if saved is not None:
        trainer.load_state_dict(saved.state, saved.path)
        if trainer.finished and exported_step(folder.weights) == trainer.step:
            print(f"{folder.root} is finished at step {trainer.step}; nothing to do")
            return 0
    elif config.run.resume:
        print(f"{folder.root} has no checkpoint yet; starting over")
    folder.create(config)
    with RunLog(folder.log) as log, StopSignal() as stop, Display(trainer.total_steps) as display:
        began = time.monotonic()
        reason = "done"
        try:
            _open_log(trainer, log, display, saved)
            if _fit(trainer, folder, log, display, stop):
                trainer.export(folder.weights)
            else:
                reason = f"stopped by {stop.name}"
        except UserError as error:  # a broken image, say: all steps before it are kept
            reason = str(error)
            with suppress(UserError):
                checkpoint.save(folder.checkpoints, trainer.state_dict(), trainer.step)
            raise
        except BaseException as error:
            reason = "".join(traceback.format_exception(error))
            raise
        finally:
            trainer.close()
            seconds = time.monotonic() - began
            log.event("end", reason=reason, steps=trainer.step, seconds=round(seconds, 3))
        if not trainer.finished:
            display.say(f"{reason} at step {trainer.step}; go on with --resume --out {folder.root}")
            return EXIT_RESUMABLE
        display.say(f"wrote {folder.weights}, {folder.log}")
        return 0


def _fit(
    trainer: Trainer, folder: RunFolder, log: RunLog, display: Display, stop: StopSignal
) -> bool:
    """The training loop. True when it came to its end, False when a signal stopped it."""
    run, loader, meter = trainer.config.run, trainer.loader, Meter()
    last_saved = time.monotonic()

    def save() -> None:
        nonlocal last_saved
        checkpoint.save(folder.checkpoints, trainer.state_dict(), trainer.step)
        last_saved = time.monotonic()

    while not trainer.finished:
        epoch, epoch_began = loader.epoch, time.monotonic()
        for batch in meter.batches(loader) if trainer.step < trainer.total_steps else ():
            step = trainer.step + 1
            last = step == trainer.total_steps
            logged = step == 1 or step % run.log_every == 0 or last
            lr, parts = trainer.train_step(batch, measured=logged)
            if logged:
                figures = {name: float(value.detach()) for name, value in parts._asdict().items()}
                pairs_per_s, wait = meter.read()
                figures |= {"lr": lr, "pairs_per_s": pairs_per_s, "loader_wait": wait}
                log.event("step", step=step, epoch=epoch, **figures)
                display.step(step, epoch, figures)
                if not math.isfinite(figures["loss"]) and not trainer.warned:
                    trainer.warned = True
                    report_divergence(step, log, display)
            trainer.log_bad_images(log, display)
            if last:
                break
            minutes = (time.monotonic() - last_saved) / 60
            due = run.checkpoint_steps and step % run.checkpoint_steps == 0
            if stop or due or minutes >= run.checkpoint_minutes:
                save()
                meter.pause()
            if stop:
                return False

        save()  # what stops the validation costs no training
        val = None
        wanted = (epoch + 1) % trainer.config.data.val_every == 0
        if trainer.val_loader is not None and (wanted or trainer.step == trainer.total_steps):
            method = trainer.config.method
            val = validate(
                trainer.model, trainer.val_loader, method.ds, method.ds_at, lambda: bool(stop)
            )
            trainer.log_bad_images(log, display)
            if val is None:
                return False
        seconds = time.monotonic() - epoch_began
        log.event("epoch", epoch=epoch, seconds=seconds, val=None if val is None else asdict(val))
        display.epoch(epoch, seconds, val)
        if loader.exhausted:  # --max-steps may have ended it earlier, and may go on from there
            loader.set_epoch(epoch + 1)
        trainer.validated_step = trainer.step
        save()
        meter.pause()
        if stop and not trainer.finished:
            return False
    return True


class Trainer:
    """All that training changes: model, optimizer, scaler, position in the data, step."""

    def __init__(
        self, config: TrainConfig, data: Data, device: torch.device, precision: Precision
    ) -> None:
        self.config, self.data = config, data
        self.device, self.precision = device, precision
        self.step = 0  # optimizer steps done
        self.validated_step = -1  # the one after which an epoch was last validated and logged
        self.warned = False
        method, optim, run = config.method, config.optim, config.run
        set_determinism(device, run.deterministic)
        torch.manual_seed(run.seed)
        n_classes = len(data.train.classes)
        self.model = build_model(
            config.model.model,
            config.model.num_classes or max(n_classes, 2),
            config.model.stem,
            config.data.resolution,
        )
        if (asked := config.model.num_classes or n_classes) < n_classes:
            raise UserError(f"--num-classes {asked}: {data.train.root} has {n_classes}")
        self.model.to(device).to(memory_format=torch.channels_last)
        self.loss_of = ContinuityLoss(
            method.alpha,
            method.ds,
            at=method.ds_at,
            ce_views=method.ce_views,
            stop_gradient=method.stop_gradient,
            detach_scale=method.detach_scale,
            label_smoothing=optim.label_smoothing,
        )
        # Plain training: the perturbed view would cost a forward pass and change nothing but the
        # batch-norm statistics, so it is looked at for the log only.
        self.plain = method.alpha == 0 and method.ce_views == "clean"
        self.optimizer = make_optimizer(self.model, optim)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self._bad_images: list[BadImage] = []
        self.loader, self.val_loader = build_loaders(
            config, data, device, DTYPES[precision], self._bad_images.append
        )
        self.steps_per_epoch = len(self.loader)
        self.total_steps = optim.epochs * self.steps_per_epoch
        self.total_steps = min(self.total_steps, optim.max_steps or self.total_steps)

    @property
    def finished(self) -> bool:
        """Whether all steps are done and the last epoch is validated."""
        return self.step >= self.total_steps and self.validated_step == self.step

    def train_step(self, batch: PairBatch, *, measured: bool) -> tuple[float, LossParts]:
        """One optimizer step: both views in one forward. Returns its learning rate and its loss.

        `measured` asks for ds and ds_relative where the loss does not need them.
        """
        lr = lr_at(self.step, self.config.optim, self.steps_per_epoch)
        set_lr(self.optimizer, lr)
        self.model.train()
        parts = self._plain_loss(batch, measured) if self.plain else self._loss(batch)
        self.scaler.scale(parts.loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return lr, parts

    def _loss(self, batch: PairBatch) -> LossParts:
        assert batch.perturbed is not None
        with autocast(self.device, self.precision):
            features, logits = self.model(torch.cat([batch.clean, batch.perturbed]))
        return self.loss_of(*logits.chunk(2), batch.target, *features.chunk(2))

    def _plain_loss(self, batch: PairBatch, measured: bool) -> LossParts:
        within = relative = torch.full((), float("nan"), device=self.device)
        if measured and batch.perturbed is not None:
            # The same joint forward as with the constraint, so that the figures compare; then the
            # statistics of batch norm and the generators are put back as if it had not been.
            buffers = [buffer.clone() for buffer in self.model.buffers()]
            with torch.random.fork_rng(), torch.no_grad(), autocast(self.device, self.precision):
                features, logits = self.model(torch.cat([batch.clean, batch.perturbed]))
            for buffer, value in zip(self.model.buffers(), buffers, strict=True):
                buffer.copy_(value)
            f, g = features.chunk(2)
            r, s = (f, g) if self.loss_of.at == "features" else logits.chunk(2)
            if len(batch.target) > 1 or self.loss_of.kind != "relative":
                within = ds(r, s, self.loss_of.kind)
            if len(batch.target) > 1:
                relative = ds(f, g, "relative")
        with autocast(self.device, self.precision):
            _, logits = self.model(batch.clean)
        smoothing = self.loss_of.label_smoothing
        ce = functional.cross_entropy(logits.float(), batch.target, label_smoothing=smoothing)
        return LossParts(ce, ce.detach(), within, relative)

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs to go on as if it had not stopped."""
        return {
            "step": self.step,
            "validated_step": self.validated_step,
            "model": self.model.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "pipeline": self.loader.state_dict(),
            "rng": checkpoint.rng_state(),
            "config": plain_options(self.config),
            "world_size": 1,
            "accumulation": 1,
        }

    def load_state_dict(self, state: dict[str, Any], source: Path) -> None:
        """Continues from a checkpoint; a UserError says what does not fit."""
        try:
            check_unchanged(state["config"], plain_options(self.config))
            checkpoint.load_model_state(self.model.net, state["model"], source)
            self.loader.load_state_dict(state["pipeline"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])
            checkpoint.set_rng_state(state["rng"])
            self.step, self.validated_step = int(state["step"]), int(state["validated_step"])
        except (KeyError, TypeError, AttributeError, RuntimeError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise UserError(f"{source} is not a checkpoint of a training run: {reason}") from None

    def export(self, path: Path) -> None:
        """The weights under the architecture's own names, with what one needs to use them."""
        data, model = self.config.data, self.config.model
        metadata = {
            "architecture": model.model,
            "classes": list(self.data.train.classes),
            "mean": IMAGENET_MEAN,
            "std": IMAGENET_STD,
            "resolution": data.resolution,
            "val_crop": data.val_crop,
            "stem": model.stem,
            "step": self.step,
        }
        checkpoint.export_safetensors(path, self.model.net, metadata)

    def log_bad_images(self, log: RunLog, display: Display) -> None:
        """Writes down the files that turned out to be broken since the last call."""
        while self._bad_images:
            report_bad_image(self._bad_images.pop(0), log, display)

    def close(self) -> None:
        """Ends the loaders' threads."""
        self.loader.close()
        if self.val_loader is not None:
            self.val_loader.close()


def _open_log(
    trainer: Trainer, log: RunLog, display: Display, saved: checkpoint.Loaded | None
) -> None:
    if saved is not None:
        for skipped in saved.skipped:
            display.say(f"passed over the broken checkpoint {skipped}")
        epoch = trainer.loader.epoch
        now, then = plain_options(trainer.config), saved.state["config"]
        changed = {key: now[key] for key in now if now[key] != then.get(key)} | environment()
        log.event(
            "resume", epoch=epoch, step=trainer.step, checkpoint=saved.path.name, changed=changed
        )
        display.say(f"resuming at epoch {epoch + 1}, step {trainer.step}, from {saved.path}")
        return
    data, config = trainer.data, trainer.config
    bad = [image for index in (data.train, data.val) if index for image in index.bad_images()]
    header = {
        **environment(),
        **config.flat(),
        "bn": "joint",  # statistics over both views together
        "paired_fraction": 1.0,
        "pipeline": config.data.pipeline,
        "decoder": trainer.loader.decoder,
        "device": str(trainer.device),
        "precision": trainer.precision,
        "threads": torch.get_num_threads(),
        "images": len(data.train) - len(data.train.left_out),
        "images_left_out": len(bad),
        "val_images": 0 if data.val is None else len(data.val) - len(data.val.left_out),
        "index_hash": data.train.hash,
        "classes": len(data.train.classes),
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "steps_per_epoch": trainer.steps_per_epoch,
        "total_steps": trainer.total_steps,
        "peak_lr": peak_lr(config.optim),
    }
    log.event("header", **header)
    display.say(
        f"{config.model.model} on {header['images']} images of {header['classes']} classes, "
        f"{trainer.device}, {trainer.precision}; pipeline {config.data.pipeline} "
        f"({trainer.loader.decoder}); {trainer.total_steps} steps; peak lr {header['peak_lr']:g} "
        f"= {config.optim.lr:g} × {config.optim.batch_size} / 256"
    )
    for image in bad:
        report_bad_image(image, log, display)
