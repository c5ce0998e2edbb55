"""What training changes, and one step of it: forward over both views, loss, update."""

from __future__ import annotations

import contextlib
import inspect
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from fastsc.cli.packages import needed
from fastsc.config import TrainConfig
from fastsc.distributed.devices import Precision, autocast
from fastsc.distributed.ranks import Ranks
from fastsc.errors import UserError, first_line
from fastsc.kernels import ds
from fastsc.loss import ContinuityLoss
from fastsc.models.build import build_model
from fastsc.models.features import Buffers, FeatureModel, untouched
from fastsc.models.norms import Views, convert
from fastsc.models.pooling import PoolDS, ends_in_average_pooling
from fastsc.models.representation import Represented
from fastsc.pipelines import PairBatch
from fastsc.pipelines.plan import n_paired
from fastsc.training.alpha import Multiplier
from fastsc.training.collapse import spread
from fastsc.training.optimizer import lr_at, make_optimizer, set_lr
from fastsc.training.schedules import alpha_at, resolutions

# As DistributedDataParallel calls it from torch 2.14 on, or did before.
_DDP_OPTIONS = inspect.signature(DistributedDataParallel.__init__).parameters
_NEW, _OLD = "forward_sync_buffers", "broadcast_buffers"
_NO_BUFFERS: dict[str, Any] = {_NEW if _NEW in _DDP_OPTIONS else _OLD: False}
Figures = dict[str, float]


class Step:
    """Model, loss, optimizer, gradient scaler, average of the weights; `step` counts updates.

    Attributes:
        model: Gives (features, logits, representation); its own forward, without DDP or compiler.
        ema: The same with averaged weights, or None.
        last_loss: Of this rank in the last step, on its device; NaN where the step was left out.
        multiplier: What gives alpha under --ds-target, updated by the owner; else None.
    """

    def __init__(
        self,
        config: TrainConfig,
        n_classes: int,
        device: torch.device,
        precision: Precision,
        ranks: Ranks,
    ) -> None:
        self.config, self.device, self.precision, self.ranks = config, device, precision, ranks
        self.step = 0
        self.steps_per_epoch = 1  # set by the owner, who knows the data
        method, optim = config.method, config.optim
        # Plain training: the perturbed view would cost a forward pass and change nothing but the
        # batch-norm statistics, so it is looked at for the log only.
        self.plain = method.plain
        self.layout = torch.channels_last if config.run.channels_last else torch.contiguous_format
        self.last_loss = torch.tensor(0.0)
        self.multiplier = Multiplier.of(method)
        torch.manual_seed(config.run.seed)  # the same weights on every rank
        self.model = self._build(n_classes)
        self.loss_of = ContinuityLoss(
            method.alpha,
            method.ds,
            at="logits" if method.ds_at == "logits" else "features",
            ce_views=method.ce_views,
            stop_gradient=method.stop_gradient,
            detach_scale=method.detach_scale,
            label_smoothing=optim.label_smoothing,
            gather=None if ranks.alone else ranks.gather,
        )
        self.optimizer = make_optimizer(self.model, optim, fused=config.run.fused_optimizer)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self._ema: Any = None
        if optim.ema is not None:
            needed("timm", "--ema")
            from timm.utils import ModelEmaV3  # timm takes seconds to import

            # Of the model, hooks and all, so that it can be validated.
            self._ema = ModelEmaV3(self.model, decay=optim.ema, use_warmup=True)
        self.forward: nn.Module = self.model
        if not ranks.alone:
            self.forward = DistributedDataParallel(
                self.model,
                device_ids=[device] if device.type == "cuda" else None,
                gradient_as_bucket_view=True,
                # Every rank keeps running statistics of its own images; they are averaged before
                # they are used, and nothing of a rank's is thrown away.
                **_NO_BUFFERS,
            )
            # From here on dropout differs between ranks, as between images.
            torch.manual_seed((config.run.seed * ranks.world_size + ranks.rank) % 2**63)
        if config.run.compile:
            # A graph a resolution; past its limit torch would go on without compiling.
            limits: Any = torch._dynamo.config
            n_sizes = len(resolutions(config.data, optim.epochs))
            limits.recompile_limit = max(limits.recompile_limit, n_sizes + 1)
            # mypy knows no callable that is also a module.
            self.forward = torch.compile(  # type: ignore[assignment]
                self.forward, dynamic=False, mode=config.run.compile_mode
            )

    def _build(self, n_classes: int) -> Represented:
        config, views = self.config, list[Views | None]()
        name, data, method = config.model.model, config.data, config.method

        def adapt(net: nn.Module) -> None:
            split, sync = method.bn == "split", method.sync_bn and not self.ranks.alone
            on_gpu = self.device.type == "cuda"
            views.append(convert(net, name, split=split, sync=sync, on_gpu=on_gpu))

        model = build_model(
            name,
            n_classes,
            config.model.stem,
            data.resolution,
            blurpool=config.model.blurpool,
            adapt=adapt,
        )
        represented = Represented(model, method.ds_at, views[0], self._pool(model))
        sizes = {data.val_resolution or data.resolution, *resolutions(data, config.optim.epochs)}
        represented.eval()
        for side in sorted(sizes):
            try:
                with torch.no_grad():
                    represented(torch.zeros(1, 3, side, side))
            except (RuntimeError, ValueError, AssertionError) as error:
                if isinstance(error, UserError):
                    raise
                raise UserError(
                    f"model {name} does not run at {side} pixels: {first_line(error)}"
                ) from None
        self._check_batch_norm(represented, resolutions(data, config.optim.epochs)[0])
        return represented.to(self.device).to(memory_format=self.layout)

    def _pool(self, model: FeatureModel) -> PoolDS | None:
        """What pools and measures DS in one pass over the last feature map; None: each by itself.

        Raises:
            UserError: It was asked for by name, and cannot be had.
        """
        method, run = self.config.method, self.config.run
        wanted, on_gpu = run.pooling, self.device.type == "cuda"
        if wanted == "separate" or (wanted == "auto" and not (on_gpu and run.channels_last)):
            return None
        reason = None
        if self.plain:
            reason = "--alpha 0 with --ce-views clean trains without DS"
        elif method.ds_at != "features":
            reason = f"DS is taken at {method.ds_at}, not at the pooled features"
        elif method.ds == "relative" and not self.ranks.alone:
            reason = "--ds relative compares the images of all processes"
        elif not ends_in_average_pooling(model, self.config.data.resolution):
            reason = f"model {model.name} does not end in global average pooling"
        if reason is None:
            return PoolDS(
                method.ds, stop_gradient=method.stop_gradient, detach_scale=method.detach_scale
            )
        if wanted == "fused":
            raise UserError(f"--pooling fused: {reason}; leave the option out")
        return None

    def _check_batch_norm(self, represented: Represented, side: int) -> None:
        """Raises UserError where batch norm would get a single value of a channel to normalize."""
        method, size = self.config.method, self.config.optim.batch_size
        parts = self.ranks.world_size * self.config.optim.accumulate
        n, m = size // parts, n_paired(size, method.paired_fraction) // parts
        # Plain training looks at both views too, for the log.
        rows = min(n, m) if method.bn == "split" else n if self.plain else n + m
        if rows > 1 or (method.sync_bn and not self.ranks.alone):
            return
        with untouched(represented, torch.device("cpu")), torch.no_grad():
            try:
                represented.train()(torch.zeros(1, 3, side, side))
            except ValueError:  # torch's, which speaks of shapes
                raise UserError(
                    f"batch norm gets one image and one position of it at {side} pixels: take a "
                    "larger --batch-size or --resolution, or less of --accumulate, --bn split and "
                    "--paired-fraction"
                ) from None

    @property
    def ema(self) -> Represented | None:
        """The average of the weights, as a model."""
        return None if self._ema is None else self._ema.module

    @property
    def best(self) -> Represented:
        """What is validated and exported: the average where there is one."""
        return self.model if self.ema is None else self.ema

    def train_step(self, batch: PairBatch, *, measured: bool) -> tuple[float, float, Figures]:
        """One update from this rank's share of a batch.

        Returns:
            Learning rate and alpha of the step; and, if `measured`, the global batch's figures:
            loss, ce, ds, ds_relative, between, effective_rank, grad_norm.
        """
        optim, method = self.config.optim, self.config.method
        lr = lr_at(self.step, optim, self.steps_per_epoch)
        set_lr(self.optimizer, lr)
        alpha = alpha_at(self.step, method, self.steps_per_epoch, optim.epochs)
        self.loss_of.alpha = alpha = self.multiplier.alpha if self.multiplier else alpha
        self.model.train()
        batch = _laid_out(batch, self.layout)
        before = Buffers(self.model) if self.config.run.on_nan == "skip" else None
        seen = self._look(batch) if self.plain and measured else None
        losses, pairs = list[Tensor](), list[tuple[Tensor, Tensor]]()
        for i in range(optim.accumulate):
            part = _part(batch, i, optim.accumulate)
            if self.config.run.compile:
                torch.compiler.cudagraph_mark_step_begin()  # its outputs' memory may be used again
            with self._unsynced(i + 1 < optim.accumulate):
                loss, figures, pair = self._plain_loss(part) if self.plain else self._loss(part)
                self.scaler.scale(loss / optim.accumulate).backward()
            losses.append(figures)
            pairs += [] if pair is None else [pair]
        self.scaler.unscale_(self.optimizer)
        norm = self._clip(measured or before is not None)
        within = torch.stack(losses).mean(0)
        self.step += 1
        loss = within[0]
        if before is not None and not self._finite(loss, norm):
            before.put_back()
            loss = torch.full_like(loss, float("nan"))  # its gradient may have been it
        else:
            self.scaler.step(self.optimizer)
            if self._ema is not None:
                self._ema.update(self.model, self.step)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.last_loss = loss
        if not measured:
            return lr, alpha, {}
        if seen is not None:
            within[2], pairs = seen[0], [seen[1]]
        return lr, alpha, self._figures(within, pairs) | {"grad_norm": norm}

    def _finite(self, loss: Tensor, norm: float) -> bool:
        """Whether every rank's loss is finite, and the gradient, which is the same on all.

        fp16's gradients overflow now and then: its scaler leaves such a step out by itself.
        """
        by_gradient = self.precision == "fp16" or math.isfinite(norm)
        return by_gradient and bool(self.ranks.mean(loss.clone()).isfinite())

    def _loss(self, part: PairBatch) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """The loss, its figures (loss, ce, ds), and the pooled features of both views."""
        assert part.perturbed is not None
        n = len(part.target)
        with autocast(self.device, self.precision):
            outputs = self.forward(torch.cat([part.clean, part.perturbed]), n)
        (f, g), (a, b), (r, s) = ((output[:n], output[n:]) for output in outputs[:3])
        distance = outputs[3] if len(outputs) > 3 else None
        parts = self.loss_of(a, b, part.target, r, s, measured=False, ds=distance)
        figures = torch.stack([parts.loss.detach(), parts.ce, parts.ds])
        return parts.loss, figures, (f.detach(), g.detach())

    def _plain_loss(self, part: PairBatch) -> tuple[Tensor, Tensor, None]:
        with autocast(self.device, self.precision):
            _, logits, _ = self.forward(part.clean)
        smoothing = self.loss_of.label_smoothing
        ce = functional.cross_entropy(logits.float(), part.target, label_smoothing=smoothing)
        return ce, torch.stack([ce.detach(), ce.detach(), torch.full_like(ce, float("nan"))]), None

    @torch.no_grad()
    def _look(self, batch: PairBatch) -> tuple[Tensor, tuple[Tensor, Tensor]] | None:
        """DS and both views' features, where the loss does without; leaves no trace.

        Of the rows that have two views, which are few. The same joint forward as with the
        constraint, so that the figures compare (the scale of kind relative is that of all parts,
        where training takes a part's); then the statistics of batch norm and the generators are
        put back as if it had not been.
        """
        if batch.perturbed is None:
            return None
        n_parts, kind = self.config.optim.accumulate, self.loss_of.kind
        parts = []
        for i in range(n_parts):  # no more memory than the training takes
            part = _part(batch, i, n_parts)
            assert part.perturbed is not None
            n = len(part.perturbed)
            both = torch.cat([part.clean[:n], part.perturbed])
            with untouched(self.model, self.device), autocast(self.device, self.precision):
                outputs = self.model(both, n)
            (f, g), _, (r, s) = ((output[:n], output[n:]) for output in outputs[:3])
            parts.append((f, g, r[: len(s)], s))
        f, g, r, s = (torch.stack(rows, 1).flatten(0, 1) for rows in zip(*parts, strict=True))
        others = self.ranks.gather(r) if kind == "relative" else None
        alone = kind == "relative" and others is not None and len(others) < 2
        within = torch.full_like(f[0, 0], float("nan")) if alone else ds(r, s, kind, others=others)
        return within, (f, g)

    def _figures(self, within: Tensor, pairs: list[tuple[Tensor, Tensor]]) -> Figures:
        """loss, ce and ds as means over the ranks; the rest from all ranks' features."""
        loss, ce, distance = self.ranks.mean(within).tolist()
        figures = {"loss": loss, "ce": ce, "ds": distance, "ds_relative": float("nan")}
        if not pairs:
            return figures
        # Rows were dealt over the parts as they are over the ranks: back to the batch's order.
        f, g = (
            self.ranks.gather(torch.stack(views, 1).flatten(0, 1)).cpu()
            for views in zip(*pairs, strict=True)
        )
        if len(g) > 1:
            figures["ds_relative"] = float(ds(f[: len(g)], g, "relative"))
        between, rank = spread(f)
        return figures | {"between": between, "effective_rank": rank}

    def _clip(self, measured: bool) -> float:
        """Clips where asked to. The gradient's norm, where it is wanted."""
        limit = self.config.optim.clip_grad
        if limit is None and not measured:
            return float("nan")
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if limit is not None:
            nn.utils.clip_grads_with_norm_(parameters, limit, norm)
        return float(norm) if measured else float("nan")

    def _unsynced(self, wanted: bool) -> contextlib.AbstractContextManager[Any]:
        """Gradients are summed over the ranks with a batch's last part alone."""
        if wanted and not self.ranks.alone:
            unsynced: contextlib.AbstractContextManager[Any] = self.forward.no_sync()  # type: ignore[operator]
            return unsynced
        return contextlib.nullcontext()


def _laid_out(batch: PairBatch, layout: torch.memory_format) -> PairBatch:
    """The batch with its views, which loaders give channels-last, in the run's memory format."""
    views = [v if v is None else v.contiguous(memory_format=layout) for v in batch[:2]]
    clean, perturbed = views
    assert clean is not None
    return PairBatch(clean, perturbed, batch.target, batch.index)


def _part(batch: PairBatch, i: int, n_parts: int) -> PairBatch:
    """Every n-th row from row i on: dealt like cards, so that partners stay partners."""
    clean, perturbed, target, index = batch
    rows = slice(i, None, n_parts)
    return PairBatch(
        clean[rows], None if perturbed is None else perturbed[rows], target[rows], index[rows]
    )
