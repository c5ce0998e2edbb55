"""Which layers are the classifier: those whose outputs autograd's graph shows to be the logits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from torch.ao.nn.quantized import Linear as QuantizedLinear

# How the positions of a layer's input become features.
Positions = Literal["flatten", "mean", "map", "first", "last"]
DEPTH = 64  # nodes between a product and the function that makes a gate of a factor

# What leaves the classes' order to a linear layer: shapes, means, sums, scales, norms of outputs
# and what makes probabilities of logits. Names of autograd's nodes, without "Backward0".
_SHAPES = frozenset(
    "View UnsafeView ReshapeAlias Expand Permute Transpose T Squeeze Unsqueeze Select "
    "Slice Index IndexSelect Gather Split SplitWithSizes Chunk Unbind Stack Cat Alias "
    "AsStrided Clone ToCopy Copy CopySlices Unfold Repeat Roll Flip IndexAdd IndexPut Scatter "
    "ScatterAdd MaskedFill Where Topk".split()
)
_SCALES = frozenset(
    "Mean Sum Nansum Add Sub Rsub Mul Div Neg Lerp Addcmul AvgPool2D AdaptiveAvgPool2D "
    "MkldnnAdaptiveAvgPool2D NativeBatchNorm CudnnBatchNorm NativeLayerNorm Bmm".split()
)
_SQUASHES = frozenset("Softmax SafeSoftmax Sigmoid Tanh Hardsigmoid Softplus".split())
_PROBABILITIES = _SQUASHES | frozenset(["LogSoftmax", "LogSigmoid", "Log", "Exp", "Log1P"])
_TRANSPARENT = _SHAPES | _SCALES | _PROBABILITIES
_PRODUCTS = frozenset(["Mul", "Bmm"])
# What computes features of features: past these a layer is none of the classifier's.
_MIXES = frozenset(
    "Addmm Mm Mv Baddbmm Linear Convolution MkldnnConvolution CudnnConvolution Embedding "
    "ScaledDotProductFlashAttentionForCpu ScaledDotProductEfficientAttention "
    "ScaledDotProductFlashAttention ScaledDotProductCudnnAttention".split()
)


@dataclass(eq=False)
class Call:
    """A call of a layer that may be the classifier.

    Attributes:
        order: Number of the call among all calls of layers and dropouts.
        shape: Of its input.
        source: Autograd's node of its input, and which of its outputs; equal for equal inputs.
        node: Autograd's node of its output; None without a graph.
        dropout: The first of the dropout modules before it, with the number of its call.
        by_function: Whether F.dropout or its like stands before these, or of the layer.
        dropouts: All dropout modules in front.
        feature_map: The module whose output was the last with positions before.
    """

    module: nn.Module
    order: int
    shape: tuple[int, ...]
    source: tuple[Any, int]
    dropout: tuple[nn.Module, int] | None
    by_function: bool
    dropouts: tuple[nn.Module, ...]
    feature_map: nn.Module | None
    node: Any = None

    @property
    def n_outputs(self) -> int:
        """Of the layer."""
        module: Any = self.module
        return int(module.out_channels if isinstance(module, nn.Conv2d) else module.out_features)


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer, in floating point or quantized."""
    return isinstance(module, nn.Linear | QuantizedLinear)


def is_pointwise(module: nn.Module) -> bool:
    """Whether a module is a 1 × 1 convolution, a linear layer at every position."""
    return (
        isinstance(module, nn.Conv2d)
        and set(module.kernel_size) == {1}
        and module.groups == 1
        and not any(module.padding if isinstance(module.padding, tuple) else ())
    )


def classifiers(logits: Tensor, calls: Sequence[Call]) -> tuple[list[Call], bool]:
    """The calls whose outputs are the logits, in the order in which they ran.

    Several where the logits are the mean or the sum of theirs. What a gate scales counts, the gate
    does not. Where functions that are not linear stand between (a ReLU, a maximum), it is the last
    linear layer that ran of those that the logits come from, or the last 1 × 1 convolution with C
    outputs; without a graph, the last linear layer that ran.

    Args:
        logits: (N, C), of a forward pass with gradients.
        calls: All calls of linear layers and 1 × 1 convolutions in that pass.

    Returns:
        The calls, and whether nothing but reshaping, means and scales follows them.
    """
    calls = [call for call in calls if call.shape and call.shape[0] == len(logits)]
    linear = [call for call in calls if is_linear(call.module)]
    if logits.grad_fn is None:
        return linear[-1:], False
    by_node = {call.node: call for call in calls if call.node is not None}
    of_linear = {node: call for node, call in by_node.items() if is_linear(call.module)}
    direct = _reached(logits.grad_fn, by_node, mixes=True, transparent_only=True)
    fitting = [call for call in direct if call.n_outputs == logits.shape[1]] or direct
    if fitting:
        return fitting, True
    for mixes in (True, False):
        reached = _reached(logits.grad_fn, of_linear, mixes=mixes, transparent_only=False)
        fitting = [call for call in reached if call.n_outputs == logits.shape[1]] or reached
        if fitting:
            return fitting[-1:], False
    # Convolutions of a trunk have other numbers of outputs, or a layer after them.
    reached = _reached(logits.grad_fn, by_node, mixes=True, transparent_only=False)
    return [call for call in reached if call.n_outputs == logits.shape[1]][-1:], False


def _reached(
    root: Any, stops: Mapping[Any, Call], *, mixes: bool, transparent_only: bool
) -> list[Call]:
    """Calls that are reached from a node backwards, each path ending at the first.

    mixes: Whether paths end at layers that are no stops, too. transparent_only: Whether they end at
    whatever is not linear.
    """
    reached: dict[int, Call] = {}
    seen, stack = {root}, [root]
    while stack:
        node = stack.pop()
        if node in stops:
            reached[stops[node].order] = stops[node]
            continue
        name = _name(node)
        if (transparent_only and name not in _TRANSPARENT) or (mixes and name in _MIXES):
            continue
        inputs = list(_inputs(node))
        if name in _PRODUCTS and len(inputs) > 1:
            gates = [_is_gate(other, stops) for other in inputs]
            if not all(gates):
                inputs = [x for x, gate in zip(inputs, gates, strict=True) if not gate]
        for other in inputs:
            if other not in seen:
                seen.add(other)
                stack.append(other)
    return [reached[order] for order in sorted(reached)]


def _is_gate(node: Any, stops: Mapping[Any, Call], depth: int = DEPTH) -> bool:
    """Whether a factor of a product was squashed, as a gate's is, since the last layer."""
    if node in stops or not depth:
        return False
    name = _name(node)
    if name in _SQUASHES:
        return True
    inputs = list(_inputs(node)) if name in _TRANSPARENT else []
    return bool(inputs) and all(_is_gate(other, stops, depth - 1) for other in inputs)


def _inputs(node: Any) -> Iterator[Any]:
    return (other for other, _ in node.next_functions if other is not None)


def _name(node: Any) -> str:
    return str(node.name()).rpartition("Backward")[0] or str(node.name())


def input_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """What a layer was called with, whether by position or by name."""
    return next(iter((*args, *kwargs.values())), None)


def features_in(x: Tensor, positions: Positions) -> Tensor:
    """A classifier's input as features (N, D).

    (N, D); (N, L, D) or (N, H, W, D) of a linear layer; of a 1 × 1 convolution (N, D, H, W), "map".
    """
    if positions == "flatten" or x.ndim == 2:
        return x.flatten(1)
    if positions == "map":
        return x.mean((2, 3))
    if positions == "mean":
        return x.flatten(1, -2).mean(1)
    return x.flatten(1, -2)[:, 0 if positions == "first" else -1]
