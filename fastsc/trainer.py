"""The main job: paired training from an image folder to weights, top to bottom."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import torch

from fastsc import checkpoint
from fastsc.compiling import GraphCounter, check_compiler
from fastsc.config import TrainConfig
from fastsc.data import open_data, verified
from fastsc.devices import pick_device, pick_precision
from fastsc.folder import RunFolder
from fastsc.meter import Meter
from fastsc.packages import check_packages, installed
from fastsc.pipelines.errors import PeerError, UserError
from fastsc.ranks import NOTHING, SAVE, STOP, Ranks
from fastsc.report import Report
from fastsc.resume import check_same_options, exported_step
from fastsc.signals import EXIT_RESUMABLE, StopSignal
from fastsc.state import Training, introduce
from fastsc.validate import Validation, validate


def train(config: TrainConfig) -> int:
    """Runs or resumes one training. Returns the exit status: 0 done, 75 stopped by a signal.

    Under torchrun every process calls this; one of them writes. Nothing is written before all that
    the user may have got wrong has been looked at.

    Raises:
        UserError: One line for the user. Once training has begun, the last whole checkpoint stays.
    """
    ranks = Ranks()
    try:
        device = pick_device(config.run.device, ranks)
    except UserError as error:  # of all on this machine, which cannot speak to each other yet
        raise error if ranks.local_rank == 0 else PeerError(str(error)) from None
    with ranks.connected(device):
        return _train(config, device, ranks)


def _train(config: TrainConfig, device: torch.device, ranks: Ranks) -> int:
    ranks.together(lambda: check_packages(config))
    ranks.together(lambda: check_same_options(config, ranks))
    precision = ranks.together(lambda: pick_precision(config.run.precision, device))
    ranks.same("the native precisions (name one with --precision)", precision)
    config = config.replace(precision=precision)
    chosen = ranks.together(lambda: RunFolder.choose(config) if ranks.main else None)
    folder = ranks.broadcast(chosen)
    assert folder is not None
    data = ranks.first_here(lambda: open_data(config.data))
    ranks.same("the training images", data.train.hash)
    ranks.same("the validation images", None if data.val is None else data.val.hash)
    if config.data.verify:
        data = verified(data, config.data, ranks)
    training = ranks.together(lambda: Training(config, data, device, precision, ranks))
    saved = None
    if config.run.resume:
        found = ranks.together(
            lambda: checkpoint.load_newest(folder.checkpoints) if ranks.main else None
        )
        if (saved := ranks.broadcast(found)) is not None:
            state, path = saved.state, saved.path
            ranks.together(lambda: training.load_state_dict(state, path))
            exported = ranks.broadcast(exported_step(folder.weights))
            if training.finished and exported == training.step:
                _say(ranks, f"{folder.root} is finished at step {training.step}; nothing to do")
                return 0
        else:
            _say(ranks, f"{folder.root} has no checkpoint yet; starting over")
    ranks.together(lambda: check_compiler(config.run.compile, device))
    with StopSignal() as stop, ExitStack() as stack:
        report = ranks.together(lambda: stack.enter_context(_begin(config, folder, training)))
        began, reason = time.monotonic(), "done"
        try:
            introduce(training, report, saved)
            if _fit(training, folder, report, stop):
                ranks.on_main(lambda: _export(training, folder, report))
            else:
                reason = f"stopped by {stop.name or 'a signal to another process'}"
        except UserError as error:  # a broken image, say: all steps before it are kept
            reason = str(error)
            with suppress(UserError):
                _report_bad_images(training, report)
                _save(training, folder)
            raise
        except BaseException as error:
            reason = "".join(traceback.format_exception(error))
            raise
        finally:
            training.close()
            seconds = round(time.monotonic() - began, 3)
            report.event("end", reason=reason, steps=training.step, seconds=seconds)
        if not training.finished:
            at = f"{reason} at step {training.step}"
            report.say(f"{at}; go on with --resume --out {folder.root}")
            return EXIT_RESUMABLE
        weights = f"{folder.weights}, " if installed("safetensors") else ""
        report.say(f"wrote {weights}{folder.log}")
        return 0


@contextmanager
def _begin(config: TrainConfig, folder: RunFolder, training: Training) -> Iterator[Report]:
    """The folder and what is written there; all of it is gone again if it cannot be opened."""
    main, undo = training.ranks.main, ExitStack()
    with ExitStack() as stack:
        with undo:
            if main:
                undo.callback(folder.create(config))
            opened = Report.open(config, folder, training.total_steps, main=main)
            report = stack.enter_context(opened)
            undo.pop_all()
        yield report


def _fit(training: Training, folder: RunFolder, report: Report, stop: StopSignal) -> bool:
    """The training loop. True when it came to its end, False when a signal stopped it."""
    config, ranks, loader = training.config, training.ranks, training.loader
    run, meter, graphs = config.run, Meter(ranks.world_size), GraphCounter(config.run.compile)
    last_saved = time.monotonic()

    def save() -> None:
        nonlocal last_saved
        _save(training, folder)
        last_saved = time.monotonic()

    def wished() -> int:
        minutes = (time.monotonic() - last_saved) / 60
        return STOP if stop else SAVE if minutes >= run.checkpoint_minutes else NOTHING

    while not training.finished:
        epoch, epoch_began = training.begin_epoch(), time.monotonic()
        left = min(training.total_steps - training.step, len(loader) - loader.position)
        for batch, wish in ranks.batches(meter.batches(loader), wished, left):
            assert batch is not None, "a rank has less batches than the others"
            step = training.step + 1
            last = step == training.total_steps
            logged = step == 1 or step % run.log_every == 0 or last
            lr, alpha, figures = training.core.train_step(batch, measured=logged)
            graphs.report_new(report, step, loader.settings.resolution)
            if logged:
                pairs_per_s, wait = meter.read()
                figures |= {"lr": lr, "alpha": alpha}
                figures |= {"pairs_per_s": pairs_per_s, "loader_wait": ranks.max(wait)}
                report.step(step, epoch, figures)
                if warning := training.look_at(figures):
                    report.warning(step, warning)
            due = run.checkpoint_steps is not None and step % run.checkpoint_steps == 0
            if logged or due or wish != NOTHING:  # before a checkpoint, which goes on behind them
                _report_bad_images(training, report)
            if not last and (due or wish != NOTHING):
                save()
                meter.pause()
            if not last and wish == STOP:
                return False

        _report_bad_images(training, report)
        training.synchronize()
        save()  # what stops the validation costs no training
        done, val = _validation(training, epoch, stop)
        _report_bad_images(training, report)
        if not done:
            return False
        report.epoch(epoch, training.step, time.monotonic() - epoch_began, val)
        if loader.exhausted:  # --max-steps may have ended it earlier, and may go on from there
            loader.set_epoch(epoch + 1)
        training.validated_step = training.step
        save()
        meter.pause()
        if ranks.agree(wish=STOP if stop else NOTHING) and not training.finished:
            return False
    return True


def _validation(training: Training, epoch: int, stop: StopSignal) -> tuple[bool, Validation | None]:
    """Validates if the epoch is one for it. False: a signal stopped it."""
    data, ranks = training.config.data, training.ranks
    wanted = (epoch + 1) % data.val_every == 0 or training.step == training.total_steps
    if training.val_loader is None or not wanted:
        return True, None
    val = validate(
        training.core.best,
        training.val_loader,
        training.config.method.ds,
        flip=data.val_flip,
        ranks=ranks,
        stop=lambda: bool(stop),
    )
    return val is not None, val


def _save(training: Training, folder: RunFolder) -> None:
    """A checkpoint: all ranks give their part, the main one writes."""
    state = training.state_dict()
    training.ranks.on_main(lambda: checkpoint.save(folder.checkpoints, state, training.step))


def _export(training: Training, folder: RunFolder, report: Report) -> None:
    """weights.safetensors; without that package the weights stay in the last checkpoint."""
    if installed("safetensors"):
        training.export(folder.weights)
        return
    advice = "pip install safetensors, then --resume"
    report.warning(training.step, f"{folder.weights.name} not written: {advice}")


def _report_bad_images(training: Training, report: Report) -> None:
    for image in training.take_bad_images():
        report.bad_image(image)


def _say(ranks: Ranks, line: str) -> None:
    if ranks.main:
        print(line)
