"""The main job: paired training from an image folder to weights. Its set-up, and how it ends."""

from __future__ import annotations

import signal
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack, suppress

import torch

from fastsc.cli.console import write_line
from fastsc.cli.lock import locked
from fastsc.cli.packages import installed, needed
from fastsc.config import TrainConfig
from fastsc.config.checks import check, check_packages
from fastsc.datasets.folders import (
    Data,
    check_label_key,
    open_data,
    require_held_out,
    verified,
)
from fastsc.distributed.devices import keep_memory, pick_device, pick_precision
from fastsc.distributed.ranks import Ranks
from fastsc.distributed.signals import EXIT_RESUMABLE, STOPPING, StopSignal
from fastsc.errors import LostContactError, PeerError, StalledError, UserError, first_line
from fastsc.loading.source import Source, open_source
from fastsc.pipelines.disk import watched
from fastsc.run import checkpoint
from fastsc.run.folder import RunFolder
from fastsc.run.reporter import Report
from fastsc.run.resume import check_same_options, ended_for_good, exported_step, kept, of_begun
from fastsc.run.writer import CheckpointWriter, NonFiniteError
from fastsc.training.compiling import check_compiler, graphs_allowed
from fastsc.training.fit import draw_back, fit, report_bad_images, save
from fastsc.training.schedules import resolutions
from fastsc.training.state import Training, introduce

PATIENCE = 60.0  # seconds that a restarted job waits for its first life to end

Conclude = Callable[[TrainConfig, Data, RunFolder, Report, bool, float | None], object]


def train(
    config: TrainConfig, stop: StopSignal | None = None, conclude: Conclude | None = None
) -> int:
    """Runs or resumes one training. Returns the exit status: 0 done, 75 stopped by a signal.

    Under torchrun every process calls this; one of them writes. Nothing is written before all that
    the user may have got wrong has been looked at.

    Args:
        stop: Within its context, if signals are caught already. In another thread than the main
            one no signal is: what stops it is its process.
        conclude: Is called on the main rank with what a run of --objective self has left; the last
            arguments are whether a point of it holds --keep, and the end's agreement with the
            answers of before.

    Raises:
        UserError: One line for the user. Once training has begun, the last whole checkpoint stays.
        LostContactError: Another process is gone, or the network to it.
        StalledError: The loader waits in vain, for a disk that hangs.
    """
    if stop is None:
        with StopSignal() as stop:
            return train(config, stop, conclude)
    ranks = Ranks()
    if ranks.max_restarts and config.run.out is None:
        raise UserError("torchrun --max-restarts comes back to a run: name its folder, --out DIR")
    try:
        device = pick_device(config.run.device, ranks)
    except UserError as error:  # of all on this machine, which cannot speak to each other yet
        raise error if ranks.local_rank == 0 else PeerError(str(error)) from None
    with (
        watched(config.run.disk_timeout, "fastsc.train", STOPPING),
        ranks.connected(device, config.run.rank_timeout),
        ranks.contact(),
        ExitStack() as resources,
    ):
        return _train(config, device, ranks, stop, resources, conclude)


def _train(
    config: TrainConfig,
    device: torch.device,
    ranks: Ranks,
    stop: StopSignal,
    resources: ExitStack,
    conclude: Conclude | None,
) -> int:
    # torchrun counts the restarts of each machine by itself.
    ranks.restarts = int(ranks.max(ranks.restarts))
    if ranks.restarts:  # a process of this job died: it goes on where the last checkpoint is
        config = config.replace(resume=True)
    with ranks.all_or_none():
        check_packages(config)
        concludes = ranks.is_main and conclude is not None and config.data.val != "none"
        if config.method.objective == "self" and concludes:
            for package in ("jinja2", "scipy", "matplotlib"):
                needed(package, "the page of a repair (none with --val none)")
    with ranks.all_or_none():
        check_same_options(config, ranks)
        precision = pick_precision(config.run.precision, device)
    ranks.assert_equal("the native precisions (name one with --precision)", precision)
    config = config.replace(precision=precision)
    with ranks.all_or_none():
        chosen = RunFolder.choose(config) if ranks.is_main else None
    folder = ranks.broadcast(chosen)
    assert folder is not None
    there = ranks.broadcast(folder.config.is_file())
    if there:  # before its checkpoints are read: they are another's as long as that is at work
        ranks.on_main(lambda: _lock(resources, folder, ranks))
    if there and config.run.resume:
        config = config.replace(**ranks.broadcast(kept(folder.config, config)))
    with ranks.all_or_none():
        ended = ended_for_good(folder.log) if ranks.is_main and ranks.restarts else 0
    if status := ranks.broadcast(ended):
        return status
    if device.type == "cpu":
        keep_memory()
    config, source = _begun_from(config, folder, there, ranks)
    with ranks.local_first():
        data = open_data(config.data, labels=config.method.objective == "labels")
        check_label_key(config.data.label_key, config.data.data, data)
    ranks.assert_equal("the training images", data.train.hash)
    ranks.assert_equal("the validation images", None if data.val is None else data.val.hash)
    if config.data.verify:
        data = verified(data, config.data, ranks)
        if config.method.objective == "self" and data.val is not None:
            with ranks.all_or_none():
                require_held_out(data.val)
    with ranks.all_or_none():
        training = Training(config, data, device, precision, ranks, source)
    config = training.config
    ranks.assert_equal("what --compile auto is (say --compile or not)", config.run.compile)
    saved = None
    if config.run.resume:
        with ranks.all_or_none():
            newest = checkpoint.load_newest(folder.checkpoints) if ranks.is_main else None
        if (saved := ranks.broadcast(newest)) is not None:
            with ranks.all_or_none():
                training.load_state_dict(saved.state, saved.path)
            exported = ranks.broadcast(exported_step(folder.weights))
            if config.method.objective == "self" and conclude is not None and data.val is not None:
                exported = exported if ranks.broadcast(folder.page.exists()) else None
            if training.finished and exported == training.step:
                _say(ranks, f"{folder.root} is finished at step {training.step}; nothing to do")
                return 0
        else:
            _say(ranks, f"{folder.root} has no checkpoint yet; starting over")
    if config.run.compile:
        with ranks.all_or_none():
            check_compiler(device)
        n_sizes = len(resolutions(config.data, config.optim.epochs))
        resources.enter_context(graphs_allowed(n_sizes))
    with ExitStack() as rollback:  # until there is something to save, what is written goes again
        if not there:
            ranks.on_main(lambda: _lock(resources, folder, ranks))
        ranks.on_main(lambda: rollback.callback(folder.create(config, fresh=not there)))
        with ranks.all_or_none():
            opened = Report.open(config, folder, training.total_steps, main=ranks.is_main)
            report = resources.enter_context(opened)
        with ranks.all_or_none():
            resources.enter_context(report.rank_log(folder, ranks, device))
        writer = CheckpointWriter(
            folder.checkpoints,
            keep=config.run.keep_checkpoints,
            unchecked=checkpoint.masks(training.core.model.net),
        )
        resources.callback(writer.close)
        stop.wait_for_loops()
        rollback.pop_all()
    return _run(training, folder, report, writer, stop, saved, conclude)


def _begun_from(
    config: TrainConfig, folder: RunFolder, there: bool, ranks: Ranks
) -> tuple[TrainConfig, Source | None]:
    """What --init names, and the configuration with what is known of it.

    A run that goes on from a checkpoint has both in its folder, whatever became of the source.
    """
    if config.model.init is None:
        return config, None
    if ranks.broadcast(there and config.run.resume and bool(folder.saved_steps)):
        with ranks.all_or_none():
            begun = of_begun(config, folder.config) if ranks.is_main else {}
        # Not the whole: where the data lie may be each machine's own.
        return config.replace(**ranks.broadcast(begun)), None
    with ranks.local_first():
        source, config = open_source(config)
        check(config)
    ranks.assert_equal("the weights of --init", source.hash)
    return config, source


def _run(
    training: Training,
    folder: RunFolder,
    report: Report,
    writer: CheckpointWriter,
    stop: StopSignal,
    saved: checkpoint.Loaded | None,
    conclude: Conclude | None,
) -> int:
    """The training, whatever comes of it, and the log's last line; the exit status."""
    ranks = training.ranks
    began, reason, status = time.monotonic(), "done", 1
    try:
        with ranks.contact():
            introduce(training, report, saved)
            if fit(training, writer, report, stop) and draw_back(training, report, stop):
                ranks.on_main(report.check)  # before there are weights, which nothing follows
                ranks.on_main(writer.wait)
                ranks.on_main(lambda: _export(training, folder, report, conclude))
                ranks.on_main(report.check)
                status = 0
            else:
                reason = f"stopped by {_signal_name(ranks, stop)}"
                ranks.on_main(writer.wait)
                status = EXIT_RESUMABLE
    except UserError as error:
        reason, status = str(error), 2
        # A broken image, say: the steps before it are kept, if they are worth it. All ranks are
        # here, and must agree on that.
        with ranks.contact(), suppress(UserError):
            if not ranks.agree(action=int(isinstance(error, NonFiniteError))):
                report_bad_images(training, report)
                save(training, writer, report)
                ranks.on_main(writer.wait)
        raise
    except (LostContactError, StalledError) as error:
        reason, status = str(error), EXIT_RESUMABLE
        raise
    except torch.OutOfMemoryError as error:
        reason = "".join(traceback.format_exception(error))
        at_once = training.step == 0 and not training.finished
        if not at_once or not ranks.single_process:  # whose others are in the middle of the step
            raise
        status = 2
        raise UserError(
            f"the first step does not fit into memory ({first_line(error)}); take a smaller "
            "--batch-size or --resolution, or --accumulate"
        ) from error
    except BaseException as error:
        reason = "".join(traceback.format_exception(error))
        raise
    finally:
        seconds = round(time.monotonic() - began, 3)
        report.end(
            reason=reason, status=status, steps=training.step, seconds=seconds, time=time.time()
        )
        training.close()
    if status == EXIT_RESUMABLE:
        at = f"{reason} at step {training.step}"
        report.say(f"{at}; go on with --resume --out {folder.root}")
        return status
    weights = f"{folder.weights}, " if installed("safetensors") else ""
    report.say(f"wrote {weights}{folder.log}")
    return status


def _lock(resources: ExitStack, folder: RunFolder, ranks: Ranks) -> None:
    """Keeps others out of the run's folder until `resources` are closed."""
    resources.enter_context(locked(folder.root, patience=PATIENCE if ranks.restarts else 0.0))


def _export(
    training: Training, folder: RunFolder, report: Report, conclude: Conclude | None
) -> None:
    """weights.safetensors; without that package the weights stay in the last checkpoint.

    Of --objective self also what it was before, and the conclusion.
    """
    if installed("safetensors"):
        repaired = training.config.method.objective == "self"
        if repaired:
            # A page of an earlier end is not of these weights: a kill before theirs would leave it.
            # Of another run the page there is its user's own.
            folder.page.unlink(missing_ok=True)
        training.export(folder.weights)
        if repaired:
            training.export(folder.before, before=True)
            if conclude is not None and training.data.val is not None:
                config, data, holds = training.config, training.data, training.holds
                conclude(config, data, folder, report, holds, training.agreement_at_end)
        return
    advice = "pip install safetensors, then --resume"
    report.warning(training.step, f"{folder.weights.name} not written: {advice}")


def _signal_name(ranks: Ranks, stop: StopSignal) -> str:
    """The signal that stops the run, whichever rank it reached."""
    return signal.Signals(int(ranks.max(float(stop.number or 0)))).name


def _say(ranks: Ranks, line: str) -> None:
    if ranks.is_main:
        write_line(line)
