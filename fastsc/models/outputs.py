"""The logits in what a network's forward returns, a tensor or a structure of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

DEPTH = 3  # of structures in structures
SHOWN = 6  # tensors in a message
NAME = "logits"


def logits_of(output: object) -> Tensor:
    """The logits (N, C) in a network's output.

    Of a dictionary, tuple, list, named tuple or dataclass (as Hugging Face's ModelOutput and
    torchvision's GoogLeNetOutputs are): what is called `logits`, else the only floating-point
    tensor (N, C) or (N, C, 1, 1). A lone tensor is taken as it is; (N, C, 1, 1) becomes (N, C), and
    an instance of a subclass a plain tensor.

    Raises:
        ValueError: There is not exactly one such tensor; the message has names and shapes.
    """
    if isinstance(output, Tensor):
        x = plain(output)
        return x.flatten(1) if x.ndim == 4 and x.shape[2:] == (1, 1) else x
    tensors = list(_tensors(output, (), DEPTH))
    depths = {path: len(path) for path, _ in tensors if path and path[-1] == NAME}
    top = min(depths.values(), default=0)
    named = [x for path, x in tensors if depths.get(path) == top]
    fitting = named or [x for _, x in tensors if _may_be_logits(x)]
    if len(fitting) == 1:
        return logits_of(fitting[0])
    if not tensors:
        raise ValueError(f"{type(output).__name__} without tensors")
    shown = ", ".join(f"{'.'.join(path)} {tuple(x.shape)}" for path, x in tensors[:SHOWN])
    more = ", …" * (len(tensors) > SHOWN)
    raise ValueError(f"{type(output).__name__} of {shown}{more}")


def plain(x: Tensor) -> Tensor:
    """A tensor without the methods of its subclass, which need not do what a tensor's do."""
    if type(x) in (Tensor, nn.Parameter):
        return x
    with torch._C.DisableTorchFunctionSubclass():
        return x.as_subclass(Tensor)


def _may_be_logits(x: Tensor) -> bool:
    flat = x.ndim == 2 or (x.ndim == 4 and x.shape[2:] == (1, 1))
    return flat and x.is_floating_point() and x.shape[1] > 1


def _tensors(
    output: Any, path: tuple[str, ...], depth: int
) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    """All tensors with their names, those of a structure in it by both names."""
    if isinstance(output, Tensor):
        yield path, output
    elif depth:
        for name, value in _items(output):
            yield from _tensors(value, (*path, name), depth - 1)


def _items(output: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(output, Mapping):
        yield from ((str(name), value) for name, value in output.items())
    elif isinstance(output, tuple | list):
        names = getattr(output, "_fields", None) or map(str, range(len(output)))
        yield from zip(names, output, strict=False)
    elif is_dataclass(output) and not isinstance(output, type):
        yield from ((field.name, getattr(output, field.name, None)) for field in fields(output))
    else:
        attributes = getattr(output, "__dict__", {})
        yield from attributes.items()
        # A property, or one of __slots__.
        if NAME not in attributes and isinstance(logits := getattr(output, NAME, None), Tensor):
            yield NAME, logits
