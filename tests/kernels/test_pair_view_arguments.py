"""What pair_view takes, writes into, and refuses."""

import subprocess
import sys

import pytest
import torch

from fastsc.kernels import normalize, pair_view, perturb, views

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
N, H, W = 3, 8, 10
EAGER = ("reference", "numba")

X = torch.randint(
    0, 256, (N, H, W, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
FACTORS = torch.tensor([[1.2, 0.8, 1.3, 0.1]] * N)


def buffer(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("impl", EAGER)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_out_is_written_and_returned(impl: str, dtype: torch.dtype) -> None:
    expected = pair_view(X, FACTORS, MEAN, STD, dtype=dtype, impl=impl)
    pool = buffer(2 * N, 3, H, W, dtype=dtype).fill_(-9)
    out = (pool[:N], pool[N:])
    clean, perturbed = pair_view(X, FACTORS, MEAN, STD, dtype=dtype, impl=impl, out=out)
    assert clean is out[0]
    assert perturbed is out[1]
    assert torch.equal(pool, torch.cat(expected))


@pytest.mark.parametrize("impl", EAGER)
def test_out_keeps_its_neighbours(impl: str) -> None:
    """Rows before and behind a slice of a larger buffer stay as they were."""
    pools = [buffer(N + 2, 3, H, W).fill_(-9) for _ in range(2)]
    out = (pools[0][1:-1], pools[1][1:-1])
    pair_view(X, FACTORS, MEAN, STD, impl=impl, out=out)
    for pool in pools:
        assert (pool[[0, -1]] == -9).all()
        assert (pool[1:-1] != -9).all()


@pytest.mark.parametrize("impl", EAGER)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_view_alone_into_out(impl: str, dtype: torch.dtype) -> None:
    """normalize and perturb write one slice of a buffer, with the bits of the pair."""
    clean, perturbed = pair_view(X, FACTORS, MEAN, STD, dtype=dtype, impl=impl)
    for view, make in ((clean, normalize), (perturbed, perturb)):
        arguments = (X, MEAN, STD) if make is normalize else (X, FACTORS, MEAN, STD)
        pool = buffer(N + 2, 3, H, W, dtype=dtype).fill_(-9)
        out = make(*arguments, dtype=dtype, impl=impl, out=pool[1:-1])
        assert torch.equal(out, view)
        assert out.data_ptr() == pool[1:-1].data_ptr()
        assert (pool[[0, -1]] == -9).all()
        assert torch.equal(make(*arguments, dtype=dtype, impl=impl), view)
        with pytest.raises(ValueError, match="view is"):
            make(*arguments, dtype=dtype, impl=impl, out=pool)


def test_views_never_alias() -> None:
    identity = torch.tensor([[1.0, 1.0, 1.0, 0.0]] * N)
    for impl in EAGER:
        clean, perturbed = pair_view(X, identity, MEAN, STD, impl=impl)
        assert perturbed.data_ptr() == clean.data_ptr() + clean.nbytes, "they are one tensor"
        clean.zero_()
        assert perturbed.count_nonzero() > 0


@pytest.mark.parametrize(
    ("clean", "message"),
    [
        (buffer(N, 3, H, W + 1), "must be"),
        (buffer(N + 1, 3, H, W), "must be"),
        (buffer(N, 3, H, W, dtype=torch.bfloat16), "must be"),
        (torch.empty(N, 3, H, W), "channels-last"),
        (buffer(2 * N, 3, H, W)[::2], "channels-last"),
        (torch.empty(N, 3, H, W, device="meta"), "must be"),
    ],
)
def test_out_that_does_not_fit(clean: torch.Tensor, message: str) -> None:
    good = buffer(N, 3, H, W)
    with pytest.raises(ValueError, match=message):
        pair_view(X, FACTORS, MEAN, STD, out=(clean, good))
    with pytest.raises(ValueError, match=message):
        pair_view(X, FACTORS, MEAN, STD, out=(good, clean))


def test_out_that_overlaps() -> None:
    pool = buffer(2 * N - 1, 3, H, W)
    for out in ((pool[:N], pool[:N]), (pool[:N], pool[N - 1 :])):
        with pytest.raises(ValueError, match="overlap"):
            pair_view(X, FACTORS, MEAN, STD, out=out)


@pytest.mark.parametrize("impl", EAGER)
def test_strided_images(impl: str) -> None:
    wide = torch.randint(0, 256, (2 * N, H, 2 * W, 3), dtype=torch.uint8)
    planar = torch.randint(0, 256, (N, 3, H, W), dtype=torch.uint8).permute(0, 2, 3, 1)
    for x in (wide[::2, :, :W], wide[:N, :, ::2], planar):
        assert not x.is_contiguous()
        pair = pair_view(x, FACTORS, MEAN, STD, impl=impl)
        expected = pair_view(x.contiguous(), FACTORS, MEAN, STD, impl=impl)
        assert torch.equal(torch.cat(pair), torch.cat(expected))


@pytest.mark.parametrize("impl", ["reference", "compiled", "numba", "auto"])
def test_empty_batch(impl: str) -> None:
    clean, perturbed = pair_view(X[:0], FACTORS[:0], MEAN, STD, impl=impl)
    assert clean.shape == perturbed.shape == (0, 3, H, W)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (X.float(), "uint8"),
        (X[0], "N, H, W, 3"),
        (X.permute(0, 3, 1, 2), r"permute\(0, 2, 3, 1\)"),
    ],
)
def test_images_that_do_not_fit(x: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pair_view(x, FACTORS, MEAN, STD)


@pytest.mark.parametrize(
    "factors", [FACTORS[0], FACTORS[:2], FACTORS[:, :3], FACTORS.double(), FACTORS.int()]
)
def test_factors_that_do_not_fit(factors: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"factors must be \(3, 4\) float32"):
        pair_view(X, factors, MEAN, STD)


@pytest.mark.parametrize("impl", EAGER)
@pytest.mark.parametrize(
    ("column", "value"),
    [(0, -0.1), (1, -1e-3), (2, -5.0), (3, 0.51), (3, -0.6)]
    + [(0, 2e6), (1, 1e20)]
    + [(column, value) for column in range(4) for value in (float("nan"), float("inf"))],
)
def test_factors_out_of_range(impl: str, column: int, value: float) -> None:
    factors = FACTORS.clone()
    factors[1, column] = value
    with pytest.raises(ValueError, match="out of range"):
        pair_view(X, factors, MEAN, STD, impl=impl)


def test_factors_on_another_device() -> None:
    with pytest.raises(ValueError, match=r"factors\.to"):
        pair_view(X, FACTORS.to("meta"), MEAN, STD)


@pytest.mark.parametrize(
    ("mean", "std"),
    [((0.5, 0.5), STD), (MEAN, (0.2, 0.0, 0.2)), ((float("nan"), 0, 0), STD), (MEAN, (1, -1, 1))],
)
def test_mean_and_std_that_do_not_fit(mean, std) -> None:
    with pytest.raises(ValueError, match="three finite floats"):
        pair_view(X, FACTORS, mean, std)


def test_dtype_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match="float32, bfloat16 or float16"):
        pair_view(X, FACTORS, MEAN, STD, dtype=torch.float64)


@pytest.mark.parametrize("impl", ["cuda", ""])
def test_unknown_impl_names_what_exists(impl: str) -> None:
    with pytest.raises(ValueError, match="auto, reference, compiled, numba, triton"):
        pair_view(X, FACTORS, MEAN, STD, impl=impl)


def test_triton_off_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="needs triton and a CUDA device"):
        pair_view(X, FACTORS, MEAN, STD, impl="triton")


@pytest.mark.parametrize("threads", [0, -1])
def test_threads_that_do_not_fit(threads: int) -> None:
    with pytest.raises(ValueError, match="threads must be at least 1"):
        pair_view(X, FACTORS, MEAN, STD, threads=threads)


def test_numba_off_the_cpu() -> None:
    with pytest.raises(ValueError, match="runs on the CPU"):
        pair_view(X.to("meta"), FACTORS.to("meta"), MEAN, STD, impl="numba")


def test_without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    """auto works with the reference, in the same bits; asking for numba names the remedy."""
    monkeypatch.setattr(views, "has_numba", lambda: False)
    with pytest.raises(ValueError, match="pip install numba"):
        pair_view(X, FACTORS, MEAN, STD, impl="numba")
    reference = pair_view(X, FACTORS, MEAN, STD, impl="reference")
    assert torch.equal(torch.cat(pair_view(X, FACTORS, MEAN, STD)), torch.cat(reference))


@pytest.mark.heavy
def test_importing_the_kernels_imports_nothing_above() -> None:
    code = (
        "import sys\n"
        "from fastsc.kernels import ds, pair_view\n"
        "assert callable(ds) and callable(pair_view)\n"
        "own = {m for m in sys.modules if m.split('.')[0] == 'fastsc'}\n"
        "above = {m for m in own if m != 'fastsc' and not m.startswith('fastsc.kernels')}\n"
        "heavy = {'numba', 'torchvision'} & set(sys.modules)\n"
        "assert not above | heavy, above | heavy\n"
        "import fastsc.kernels as kernels\n"
        "assert kernels.ds is ds and kernels.pair_view is pair_view\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
