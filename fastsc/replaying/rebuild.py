"""A past batch of a run, out of its log, its options and its data, and nothing before it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from fastsc.config import TrainConfig
from fastsc.datasets.folders import Data, open_data
from fastsc.distributed.devices import DTYPES, pick_device
from fastsc.distributed.ranks import Ranks
from fastsc.errors import UserError
from fastsc.pipelines import BadImage, Index, PairBatch, Pipeline
from fastsc.pipelines.fields import Fields
from fastsc.pipelines.index import relative
from fastsc.pipelines.perturbing import perturbations
from fastsc.pipelines.plan import Plan, local_batches
from fastsc.replaying.history import History, StepRecord
from fastsc.run.folder import RunFolder
from fastsc.training.loaders import build_loaders
from fastsc.training.schedules import resolution_at

Int64 = NDArray[np.int64]
MAX_NOTES = 10  # of rows


class ReplayOptions(NamedTuple):
    """Options of a replay besides the step; None: as it was in the run."""

    rank: int | None = None  # None: the whole batch
    data: str | None = None
    pipeline: str | None = None
    device: str | None = None


@dataclass(frozen=True)
class Rebuilt:
    """A batch as the trainer saw it, and where every row of it comes from.

    Attributes:
        config: The options of the step, those that were asked for here among them.
        epoch, batch: From 0; `n_batches` are in an epoch.
        rank: Whose share it is; None for the whole batch, in its own order: row i of rank r is
            row i · world_size + r.
        views: On the CPU, float32, which holds every value of `dtype` exactly.
        planned: (N,) dataset indices as the plan has them, broken files included.
        plan: The epoch's tables, by dataset index.
        decoder, device: Here; `decoder_then` and `device_then` the run's, None if unknown.
        notes: What a reader should know, one line each.
    """

    record: StepRecord
    config: TrainConfig
    epoch: int
    batch: int
    n_batches: int
    rank: int | None
    world_size: int
    resolution: int
    dtype: torch.dtype
    views: PairBatch
    planned: Int64
    plan: Plan
    index: Index
    decoder: str
    decoder_then: str | None
    device: str
    device_then: str | None
    notes: list[str]


def rebuild(history: History, record: StepRecord, options: ReplayOptions) -> Rebuilt:
    """Decodes the images of one step, as its run did.

    Raises:
        UserError: There is no such rank, the images are not the run's, or one of them cannot be
            decoded.
    """
    facts, notes = record.segment.facts, list[str]()
    header = Fields(facts, f"{RunFolder(history.run).log}, what step {record.step} ran with")
    world_size, logged = header.whole("world_size", 1), _logged(record)
    if logged is not None:
        world_size = len(logged)
    if options.rank is not None and not 0 <= options.rank < world_size:
        ranks = f"ranks 0 to {world_size - 1}" if world_size > 1 else "one rank, 0"
        raise UserError(f"--rank {options.rank}: step {record.step} ran with {ranks}")
    if not record.certain:
        last = record.segment.last
        notes.append(f"the log ends at step {last}: step {record.step} need not have run")
    ran = history.config(record)
    device, device_then = _device(options, facts.get("device"))
    config = _options(ran, options, device)
    if ran.optim.batch_size % (world_size * ran.optim.accumulate):
        header.wrong("world_size", f"a divisor of the batch of {ran.optim.batch_size} images")
    index = _index(history, record, config, header)
    _check_sources(config, header)
    dtype = DTYPES[header.text("precision", DTYPES)]  # type: ignore[index]  # "auto" is not logged
    bad: list[BadImage] = []
    loader, _ = build_loaders(
        config, Data(index, None), device, dtype, bad.append, _ranks(world_size)
    )
    try:
        n_batches = len(loader)
        epoch, batch = divmod(record.step - 1, n_batches)
        resolution = resolution_at(epoch, config.data)
        loader.set_resolution(resolution)
        plan = loader.plan(epoch)
        shares = planned = [
            local_batches(plan, replace(loader.settings, rank=rank), batch)[0]
            for rank in range(world_size)
        ]
        if logged is not None:
            shares = _checked(logged, record, index, len(planned[0]))
        wanted = range(world_size) if options.rank is None else (options.rank,)
        views = _views(loader, plan, [shares[rank] for rank in wanted])
        decoder = loader.decoder
    finally:
        loader.close()
    order = _dealt([torch.from_numpy(planned[rank]) for rank in wanted]).numpy()
    notes += _about_where(ran, config, facts.get("decoder"), decoder, device_then, device)
    if record.nonfinite is not None:
        notes.append(
            f"the loss of step {record.step} was not finite: these are the images that the log "
            "names for it"
        )
        if bad:
            raise UserError(f"{bad[0].path}: {bad[0].reason}; step {record.step} has read it")
    else:
        _check_broken(history, record, ran, index, bad, notes)
    notes += _about_rows(plan, index, order, views.index.numpy(), history.broken(record))
    whole = options.rank is None and world_size > 1
    return Rebuilt(
        record=record,
        config=config,
        epoch=epoch,
        batch=batch,
        n_batches=n_batches,
        rank=None if whole else options.rank or 0,
        world_size=world_size,
        resolution=resolution,
        dtype=dtype,
        views=views,
        planned=order,
        plan=plan,
        index=index,
        decoder=decoder,
        decoder_then=facts.get("decoder"),
        device=str(device),
        device_then=device_then,
        notes=notes,
    )


# --- options and data -----------------------------------------------------------------------------


def _options(ran: TrainConfig, options: ReplayOptions, device: torch.device) -> TrainConfig:
    """The run's options with what is asked for here, and nothing that a replay has no use for."""
    config = ran.replace(
        data=options.data or ran.data.data,
        pipeline=options.pipeline or ran.data.pipeline,
        workers=None,
        # Where no validation folder was named, some images may have been held out.
        val="none" if ran.method.objective == "labels" else ran.data.val,
        # What may not be broken is reported here, with another advice than to the trainer's user.
        on_bad_image="skip",
    )
    if device.type != "cuda" or config.data.pipeline != "dali":
        config = config.replace(decode="auto")
    return config


def _device(options: ReplayOptions, then: str | None) -> tuple[torch.device, str | None]:
    """Where to make the views: asked for, or the run's device where this machine has such."""
    then = None if then == "auto" else then
    name = options.device or ("cpu" if then == "cpu" else "auto")
    try:
        device = pick_device(name, _ranks(1))
    except RuntimeError:
        raise UserError(f"--device must be cpu, cuda or cuda:N, not {name!r}") from None
    return device, then


def _ranks(world_size: int) -> Ranks:
    """So many ranks, of which this process plays the first."""
    ranks = Ranks()
    ranks.rank = ranks.local_rank = 0
    ranks.world_size, ranks.local_world_size = world_size, 1
    return ranks


def _index(history: History, record: StepRecord, config: TrainConfig, header: Fields) -> Index:
    """The run's index: of the training images, less what was left out of the run."""
    then, n_then = header.text("index_hash"), header.whole("images")
    index = open_data(config.data, labels=config.method.objective == "labels").train
    if index.hash == then:
        return index
    position = {path: i for i, path in enumerate(index.paths)}
    left_out = {
        position[path]: "left out of the run"
        for path, from_the_start in history.broken(record).items()
        if from_the_start and path in position
    }
    if (verified := index.without(left_out)).hash == then:
        return verified
    n = len(index) - len(index.left_out)
    raise UserError(
        f"{index.root}: not the run's images (index {index.hash} of {n} images here, "
        f"{then} of {n_then} then); put them back as they were, or say "
        "where they are with --data DIR"
    )


def _check_sources(config: TrainConfig, header: Fields) -> None:
    """Raises UserError where a function of one's own is no more what the run was made with."""
    then = header.inner("perturb_sources").values if header.has("perturb_sources") else {}
    for own in perturbations(config.data.perturb).own.values():
        if (before := then.get(own.name)) != own.source:
            raise UserError(
                f"--perturb {own.name}: its source has changed ({before} then, {own.source} "
                "now); put it back as it was"
            )


# --- images ---------------------------------------------------------------------------------------


def _views(loader: Pipeline, plan: Plan, shares: list[Int64]) -> PairBatch:
    """The ranks' batches, each decoded as that rank did, dealt together."""
    # One loader serves all: of its rank nothing depends but the share.
    clean, perturbed, target, index = [], [], [], []
    for share in shares:
        batch = loader.batch_of(plan, share)
        assert batch is not None, "a training batch is never left out"
        assert batch.perturbed is not None
        clean.append(batch.clean.float().cpu().contiguous())
        perturbed.append(batch.perturbed.float().cpu().contiguous())
        target.append(batch.target.cpu())
        index.append(batch.index.cpu())
    return PairBatch(_dealt(clean), _dealt(perturbed), _dealt(target), _dealt(index))


def _dealt(parts: list[torch.Tensor]) -> torch.Tensor:
    """(N, …) of each rank -> (N · world_size, …) in the order of the global batch."""
    return torch.stack(parts, 1).flatten(0, 1)


def _logged(record: StepRecord) -> list[Int64] | None:
    """The dataset indices that the log names for a step, by rank; None where it names none."""
    if record.nonfinite is None or not record.nonfinite.get("index"):
        return None
    return [np.array(share, np.int64) for share in record.nonfinite["index"]]


def _checked(logged: list[Int64], record: StepRecord, index: Index, n: int) -> list[Int64]:
    for share in logged:
        if share.shape != (n,) or share.min() < 0 or share.max() >= len(index):
            raise UserError(
                f"the log's line of the loss of step {record.step} is damaged: every rank had {n} "
                f"of {len(index)} images"
            )
    return logged


# --- what a reader should know --------------------------------------------------------------------


def _check_broken(
    history: History,
    record: StepRecord,
    ran: TrainConfig,
    index: Index,
    bad: list[BadImage],
    notes: list[str],
) -> None:
    """Raises UserError for a file that the run could decode; the others have their substitutes."""
    known = history.broken(record)
    for image in bad:
        path = relative(image.path, index.root) or image.path
        told = not known.keys().isdisjoint((path, image.path))
        if ran.data.on_bad_image == "raise" or (record.certain and not told):
            raise UserError(
                f"{image.path}: {image.reason}; the run could decode it: put it back as it was"
            )
        if not told:
            notes.append(f"{path} is broken here ({image.reason}), and not in the log")


def _about_where(
    ran: TrainConfig,
    config: TrainConfig,
    decoder_then: str | None,
    decoder: str,
    device_then: str | None,
    device: torch.device,
) -> list[str]:
    """Why pixels may differ from those of the run."""
    now, then = config.data.pipeline, ran.data.pipeline
    notes = []
    if now != then:
        notes.append(f"--pipeline {now} here, {then} in the run: pixels may differ")
    elif decoder_then is not None and decoder != decoder_then:
        advice = ""
        if now in ("cpu", "memory"):
            advice = f"; FASTSC_DECODER={decoder_then} takes the run's"
        notes.append(f"decoded by {decoder} here, {decoder_then} then: pixels may differ{advice}")
    if device_then is not None and device_then.split(":")[0] != device.type:
        notes.append(f"views made on {device} here, on {device_then} then: they may differ")
    return notes


def _about_rows(
    plan: Plan, index: Index, planned: Int64, actual: Int64, known: dict[str, bool]
) -> list[str]:
    """Where rows hold other images than the plan's, or may have done so."""
    notes = []
    for row, (wanted, at) in enumerate(zip(planned.tolist(), actual.tolist(), strict=True)):
        path = index.paths[wanted]
        if wanted == at:
            if known.get(path) is False:
                notes.append(f"row {row}: the log names {path} as broken; here it is decoded")
        elif at in [plan.substitute(wanted, attempt) for attempt in range(3)]:
            notes.append(f"row {row}: {index.paths[at]} in place of {path}, which is broken")
        else:
            notes.append(f"row {row}: {index.paths[at]}, where the plan has {path}")
    if len(notes) > MAX_NOTES:
        notes[MAX_NOTES:] = [f"… and {len(notes) - MAX_NOTES} rows more, as batch.npz tells"]
    return notes
