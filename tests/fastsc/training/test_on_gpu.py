"""The training step on a GPU. Needs torch, torchvision, triton, numba, pyyaml and pytest alone.

FASTSC_DRY=1 runs the same lines on a CPU, which shows that they run.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from fastsc.config import TrainConfig
from fastsc.distributed.ranks import Ranks
from fastsc.kernels import pair_view
from fastsc.pipelines import IMAGENET_MEAN, IMAGENET_STD, PairBatch
from fastsc.training.alpha import Alpha
from fastsc.training.nonfinite import LossWatch
from fastsc.training.optimizer import lr_at
from fastsc.training.setup import prepare
from fastsc.training.step import Step

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
N, SIDE = 8, 32
ROOT = Path(__file__).parents[3]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not (ON_GPU or os.environ.get("FASTSC_DRY")), reason="needs a CUDA device, or FASTSC_DRY=1"
    ),
]


def make(**changes: Any) -> Step:
    base = {
        "model": "fastsc:resnet8w8", "stem": "cifar", "resolution": SIDE, "batch_size": N,
        "lr": 0.5, "warmup_epochs": 0.0, "precision": "fp32",
    }  # fmt: skip
    config = TrainConfig().replace(**{**base, **changes})
    model = prepare(config, 5, DEVICE, config.run.precision, Ranks())  # type: ignore[arg-type]
    return Step(config, model, DEVICE, config.run.precision, Ranks())  # type: ignore[arg-type]


def batch(seed: int = 0, dtype: torch.dtype = torch.float32) -> PairBatch:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, (N, SIDE, SIDE, 3), dtype=torch.uint8, generator=generator)
    factors = torch.rand(N, 4, generator=generator) * 0.8 + torch.tensor([0.6, 0.6, 0.6, -0.4])
    views = pair_view(x.to(DEVICE), factors.to(DEVICE), IMAGENET_MEAN, IMAGENET_STD, dtype=dtype)
    target = torch.randint(0, 5, (N,), generator=generator).to(DEVICE)
    return PairBatch(*views, target, torch.arange(N, device=DEVICE))


def losses(step: Step, n_steps: int = 3, dtype: torch.dtype = torch.float32) -> list[float]:
    found = []
    for seed in range(n_steps):
        optim, method = step.config.optim, step.config.method
        lr = lr_at(step.step, optim, 100)
        alpha = Alpha(method, 100, optim.epochs).alpha(step.step)
        measured = step.train_step(batch(seed, dtype), lr=lr, alpha=alpha, measured=True)
        assert measured is not None
        found.append(measured.read()["loss"])
    return found


@pytest.mark.parametrize("kind", ["cosine", "l2", "relative", "mse", "sq"])
def test_fused_pooling_trains_alike(kind: str) -> None:
    alpha = 0.1 if kind == "l2" else 1.0
    fused = losses(make(ds=kind, alpha=alpha, pooling="fused"))
    separate = losses(make(ds=kind, alpha=alpha, pooling="separate"))
    assert fused == pytest.approx(separate, rel=1e-3)


def test_auto_is_fused_on_a_gpu() -> None:
    assert (make().model.pool is not None) == ON_GPU


@pytest.mark.parametrize("pooling", ["fused", "separate"])
def test_compiled_trains_alike(pooling: str) -> None:
    plain, compiled = losses(make(pooling=pooling)), losses(make(pooling=pooling, compile=True))
    assert compiled == pytest.approx(plain, rel=1e-3)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_trains(precision: str) -> None:
    if precision == "fp16" and not ON_GPU:
        pytest.skip("fp16 is for GPUs")
    dtype = torch.bfloat16 if precision == "bf16" else torch.float16
    low = losses(make(precision=precision, lr=0.05), 5, dtype)
    full = losses(make(lr=0.05), 5)
    assert low == pytest.approx(full, rel=0.05)


REPEATED = """
from fastsc.distributed.devices import set_determinism
from tests.fastsc.training.test_on_gpu import DEVICE, losses, make
set_determinism(DEVICE, True)
one, two = (losses(make(pooling="fused"), 4) for _ in range(2))
assert one == two, (one, two)
"""


def test_deterministic_runs_repeat_to_the_bit() -> None:
    """In a process of its own: cuBLAS reads once how much memory it works in, at its first use."""
    environment = {k: v for k, v in os.environ.items() if k != "CUBLAS_WORKSPACE_CONFIG"}
    done = subprocess.run(
        [sys.executable, "-c", REPEATED], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@contextmanager
def waiting_is_an_error() -> Iterator[None]:
    """Within the context whatever has the host wait for the GPU raises."""
    if not ON_GPU:
        yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    "options",
    [{}, {"clip_grad": 1.0}, {"bn": "split"}, {"alpha": 0.0, "ce_views": "clean"}, {"fp16": True}],
    ids=["default", "clip", "split", "plain", "fp16"],
)
def test_a_step_waits_for_nothing(options: dict[str, Any]) -> None:
    changes = dict(options)
    low = changes.pop("fp16", False) and ON_GPU
    step = make(**changes, precision="fp16" if low else "fp32")
    some, watch = batch(dtype=torch.float16 if low else torch.float32), LossWatch(Ranks())
    for context in (nullcontext(), nullcontext(), waiting_is_an_error()):
        with context:
            step.train_step(some, lr=0.1, alpha=1.0, measured=False)
            watch.note(step.step, step.last_loss, some.index)
            measured = step.train_step(some, lr=0.1, alpha=1.0, measured=True)
            watch.note(step.step, step.last_loss, some.index)
            watch.send()
        assert measured is not None
        assert math.isfinite(measured.read()["loss"])
        assert watch.look() is None
