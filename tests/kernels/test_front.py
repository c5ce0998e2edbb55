"""The front-end: each implementation against plain arithmetic in float64. On a GPU: test_on_gpu."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd import forward_ad

from fastsc.kernels import front as kernels_front
from fastsc.kernels import front_end
from fastsc.kernels.front_reference import CHANNELS

FRONTS = list(CHANNELS)
# "rgb" and "rgb-luma" are parts of the last one, and each is compiled anew.
FUSED = [
    pytest.param("rgb", marks=pytest.mark.slow),
    "luma",
    pytest.param("rgb-luma", marks=pytest.mark.slow),
    "rgb-luma-minmax",
]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
M, S = (torch.tensor(x, dtype=torch.float64).view(3, 1, 1) for x in (MEAN, STD))
LAST = torch.channels_last
IMPLS = ["numba", pytest.param("triton", marks=pytest.mark.heavy)]


def images(height: int = 6, width: int = 7) -> Tensor:
    """(9, 3, H, W) float64 on [0, 1]: random, grey, black, white, with a black border, …"""
    generator = torch.Generator().manual_seed(0)
    color = torch.rand(3, height, width, generator=generator, dtype=torch.float64)
    grey = color[:1].expand(3, height, width)
    border = color.clone()
    border[:, : height // 3] = border[:, :, : width // 3] = 0
    spot = torch.full_like(color, 0.25)
    spot[:, height // 2, width // 2] = 1
    flat, low, red = 0.7 + 1e-3 * color, 0.5 + 0.02 * grey, color.clone()
    red[1:] = 0
    return torch.stack(
        [color, grey, 0 * color, torch.ones_like(color), border, spot, flat, low, red]
    )


def normalized(r: Tensor) -> Tensor:
    return (r - M) / S


def oracle(r: NDArray[np.float64], front: str) -> NDArray[np.float64]:
    """One image (3, H, W) on [0, 1], as the formulas stand."""
    y = 0.2989 * r[0] + 0.587 * r[1] + 0.114 * r[2]
    s = math.sqrt(y.var() + 0.02**2)
    c = r - y
    q = math.sqrt((c**2).mean())
    z1 = [(p - p.mean()) / math.sqrt(p.var() + 0.02**2) for p in r]
    z2 = [(y - y.mean()) / s + p / (q + 0.3 * s) for p in c]
    more = [(v - v.mean()) / s for v in (r.max(0), r.min(0))]
    return np.stack(
        {"rgb": z1, "luma": z2, "rgb-luma": z1 + z2, "rgb-luma-minmax": z1 + z2 + more}[front]
    )


def exact(x: Tensor, front: str) -> Tensor:
    """Of normalized images, in float64."""
    r = (x.double() * S + M).numpy()
    return torch.from_numpy(np.stack([oracle(image, front) for image in r]))


def end(x: Tensor, front: str, impl: str) -> Tensor:
    """Triton's kernels interpreted."""
    if impl != "triton":
        return front_end(x, front, MEAN, STD, impl=impl)
    pytest.importorskip("triton")
    from fastsc.kernels import front_triton
    from tests.kernels.triton_tools import interpreted

    with interpreted(front_triton):
        return front_end(x, front, MEAN, STD, impl=impl)


@pytest.mark.parametrize("front", FRONTS)
def test_is_the_formula(front: str) -> None:
    for r in (images(), images()[:, :, 2:3, 2:3]):  # one pixel, too
        expected = torch.from_numpy(np.stack([oracle(image.numpy(), front) for image in r]))
        found = end(normalized(r), front, "auto")
        assert found.shape[1] == CHANNELS[front]
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        x = normalized(r).float()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            single = end(x, front, "reference")
        assert_near(single, exact(x, front), 3e-5)
        assert single.is_contiguous(memory_format=LAST)


def assert_near(found: Tensor, expected: Tensor, limit: float) -> None:
    error = (found.double() - expected).abs() / expected.abs().clamp_min(1)
    assert error.max() < limit, error.amax((1, 2, 3))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("front", FUSED)
def test_fused_is_within_1e_5(front: str, impl: str) -> None:
    for size in ((1, 1), (6, 7), (224, 224) if impl == "numba" else (40, 60)):
        every = 3 if impl == "triton" and size[0] > 6 else 1
        x = normalized(images(*size)[::every]).float().contiguous(memory_format=LAST)
        expected, found = exact(x, front), end(x, front, impl)
        assert_near(found, expected, 1e-5)
        assert found.is_contiguous(memory_format=LAST)
        assert torch.equal(end(x[1:2], front, impl), found[1:2]), "by itself"
    assert end(x[:0], front, impl).shape == (0, CHANNELS[front], *size)


@pytest.mark.slow
@pytest.mark.parametrize("impl", ["auto", "reference", "numba"])
@pytest.mark.parametrize("shape", [(4, 1, 8, 8), (4, 4, 8, 8), (4, 9, 8, 8), (3, 8, 8)])
def test_images_of_other_channels_are_refused(shape: tuple[int, ...], impl: str) -> None:
    x = torch.zeros(shape)
    x = x.contiguous(memory_format=LAST) if x.ndim == 4 else x
    for wrong in (x, torch.zeros(2, 3, 8, 8, dtype=torch.uint8)):
        with pytest.raises(ValueError, match=r"images are floating point \(N, 3, H, W\), not"):
            front_end(wrong, "rgb", MEAN, STD, impl=impl)


def test_as_many_programs_as_an_image_of_224_px_has() -> None:
    x = normalized(images(224, 224)[4:5]).float().contiguous(memory_format=LAST)
    assert_near(end(x, "rgb-luma-minmax", "triton"), exact(x, "rgb-luma-minmax"), 1e-5)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_rounded_once(dtype: torch.dtype, impl: str) -> None:
    x = normalized(images(9, 31)[:5]).to(dtype).contiguous(memory_format=LAST)
    found = end(x, "rgb-luma-minmax", impl)
    assert found.dtype == dtype
    assert torch.equal(found, end(x.float(), "rgb-luma-minmax", impl).to(dtype))


def test_threads_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    x = normalized(images()).float().contiguous(memory_format=LAST)
    alone = end(x, "rgb-luma-minmax", "numba")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert torch.equal(end(x, "rgb-luma-minmax", "numba"), alone)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_fused_where_only_values_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Tensor] = []
    fused = kernels_front._numba
    monkeypatch.setattr(
        kernels_front, "_numba", lambda x, *others: taken.append(x) or fused(x, *others)
    )
    x = normalized(images()).float().contiguous(memory_format=LAST)
    end(x, "rgb-luma-minmax", "auto")
    wanting = x.clone().requires_grad_()
    with torch.no_grad():
        end(wanting, "rgb-luma-minmax", "auto")
    assert len(taken) == 2
    expected = end(x, "rgb-luma-minmax", "reference")
    assert torch.equal(end(wanting, "rgb-luma-minmax", "auto"), expected)
    assert end(x.double(), "rgb-luma-minmax", "auto").dtype == torch.float64
    torch.testing.assert_close(end(x.contiguous(), "rgb-luma-minmax", "auto"), expected)
    function = torch.compile(
        lambda x: end(x, "rgb-luma-minmax", "auto"), backend="eager", fullgraph=True
    )
    assert torch.equal(function(x), expected)
    traced = torch.jit.trace(lambda x: end(x, "rgb-luma-minmax", "auto"), x, check_trace=False)
    assert torch.equal(traced(x), expected)
    torch.func.grad(lambda x: end(x, "rgb-luma-minmax", "auto").sum())(x)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        assert forward_ad.unpack_dual(end(dual, "rgb-luma-minmax", "auto")).tangent is not None
    assert len(taken) == 2
    for bad, impl in ((wanting, "numba"), (x.double(), "numba"), (x, "triton")):
        with pytest.raises(ValueError, match="use 'auto'"):
            end(bad, "rgb-luma-minmax", impl) if impl == "numba" else front_end(
                bad, "rgb-luma-minmax", MEAN, STD, impl=impl
            )
    with pytest.raises(ValueError, match="choose from rgb"):
        end(x, "c3", "auto")
    with pytest.raises(ValueError, match="choose from auto"):
        end(x, "rgb-luma-minmax", "cuda")


@pytest.mark.parametrize("front", FRONTS)
def test_gradients(front: str) -> None:
    x = normalized(images())
    inside = x[[0, 4], :, :3, :3].clone().requires_grad_()
    inside.data[1] += 0.01 * torch.arange(27).view(3, 3, 3)  # no ties of channels
    assert torch.autograd.gradcheck(lambda x: end(x, front, "auto"), (inside,))
    x.requires_grad_()
    end(x, front, "auto").square().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_a_gain_and_an_offset_of_the_channels_hardly_move_z1() -> None:
    """By the floor alone: a gain a moves z1 by at most |z1| FLOOR |1 - 1/a²| / 2 var."""
    r = images()[:1] / 2
    gain = torch.tensor([0.8, 1.2, 1.5], dtype=torch.float64).view(3, 1, 1)
    before = end(normalized(r), "rgb", "auto")
    after = end(normalized(gain * r + 0.1), "rgb", "auto")
    least = r.var((2, 3), correction=0).min()
    bound = before.abs().max() * 0.02**2 * (1 / 0.8**2 - 1) / (2 * least) * 1.1
    assert (after - before).abs().max() <= bound < 0.02
    assert (end(normalized(r + 0.1), "rgb", "auto") - before).abs().max() < 1e-12


# --- Triton's, as torch.compile and a GPU get them ------------------------------------------------


@pytest.mark.heavy
def test_the_operator_is_one_of_a_graph() -> None:
    pytest.importorskip("triton")
    from fastsc.kernels import front_triton
    from tests.kernels.triton_tools import interpreted

    x = normalized(images(5, 4)).float().contiguous(memory_format=LAST)
    with interpreted(front_triton):
        arguments = (x, "rgb-luma", list(MEAN), list(STD))
        torch.library.opcheck(front_triton._front_end, arguments, test_utils="test_faketensor")
        function = torch.compile(
            lambda x: front_end(x, "rgb-luma", MEAN, STD, impl="triton") + 1,
            backend="aot_eager", fullgraph=True,
        )  # fmt: skip
        assert torch.equal(function(x), front_end(x, "rgb-luma", MEAN, STD, impl="triton") + 1)


@pytest.mark.heavy
@pytest.mark.parametrize(
    "dtype", [pytest.param(torch.float32, marks=pytest.mark.slow), torch.bfloat16]
)
def test_machine_code(
    dtype: torch.dtype, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For 9.0: no registers spilled, enough warps, nothing of a stride but what memory has."""
    pytest.importorskip("triton")
    from fastsc.kernels import front_triton
    from tests.kernels.triton_tools import recorded

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
    x = torch.empty(2, 3, 64, 64, dtype=dtype).contiguous(memory_format=LAST)
    with recorded(front_triton) as launches:
        front_end(x, "rgb-luma-minmax", MEAN, STD, impl="triton")
    for launch in launches:
        code = launch.compile(90)
        assert (code.stack_bytes, code.local_bytes) == (0, 0)
        assert code.registers <= 96
        assert launch.grid == (4,)
