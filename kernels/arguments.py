"""What the view kernels take: checks that name the remedy, buffers, constants."""

import functools
import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastsc.kernels.color import PERMUTATIONS

MAX_GAIN = 1e6  # the kernels multiply two of them
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def check_images(x_u8: Tensor, dtype: torch.dtype) -> None:
    if x_u8.dtype != torch.uint8 or x_u8.ndim != 4 or x_u8.shape[3] != 3:
        raise ValueError(
            f"x_u8 must be (N, H, W, 3) uint8, not {tuple(x_u8.shape)} {x_u8.dtype}; "
            "for (N, 3, H, W) images pass x.permute(0, 2, 3, 1)"
        )
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be float32, bfloat16 or float16, not {dtype}")


def check_factors(x_u8: Tensor, factors: Tensor) -> None:
    n = x_u8.shape[0]
    if factors.shape != (n, 4) or factors.dtype != torch.float32:
        raise ValueError(
            f"factors must be ({n}, 4) float32, one row an image (brightness, contrast, "
            f"saturation, hue), not {tuple(factors.shape)} {factors.dtype}"
        )
    if factors.device != x_u8.device:
        raise ValueError(
            f"factors are on {factors.device}, x_u8 on {x_u8.device}; pass factors.to(x_u8.device)"
        )
    check_values(factors)


def check_values(factors: Tensor) -> None:
    """(N, 4) factors on the CPU: on a GPU a look at them would stall it."""
    if factors.device.type != "cpu" or not len(factors):
        return
    # numpy, not torch: torch may wake its thread pool for these few numbers. Comparisons are
    # written so that a NaN, which compares false, fails too.
    values = factors.detach().float().numpy()
    gains, hue = values[:, :3], values[:, 3]
    gains_fit = gains.min() >= 0 and gains.max() <= MAX_GAIN
    if not (gains_fit and hue.min() >= -0.5 and hue.max() <= 0.5):
        raise ValueError(
            f"factors out of range: brightness, contrast and saturation must be from 0 to "
            f"{MAX_GAIN:g}, hue in [-0.5, 0.5]"
        )


def check_order(x_u8: Tensor, order: Tensor | None) -> None:
    if order is None:
        return
    n = x_u8.shape[0]
    if order.shape != (n,) or order.dtype != torch.int64 or order.device != x_u8.device:
        raise ValueError(
            f"order must be ({n},) int64 on {x_u8.device}, a row of PERMUTATIONS an image, not "
            f"{tuple(order.shape)} {order.dtype} on {order.device}"
        )
    check_rows(order)


def check_rows(order: Tensor) -> None:
    """(N,) rows of PERMUTATIONS on the CPU."""
    last = len(PERMUTATIONS) - 1
    if order.device.type == "cpu" and len(order) and not 0 <= order.min() <= order.max() <= last:
        raise ValueError(f"order out of range: rows of PERMUTATIONS are 0 to {last}")


def check_second(x_u8: Tensor, second: Tensor) -> None:
    if (second.shape, second.dtype, second.device) != (x_u8.shape, x_u8.dtype, x_u8.device):
        raise ValueError(
            f"second must be {tuple(x_u8.shape)} uint8 on {x_u8.device}, as x_u8 is, not "
            f"{tuple(second.shape)} {second.dtype} on {second.device}"
        )


def check_out(name: str, view: Tensor, x_u8: Tensor, dtype: torch.dtype) -> None:
    n, h, w, _ = x_u8.shape
    if view.shape != (n, 3, h, w) or view.dtype != dtype or view.device != x_u8.device:
        raise ValueError(
            f"out: {name} is {tuple(view.shape)} {view.dtype} on {view.device}; "
            f"it must be {(n, 3, h, w)} {dtype} on {x_u8.device}"
        )
    if not view.permute(0, 2, 3, 1).is_contiguous():
        raise ValueError(
            f"out: {name} is not in channels-last memory; make it with "
            "torch.empty(..., memory_format=torch.channels_last)"
        )


def overlap(a: Tensor, b: Tensor) -> bool:
    start_a, start_b = a.data_ptr(), b.data_ptr()
    return start_a < start_b + b.nbytes and start_b < start_a + a.nbytes


def empty_views(x_u8: Tensor, dtype: torch.dtype, n: int) -> Tensor:
    """Room for n views of each image: (nN, 3, H, W), channels-last."""
    shape = n * x_u8.shape[0], *x_u8.shape[1:]
    if x_u8.device.type != "cpu":
        return torch.empty(shape, dtype=dtype, device=x_u8.device).permute(0, 3, 1, 2)
    memory = empty_bytes(n * x_u8.numel() * dtype.itemsize)
    return torch.from_numpy(memory).view(dtype).view(shape).permute(0, 3, 1, 2)


def empty_bytes(n: int) -> NDArray[np.uint8]:
    """(n,) uninitialized bytes on the CPU, from a multiple of 64 on: no store crosses a cache line.

    numpy asks for huge pages, where torch does not: fresh memory of two float32 views of 224 pixels
    then costs 0.1 ms an image in page faults, and not 0.35.
    """
    memory = np.empty(n + 63, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + n]


@functools.lru_cache(maxsize=64)
def scale_and_shift(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """(x / 255 - mean) / std as x * scale + shift; cached, for a copy to a GPU would stall it."""
    finite = all(math.isfinite(v) for v in (*mean, *std))
    if len(mean) != 3 or len(std) != 3 or not finite or min(std) <= 0:
        raise ValueError(f"mean and std must be three finite floats, std > 0; got {mean}, {std}")
    scale = [1 / (255 * s) for s in std]
    shift = [-m / s for m, s in zip(mean, std, strict=True)]
    # In float32, whatever torch's default is.
    both = torch.tensor([scale, shift], dtype=torch.float32, device=device)
    return both[0], both[1]
