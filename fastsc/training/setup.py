"""From a configuration to the network that trains: built, tried at every resolution, wrapped."""

from __future__ import annotations

import inspect
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from fastsc.config import TrainConfig
from fastsc.distributed.devices import Precision, autocast
from fastsc.distributed.ranks import Ranks
from fastsc.errors import UserError, one_line
from fastsc.kernels import ds
from fastsc.kernels.distance import BATCH_SCALED
from fastsc.loading.nets import network
from fastsc.loading.source import Source, take_weights
from fastsc.models.features import FeatureModel, untouched
from fastsc.models.front import tell_normalization
from fastsc.models.noise import SharedDraws, share_masks
from fastsc.models.norms import convert
from fastsc.models.pooling import PoolDS, ends_in_average_pooling
from fastsc.models.representation import Represented
from fastsc.models.views import Views
from fastsc.pipelines.plan import n_paired
from fastsc.training.layers import freeze
from fastsc.training.schedules import resolutions

# As DistributedDataParallel calls it from torch 2.14 on, or did before.
_DDP_OPTIONS = inspect.signature(DistributedDataParallel.__init__).parameters
_NEW, _OLD = "forward_sync_buffers", "broadcast_buffers"
_NO_BUFFERS: dict[str, Any] = {_NEW if _NEW in _DDP_OPTIONS else _OLD: False}

PROBED = 4  # images, each as two equal views
NOISY = 0.01  # view_noise above which training warns


def prepare(
    config: TrainConfig,
    n_classes: int,
    device: torch.device,
    precision: Precision,
    ranks: Ranks,
    source: Source | None = None,
) -> Represented:
    """What trains: the network of `build`, the same on every rank, that knows its `view_noise`."""
    torch.manual_seed(config.run.seed)
    model = build(config, n_classes, device, ranks, source)
    side = resolutions(config.data, config.optim.epochs)[0]
    model.view_noise = view_noise(model, side, precision, compiled=config.run.compile is True)
    return model


def build(
    config: TrainConfig,
    n_classes: int,
    device: torch.device,
    ranks: Ranks,
    source: Source | None = None,
) -> Represented:
    """The network of a configuration, on its device, in the run's layout.

    Its weights are the source's, or fresh.

    Raises:
        UserError: There is none of that name, it does not run at one of the run's resolutions, it
            has a state that no weights file holds, or the source's weights do not fit.
    """
    name, data, method = config.model.model, config.data, config.method
    options, views = config.model, Views()
    net = network(
        name, n_classes, options.stem, data.resolution,
        blurpool=options.blurpool, front=options.front,
    )  # fmt: skip
    for key, value in net.state_dict().items():
        if not isinstance(value, torch.Tensor):  # a module's extra state
            raise UserError(
                f"model {name}: {key} is no tensor but {type(value).__name__}, which no weights "
                "file holds; make it a buffer"
            )
    tell_normalization(net, data.mean, data.std)
    new_head = None if source is None else take_weights(net, source, n_classes)
    net.to(device)  # what is tried below runs where the training will
    share_masks(net, views)
    model = FeatureModel(net, name, n_classes, data.resolution)
    represented = Represented(model, method.ds_at, views, _pool(model, config, device, ranks))
    sides = resolutions(data, config.optim.epochs)
    represented.new_head = new_head
    freeze(model, options.freeze, new_head)
    norms = method.bn == "frozen"
    if norms:
        represented.frozen = tuple(m for m in net.modules() if isinstance(m, _BatchNorm))
    # The answers that it is to keep are those that it gives without dropout.
    represented.as_evaluated = norms and method.objective == "self"
    represented.eval()
    for side in sorted({data.val_resolution or data.resolution, *sides}):
        with torch.no_grad(), one_line(f"model {name} does not run at {side} pixels"):
            represented(torch.zeros(1, 3, side, side, device=device))
    _check_batch_norm(represented, sides[0], config, ranks)
    # After what was tried in training mode: batch norm over all ranks would speak to them.
    split, sync = method.bn == "split", method.sync_bn and not ranks.single_process
    convert(net, name, views, split=split, sync=sync, on_gpu=device.type == "cuda")
    return represented.to(memory_format=layout_of(config))


@torch.no_grad()
def view_noise(model: Represented, side: int, precision: Precision, *, compiled: bool) -> float:
    """How far equal views of an image lie apart in training, by what the network draws for each.

    Tried on a few pairs of equal images, which leave no trace in statistics and generators. If the
    network draws by other ways than modules that share their masks, it is told to share these
    draws, too, where nothing is compiled.

    Returns:
        ds_relative of the representation; 0 where both views get the same.

    Raises:
        UserError: The network does not run in training mode.
    """
    if compiled:
        model.model.drops_by_function = False
    device = next(model.parameters()).device
    images = torch.randn(PROBED, 3, side, side, generator=torch.Generator().manual_seed(0))
    both = torch.cat([images, images]).to(device)
    with untouched(model), autocast(device, precision), ExitStack() as modes:
        draws = None if compiled else modes.enter_context(SharedDraws(PROBED))
        with one_line(f"model {model.model.name} does not train at {side} pixels"):
            f, g = model.train()(both, PROBED).representation.float().chunk(2)
    model.shares_draws = draws is not None and draws.n_shared > 0
    return 0.0 if torch.equal(f, g) else float(ds(f, g, "relative"))


def wrap(model: nn.Module, config: TrainConfig, device: torch.device, ranks: Ranks) -> nn.Module:
    """The model's forward as the training step calls it: over all ranks, and compiled if asked.

    Under several ranks torch's generator is each rank's own from here on.
    """
    forward = model
    if not ranks.single_process:
        forward = DistributedDataParallel(
            model,
            device_ids=[device] if device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            # Every rank keeps running statistics of its own images; they are averaged before
            # they are used, and nothing of a rank's is thrown away.
            **_NO_BUFFERS,
        )
        # From here on dropout differs between ranks, as between images.
        torch.manual_seed((config.run.seed * ranks.world_size + ranks.rank) % 2**63)
    if config.run.compile is True:
        # mypy knows no callable that is also a module.
        forward = torch.compile(  # type: ignore[assignment]
            forward, dynamic=False, mode=config.run.compile_mode
        )
    return forward


def layout_of(config: TrainConfig) -> torch.memory_format:
    """Of weights and views."""
    return torch.channels_last if config.run.channels_last else torch.contiguous_format


def _pool(
    model: FeatureModel, config: TrainConfig, device: torch.device, ranks: Ranks
) -> PoolDS | None:
    """What pools and measures DS in one pass over the last feature map; None: each by itself.

    Raises:
        UserError: It was asked for by name, and cannot be had.
    """
    method, run = config.method, config.run
    wanted, on_gpu = run.pooling, device.type == "cuda"
    if wanted == "separate" or (wanted == "auto" and not (on_gpu and run.channels_last)):
        return None
    reason = None
    if method.plain:
        reason = "--alpha 0 with --ce-views clean trains without DS"
    elif method.objective == "self" and method.bn == "frozen":
        reason = "--objective self with --bn frozen runs as in evaluation"
    elif method.ds_at != "features":
        reason = f"DS is taken at {method.ds_at}, not at the pooled features"
    elif method.ds in BATCH_SCALED and not ranks.single_process:
        reason = f"--ds {method.ds} compares the images of all processes"
    elif not ends_in_average_pooling(model, config.data.resolution):
        reason = f"model {model.name} does not end in global average pooling"
    if reason is None:
        return PoolDS(
            method.ds, stop_gradient=method.stop_gradient, detach_scale=method.detach_scale
        )
    if wanted == "fused":
        raise UserError(f"--pooling fused: {reason}; leave the option out")
    return None


def _check_batch_norm(
    represented: Represented, side: int, config: TrainConfig, ranks: Ranks
) -> None:
    """Raises UserError where batch norm would get a single value of a channel to normalize."""
    method, size = config.method, config.optim.batch_size
    parts = ranks.world_size * config.optim.accumulate
    n, m = size // parts, n_paired(size, method.paired_fraction) // parts
    # Plain training looks at both views too, for the log.
    rows = min(n, m) if method.bn == "split" else n if method.plain else n + m
    if rows > 1 or method.bn == "frozen" or (method.sync_bn and not ranks.single_process):
        return
    with untouched(represented), torch.no_grad():
        try:
            device = next(represented.parameters()).device
            represented.train()(torch.zeros(1, 3, side, side, device=device))
        except ValueError:  # torch's, which speaks of shapes
            raise UserError(
                f"batch norm gets one image and one position of it at {side} pixels: take a "
                "larger --batch-size or --resolution, or less of --accumulate, --bn split and "
                "--paired-fraction"
            ) from None
