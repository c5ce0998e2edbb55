"""Where compiled kernels run, and how arrays get there."""

import functools
import importlib.util
import os
from typing import Any

import torch
from numpy.typing import NDArray


@functools.cache
def has_numba() -> bool:
    return importlib.util.find_spec("numba") is not None


@functools.cache
def has_triton(device: torch.device) -> bool:
    """Whether `device` is a GPU that the kernels are compiled for, and triton is installed."""
    return (
        device.type == "cuda"
        and torch.version.hip is None
        and importlib.util.find_spec("triton") is not None
        and torch.cuda.get_device_capability(device) >= (8, 0)  # bfloat16 conversions
    )


def interpreting(device: torch.device) -> bool:
    """Whether Triton's interpreter stands in for a GPU: slow, and for tests and debugging."""
    return (
        device.type == "cpu"
        and os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")
        and importlib.util.find_spec("triton") is not None
    )


def on_device(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    """An array's values there; on a CPU its own memory. A GPU is not waited for."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
