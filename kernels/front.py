"""The front-end by its reference, or fused where only values are wanted."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastsc.kernels.arguments import DTYPES, empty_bytes
from fastsc.kernels.devices import has_numba
from fastsc.kernels.distance import triton_runs
from fastsc.kernels.front_reference import CHANNELS, FLOOR, GREY, LUMA, reference
from fastsc.kernels.threads import deal

IMPLS = ("reference", "numba", "triton")


def front_end(
    x: Tensor, front: str, mean: Sequence[float], std: Sequence[float], *, impl: str = "auto"
) -> Tensor:
    """Normalized images (N, 3, H, W) -> (N, CHANNELS[front], H, W), in their dtype, channels-last.

    With r the image on [0, 1], Y its luma and C = r - Y, mean and population variance over the
    image's positions:

        rgb              (r - mean r) / sqrt(var r + FLOOR), each channel by its own
        luma             (Y - mean Y) / s + C / (q + GREY s), s = sqrt(var Y + FLOOR), q the root
                         mean square of C over positions and channels
        rgb-luma         both
        rgb-luma-minmax  also (v - mean v) / s of each pixel's largest and smallest channel

    Computed in float32 (float64 stays), under autocast too. A black border, which crop "pad"
    leaves and "reflect" does not, counts as image. What comes out for an image
    does not depend on the others.

    Args:
        x: Floating point.
        mean, std: Of R, G and B on [0, 1], by which x was normalized.
        impl: "reference" (torch, differentiable, any device); the fused "numba" (CPU) and "triton"
            (CUDA; two launches), within 1e-5 of float64, which take float32, bfloat16 and float16
            in channels-last memory and give no gradient; or "auto": a fused one for what it takes,
            where neither a gradient nor an export is wanted. torch.compile gets the reference on
            the CPU, which it fuses.

    Raises:
        ValueError: There is no such front-end or implementation, or it does not take x.
    """
    if front not in CHANNELS:
        raise ValueError(f"front {front!r} does not exist; choose from {', '.join(CHANNELS)}")
    fits = torch.jit.is_tracing() or (x.ndim == 4 and x.shape[1] == 3)  # traced: no numbers
    if not fits or not x.is_floating_point():
        raise ValueError(f"images are floating point (N, 3, H, W), not {x.dtype} {tuple(x.shape)}")
    if impl == "auto":
        impl = "triton" if x.device.type == "cuda" else "numba"
        impl = impl if _takes(impl, x) else "reference"
    elif impl not in IMPLS:
        raise ValueError(f"impl {impl!r} does not exist; choose from auto, {', '.join(IMPLS)}")
    elif impl != "reference" and not _takes(impl, x):
        raise ValueError(
            f"impl {impl!r} takes no {x.dtype} with strides {x.stride()} on {x.device}, or not "
            "here; use 'auto'"
        )
    if impl == "numba":
        return _numba(x, front, mean, std)
    if impl == "triton":
        from fastsc.kernels.front_triton import front_end as launch

        return launch(x, front, mean, std)
    return reference(x, front, mean, std)


def _takes(impl: str, x: Tensor) -> bool:
    """Whether a fused implementation is there, and only values are wanted of x."""
    if torch.compiler.is_compiling():
        if impl == "numba" or torch.compiler.is_exporting():
            return False
    elif (
        type(x) is not Tensor
        or torch._C._functorch.is_functorch_wrapped_tensor(x)
        or forward_ad.unpack_dual(x).tangent is not None
        or torch.jit.is_tracing()
    ):
        return False
    if x.dtype not in DTYPES or (x.requires_grad and torch.is_grad_enabled()):
        return False
    runs = triton_runs(x.device) if impl == "triton" else x.device.type == "cpu" and has_numba()
    return runs and x.permute(0, 2, 3, 1).is_contiguous()


def _numba(x: Tensor, front: str, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    from fastsc.kernels.front_numba import front_batch

    if x.dtype == torch.float16:
        return _numba(x.float(), front, mean, std).half()
    n, _, height, width = x.shape
    c, size = CHANNELS[front], x.dtype.itemsize
    memory = torch.from_numpy(empty_bytes(n * height * width * c * size)).view(x.dtype)
    out = memory.view(n, height, width, c).permute(0, 3, 1, 2)
    pixels, made = _bits(x), _bits(out)
    lines = [np.array(values, np.float64) for values in (mean, std, LUMA)]

    def work(rows: slice) -> None:
        front_batch(
            pixels[rows], *lines, FLOOR, GREY, front != "luma", front != "rgb", (0,) * c, made[rows]
        )

    deal(work, n, torch.get_num_threads())
    return out


def _bits(images: Tensor) -> Any:
    """The memory of channels-last images (N, C, H, W), as unsigned numbers (N, HWC) for numba."""
    memory = images.detach().permute(0, 2, 3, 1).flatten(1)
    if images.dtype == torch.bfloat16:
        return memory.view(torch.int16).numpy().view(np.uint16)
    return memory.numpy().view(np.uint32)


__all__ = ["CHANNELS", "IMPLS", "front_end"]
