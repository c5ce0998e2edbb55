"""The training loop: steps and what is said of them, epochs, validations, checkpoints."""

from __future__ import annotations

import copy
import time

from fastsc.distributed.ranks import NOTHING, SAVE, STOP
from fastsc.distributed.signals import StopSignal
from fastsc.run.reporter import Report
from fastsc.run.validation import Validation
from fastsc.run.writer import CheckpointWriter
from fastsc.training.compiling import GraphCounter
from fastsc.training.drawback import between, farthest, keeps
from fastsc.training.state import Training, Unreported
from fastsc.training.validate import validate

WATCHED = 10  # steps: figures and losses are looked at so often, logged or not


def fit(training: Training, writer: CheckpointWriter, report: Report, stop: StopSignal) -> bool:
    """The training loop. True when it came to its end, False when a signal stopped it."""
    config, ranks, loader = training.config, training.ranks, training.loader
    run, meter, graphs = config.run, training.meter, GraphCounter(config.run.compile is True)
    last_saved = time.monotonic()
    meter.restart()

    def save_now() -> None:
        nonlocal last_saved
        save(training, writer, report)
        last_saved = time.monotonic()

    def requested() -> int:
        writer.check()  # what went wrong beside the steps is raised here, for all ranks
        report.check()
        minutes = (time.monotonic() - last_saved) / 60
        return STOP if stop else SAVE if minutes >= run.checkpoint_minutes else NOTHING

    while not training.finished:
        epoch, epoch_began = training.begin_epoch(), time.monotonic()
        left = min(training.total_steps - training.step, len(loader) - loader.position)
        for batch, action in ranks.batches(meter.batches(loader), requested, left):
            assert batch is not None, "a rank has less batches than the others"
            step = training.step + 1
            last = step == training.total_steps
            logged = step == 1 or step % run.log_every == 0 or last
            watched = logged or step % min(run.log_every, WATCHED) == 0
            due = run.checkpoint_steps is not None and step % run.checkpoint_steps == 0
            observed = training.alpha.observes(training.step)
            measured = training.train_step(batch, measured=watched or observed)
            graphs.report_new(report, step, loader.settings.resolution)
            _report_measured(training, report)  # a step before, which has had this one's time
            # One rank's for all: machines of two kinds round differently, and alpha must not part.
            if measured is not None and observed:
                warning = training.alpha.observe(ranks.broadcast(measured.read()))
                if warning is not None:
                    report.warning(step, warning)
            if measured is not None and watched:
                measured.more |= training.alpha.figures
                taken = meter.take() if logged else None
                training.unreported = Unreported(step, epoch, measured, taken)
                training.losses.send()
            saves = due or action != NOTHING  # and goes on after what was reported before
            if observed or step == 1 or last or saves or training.looks_at_every_loss:
                training.losses.send()
                _report_measured(training, report)
            if logged or saves:
                report_bad_images(training, report)
            if not last and saves:
                save_now()
                meter.restart()
            if not last and action == STOP:
                return False

        _report_measured(training, report)
        report_bad_images(training, report)
        training.synchronize()
        if training.validates(epoch):
            save_now()  # what stops the validation costs no training
        done, val = _validate_epoch(training, epoch, stop)
        report_bad_images(training, report)
        if not done:
            return False
        report.epoch(epoch, training.step, time.monotonic() - epoch_began, val)
        ds_relative = None if val is None else val.ds_relative
        if training.ended and (warning := training.alpha.missed(ds_relative)):
            report.warning(training.step, warning)
        ranks.on_main(report.check)
        if loader.exhausted:  # --max-steps may have ended it earlier, and may go on from there
            loader.set_epoch(epoch + 1)
        training.validated(val)
        save_now()
        meter.restart()
        if ranks.agree(action=STOP if stop else NOTHING) and not training.finished:
            return False
    return True


def _validate_epoch(
    training: Training, epoch: int, stop: StopSignal
) -> tuple[bool, Validation | None]:
    """Validates if the epoch is one for it. False: a signal stopped it."""
    if training.val_loader is None or not training.validates(epoch):
        return True, None
    val = _validate(training, stop)
    return val is not None, val


def _validate(training: Training, stop: StopSignal) -> Validation | None:
    """What the present weights do on the validation images; None: a signal stopped it."""
    assert training.val_loader is not None
    data = training.config.data
    return validate(
        training.core.best,
        training.val_loader,
        training.config.method.ds,
        flip=data.val_flip,
        teacher=training.core.teacher,
        ranks=training.ranks,
        stop=lambda: bool(stop),
        precision=data.val_precision,
    )


class _StoppedError(Exception):
    """A signal stopped a validation."""


def draw_back(training: Training, report: Report, stop: StopSignal) -> bool:
    """After the last step, what --keep asks: what is exported is the farthest point that holds it.

    The network itself stays at its last step, which a checkpoint may yet be made of. False: a
    signal stopped it. All ranks come to the same point.
    """
    keep, teacher, net = training.config.method.keep, training.core.teacher, training.core.best.net
    if keep is None or teacher is None or training.val_loader is None:
        return True
    before = teacher.net.state_dict()
    after = copy.deepcopy(net.state_dict())
    points = dict[float, Validation]()

    def holds(share: float) -> bool:
        point = training.last_validation if share == 1 else None
        if point is None:
            net.load_state_dict(between(before, after, share))
            point = _validate(training, stop)
        if point is None:
            raise _StoppedError
        points[share] = point
        return keeps(point.top1, point.ds_relative, keep)

    try:
        share = farthest(holds)
    except _StoppedError:
        return False
    finally:
        net.load_state_dict(after)
    report_bad_images(training, report)
    training.drawn, training.holds = between(before, after, share), share > 0
    training.agreement_at_end = points[1.0].top1
    reached = {"agreement": 1.0, "ds_relative": None}
    if share:
        point = points[share]
        reached = {"agreement": point.top1, "ds_relative": point.ds_relative}
    report.event(
        "kept",
        step=training.step,
        share=share,
        holds=training.holds,
        **reached,
        agreement_at_end=training.agreement_at_end,
    )
    if share < 1:
        report.say(f"drawn back to {share:.3g} of the way from the weights before, for --keep")
    return True


def save(training: Training, writer: CheckpointWriter, report: Report) -> None:
    """A checkpoint: all ranks give their part, the main one writes, beside the steps to come.

    Raises:
        UserError: The steps before it led nowhere; or the checkpoint before it was not written.
    """
    training.losses.send()
    _report_measured(training, report)
    state = training.state_dict()
    training.ranks.on_main(lambda: writer.save(state, training.step, best=training.best[1]))


def _report_measured(training: Training, report: Report) -> None:
    """The figures and losses that are on their way to the host; all ranks ask for them at once.

    Raises:
        UserError: As `_report_non_finite`.
    """
    if (done := training.unreported) is not None:
        training.unreported = None
        figures = done.measured.read()  # the step is over, and the meter's clock right
        if done.taken is not None:
            pairs_per_s, wait = training.meter.read(*done.taken)
            figures |= {"pairs_per_s": pairs_per_s, "loader_wait": training.ranks.max(wait)}
            report.step(done.step, done.epoch, figures)
        if warning := training.watch.observe(figures):
            report.warning(done.step, warning)
    _report_non_finite(training, report)


def report_bad_images(training: Training, report: Report) -> None:
    for image in training.take_bad_images():
        report.bad_image(image)


def _report_non_finite(training: Training, report: Report) -> None:
    """Names the images of a loss that is not finite, and ends the run if it has not been left out.

    Raises:
        UserError: NonFiniteError on the main rank.
    """
    if (nonfinite := training.losses.look()) is None:
        return
    report_bad_images(training, report)  # their substitutes may have been in it
    action, spe = training.config.run.on_nan, training.steps_per_epoch
    epoch, batch = divmod(nonfinite.number - 1, spe)
    report.event(
        "nonfinite",
        step=nonfinite.number,
        epoch=epoch,
        batch=batch,
        action=action,
        index=nonfinite.index,
    )
    if action == "stop":
        raise training.losses.stop(nonfinite.number, skipping=False)
    report.say(f"warning: step {nonfinite.number} was left out, its loss is not finite")
    if training.losses.count_skipped():
        raise training.losses.stop(nonfinite.number, skipping=True)
