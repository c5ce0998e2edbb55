"""One forward pass over noise: whether a network runs, its logits, and its classifier."""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from fastsc.errors import SPEAKING, UserError, first_line
from fastsc.models.dropouts import KEPT, Dropouts, Memory
from fastsc.models.heads import (
    Call,
    Positions,
    classifiers,
    features_in,
    input_of,
    is_linear,
    is_pointwise,
)
from fastsc.models.outputs import logits_of

PROBES = 2  # images at once
SAME = 0.9999  # correlation of two answers that differ in scale alone


@dataclass(frozen=True, eq=False)
class Head:
    """A layer whose output is the logits, or a part of them.

    Attributes:
        call: How it was called.
        positions: What of its input is the features.
        dim: D of these.
    """

    call: Call
    positions: Positions
    dim: int


@dataclass(frozen=True, eq=False)
class Probe:
    """What a forward pass over `PROBES` images showed.

    Attributes:
        heads: The classifier's layers in the order in which they ran; none, where no linear layer
            gives the logits.
        calls: The modules of all calls of layers and dropouts, in order.
        logits: (PROBES, C).
        rows: Of the input of the last layer with C outputs, where it is none of `heads`.
    """

    heads: tuple[Head, ...]
    calls: tuple[nn.Module, ...]
    logits: Tensor
    rows: int = PROBES


@dataclass(eq=False)
class _Dropped:
    """What a row of dropout modules gave."""

    first: tuple[nn.Module, int]
    by_function: bool
    modules: tuple[nn.Module, ...]
    output: Memory | None = None


class _Trace:
    """Hooks for one forward pass, which write down its calls of layers that may be a classifier."""

    def __init__(self) -> None:
        self.functions = Dropouts()
        self.order: list[nn.Module] = []
        self.layers: list[Call] = []
        self._last_map: nn.Module | None = None
        self._dropped: deque[_Dropped] = deque(maxlen=KEPT)
        self._open: list[_Dropped] = []

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = input_of(args, kwargs)
        if not isinstance(x, Tensor) or not (
            is_linear(module) or is_pointwise(module) or isinstance(module, _DropoutNd)
        ):
            return
        order = len(self.order)
        self.order.append(module)
        kept = next((d for d in reversed(self._dropped) if d.output and d.output.holds(x)), None)
        drops = kept.by_function if kept else self.functions.drops(x)
        if isinstance(module, _DropoutNd):
            first = kept.first if kept else (module, order)
            self._open.append(_Dropped(first, drops, (*(kept.modules if kept else ()), module)))
            return
        self.layers.append(
            Call(
                module=module,
                order=order,
                shape=tuple(x.shape),
                # Without a graph, in which all is from nowhere, no two inputs are taken for one.
                source=(x.grad_fn or order, 0 if x.grad_fn is None else x.output_nr),
                dropout=kept.first if kept else None,
                by_function=drops,
                dropouts=kept.modules if kept else (),
                feature_map=self._last_map,
            )
        )

    def after(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object
    ) -> None:
        del args, kwargs
        if not isinstance(output, Tensor):
            return
        # The outermost module ends last: `layer4` rather than the ReLU in it that runs twice.
        # A map has positions (N, C, H, W), (N, H, W, C) or (N, L, C); pooled (N, C, 1, 1) has none.
        if output.ndim >= 3 and math.prod(output.shape[2:]) > 1:
            self._last_map = module
        if isinstance(module, _DropoutNd) and self._open:
            dropped = self._open.pop()
            dropped.output = Memory(output)
            self._dropped.append(dropped)
        elif is_linear(module) or is_pointwise(module):
            call = next((c for c in reversed(self.layers) if c.module is module), None)
            if call is not None:
                call.node = output.grad_fn


def probe(net: nn.Module, name: str, resolution: int) -> Probe:
    """Two images of noise through the net in eval mode, which is left as it was.

    Raises:
        UserError: It does not run on images of this resolution, or not on two of them, or what it
            returns has no logits.
    """
    x = torch.randn(PROBES, 3, resolution, resolution, generator=torch.Generator().manual_seed(0))
    x = x.to(device_of(net))
    trace = _Trace()
    with modes_kept(net):
        net.eval()
        try:
            with _graph(net), hooked(net.modules(), trace.after, trace.before), trace.functions:
                output = net(x.requires_grad_().clone())  # a copy can be changed in place
        except Exception:  # noqa: BLE001, what does without gradients needs none
            x, trace = x.detach(), _Trace()
            output = _forward(net, name, x, trace)
        try:
            logits = logits_of(output)
        except ValueError as error:
            raise UserError(
                f"model {name} does not return one tensor of logits but a {error}; return the "
                'logits (N, C) alone, or under the name "logits"'
            ) from None
        calls, direct = classifiers(logits, trace.layers) if logits.ndim == 2 else ([], False)
        heads = tuple(_head(net, x.detach(), call, logits.detach(), direct) for call in calls)
    rows = [call.shape[0] for call in trace.layers if call.n_outputs == logits.shape[-1]]
    return Probe(
        heads=heads,
        calls=tuple(trace.order),
        logits=logits.detach(),
        rows=rows[-1] if rows and not heads else PROBES,
    )


def device_of(module: nn.Module) -> torch.device:
    """Where a module's parameters are, or else its buffers; the CPU where it has neither."""
    for tensors in (module.parameters(), module.buffers()):
        if (tensor := next(tensors, None)) is not None:
            return tensor.device
    return torch.device("cpu")


def _forward(net: nn.Module, name: str, x: Tensor, trace: _Trace) -> object:
    """A forward pass without gradients, whose failure is the user's to hear of."""
    try:
        with torch.no_grad(), hooked(net.modules(), trace.after, trace.before), trace.functions:
            return net(x)
    except UserError:
        raise
    except SPEAKING as error:
        raise UserError(not_run(net, name, x, error)) from None


def not_run(forward: Callable[[Tensor], object], name: str, x: Tensor, error: Exception) -> str:
    """What a network does not do, whose forward pass over images x (N, 3, H, W) failed.

    Args:
        forward: The pass that failed; it is tried with the first image alone.
        name: The model's.
        x: At least two images.
        error: Of the failure.
    """
    runs_alone = False
    with contextlib.suppress(Exception), torch.no_grad():
        forward(x[:1])
        runs_alone = True
    what = (
        f"take {len(x)} images at once" if runs_alone else f"run on images of {x.shape[-1]} pixels"
    )
    return f"model {name} does not {what}: {first_line(error)}"


def _head(net: nn.Module, x: Tensor, call: Call, logits: Tensor, direct: bool) -> Head:
    """The features of a classifier's layer, by the positions of its input that its logits tell."""
    shape, module = call.shape, call.module
    channels = 1 if is_pointwise(module) else len(shape) - 1
    n_positions = math.prod(shape[1:]) // shape[channels]
    if n_positions == 1 or len(shape) < 3:
        return Head(call, "flatten", math.prod(shape[1:]))
    if is_pointwise(module):
        return Head(call, "map", shape[1])
    if not direct:
        return Head(call, "mean", shape[-1])
    with recorded(module) as calls, torch.no_grad(), contextlib.suppress(Exception):
        net(x)
    chosen: Positions = "mean"
    kinds: tuple[Positions, ...] = ("mean", "first", "last")
    for kind in kinds:
        part = logits
        # A subclass may take nothing but tokens.
        with torch.no_grad(), contextlib.suppress(Exception):
            part = module(features_in(calls[-1][0], kind))
        if part.shape == logits.shape:
            pair = torch.stack([part.flatten(), logits.flatten()]).double()
            if float(torch.corrcoef(pair)[0, 1]) > SAME:
                chosen = kind
                break
    return Head(call, chosen, shape[-1])


@contextlib.contextmanager
def hooked(
    modules: Iterable[nn.Module],
    after: Callable[..., Any],
    before: Callable[..., Any] | None = None,
) -> Iterator[None]:
    """Within the context modules have these hooks, which get keyword arguments, too."""
    with contextlib.ExitStack() as hooks:
        for module in modules:
            if isinstance(module, torch.jit.ScriptModule):
                continue  # it takes none
            after_hook = module.register_forward_hook(after, with_kwargs=True)
            hooks.callback(after_hook.remove)
            if before is not None:
                before_hook = module.register_forward_pre_hook(before, with_kwargs=True)
                hooks.callback(before_hook.remove)
        yield


@contextlib.contextmanager
def recorded(module: nn.Module) -> Iterator[list[tuple[Any, Any]]]:
    """Within the context, copies of what a module gets and gives at each of its calls."""
    calls: list[tuple[Any, Any]] = []
    inputs: list[Any] = []  # of the calls that go on: the module itself may work in place

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs.append(_copied(input_of(args, kwargs)))

    def after(_: nn.Module, _args: object, _kwargs: object, output: object) -> None:
        calls.append((inputs.pop(), _copied(output)))  # what comes next may, too

    with hooked([module], after, before):
        yield calls


def _copied(x: object) -> object:
    return x.clone() if isinstance(x, Tensor) else x


@contextlib.contextmanager
def modes_kept(net: nn.Module) -> Iterator[None]:
    """Puts the modes of a net's modules, training or evaluation, back."""
    # A frozen TorchScript module has no mode.
    modes = [(module, module.training) for module in net.modules() if hasattr(module, "training")]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextlib.contextmanager
def _graph(net: nn.Module) -> Iterator[None]:
    """Autograd writes down what comes of what, and keeps none of the tensors for it.

    Frozen parameters have gradients in here: after a frozen part its graph would end.
    """
    frozen = [p for p in net.parameters() if not p.requires_grad and p.is_floating_point()]
    try:
        for parameter in frozen:
            parameter.requires_grad_()
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autograd.graph.saved_tensors_hooks(_forget, _recall),
        ):
            yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def _forget(tensor: Tensor) -> None:
    del tensor


def _recall(packed: None) -> NoReturn:
    del packed
    raise RuntimeError("a probe has no gradients")
