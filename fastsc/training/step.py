"""What training changes, and one step of it: forward over both views, loss, update."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastsc.cli.packages import needed
from fastsc.config import TrainConfig
from fastsc.distributed.devices import Precision, autocast
from fastsc.distributed.ranks import Ranks
from fastsc.loss import ContinuityLoss
from fastsc.models.features import Buffers
from fastsc.models.representation import Outputs, Represented
from fastsc.pipelines import PairBatch
from fastsc.training.answers import SHORT, divergence
from fastsc.training.figures import Measured, Pair, probe
from fastsc.training.layers import lr_scales
from fastsc.training.optimizer import make_optimizer, set_lr
from fastsc.training.setup import layout_of, wrap


class Step:
    """Model, loss, optimizer, gradient scaler, average of the weights; `step` counts updates.

    Attributes:
        model: Its own forward, without DDP or compiler.
        last_loss: Of this rank in the last step, on its device; NaN where the step was left out.
        teacher: The network as it was before it was trained, whose answers take the place of the
            labels; None: the labels count.
        disagreement: Running share of this rank's images with another answer than its.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: Represented,
        device: torch.device,
        precision: Precision,
        ranks: Ranks,
    ) -> None:
        self.config, self.device, self.precision, self.ranks = config, device, precision, ranks
        self.step = 0
        method, optim = config.method, config.optim
        # Plain training: the perturbed view would cost a forward pass and change nothing but the
        # batch-norm statistics, so it is measured for the log only.
        self.plain = method.plain
        self.last_loss = torch.tensor(0.0)
        self.model = model
        self.teacher: Represented | None = None
        if method.objective == "self":
            self.teacher = copy.deepcopy(model).eval().requires_grad_(False)
        self.disagreement = torch.zeros((), device=device)
        self.loss_of = ContinuityLoss(
            method.alpha,
            method.ds,
            at="logits" if method.ds_at == "logits" else "features",
            ce_views=method.ce_views,
            stop_gradient=method.stop_gradient,
            detach_scale=method.detach_scale,
            label_smoothing=optim.label_smoothing,
            gather=None if ranks.single_process else ranks.gather,
        )
        self.optimizer = make_optimizer(
            model, optim, fused=config.run.fused_optimizer, scales=lr_scales(model.model, optim)
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self._ema: Any = None
        if optim.ema is not None:
            needed("timm", "--ema")
            from timm.utils import ModelEmaV3  # timm takes seconds to import

            # Of the model, hooks and all, so that it can be validated.
            self._ema = ModelEmaV3(model, decay=optim.ema, use_warmup=True)
        self.forward = wrap(model, config, device, ranks)

    @property
    def ema(self) -> Represented | None:
        """The model with averaged weights, or None."""
        return None if self._ema is None else self._ema.module

    @property
    def best(self) -> Represented:
        """What is validated and exported: the average where there is one."""
        return self.model if self.ema is None else self.ema

    def train_step(
        self, batch: PairBatch, *, lr: float, alpha: float, measured: bool
    ) -> Measured | None:
        """One update from this rank's share of a batch, with alpha as the weight of DS.

        Returns:
            If `measured`, the global batch's figures.
        """
        n_parts = self.config.optim.accumulate
        set_lr(self.optimizer, lr)
        self.model.train()
        batch = _laid_out(batch, layout_of(self.config))
        before = Buffers(self.model) if self.config.run.on_nan == "skip" else None
        seen = self._probe(batch) if self.plain and measured else None
        losses, pairs = list[Tensor](), list[Pair]()
        for i in range(n_parts):
            part = batch.part(i, n_parts)
            if self.config.run.compile is True:
                torch.compiler.cudagraph_mark_step_begin()  # its outputs' memory may be used again
            with self._unsynced(i + 1 < n_parts):
                if self.plain:
                    loss, figures = self._plain_loss(part)
                else:
                    loss, figures, pair = self._loss(part, alpha)
                    pairs.append(pair)
                self.scaler.scale(loss / n_parts).backward()
            losses.append(figures)
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
            return None
        if seen is not None:
            within[2], pairs = seen[0], [seen[1]]
        return Measured(within, pairs, norm, self.ranks)

    def _finite(self, loss: Tensor, norm: Tensor) -> bool:
        """Whether every rank's loss is finite, and the gradient, which is the same on all.

        fp16's gradients overflow now and then: its scaler leaves such a step out by itself.
        """
        by_gradient = self.precision == "fp16" or bool(norm.isfinite())
        return by_gradient and bool(self.ranks.mean(loss.clone()).isfinite())

    def _loss(self, part: PairBatch, alpha: float) -> tuple[Tensor, Tensor, Pair]:
        """The loss, its figures (loss, ce, ds), and the pooled features of both views."""
        n = len(part.target)
        with autocast(self.device, self.precision):
            outputs: Outputs = self.forward(both_views(part), n)
        clean, perturbed = outputs.views(n)
        answers = None if self.teacher is None else self._answers(part.clean)
        parts = self.loss_of(
            clean.logits,
            perturbed.logits,
            part.target if answers is None else answers,
            clean.representation,
            perturbed.representation,
            measured=False,
            ds=outputs.ds,
            alpha=alpha,
        )
        if answers is not None:
            both = self.loss_of.ce_views == "both"
            parts = divergence(parts, answers, len(perturbed.logits) if both else 0)
            changed = (clean.logits.argmax(1) != answers.argmax(1)).float().mean()
            weight = SHORT / self.config.optim.accumulate
            self.disagreement = self.disagreement + weight * (changed - self.disagreement)
        figures = [parts.loss.detach(), parts.ce, parts.ds]
        figures += [] if answers is None else [self.disagreement]
        return (
            parts.loss,
            torch.stack(figures),
            (clean.features.detach(), perturbed.features.detach()),
        )

    @torch.no_grad()
    def _answers(self, images: Tensor) -> Tensor:
        """Probabilities (N, C) that the network gave before it was trained."""
        assert self.teacher is not None
        with autocast(self.device, self.precision):
            return self.teacher(images).logits.float().softmax(1)

    def _plain_loss(self, part: PairBatch) -> tuple[Tensor, Tensor]:
        with autocast(self.device, self.precision):
            logits = self.forward(part.clean).logits
        smoothing = self.loss_of.label_smoothing
        ce = functional.cross_entropy(logits.float(), part.target, label_smoothing=smoothing)
        return ce, torch.stack([ce.detach(), ce.detach(), torch.full_like(ce, float("nan"))])

    def _probe(self, batch: PairBatch) -> tuple[Tensor, Pair] | None:
        """DS and both views' features, where the loss does without."""
        kind, n_parts = self.loss_of.kind, self.config.optim.accumulate
        return probe(self.model, batch, kind, n_parts, precision=self.precision, ranks=self.ranks)

    def _clip(self, measured: bool) -> Tensor:
        """Clips where asked to. The gradient's norm, where it is wanted; NaN elsewhere."""
        limit = self.config.optim.clip_grad
        if limit is None and not measured:
            return torch.tensor(float("nan"))
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if limit is not None:
            nn.utils.clip_grads_with_norm_(parameters, limit, norm)
        return norm

    def _unsynced(self, wanted: bool) -> contextlib.AbstractContextManager[Any]:
        """Gradients are summed over the ranks with a batch's last part alone."""
        if wanted and not self.ranks.single_process:
            unsynced: contextlib.AbstractContextManager[Any] = self.forward.no_sync()  # type: ignore[operator]
            return unsynced
        return contextlib.nullcontext()


def both_views(batch: PairBatch) -> Tensor:
    """(N + M, 3, H, W): the clean views, then the perturbed ones.

    As loaders hand them over they follow each other in one storage, and nothing is copied; the
    parts of an accumulated batch are every n-th row.
    """
    clean, perturbed = batch.clean, batch.perturbed
    assert perturbed is not None
    storages = {view.untyped_storage().data_ptr() for view in (clean, perturbed)}
    apart = perturbed.storage_offset() - clean.storage_offset()
    whole = clean.stride() == perturbed.stride() and clean.stride(0) == clean[0].numel()
    if len(storages) == 1 and whole and apart == clean.numel():
        return clean.as_strided((len(clean) + len(perturbed), *clean.shape[1:]), clean.stride())
    return torch.cat([clean, perturbed])


def _laid_out(batch: PairBatch, layout: torch.memory_format) -> PairBatch:
    """The batch with its views, which loaders give channels-last, in the run's memory format."""
    views = [v if v is None else v.contiguous(memory_format=layout) for v in batch[:2]]
    clean, perturbed = views
    assert clean is not None
    return PairBatch(clean, perturbed, batch.target, batch.index)
