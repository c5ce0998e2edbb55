"""pair_view against torchvision, image by image, for every implementation."""

import itertools
import os
import platform
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tvf
from hypothesis import example, given, settings
from torch import Tensor

from fastsc.kernels import normalize, pair_view, perturb
from tests.forked import ForkedPopen

pytestmark = pytest.mark.heavy

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IDENTITY = (1.0, 1.0, 1.0, 0.0)
EAGER = ("reference", "numba")
COMPILED = pytest.param("compiled", marks=pytest.mark.slow)  # for seconds
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def oracle(x_u8: Tensor, factors: Tensor) -> Tensor:
    """The perturbed images on [0, 1], before normalization: (N, 3, H, W) float32."""
    views = []
    for image, (brightness, contrast, saturation, hue) in zip(x_u8, factors.tolist(), strict=True):
        x = image.permute(2, 0, 1).to(torch.float32) / 255
        x = tvf.adjust_contrast(tvf.adjust_brightness(x, brightness), contrast)
        views.append(tvf.adjust_hue(tvf.adjust_saturation(x, saturation), hue))
    return torch.stack(views)


def denormalize(view: Tensor) -> Tensor:
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    return view.to(torch.float64) * std + mean


def assert_exact(x_u8: Tensor, factors: Tensor, clean: Tensor, perturbed: Tensor) -> None:
    """The contract: 1/255 in float32, 2/255 after low precision; the clean view far closer."""
    low = clean.dtype != torch.float32
    expected = x_u8.permute(0, 3, 1, 2).to(torch.float64) / 255
    assert (denormalize(clean) - expected).abs().max() <= (1 / 255 if low else 1e-6)
    error = (denormalize(perturbed) - oracle(x_u8, factors)).abs()
    assert error.max() <= (2 if low else 1) / 255, f"image {int(error.amax((1, 2, 3)).argmax())}"
    if not low:  # the contract leaves room; the kernels need none of it
        assert error.max() <= 2e-5
    for view in (clean, perturbed):
        assert view.is_contiguous(memory_format=torch.channels_last)


def images(kind: str, n: int, h: int, w: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, (n, h, w, 3), dtype=torch.uint8, generator=generator)
    if kind == "grey":
        x[..., 1:] = x[..., :1]
    elif kind == "dark":
        x //= 16
    elif kind == "corners":  # ties between channels, every hue's edge
        x = (x > 127).to(torch.uint8) * 255
    elif kind in ("black", "white"):
        x[:] = 0 if kind == "black" else 255
    elif kind == "mixed":
        parts = ("random", "grey", "dark", "corners", "black", "white")
        x = torch.cat([images(parts[i % 6], 1, h, w, seed + i) for i in range(n)])
    return x


def ends(strengths: tuple[float, float, float, float]) -> Tensor:
    """Every combination of both ends of each factor, (16, 4)."""
    b, c, s, hue = strengths
    return torch.tensor(
        list(itertools.product((1 - b, 1 + b), (1 - c, 1 + c), (1 - s, 1 + s), (-hue, hue)))
    )


@pytest.mark.parametrize("impl", EAGER)
@pytest.mark.parametrize("strengths", [(0.4, 0.4, 0.4, 0.1), (1.0, 1.0, 1.0, 0.5)])
@pytest.mark.parametrize("kind", ["random", "grey", "dark", "corners", "black", "white", "mixed"])
def test_both_ends_of_every_factor(impl: str, strengths, kind: str) -> None:
    factors = ends(strengths)
    x = images(kind, len(factors), 19, 23)
    assert_exact(x, factors, *pair_view(x, factors, MEAN, STD, impl=impl))


@pytest.mark.parametrize("impl", EAGER)
@pytest.mark.parametrize("dtype", DTYPES)
def test_low_precision(impl: str, dtype: torch.dtype) -> None:
    factors = ends((0.4, 0.4, 0.4, 0.1))
    x = images("mixed", len(factors), 13, 37)
    clean, perturbed = pair_view(x, factors, MEAN, STD, dtype=dtype, impl=impl)
    assert clean.dtype == perturbed.dtype == dtype
    assert_exact(x, factors, clean, perturbed)
    # One rounding, to nearest even, of the float32 views.
    single = pair_view(x, factors, MEAN, STD, impl=impl)
    assert torch.equal(clean, single[0].to(dtype))
    assert torch.equal(perturbed, single[1].to(dtype))


@settings(max_examples=50, deadline=None)
@example([(3.0, 0.0, 1.0, 0.0)], 2, 5, "random", 0)  # 255 / 3: the clamp falls on a level
@given(
    factors=st.lists(
        st.tuples(
            st.floats(0, 3, width=32),
            st.floats(0, 3, width=32),
            st.floats(0, 3, width=32),
            st.floats(-0.5, 0.5, width=32),
        ),
        min_size=1,
        max_size=4,
    ),
    height=st.integers(1, 40),
    width=st.integers(1, 70),
    kind=st.sampled_from(["random", "grey", "dark", "corners", "mixed"]),
    seed=st.integers(0, 1000),
)
def test_any_factors_and_shape(factors, height: int, width: int, kind: str, seed: int) -> None:
    rows = torch.tensor(factors)
    x = images(kind, len(rows), height, width, seed)
    for impl in EAGER:
        assert_exact(x, rows, *pair_view(x, rows, MEAN, STD, impl=impl))


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (223, 225), (3000, 9), (9, 3000), (600, 1)])
def test_odd_sizes(size: tuple[int, int]) -> None:
    x = images("random", 2, *size)
    factors = torch.tensor([[1.3, 0.7, 1.4, 0.1], [0.6, 1.4, 0.6, -0.1]])
    for impl in EAGER:
        assert_exact(x, factors, *pair_view(x, factors, MEAN, STD, impl=impl))


@pytest.mark.parametrize("impl", EAGER)
@pytest.mark.parametrize("dtype", DTYPES)
def test_identity_factors_give_the_clean_view(impl: str, dtype: torch.dtype) -> None:
    x = images("random", 3, 33, 65)
    factors = torch.tensor([IDENTITY, (0.7, 1.2, 1.3, 0.1), IDENTITY])
    clean, perturbed = pair_view(x, factors, MEAN, STD, dtype=dtype, impl=impl)
    assert torch.equal(clean[0], perturbed[0])
    assert torch.equal(clean[2], perturbed[2])
    assert not torch.equal(clean[1], perturbed[1])


@pytest.mark.parametrize("impl", EAGER)
@pytest.mark.parametrize("column", range(4))
def test_one_perturbation_alone(impl: str, column: int) -> None:
    ops = (tvf.adjust_brightness, tvf.adjust_contrast, tvf.adjust_saturation, tvf.adjust_hue)
    factors = torch.tensor([IDENTITY, IDENTITY])
    factors[:, column] = torch.tensor([-0.3, 0.4]) if column == 3 else torch.tensor([0.5, 1.6])
    x = images("random", 2, 17, 31)
    _, perturbed = pair_view(x, factors, MEAN, STD, impl=impl)
    for image, value, view in zip(x, factors[:, column].tolist(), perturbed, strict=True):
        alone = ops[column](image.permute(2, 0, 1) / 255, value)
        assert (denormalize(view) - alone).abs().max() <= 2e-5


@pytest.mark.parametrize("dtype", DTYPES)
def test_clean_view_is_the_same_everywhere(dtype: torch.dtype) -> None:
    """Whatever the factors, the batch and the implementation: bit for bit."""
    x = images("random", 4, 21, 33)
    clean = normalize(x, MEAN, STD, dtype=dtype, impl="reference")
    assert torch.equal(clean, normalize(x, MEAN, STD, dtype=dtype, impl="numba"))
    for factors in (ends((0.4, 0.4, 0.4, 0.1))[:4], torch.tensor([IDENTITY] * 4)):
        for impl in EAGER:
            pair = pair_view(x, factors, MEAN, STD, dtype=dtype, impl=impl)
            assert torch.equal(clean, pair[0])
    alone = pair_view(x[2:3], factors[2:3], MEAN, STD, dtype=dtype)
    assert torch.equal(clean[2:3], alone[0])


@pytest.mark.parametrize("impl", [*EAGER, COMPILED])
def test_one_view_alone_is_the_pairs(impl: str) -> None:
    x, factors = images("mixed", 4, 21, 33), ends((0.4, 0.4, 0.4, 0.1))[:4].clone()
    factors[1] = torch.tensor(IDENTITY)
    clean, perturbed = pair_view(x, factors, MEAN, STD, impl=impl)
    assert torch.equal(normalize(x, MEAN, STD, impl=impl), clean)
    assert torch.equal(perturb(x, factors, MEAN, STD, impl=impl), perturbed)


FIRST, LAST = (6, torch.float32), (4, torch.bfloat16)  # with another size, as an epoch's last has


@pytest.mark.parametrize("batches", [[FIRST], pytest.param([FIRST, LAST], marks=pytest.mark.slow)])
def test_compiled_equals_the_reference(batches: list[tuple[int, torch.dtype]]) -> None:
    for n, dtype in batches:
        x = images("mixed", n, 21, 34)
        factors = ends((0.4, 0.4, 0.4, 0.1))[-n:].clone()
        factors[1] = torch.tensor(IDENTITY)
        compiled = pair_view(x, factors, MEAN, STD, dtype=dtype, impl="compiled")
        assert_exact(x, factors, *compiled)
        assert torch.equal(compiled[0][1], compiled[1][1])
        if dtype == torch.float32:
            reference = pair_view(x, factors, MEAN, STD, dtype=dtype, impl="reference")
            torch.testing.assert_close(compiled, reference, rtol=0, atol=2e-5)


def test_threads_agree_with_one_thread() -> None:
    x = images("random", 64, 48, 48)
    factors = torch.rand(64, 4, generator=torch.Generator().manual_seed(2)) * 0.8 + 0.6
    factors[:, 3] -= 1
    factors[:, 3].clamp_(-0.5, 0.5)
    alone = pair_view(x, factors, MEAN, STD, impl="numba")
    out = (torch.empty_like(alone[0]), torch.empty_like(alone[1]))
    start = threading.Barrier(8)

    def work(first: int) -> None:
        start.wait(timeout=10)
        for i in range(first, 64, 8):
            rows = slice(i, i + 1)
            views = (out[0][rows], out[1][rows])
            pair_view(x[rows], factors[rows], MEAN, STD, impl="numba", out=views)

    for _ in range(3):
        out[0].zero_(), out[1].zero_()
        threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=30)
        assert torch.equal(out[0], alone[0])
        assert torch.equal(out[1], alone[1])


@pytest.mark.parametrize("n", [1, 2, 7, 40])
@pytest.mark.parametrize("threads", [2, 3, 64])
def test_images_dealt_over_threads(n: int, threads: int) -> None:
    x, factors = images("random", n, 19, 23), ends((0.4, 0.4, 0.4, 0.1)).repeat(3, 1)[:n]
    alone = pair_view(x, factors, MEAN, STD)
    shared = pair_view(x, factors, MEAN, STD, threads=threads)
    assert torch.equal(torch.cat(alone), torch.cat(shared))
    assert torch.equal(normalize(x, MEAN, STD, threads=threads), alone[0])
    assert torch.equal(perturb(x, factors, MEAN, STD, threads=threads), alone[1])


FORKED = """
import os, sys, torch
from fastsc.kernels import pair_view
x, factors = torch.full((4, 8, 8, 3), 77, dtype=torch.uint8), torch.full((4, 4), 0.4)
lines = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
before = pair_view(x, factors, *lines, threads=2)
if (child := os.fork()) == 0:
    after = pair_view(x, factors, *lines, threads=2)
    os._exit(not torch.equal(torch.cat(after), torch.cat(before)))
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_threads_in_a_forked_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch's DataLoader makes its workers: the threads of the parent are not there."""
    monkeypatch.setattr("subprocess.Popen", ForkedPopen)
    subprocess.run([sys.executable, "-c", FORKED], check=True, timeout=60)


DIGEST = """
import hashlib, torch
from fastsc.kernels import pair_view
torch.manual_seed(0)
x = torch.randint(0, 256, (4, 13, 37, 3), dtype=torch.uint8)
factors = torch.rand(4, 4) * 0.8 + torch.tensor([0.6, 0.6, 0.6, -0.4])
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    views = pair_view(x, factors, (0.485, 0.456, 0.406), (0.2, 0.3, 0.4), dtype=dtype, impl="numba")
    memory = [view.permute(0, 2, 3, 1).view(torch.uint8).numpy() for view in views]
    print(*(hashlib.sha256(m).hexdigest() for m in memory))
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(platform.machine() != "x86_64", reason="names CPUs of x86-64")
def test_bits_depend_neither_on_the_cpu_nor_on_the_code_cache(tmp_path: Path) -> None:
    """Compiled for CPUs with and without 512-bit vectors, anew and from the cache."""

    def digest(folder: str, **variables: str) -> str:
        more = {"NUMBA_CACHE_DIR": str(tmp_path / folder)} | variables
        command = [sys.executable, "-c", DIGEST]
        done = subprocess.run(command, env=os.environ | more, capture_output=True, check=True)
        return done.stdout.decode()

    others = [
        # Without instructions that round to 16 bits: LLVM would end the process for want of them.
        {"NUMBA_CPU_NAME": "generic"},
        {"NUMBA_ENABLE_AVX": "0"},
        {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": ""},
    ]
    if "avx512f" in Path("/proc/cpuinfo").read_text(encoding="utf-8"):
        others.append({"NUMBA_CPU_NAME": "skylake-avx512", "NUMBA_CPU_FEATURES": ""})
    with ThreadPoolExecutor(2) as pool:
        digests = [pool.submit(digest, str(i), **other) for i, other in enumerate(others)]
        own = digest("own")
        assert digest("own") == own
        for other, task in zip(others, digests, strict=True):
            assert task.result() == own, other


def test_bfloat16_rounds_ties_to_even() -> None:
    """With mean 0 and std 1/255 the clean view is the level plus a shift that makes ties."""
    x = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).repeat(1, 1, 1, 3)
    mean, std = (-1.0, -0.5, -3.0), (1 / 255,) * 3
    clean = normalize(x, mean, std, dtype=torch.bfloat16, impl="numba")
    exact = normalize(x, mean, std, impl="numba")
    assert torch.equal(clean, exact.to(torch.bfloat16))
    bits = exact.permute(0, 2, 3, 1).contiguous().numpy().view(np.uint32)
    assert np.count_nonzero((bits & 0xFFFF) == 0x8000) > 20  # there were ties to round


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("impl", ["reference", "compiled"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu(impl: str, dtype: torch.dtype) -> None:
    factors = ends((1.0, 1.0, 1.0, 0.5))
    factors[3] = torch.tensor(IDENTITY)
    x = images("mixed", len(factors), 33, 47)
    pair = pair_view(x.cuda(), factors.cuda(), MEAN, STD, dtype=dtype, impl=impl)
    assert torch.equal(pair[0][3], pair[1][3])
    assert_exact(x, factors, *(view.cpu() for view in pair))
