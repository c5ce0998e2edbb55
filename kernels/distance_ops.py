"""DS by the kernels of `distance_triton`, as operators that autograd and torch.compile know.

To torch.compile they are opaque: it compiles the model around them as one graph. Each hands its
statistics to its backward pass as a last output, which is nobody else's. When an operator's
arguments or backward pass change, so must its name: torch.compile keeps compiled graphs on disk,
and knows them by the names of the operators.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from fastsc.kernels.distance_triton import OPTIONS, STATISTICS, center, finish, gradient, measure

_MEASURE_BLOCK, _FINISH_BLOCK = 2048, 1024
_CENTER_ROWS, _CENTER_COLUMNS = 64, 32


# --- launches -------------------------------------------------------------------------------------


def on_device(x: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device, and its current stream."""
    return torch.cuda.device_of(x) if x.is_cuda else nullcontext()


def _power_of_2(size: int) -> int:
    """The next; Triton's own takes ten times as long."""
    return 1 << (size - 1).bit_length()


def columns(size: int, dtype: torch.dtype) -> tuple[int, int]:
    """Elements of a 128-bit access along rows of `size`, and how many a warp takes at once."""
    lane = 16 // dtype.itemsize
    vec = lane if size % lane == 0 else 1
    return vec, min(32 * lane, _power_of_2(size))


def launch_values(f: Tensor, g: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """f (n, D), g (m, D), m <= n, contiguous, of one dtype -> DS of the first m pairs, statistics.

    The statistics are what `launch_gradient` needs: (STATISTICS * m + 1,), of "sq" after the (D,)
    mean of the midpoints.
    """
    m, size = g.shape
    value, stats = statistics_like(f, m, kind)
    vec, _ = columns(size, f.dtype)
    block = min(_MEASURE_BLOCK, _power_of_2(size))
    warps = max(1, min(8, block // 256))
    with on_device(f):
        if kind == "sq":
            center[(-(-size // _CENTER_COLUMNS),)](
                f, g, stats, m, size // vec,
                VEC=vec, ROWS=_CENTER_ROWS, COLUMNS=_CENTER_COLUMNS, num_warps=4, **OPTIONS,
            )  # fmt: skip
        measure[(m,)](
            f, g, stats, m, size // vec,
            KIND=kind, VEC=vec, BLOCK=block, num_warps=warps, **OPTIONS,
        )  # fmt: skip
        finish[(1,)](
            stats[_center_size(f, kind) :], value, m, STATISTICS[kind],
            KIND=kind, BLOCK=_FINISH_BLOCK, num_warps=4, **OPTIONS,
        )  # fmt: skip
    return value, stats


@torch.library.custom_op("fastsc::ds_gradient", mutates_args=())
def launch_gradient(
    f: Tensor,
    g: Tensor,
    stats: Tensor,
    value: Tensor,
    grad_ds: Tensor | None,
    grad_features: Tensor | None,
    kind: str,
    stop_gradient: str,
    detach_scale: bool,
    first: int,
    rows: int,
    height: int,
    width: int,
    dtype: torch.dtype,
) -> Tensor:
    """Gradient of maps of which f (n, D), then g (m, D), are the means: of rows first, first + 1, …

    Args:
        stats, value: what `launch_values` gave.
        grad_ds: () float32; None: DS was not used.
        grad_features: (n + m, D) float32; None: the means were not used.
        rows, height, width: with D the shape of the result, which lies in channels-last memory.
    """
    size = f.shape[1]
    out = _maps(f, rows, height, width, dtype)
    if grad_ds is None and grad_features is None:
        return out.zero_()
    if grad_features is not None:
        grad_features = grad_features.to(torch.float32).contiguous()
    vec, block = columns(size, dtype)
    blocks = -(-size // block)
    with on_device(f):
        gradient[(rows * blocks,)](
            f, g, stats, value, grad_ds, grad_features, out, len(f), len(g), first, size // vec,
            blocks, height * width, STATISTICS[kind], KIND=kind, DETACH=detach_scale,
            DS_F=grad_ds is not None and stop_gradient != "clean",
            DS_G=grad_ds is not None and stop_gradient != "perturbed",
            FEATURES=grad_features is not None, VEC=vec, BLOCK=block, num_warps=1, **OPTIONS,
        )  # fmt: skip
    return out


@launch_gradient.register_fake
def _(f: Tensor, *others: Any) -> Tensor:
    return _maps(f, *others[-4:])


def _maps(f: Tensor, rows: int, height: int, width: int, dtype: torch.dtype) -> Tensor:
    shape = (rows, f.shape[1], height, width)
    return torch.empty(shape, dtype=dtype, device=f.device, memory_format=torch.channels_last)


# --- ds -------------------------------------------------------------------------------------------


@torch.library.custom_op("fastsc::ds", mutates_args=())
def _ds(f: Tensor, g: Tensor, kind: str, detach_scale: bool) -> tuple[Tensor, Tensor]:
    del detach_scale  # the backward pass reads it
    return launch_values(f.contiguous(), g.contiguous(), kind)


@_ds.register_fake
def _(f: Tensor, g: Tensor, kind: str, *_: Any) -> tuple[Tensor, Tensor]:
    return statistics_like(f, g.shape[0], kind)


def statistics_like(x: Tensor, m: int, kind: str) -> tuple[Tensor, Tensor]:
    """Shapes and dtypes of what `launch_values` gives."""
    value = x.new_empty((), dtype=torch.float32)
    size = _center_size(x, kind) + STATISTICS[kind] * m + 1
    return value, x.new_empty(size, dtype=torch.float32)


def _center_size(x: Tensor, kind: str) -> int:
    return x.shape[1] if kind == "sq" else 0


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    f, g, ctx.kind, ctx.detach_scale = inputs
    value, stats = output
    ctx.mark_non_differentiable(stats)
    ctx.save_for_backward(f, g, stats, value)


def _backward(ctx: Any, grad_ds: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_ds is None:
        return None, None, None, None
    f, g, stats, value = ctx.saved_tensors
    f, g = f.contiguous(), g.contiguous()
    (n, size), (to_f, to_g) = f.shape, ctx.needs_input_grad[:2]
    stopped = "none" if to_f and to_g else "perturbed" if to_f else "clean"
    # One side alone is the first or the second half of the rows.
    grad = launch_gradient(
        f, g, stats, value, grad_ds, None, ctx.kind, stopped, ctx.detach_scale, 0 if to_f else n,
        n * (to_f + to_g), 1, 1, f.dtype,
    ).view(-1, size)  # fmt: skip
    return grad[:n] if to_f else None, grad[-n:] if to_g else None, None, None


_ds.register_autograd(_backward, setup_context=_save)


def ds(f: Tensor, g: Tensor, kind: str, detach_scale: bool) -> Tensor:
    """DS of f and g (N, D) float32, bfloat16 or float16, of one dtype -> () float32."""
    value, _ = _ds(f, g, kind, detach_scale)
    return value


__all__ = [
    "columns", "ds", "launch_gradient", "launch_values", "on_device", "statistics_like",
]  # fmt: skip
