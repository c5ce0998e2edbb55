"""Where compiled kernels run."""

import functools
import importlib.util
import os

import torch


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
