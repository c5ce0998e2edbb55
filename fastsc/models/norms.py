"""Batch norm whose training statistics are of each kind of view, of all ranks, or both.

torch has SyncBatchNorm for the second, on GPUs only and blind to views.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastsc.distributed.ranks import AllGather
from fastsc.errors import UserError
from fastsc.kernels.distance import wide
from fastsc.models.views import Views


class ViewBatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d that normalizes clean and perturbed rows as two batches, over all ranks.

    With two kinds of rows it does in one call what nn.BatchNorm2d does in two, the clean rows
    first: the running statistics are updated by both, and evaluation is plain batch norm. With
    `sync` each batch is that of all ranks together (Ioffe and Szegedy, arXiv 1502.03167, over the
    global batch); every rank must then have the same kinds of rows.
    """

    views: Views
    sync: bool

    @classmethod
    def of(cls, norm: nn.BatchNorm2d, views: Views, sync: bool) -> ViewBatchNorm2d:
        """Makes a norm one of these, in place."""
        norm.__class__ = cls
        assert isinstance(norm, cls)
        norm.views, norm.sync = views, sync
        return norm

    def forward(self, x: Tensor) -> Tensor:
        """x (N, C, H, W) -> the same shape and dtype."""
        rows = self.views.rows_of(x) if self.training else None
        views = [x] if rows is None else [x[: rows[0]], x[rows[0] :]]
        if self.training and self.sync and dist.is_initialized():
            out = self._over_all_ranks(views)
        else:
            out = [nn.BatchNorm2d.forward(self, view) for view in views]
        return out[0] if rows is None else torch.cat(out)

    def _over_all_ranks(self, views: list[Tensor]) -> list[Tensor]:
        """Each view normalized; what all have of the others goes in one tensor."""
        self._check_input_dim(views[0])
        exact = [wide(view) for view in views]
        local = torch.stack([_moments(view) for view in exact])
        gathered = AllGather.apply(local, dist.get_rank(), dist.get_world_size())
        c = views[0].shape[1]
        means, variances, sizes = gathered.split([c, c, 1], 2)  # each (world_size, views, …)
        n = sizes.detach().sum(0)
        share = sizes.detach() / n
        mean = (share * means).sum(0)
        # No difference of two large sums, which would lose the digits.
        variance = (share * (variances + (means - mean).square())).sum(0)
        for moments in zip(mean.detach(), variance.detach(), n, strict=True):
            self._track(*moments)
        scale = torch.rsqrt(variance + self.eps)
        if self.weight is not None:
            scale = scale * self.weight
        mean, scale = (x[:, None, :, None, None] for x in (mean, scale))
        # From the centered values, for the gradient's digits: x * scale and its shift are large
        # where a mean is many standard deviations.
        out = [(x - m) * k for x, m, k in zip(exact, mean, scale, strict=True)]
        if self.bias is not None:
            out = [x + self.bias[:, None, None] for x in out]
        return [x.to(views[0].dtype) for x in out]

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, n: Tensor) -> None:
        if self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        unbiased = variance * (n / (n - 1))
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), share)


def _moments(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (2 C + 1,): each channel's mean, its variance, how many values they are of.

    Every rank's loss depends on them, so that their gradient is the sum of all ranks'.
    """
    variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    return torch.cat([mean, variance, x.new_full((1,), x.numel() // x.shape[1])])


def convert(
    net: nn.Module, name: str, views: Views, *, split: bool, sync: bool, on_gpu: bool
) -> None:
    """Gives a net the batch norm that was asked for, in place. Parameters, names and hooks stay.

    views: What the net is told about its rows by; batch norm heeds it with `split`.

    Raises:
        UserError: The model's batch norm is of a kind that cannot be replaced, or it has none.
    """
    if not split and not sync:
        return
    option = "--bn split" if split else "--sync-bn"
    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        raise UserError(f"{option}: model {name} has no batch norm; leave the option out")
    by_torch = on_gpu and not split
    known = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d) if by_torch else (nn.BatchNorm2d,)
    for norm in norms:
        # timm's has the activation in it, which a replacement would lose without a word.
        if type(norm) not in known:
            raise UserError(
                f"{option} knows nn.BatchNorm2d, and model {name} has {type(norm).__name__}"
            )
    own = views if split else Views()
    for norm in norms:
        if by_torch:  # as torch's own conversion, but for the modules' hooks, which that loses
            norm.__class__ = nn.SyncBatchNorm
            norm.process_group = None  # type: ignore[assignment]
            continue
        assert isinstance(norm, nn.BatchNorm2d)
        ViewBatchNorm2d.of(norm, own, sync)
