"""What tensors were before a dropout by function, as F.dropout is."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_DROPOUTS = frozenset(
    getattr(place, name)
    for place, names in (
        (functional, ("dropout", "dropout1d", "dropout2d", "dropout3d")),
        (functional, ("alpha_dropout", "feature_alpha_dropout")),
        (torch, ("dropout", "alpha_dropout", "feature_dropout", "feature_alpha_dropout")),
        (torch, ("dropout_", "alpha_dropout_", "feature_dropout_", "feature_alpha_dropout_")),
        (torch, ("native_dropout",)),
    )
    for name in names
)


# Dropouts whose tensors are kept: more than a network has between its first head's and that head.
# All of them would keep every activation of a transformer.
KEPT = 8


class Dropouts(TorchFunctionMode):
    """Within the context, remembers what the last `KEPT` dropouts got and gave.

    Of dropouts in a row, the first one's input is what counts.
    """

    def __init__(self) -> None:
        super().__init__()
        self._kept: deque[tuple[Tensor, Memory]] = deque(maxlen=KEPT)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        # functional's hand p on by name, whatever the caller did.
        rate = kwargs.get("p", args[1] if len(args) > 1 else 0) if func in _DROPOUTS else 0
        if not rate:
            return func(*args, **kwargs)
        x = args[0] if args else kwargs["input"]
        before = self.undone(x)
        if before is x and (kwargs.get("inplace") or func.__name__.endswith("_")):
            before = x.clone()
        result = func(*args, **kwargs)
        self._kept.append((before, Memory(result[0] if isinstance(result, tuple) else result)))
        return result

    def undone(self, x: Tensor) -> Tensor:
        """What x was before dropout, in x's shape; x itself where it does not come from there."""
        before = self._before(x)
        return x if before is None else before.reshape(x.shape)

    def drops(self, x: Tensor) -> bool:
        """Whether x is what one of the calls gave."""
        return self._before(x) is not None

    def _before(self, x: Tensor) -> Tensor | None:
        return next((before for before, given in reversed(self._kept) if given.holds(x)), None)


class Memory:
    """A tensor's values, which a reshaped view of it has and one that was changed in place not."""

    def __init__(self, x: Tensor) -> None:
        self._x, self._version = x, _version_of(x)

    def holds(self, x: Tensor) -> bool:
        """Whether x is this tensor, perhaps in another shape."""
        if (self._x.data_ptr(), self._x.numel()) != (x.data_ptr(), x.numel()):
            return False
        try:
            same = self._x.view(x.shape)
        except RuntimeError:
            return False  # in another order
        strides = zip(x.shape, x.stride(), same.stride(), strict=True)
        return all(a == b for n, a, b in strides if n > 1) and self._version == _version_of(x)


def _version_of(x: Tensor) -> int:
    return 0 if x.is_inference() else x._version
