"""What a network draws at random in training is drawn once for both views of an image.

Dropout, drop path and stochastic depth would give the views of an image a mask each, and DS would
measure the masks. Modules of the known kinds hand the masks of the clean rows on to their partners
(`share_masks`), under torch.compile too. Whatever else draws, as F.dropout and the dropout of
attention do, is caught where torch draws it (`SharedDraws`).
"""

from __future__ import annotations

import threading
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastsc.models.views import Views

_RATES = ("p", "drop_prob", "prob")  # what the libraries call it


class _Sharing(threading.local):
    paused = False  # while a module that shares its mask itself draws it


_sharing = _Sharing()

# Operators that fill a tensor with random numbers, whatever is in their other tensors.
_DRAWS = frozenset(
    getattr(packet, overload)
    for packet in (
        *(getattr(torch.ops.aten, f"{name}_") for name in ("uniform", "normal", "exponential")),
        *(getattr(torch.ops.aten, f"{name}_") for name in ("cauchy", "geometric", "log_normal")),
        *(getattr(torch.ops.aten, name) for name in ("random_", "rand", "randn", "randint")),
        *(getattr(torch.ops.aten, f"{name}_like") for name in ("rand", "randn", "randint")),
    )
    for overload in packet.overloads()
) | {torch.ops.aten.bernoulli_.float, torch.ops.aten.bernoulli.p}
# Operators that draw from what is in their first tensor, or in another argument's.
_DRAWS_FROM = {
    torch.ops.aten.bernoulli.default: 0,
    torch.ops.aten.bernoulli_.Tensor: 1,
    torch.ops.aten.normal.Tensor_float: 0,
}


def share_masks(net: nn.Module, views: Views) -> int:
    """Has the modules of a net that draw masks draw them for clean rows alone, in place.

    Parameters, buffers, hooks and names stay. Returns the number of such modules.
    """
    n = 0
    for module in net.modules():
        if isinstance(module, _Shared):  # done before, perhaps for other views
            module.views = views
            n += 1
            continue
        kind = type(module)
        if (mixin := _MIXINS.get((kind.__module__, kind.__name__))) is not None:
            module.__class__ = _shared(kind, mixin)  # type: ignore[arg-type]  # no hash, to mypy
            module.views = views  # type: ignore[assignment]
            module.rate = next(name for name in _RATES if hasattr(module, name))  # type: ignore[assignment]
            n += 1
    return n


class SharedDraws(TorchDispatchMode):
    """Within the context, what torch draws for rows of clean views counts for their partners too.

    A draw is of rows where its first axis is that of the network's input or a multiple of it: noise
    of another kind that has so many rows is shared, too, and a network whose batch is another axis
    than the first shares nothing. As many numbers are drawn as without. Not for torch.compile,
    which draws by itself, nor for operators that draw and compute in one, but for dropout: fused
    attention's dropout, rrelu. What is drawn from a tensor, as bernoulli of probabilities, is
    shared where that tensor's numbers are the same for both views. With activation checkpointing,
    which draws again in the backward pass, that pass belongs into the context, too.

    Args:
        n_clean: The input's first rows, clean views.
        n_perturbed: The rows after them; row i is the partner of clean row i.

    Attributes:
        n_shared: Draws that were shared so far.
    """

    def __init__(self, n_clean: int, n_perturbed: int | None = None) -> None:
        super().__init__()
        n_perturbed = n_clean if n_perturbed is None else n_perturbed
        if not 0 < n_perturbed <= n_clean:
            raise ValueError(f"{n_perturbed} perturbed views of {n_clean} images")
        self._views = Views(n_clean, n_clean + n_perturbed)
        self.n_shared = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types
        result = func(*args, **(kwargs or {}))
        if _sharing.paused:
            return result
        if func is torch.ops.aten.native_dropout.default:  # the fused one, of GPUs
            output, mask = result
            if args[2] is not False and (rows := self._share(mask)) is not None:
                n, m = rows
                scale = 1 / (1 - args[1]) if args[1] < 1 else 0.0
                torch.mul(args[0][n : n + m], mask[n : n + m] * scale, out=output[n : n + m])
        elif func in _DRAWS:
            self._share(result)
        elif func in _DRAWS_FROM:
            self._share(result, args[_DRAWS_FROM[func]])
        return result

    def _share(self, draw: Tensor, source: Tensor | None = None) -> tuple[int, int] | None:
        """Writes the clean rows of a draw over their partners', where their sources are equal."""
        if (rows := self._views.rows_of(draw)) is None:
            return None
        n, m = rows
        shared = draw[:m]
        if source is not None:
            source = source.expand_as(draw)
            shared = shared.where(source[:m] == source[n : n + m], draw[n : n + m])
        draw[n : n + m] = shared
        self.n_shared += 1
        return rows


class _Shared(nn.Module):
    """Mixed in before a class of the library whose forward runs on the clean rows alone."""

    views: Views
    rate: str  # the attribute with the share that is dropped

    def __reduce__(self) -> tuple[Any, ...]:
        """As the classes that it was made of: pickle finds no class that was made here."""
        mixin, kind = type(self).__bases__
        return _empty, (kind, mixin), self.__dict__

    def _rows_of(self, x: Tensor) -> tuple[int, int] | None:
        """None: there is nothing to share, as where nothing is dropped."""
        return self.views.rows_of(x) if self.training and getattr(self, self.rate) else None

    def _ask(self, x: Tensor) -> Any:
        """The library's answer to clean rows, whose draws are no other rows' at once."""
        if torch.compiler.is_compiling():
            return super().forward(x)
        before, _sharing.paused = _sharing.paused, True
        try:
            return super().forward(x)
        finally:
            _sharing.paused = before


class _SharedMask(_Shared):
    """Mixed in before a class whose output is the input times a mask of its shape alone."""

    def forward(self, x: Tensor) -> Tensor:
        if (rows := self._rows_of(x)) is None:
            out: Tensor = super().forward(x)
            return out
        n, m = rows
        mask = self._ask(self._ones(x, n))
        return x * torch.cat([mask, mask[:m]])

    def _ones(self, x: Tensor, n: int) -> Tensor:
        return torch.ones_like(x[:n])


class _SharedRows(_SharedMask):
    """Mixed in before a class whose mask is of one number per row."""

    def _ones(self, x: Tensor, n: int) -> Tensor:
        return x.new_ones((n, *(1 for _ in x.shape[1:])))


class _SharedPatches(_Shared):
    """Mixed in before timm's PatchDropout: the tokens that stay are those of the clean view."""

    def forward(self, x: Tensor) -> Any:
        if (rows := self._rows_of(x)) is None:
            return super().forward(x)
        n, m = rows
        tokens = torch.arange(x.shape[1], device=x.device, dtype=torch.float32)
        drawn = self._ask(tokens.view(1, -1, 1).expand(n, -1, 1))
        kept, indices = drawn if isinstance(drawn, tuple) else (drawn, None)
        at = torch.cat([kept, kept[:m]]).long()
        out = x.gather(1, at.expand(-1, -1, x.shape[2]))
        if not isinstance(drawn, tuple):
            return out
        return out, None if indices is None else torch.cat([indices, indices[:m]])


# By module and name, so that neither library has to be imported for it.
_MIXINS: dict[tuple[str, str], type[_Shared]] = {
    ("torch.nn.modules.dropout", "Dropout"): _SharedMask,
    ("torch.nn.modules.dropout", "Dropout1d"): _SharedMask,
    ("torch.nn.modules.dropout", "Dropout2d"): _SharedMask,
    ("torch.nn.modules.dropout", "Dropout3d"): _SharedMask,
    ("timm.layers.drop", "DropPath"): _SharedRows,
    ("torchvision.ops.stochastic_depth", "StochasticDepth"): _SharedRows,
    ("timm.layers.patch_dropout", "PatchDropout"): _SharedPatches,
    ("timm.layers.patch_dropout", "PatchDropoutWithIndices"): _SharedPatches,
}


@cache
def _shared(kind: Any, mixin: Any) -> Any:
    return type(f"Shared{kind.__name__}", (mixin, kind), {})


def _empty(kind: Any, mixin: Any) -> Any:
    shared = _shared(kind, mixin)
    return shared.__new__(shared)
