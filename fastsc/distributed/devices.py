"""The device and the precision of a run, as asked for or as the machine has them."""

from __future__ import annotations

import contextlib
import ctypes
import os
from typing import Literal

import torch
from torch import Tensor

from fastsc.distributed.ranks import Ranks
from fastsc.errors import UserError

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4  # malloc.h
Precision = Literal["bf16", "fp16", "fp32"]
DTYPES: dict[Precision, torch.dtype] = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
}


def pick_device(name: str, ranks: Ranks | None = None) -> torch.device:
    """auto: a GPU, else the CPU; cuda, cuda:N and cpu as they are.

    The GPU is the first, or under several ranks that of this rank's number on its machine.

    Raises:
        UserError: A GPU is asked for that is not there, or one for several processes.
    """
    ranks = ranks or Ranks()
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "cuda" if n_gpus else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name}: must be auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda":
        if name == "cuda" and 0 < n_gpus < ranks.local_world_size:
            raise UserError(
                f"{ranks.local_world_size} processes on this machine, and torch sees {n_gpus} "
                "GPUs: start one process a GPU"
            )
        if device.index is not None and not ranks.single_process:
            raise UserError(
                f"--device {name} is one GPU for {ranks.world_size} processes: say --device cuda"
            )
        index = ranks.local_rank if device.index is None else device.index
        device = torch.device("cuda", index)
        if device.index >= n_gpus:
            raise UserError(
                f"--device {name}: torch sees {n_gpus or 'no'} GPUs here; take --device cpu"
            )
    return device


def pick_precision(name: str, device: torch.device) -> Precision:
    """auto: bf16 where the device computes it natively, else fp32.

    Raises:
        UserError: fp16 on a CPU, where its gradients cannot be scaled at a useful speed.
    """
    if name == "auto":
        return "bf16" if _native_bf16(device) else "fp32"
    if name == "fp16" and device.type == "cpu":
        raise UserError("--precision fp16 needs a GPU; take bf16 or fp32 on a CPU")
    assert name in DTYPES, name
    return name


def _native_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    # Private, but torch has no public question for it, and older versions lack one or the other.
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)


def set_determinism(device: torch.device, deterministic: bool) -> None:
    """Deterministic GPU kernels only, or else the fastest convolutions for the shapes at hand."""
    if device.type != "cuda":
        return  # a CPU repeats itself bit for bit with one thread count
    if deterministic:
        # Read when cuBLAS starts, which is at the first product on the GPU.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.allow_tf32 = False  # fp32 means fp32, in validation too
    torch.backends.cudnn.benchmark = not deterministic


def keep_memory() -> None:
    """Lets the C library keep what tensors free, instead of giving it back and faulting it in anew.

    On a CPU a step's activations would each be fresh pages from the system: 16,000 faults and 8 %
    of the time of a ResNet-18's step (112 px, batch 32). Only glibc has the switch.
    """
    _set_malloc(_M_MMAP_MAX, 0)
    _set_malloc(_M_TRIM_THRESHOLD, 2**30)


def map_memory() -> None:
    """Has the C library give every tensor of 1 MiB and more back as it is freed.

    The process then takes what its tensors do, which can be measured. Not after `keep_memory`:
    what was kept is used up first.
    """
    _set_malloc(_M_MMAP_THRESHOLD, 2**20)


def _set_malloc(option: int, value: int) -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(option, value)


def release_memory() -> None:
    """Gives back to the system what the C library has kept, where it is glibc."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


class HostCopy:
    """Tensors on their way to the host; nothing waits for them before they are `read`."""

    def __init__(self, *tensors: Tensor) -> None:
        # From a GPU into pinned memory, or the copy would wait.
        self._tensors = [x.detach().to("cpu", non_blocking=True) for x in tensors]
        self._arrived: torch.cuda.Event | None = None
        if tensors[0].device.type == "cuda":
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(tensors[0].device))

    def read(self) -> list[Tensor]:
        """The tensors on the CPU, as soon as they are there."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._tensors


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """The context of a forward pass; fp32 leaves everything as it is."""
    return torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32")
