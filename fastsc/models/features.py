"""A classifier that also returns its representation: the input of its last linear layer."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from fastsc.errors import UserError, first_line


class FeatureModel(nn.Module):
    """A classifier whose forward returns (features (N, D) float32, logits (N, C)).

    `features` is the input of the last `nn.Linear` that runs, as a dry forward finds it, before a
    dropout of it, module or function (dropout would make two equal images differ). Under
    autocast the last feature map leaves its module in float32, so that pooling is done in float32
    wherever the architecture does it. `net` is the architecture as its library builds it, with its
    own state-dict names.

    Attributes:
        feature_map: The module whose output is the last map with positions, or None.
        pool: What is done with that output, in place of making it float32 (`models.pooling`).
        drops_by_function: Whether F.dropout stands in front of the classifier and is to be undone;
            torch.compile cannot.
    """

    def __init__(self, net: nn.Module, name: str, num_classes: int, resolution: int) -> None:
        super().__init__()
        self.net = net
        self.name = name
        self.pool: Callable[[Tensor], Tensor] | None = None
        self._features: Tensor | None = None
        trace = dry_forward(net, name, resolution)
        if trace.classifier is None:
            raise UserError(f"model {name} has no linear classifier: DS compares its input")
        if trace.logits_shape != (1, num_classes):
            raise UserError(
                f"model {name} gives {trace.logits_shape[-1]} outputs an image, not {num_classes}: "
                "it is not a classifier, or --num-classes is wrong"
            )
        self.feature_dim: int = trace.classifier.in_features
        self.classifier_name = next(k for k, m in net.named_modules() if m is trace.classifier)
        # Bound methods and static ones, no closures: a deep copy (EMA) gets hooks of its own.
        if trace.dropout is not None:
            trace.dropout.inplace = False  # else it would overwrite the features that are kept
        (trace.dropout or trace.classifier).register_forward_pre_hook(self._keep_features)
        self.drops_by_function = trace.drops_by_function and trace.dropout is None
        self._dropouts: _Dropouts | None = None
        self._map_name = next((k for k, m in net.named_modules() if m is trace.feature_map), None)
        if trace.feature_map is not None:
            trace.feature_map.register_forward_hook(self._leave_map)

    @property
    def feature_map(self) -> nn.Module | None:
        return None if self._map_name is None else self.net.get_submodule(self._map_name)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (N, 3, H, W) -> features (N, D) float32, logits (N, C)."""
        if self.drops_by_function and self.training and not torch.compiler.is_compiling():
            try:
                with _Dropouts() as self._dropouts:
                    logits = self.net(x)
            finally:
                self._dropouts = None
        else:
            logits = self.net(x)
        features, self._features = self._features, None
        assert features is not None, "the classifier that the dry forward found did not run"
        return features.flatten(1), logits

    def _keep_features(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        del module
        features = args[0]
        if self._dropouts is not None:
            features = self._dropouts.undone(features)
        self._features = features if features.dtype == torch.float64 else features.float()

    def _leave_map(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        del module, args
        return wide(output) if self.pool is None else self.pool(output)


def wide(x: Tensor) -> Tensor:
    """In float32, where it is of less."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


class Buffers:
    """What a forward pass in training mode leaves behind in a module: statistics of batch norm."""

    def __init__(self, module: nn.Module) -> None:
        self._kept = [(buffer, buffer.clone()) for buffer in module.buffers()]

    @torch.no_grad()
    def put_back(self) -> None:
        """The buffers as they were."""
        for buffer, before in self._kept:
            buffer.copy_(before)


@contextlib.contextmanager
def untouched(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Puts a model's buffers (batch norm's statistics) and the generators back behind it."""
    buffers = Buffers(model)
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        buffers.put_back()


class _Dropouts(TorchFunctionMode):
    """Within the context, remembers what the last call of F.dropout got and gave."""

    def __init__(self) -> None:
        super().__init__()
        self._last: tuple[Tensor, _Memory] | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types
        result = func(*args, **(kwargs or {}))
        if func is functional.dropout and (kwargs or {}).get("p"):
            self._last = args[0], _Memory(result)
        return result

    def undone(self, x: Tensor) -> Tensor:
        """What x was before F.dropout, in x's shape; x itself where it does not come from there."""
        return self._last[0].reshape(x.shape) if self._last and self.drops(x) else x

    def drops(self, x: Tensor) -> bool:
        """Whether x is what the last call gave."""
        return self._last is not None and self._last[1].holds(x)


class _Memory:
    """A tensor's values, which a reshaped view of it has and one that was changed in place not."""

    def __init__(self, x: Tensor) -> None:
        self._x, self._version = x, _version_of(x)

    def holds(self, x: Tensor) -> bool:
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


class Trace:
    """What one forward showed: which linear layer ran last, and what ran just before it."""

    def __init__(self) -> None:
        self.calls = _Dropouts()
        self.drops_by_function = False
        self.classifier: nn.Linear | None = None
        self.dropout: nn.Dropout | None = None
        self.feature_map: nn.Module | None = None
        self.logits_shape: tuple[int, ...] = ()
        self._last_map: nn.Module | None = None
        self._last_dropout: tuple[nn.Dropout, _Memory] | None = None

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if isinstance(module, nn.Linear) and args:
            self.classifier, self.feature_map = module, self._last_map
            kept = self._last_dropout
            self.dropout = kept[0] if kept is not None and kept[1].holds(args[0]) else None
            self.drops_by_function = self.calls.drops(args[0])

    def after(self, module: nn.Module, args: tuple[Any, ...], output: object) -> None:
        del args
        if not isinstance(output, Tensor):
            return
        # The outermost module ends last: `layer4` rather than the ReLU in it that runs twice.
        # A map has positions (N, C, H, W), (N, H, W, C) or (N, L, C); pooled (N, C, 1, 1) has none.
        if output.ndim >= 3 and math.prod(output.shape[2:]) > 1:
            self._last_map = module
        if isinstance(module, nn.Dropout):
            self._last_dropout = (module, _Memory(output))


def dry_forward(net: nn.Module, name: str, resolution: int) -> Trace:
    """One black image through the net in eval mode; weights, buffers and modes stay as they are."""
    trace = Trace()
    modes = [(module, module.training) for module in net.modules()]
    hooks = [module.register_forward_pre_hook(trace.before) for module in net.modules()]
    hooks += [module.register_forward_hook(trace.after) for module in net.modules()]
    parameter = next(net.parameters())
    x = torch.zeros(1, 3, resolution, resolution, device=parameter.device, dtype=parameter.dtype)
    net.eval()
    try:
        with torch.no_grad(), trace.calls:
            logits = net(x)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise UserError(
            f"model {name} does not run on images of {resolution} pixels: {first_line(error)}"
        ) from None
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes:
            module.training = training
    if not isinstance(logits, Tensor):
        raise UserError(f"model {name} does not return one tensor of logits")
    trace.logits_shape = tuple(logits.shape)
    return trace
