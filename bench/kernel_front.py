"""front_end as cases for `bench.kernels`, beside the torch operations; checked against float64."""

import functools
import importlib.util

import torch
from torch import Tensor

from bench.common import Case
from bench.kernel_table import Cases
from bench.kernel_views import CHECKED, MEAN, STD
from fastsc.kernels import front_end, normalize
from fastsc.kernels.devices import has_triton

FRONTS = ("rgb-luma", "rgb-luma-minmax")


def add_front_ends(cases: Cases, x_u8: Tensor, dtype: torch.dtype) -> None:
    """Of the clean views of `x_u8` (N, S, S, 3), on the CPU, in `dtype`."""
    x = normalize(x_u8.to(cases.device), MEAN, STD, dtype=dtype)
    limit = 1e-4 if dtype == torch.float32 else 1e-2
    impls = ["reference"]
    if cases.device.type == "cpu" and importlib.util.find_spec("numba"):
        impls.append("numba")
    if has_triton(cases.device):
        impls.append("triton")
    for front in FRONTS:
        exact = front_end(x[:CHECKED].double(), front, MEAN, STD)
        for impl in impls:
            run = functools.partial(front_end, x, front, MEAN, STD, impl=impl)
            out = run()
            error = (out[:CHECKED] - exact).abs() / exact.abs().clamp_min(1)
            if not (largest := float(error.max())) < limit:
                raise AssertionError(f"front_end {front} by {impl} is off by {largest}")
            cases.add(
                Case(f"front_end/{front}-{impl}", run, len(x)),
                bytes=(x.nbytes + out.nbytes) // len(x),
                error=largest,
            )
