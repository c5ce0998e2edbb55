"""A classifier that also returns its representation: the input of its linear head."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fastsc.errors import UserError
from fastsc.kernels.distance import wide
from fastsc.models.dropouts import Dropouts
from fastsc.models.heads import features_in, input_of
from fastsc.models.outputs import logits_of, plain
from fastsc.models.probe import Head, Probe, device_of, modes_kept, probe


class FeatureModel(nn.Module):
    """A classifier whose forward returns (features (N, D) float32, logits (N, C)).

    `features` is the input of the linear layer (or 1 × 1 convolution) whose output is the logits,
    as a probe tells, before all dropout that gives this input, module or function (dropout would
    make two equal images differ). A dropout that something else follows, a mean, a slice or a
    normalization, stays in: in training mode its noise is in the features. Of several such layers,
    whose mean or sum is the logits, it is the mean of their inputs, or these one after the other
    where their sizes differ. Under autocast the last feature map leaves its module in float32, so
    that pooling is done in float32 wherever the architecture does it. `net` is the architecture as
    its library builds it, with its own state-dict names.

    Attributes:
        feature_dim: D.
        classifier_name: The layer, of several the last that runs.
        features_from: Which inputs the features are, in words.
        feature_map: The module whose output is the last map with positions, or None.
        pool: What is done with that output, in place of making it float32 (`models.pooling`).
        drops_by_function: Whether F.dropout stands before the classifier and is to be taken back;
            torch.compile cannot.

    Raises:
        UserError: The net has no linear classifier, another number of outputs, or does not run on
            two images of this resolution.
    """

    def __init__(
        self,
        net: nn.Module,
        name: str,
        num_classes: int,
        resolution: int,
        probed: Probe | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.name = name
        self.pool: Callable[[Tensor], Tensor] | None = None
        shown = probed or probe(net, name, resolution)
        shape = tuple(shown.logits.shape)
        if not shown.heads:
            raise UserError(f"model {name} has no linear classifier: DS compares its input")
        if shape != (len(shown.logits), num_classes):
            raise UserError(
                f"model {name} gives {shape[-1]} outputs an image, not {num_classes}: "
                "it is not a classifier, or --num-classes is wrong"
            )
        names = {module: key for key, module in net.named_modules()}
        layers = list(dict.fromkeys(names[head.call.module] for head in shown.heads))
        self.classifier_name = layers[-1]
        heads = _different(shown.heads)
        self._mean = len({head.dim for head in heads}) == 1
        self.feature_dim: int = heads[0].dim if self._mean else sum(head.dim for head in heads)
        self.features_from = _in_words(layers, len(heads), mean=self._mean)
        # Where the features are: inputs of these modules, by the number of the call among theirs.
        places = [head.call.dropout or (head.call.module, head.call.order) for head in heads]
        modules = list(dict.fromkeys(module for module, _ in places))
        order = [i for i, module in enumerate(shown.calls) if module in modules]
        self._positions = tuple(head.positions for head in heads)
        self._wanted, self._n_calls = tuple(order.index(i) for _, i in places), len(order)
        self._inputs: list[Tensor] = []
        for dropout in (dropout for head in heads for dropout in head.call.dropouts):
            dropout.inplace = False  # type: ignore[assignment]  # it would overwrite the features
        # Bound methods and static ones, no closures: a deep copy (EMA) gets hooks of its own.
        for module in modules:
            module.register_forward_pre_hook(self._keep_input, with_kwargs=True)
        self.drops_by_function = any(head.call.by_function for head in heads)
        self._dropouts: Dropouts | None = None
        feature_map = heads[-1].call.feature_map
        self._map_name = None if feature_map is None else names[feature_map]
        if feature_map is not None:
            feature_map.register_forward_hook(self._leave_map)

    @property
    def feature_map(self) -> nn.Module | None:
        return None if self._map_name is None else self.net.get_submodule(self._map_name)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (N, 3, H, W) -> features (N, D) float32, logits (N, C)."""
        self._inputs = []  # of a pass that failed, too
        if self.drops_by_function and self.training and not torch.compiler.is_compiling():
            try:
                with Dropouts() as self._dropouts:
                    logits = logits_of(self.net(x))
            finally:
                self._dropouts = None
        else:
            logits = logits_of(self.net(x))
        inputs, self._inputs = self._inputs, []
        return self._features(inputs), logits

    def _features(self, inputs: list[Tensor]) -> Tensor:
        if len(inputs) == self._n_calls:
            inputs = [inputs[i] for i in self._wanted]
        else:  # a path that the probe did not see
            inputs = inputs[-len(self._wanted) :]
        if len(inputs) != len(self._wanted):
            raise UserError(f"model {self.name}: its classifier {self.classifier_name} did not run")
        parts = [features_in(x, kind) for x, kind in zip(inputs, self._positions, strict=True)]
        if len(parts) == 1:
            return parts[0]
        return torch.stack(parts).mean(0) if self._mean else torch.cat(parts, 1)

    def _keep_input(
        self, module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]
    ) -> None:
        del module
        features = plain(input_of(args, kwargs))
        if self._dropouts is not None:
            features = self._dropouts.undone(features)
        if features.is_quantized:
            features = features.dequantize()
        self._inputs.append(wide(features))

    def _leave_map(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        del module, args
        if self.pool is not None:
            return self.pool(output)
        # A network that casts by itself wants its own precision back.
        return wide(output) if torch.is_autocast_enabled(output.device.type) else output


def _different(heads: tuple[Head, ...]) -> list[Head]:
    """Heads with inputs of their own: experts of one input have one representation."""
    by_input = {
        (head.call.dropout or head.call.source, head.positions): head for head in reversed(heads)
    }
    return sorted(by_input.values(), key=lambda head: head.call.order)


def _in_words(names: list[str], n_inputs: int, *, mean: bool) -> str:
    listed = " and ".join(name or "the model" for name in names)
    if n_inputs == 1:
        return f"input of {listed}"
    return f"mean of the inputs of {listed}" if mean else f"inputs of {listed}, concatenated"


class Buffers:
    """What a forward pass in training mode changes in a module: statistics of batch norm."""

    def __init__(self, module: nn.Module) -> None:
        self._kept = [(buffer, buffer.clone()) for buffer in module.buffers()]

    @torch.no_grad()
    def put_back(self) -> None:
        """The buffers as they were."""
        for buffer, before in self._kept:
            buffer.copy_(before)


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Puts a model's buffers (batch norm's statistics), its modes and the generators back."""
    buffers, device = Buffers(model), device_of(model)
    try:
        with modes_kept(model), torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        buffers.put_back()
