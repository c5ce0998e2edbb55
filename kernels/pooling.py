"""Global average pooling and DS in one: the map is read once, its gradient written once.

The last feature map is the largest thing that the representation is made of, and pooling and DS are
nothing but its reading. Apart from each other, and in a framework's own steps, they read it, write
it in float32, read that, and do the same backwards.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from fastsc.kernels.distance import BATCH_SCALED, IMPLS, check_triton, ds, fusible, triton_runs

KINDS = ("l2", "relative", "cosine", "mse", "sq")
SIDES = ("none", "clean", "perturbed")


def pool_ds(
    maps: Tensor,
    kind: str = "l2",
    *,
    n_clean: int | None = None,
    stop_gradient: str = "none",
    detach_scale: bool = False,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Means over the positions of feature maps, and DS of the clean and the perturbed rows' means.

    What `maps.float().mean((2, 3))` and `ds` of its rows give, under autocast too; gradients of
    both outputs are added before the map's gradient is written, in the map's dtype and memory
    format. Equal views give DS exactly 0, with gradient exactly 0.

    Args:
        maps: (R, C, H, W) floating point, best in channels-last memory: clean rows, then perturbed
            ones; row n_clean + i belongs to row i. "triton" copies other memory to channels-last.
        kind: "l2", "relative", "cosine", "mse" or "sq", as in `ds`; the scale of "relative" and
            "sq" is taken over the rows that have a partner.
        n_clean: clean rows, at least half of all; left out: half.
        stop_gradient: the side whose means get no gradient from DS: "none", "clean", "perturbed".
            What else is done with the means still reaches the map.
        detach_scale: for "relative", hold the divisor constant in the backward pass.
        impl: "reference", "compiled" (torch.compile), "triton" (CUDA; not float64), or "auto":
            triton on CUDA where it is installed, else compiled there, and reference on the CPU.

    Returns:
        Features (R, C) and DS (), float32 (float64 for float64 maps).

    Raises:
        ValueError: an argument does not fit; the message says what to do.
    """
    n = _check(maps, kind, n_clean, stop_gradient)
    double = maps.dtype == torch.float64
    if impl == "auto":
        impl = "reference"
        if maps.device.type == "cuda":
            impl = "triton" if not double and triton_runs(maps.device) else "compiled"
    if impl not in IMPLS:
        raise ValueError(f"impl {impl!r} does not exist; choose from auto, {', '.join(IMPLS)}")
    with torch.autocast(maps.device.type, enabled=False):
        if impl == "triton":
            check_triton(maps.device, double)
            from fastsc.kernels.pooling_triton import pool_ds as launch

            return launch(maps, kind, n, stop_gradient, detach_scale)
        if impl == "compiled":
            return _compiled(kind, stop_gradient, detach_scale)(maps, n)
        distance = functools.partial(ds, kind=kind, impl="reference", detach_scale=detach_scale)
        return _pool(distance, stop_gradient, maps, n)


def _check(maps: Tensor, kind: str, n_clean: int | None, stop_gradient: str) -> int:
    """The number of clean rows."""
    if kind == "js":
        raise ValueError(
            "ds kind 'js' compares logits, not pooled features; use ds() on the logits"
        )
    if kind not in KINDS:
        raise ValueError(f"pool_ds kind {kind!r} does not exist; choose from {', '.join(KINDS)}")
    if stop_gradient not in SIDES:
        raise ValueError(f"stop_gradient must be one of {', '.join(SIDES)}, not {stop_gradient!r}")
    if maps.ndim != 4 or maps.numel() == 0:
        raise ValueError(
            f"pool_ds takes feature maps (R, C, H, W), not {tuple(maps.shape)}; skip an empty batch"
        )
    if not maps.is_floating_point():
        raise ValueError(f"pool_ds takes floating-point maps, not {maps.dtype}")
    rows = maps.shape[0]
    n = rows // 2 if n_clean is None else n_clean
    if not 0 < rows - n <= n:
        raise ValueError(
            f"{rows} rows, {n} of them clean: each perturbed row needs its clean one, and there "
            "must be one; give n_clean, rows / 2 <= n_clean < rows"
        )
    if kind in BATCH_SCALED and rows - n < 2:
        raise ValueError(
            f"ds kind {kind!r} compares different images: the batch needs at least two pairs "
            "(use 'l2' or 'cosine' for one)"
        )
    return n


def _pool(
    distance: Callable[[Tensor, Tensor], Tensor], stop_gradient: str, maps: Tensor, n: int
) -> tuple[Tensor, Tensor]:
    wide = torch.float64 if maps.dtype == torch.float64 else torch.float32
    if maps.is_contiguous(memory_format=torch.channels_last):
        # In the order of memory: the compiler's loops follow, and the gradient has that order too.
        features = maps.permute(0, 2, 3, 1).to(wide).mean((1, 2))
    else:
        features = maps.to(wide).mean((2, 3))
    f, g = features[: maps.shape[0] - n], features[n:]
    if stop_gradient == "clean":
        f = f.detach()
    elif stop_gradient == "perturbed":
        g = g.detach()
    return features, distance(f, g)


@functools.cache
def _compiled(
    kind: str, stop_gradient: str, detach_scale: bool
) -> Callable[[Tensor, int], tuple[Tensor, Tensor]]:
    distance = fusible(kind)
    if kind == "relative":
        distance = functools.partial(distance, detach_scale=detach_scale)
    return torch.compile(functools.partial(_pool, distance, stop_gradient))


__all__ = ["KINDS", "SIDES", "pool_ds"]
