"""Grad-CAM (Selvaraju et al., arXiv 1610.02391) of any network that has a map of positions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastsc.evaluation.questions.explanations.attribution import Explained
from fastsc.evaluation.views import slices
from fastsc.models.probe import hooked

Layout = Literal["channels first", "channels last", "tokens"]


@dataclass(frozen=True)
class Layer:
    """A module whose output has positions.

    Attributes:
        name: In the network as its library builds it.
        layout: (N, C, H, W), (N, H, W, C) or (N, L, C).
        prefix: Of the tokens so many stand before those of the grid: class tokens, registers.
    """

    name: str
    layout: Layout
    prefix: int = 0

    def grid(self, output: Tensor) -> Tensor:
        """The output as (N, C, H, W)."""
        if self.layout == "channels first":
            return output
        if self.layout == "channels last":
            return output.permute(0, 3, 1, 2)
        tokens = output[:, self.prefix :]
        side = math.isqrt(tokens.shape[1])
        return tokens.unflatten(1, (side, side)).permute(0, 3, 1, 2)


def find_layer(explained: Explained) -> Layer | None:
    """The last module whose output has a grid of positions on which the outputs depend.

    Modules in the order in which they end, as one random image shows it: the outermost of nested
    ones ends last. Before a pooling over positions that is the last feature map. A network
    that reads its class token alone no longer uses the final positions; there it is the
    last output of that width that still counts, the norm before the last attention.

    Returns:
        None where there is no such module.
    """
    net = explained.net
    calls: list[tuple[str, Tensor]] = []
    modules = {module: name for name, module in net.named_modules() if name}

    def keep(module: nn.Module, _: object, __: object, output: object) -> Tensor | None:
        if not isinstance(output, Tensor) or output.ndim not in (3, 4):
            return None
        calls.append((modules[module], output))
        return output.clone()  # what follows may work in place

    size = explained.resolution
    generator = torch.Generator().manual_seed(0)  # black would leave rectifiers closed
    x = torch.rand(1, 3, size, size, generator=generator).to(explained.mean.device)
    with hooked(modules, keep), torch.enable_grad():
        score = explained(x.requires_grad_())[1].amax()
    last = dict(calls)  # of each module the last call, which is the one that a hook keeps
    calls = [(name, output) for name, output in calls if output is last[name]]
    if not score.requires_grad or not calls:
        return None
    outputs = [output for _, output in calls if output.requires_grad]
    names = [name for name, output in calls if output.requires_grad]
    width = None
    grads = torch.autograd.grad(score, outputs, allow_unused=True) if outputs else ()
    for name, grad in reversed(list(zip(names, grads, strict=True))):
        layer = None if grad is None else _layer(name, grad.shape, _prefix(net))
        if grad is None or layer is None or not grad.any():
            continue
        on_grid = layer.grid(grad)
        width = width or on_grid.shape[1]
        if on_grid.shape[1] == width and on_grid.any():
            return layer
    return None


def _prefix(net: nn.Module) -> int | None:
    """What timm's transformers say of their tokens."""
    known = getattr(net, "num_prefix_tokens", None)
    return known if isinstance(known, int) else None


def _layer(name: str, shape: torch.Size, prefix: int | None) -> Layer | None:
    """How an output of this shape has a square grid of at least 2 × 2; None where it has none.

    A map with as many channels as rows is taken as (N, C, H, W).
    """
    if len(shape) == 4:
        _, a, b, c = shape
        if b == c > 1:
            return Layer(name, "channels first")
        return Layer(name, "channels last") if a == b > 1 else None
    length = shape[1] - (prefix or 0)
    side = math.isqrt(max(length, 0))
    if side < 2 or (prefix is not None and side * side != length):
        return None
    return Layer(name, "tokens", shape[1] - side * side)


def grad_cam(
    explained: Explained, layer: Layer, images: Tensor, targets: Tensor, *, at_once: int
) -> Tensor:
    """What speaks for an output at a layer, at the size of the image.

    relu Σ_c w_c A_c with the layer's output A and w_c the mean over positions of the output's
    derivative with respect to A_c, resized bilinearly.

    Args:
        explained: On [0, 1].
        layer: From `find_layer`, of this network or of one like it.
        images: (m, 3, R, R) on [0, 1].
        targets: (m,) int64, the outputs to be explained.
        at_once: Images in one pass.

    Returns:
        (m, R, R) float32, at least 0.
    """
    kept: list[Tensor] = []

    def cut(_: nn.Module, __: object, ___: object, output: Tensor) -> Tensor:
        # Derivatives are wanted from here on only: nothing below is kept for them.
        kept[:] = [output.detach().requires_grad_()]
        return kept[0].clone()

    maps = []
    with hooked([explained.net.get_submodule(layer.name)], cut):
        for rows in slices(len(images), at_once):
            with torch.enable_grad():
                logits = explained(images[rows])[1]
                chosen = logits.gather(1, targets[rows, None]).sum()
            (grad,) = torch.autograd.grad(chosen, kept[0])
            # A network may work in bfloat16 inside.
            slope, output = (layer.grid(x).float() for x in (grad, kept[0].detach()))
            cam = (slope.mean((2, 3), keepdim=True) * output).sum(1, keepdim=True).relu()
            maps.append(F.interpolate(cam, images.shape[2:], mode="bilinear")[:, 0])
    return torch.cat(maps)
