"""ds by Triton: interpreted on the CPU against float64, and the machine code for a GPU."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("triton")


from fastsc.kernels import distance, distance_ops, distance_triton, ds
from fastsc.kernels.distance import BATCH_SCALED, KINDS
from tests.kernels.test_distance import eager, slow_but
from tests.kernels.triton_tools import Compiled, compile_kernel, interpreted

pytestmark = pytest.mark.heavy
LOW = (torch.float32, torch.bfloat16, torch.float16)
SLOW = pytest.mark.slow
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}
# Of one value, in a result that is right but for its last rounding.
ROUNDING = {torch.float32: 3e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


@pytest.fixture
def interpreter() -> Iterator[None]:
    with interpreted(distance_triton, distance_ops):
        yield


def pair(n: int, d: int, dtype: torch.dtype = torch.float32, scale: float = 1.0, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    f = torch.randn(n, d, generator=generator) * scale
    g = f + torch.randn(n, d, generator=generator) * 0.3 * scale
    return f.to(dtype), g.to(dtype)


def outcome(function, *inputs: Tensor) -> list[Tensor]:
    """Value and gradients, float64."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    value = function(*leaves)
    (value * 1.7).backward()
    assert all(x.grad is not None and x.grad.dtype == x.dtype for x in leaves)
    return [value.detach().double(), *(x.grad.double() for x in leaves)]


def by_triton(f: Tensor, g: Tensor, kind: str, **options) -> list[Tensor]:
    return outcome(lambda a, b: ds(a, b, kind, impl="triton", **options), f, g)


def truth(f: Tensor, g: Tensor, kind: str, **options) -> list[Tensor]:
    wide = f.double(), g.double()
    return outcome(lambda a, b: ds(a, b, kind, impl="reference", **options), *wide)


def close(found: list[Tensor], exact: list[Tensor], rounding: float, single: float = 3e-6) -> None:
    """By norms; `single` is for the value, which is float32 always."""
    for i, (a, b) in enumerate(zip(found, exact, strict=True)):
        limit = single if i == 0 else max(rounding, single)
        assert (a - b).norm() <= limit * b.norm() + 1e-9, (i, (a - b).norm() / b.norm())


SHAPES = [(1, 1), (2, 3), (2, 2100), (1, 33), (5, 33), (4, 64)]
QUICK = [(shape, torch.float32) for shape in SHAPES[:3]] + [((2, 3), torch.bfloat16)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        pytest.param(*case, marks=() if case in QUICK else SLOW)
        for case in itertools.product(SHAPES, LOW)
    ],
)
def test_no_worse_than_eager(interpreter, kind: str, dtype: torch.dtype, shape) -> None:
    """|kernel - float64| <= |eager low precision - float64| + tolerance, for every element."""
    if kind in BATCH_SCALED and shape[0] < 2:
        pytest.skip("compares different images")
    f, g = pair(*shape, dtype)
    ours, exact = by_triton(f, g, kind), truth(f, g, kind)
    plain = outcome(lambda a, b: eager(a, b, kind), f, g)
    for a, b, c in zip(ours, plain, exact, strict=True):
        b = torch.where(b.isnan(), math.inf, b)
        excess = (a - c).abs() - (b - c).abs()
        assert excess.max() <= TOLERANCE[dtype]
    close(ours, exact, ROUNDING[dtype])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1e-3, pytest.param(0.1, marks=SLOW), 12.0])
def test_scales(interpreter, kind: str, scale: float) -> None:
    f, g = pair(5, 33, scale=scale)
    close(by_triton(f, g, kind), truth(f, g, kind), 1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "dtype", [torch.float32, *(pytest.param(low, marks=SLOW) for low in LOW[1:])]
)
def test_zero_at_the_diagonal(interpreter, kind: str, dtype: torch.dtype) -> None:
    f, g = pair(4, 33, dtype, scale=3)
    for result in by_triton(f, f, kind):
        assert torch.equal(result, torch.zeros_like(result))
    same = f.clone().requires_grad_()
    ds(same, same, kind, impl="triton").backward()
    assert torch.equal(same.grad, torch.zeros_like(same))
    g[2] = f[2]  # one equal row among others
    _, clean, grad = by_triton(f, g, kind)
    assert torch.equal(grad[2], clean[2] if kind == "sq" else torch.zeros_like(grad[2]))
    assert grad[3].abs().max() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_only_what_asks_for_them(interpreter, kind: str) -> None:
    f, g = pair(5, 33)
    _, *full = by_triton(f, g, kind)
    for side in (0, 1):
        inputs = [f.clone(), g.clone()]
        inputs[side].requires_grad_()
        (ds(*inputs, kind, impl="triton") * 1.7).backward()
        assert torch.equal(inputs[side].grad.double(), full[side])
        assert inputs[1 - side].grad is None


@pytest.mark.parametrize("rows", [2, 3, 5])
@pytest.mark.parametrize("detach", [False, True])
def test_scale_of_relative(interpreter, rows: int, detach: bool) -> None:
    f, g = pair(rows, 12)
    f[1] = f[0]  # the distance to a neighbour is 0
    for others in (None, pair(4, 12, seed=3)[0]):
        found = by_triton(f, g, "relative", detach_scale=detach, others=others)
        close(found, truth(f, g, "relative", detach_scale=detach, others=others), 3e-6)


@pytest.mark.parametrize("kind", BATCH_SCALED)
def test_gradient_of_others(interpreter, kind: str) -> None:
    f, g = pair(4, 12)
    single = pair(5, 12, seed=3)[0].requires_grad_()
    double = single.detach().double().requires_grad_()
    value = ds(f, g, kind, impl="triton", others=single)
    exact = ds(f.double(), g.double(), kind, others=double)
    assert value.item() == pytest.approx(exact.item(), rel=3e-6)
    value.backward(), exact.backward()
    torch.testing.assert_close(single.grad.double(), double.grad, rtol=1e-5, atol=1e-8)


def test_collapsed_features_stay_finite(interpreter) -> None:
    assert distance_triton.TINY == distance.TINY
    same = torch.ones(5, 8)
    nearly = same.clone().index_fill_(0, torch.tensor(1), 1 + 2**-22)
    tiny = pair(5, 8, scale=1e-14)[0]  # under the least scale, which has no gradient
    pairs = ((same, same), (same, same + 1), (nearly, same), (nearly, same + 1), (tiny, same))
    for (f, g), kind in itertools.product(pairs, BATCH_SCALED):
        found, exact = by_triton(f, g, kind), truth(f, g, kind)
        assert all(x.isfinite().all() for x in found)
        close(found, exact, 1e-5)


@pytest.mark.parametrize(
    ("a", "b"), [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, -1.0), (1e-12, 1.0)]
)
def test_cosine_of_zero_vectors(interpreter, a: float, b: float) -> None:
    f, g = torch.full((2, 33), float(a)), torch.full((2, 33), float(b))
    found, exact = by_triton(f, g, "cosine"), truth(f, g, "cosine")
    for x, y in zip(found, exact, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6 / min(a or 1, 1))


@pytest.mark.parametrize("size", [50.0, pytest.param(1e3, marks=SLOW), 1e30])
def test_js_of_large_logits(interpreter, size: float) -> None:
    f = F.one_hot(torch.tensor([0, 1]), 2100) * size  # more than one round of a program
    g = F.one_hot(torch.tensor([2, 1]), 2100) * size
    value, *gradients = by_triton(f, g, "js")
    assert value.item() == pytest.approx(math.log(2) / 2, rel=1e-6)
    assert all(grad.isfinite().all() for grad in gradients)


def test_js_keeps_its_digits(interpreter) -> None:
    """Near neighbours, and logits with a large common part, which says nothing."""
    f, noise = pair(4, 33)
    f = f.mul(1024).round() / 1024  # so that the common part costs no digits of the inputs
    near = f + (noise * 4).round() / 1024
    close(by_triton(f, near, "js"), truth(f, near, "js"), 2e-5)
    close(by_triton(f + 1024, near + 1024, "js"), truth(f, near, "js"), 2e-5)


@pytest.mark.parametrize("kind", slow_but(KINDS, "relative", "js"))
def test_same_bits_again_and_for_any_input_layout(interpreter, kind: str) -> None:
    f, g = pair(3, 33)
    first = by_triton(f, g, kind)
    strided = f.T.contiguous().T, torch.cat([g, g], 1)[:, :33]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = by_triton(f, g, kind)
    for other in (by_triton(f, g, kind), by_triton(*strided, kind), again):
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    low = f.bfloat16()
    mixed, exact = by_triton(low, g, kind), truth(low, g, kind)
    close(mixed, exact, 8e-3)
    close([mixed[0], mixed[2]], [exact[0], exact[2]], 3e-6)  # the gradient of g is not rounded


@pytest.mark.parametrize("shape", SHAPES[:3])
def test_mse_is_that_of_torch(interpreter, shape) -> None:
    f, g = pair(*shape)
    close(by_triton(f, g, "mse"), outcome(F.mse_loss, f.double(), g.double()), 3e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_nan_is_not_hidden(interpreter, kind: str) -> None:
    f, g = pair(5, 33)
    f[2, 3] = float("nan")
    value, *gradients = by_triton(f, g, kind)
    assert value.isnan()
    assert all(grad[2].isnan().any() for grad in gradients)


@pytest.mark.parametrize("kind", ["relative", *(pytest.param(k, marks=SLOW) for k in ("js", "sq"))])
def test_operators_are_what_torch_expects(interpreter, kind: str) -> None:
    f, g = (x.requires_grad_() for x in pair(3, 8))
    torch.library.opcheck(torch.ops.fastsc.ds.default, (f, g, kind, False))
    grad = torch.autograd.grad(ds(f, g, impl="triton"), f, create_graph=True)[0]
    with pytest.raises(RuntimeError, match=r"ds_gradient.*no autograd formula"):
        grad.sum().backward()


def test_refused() -> None:
    f, g = pair(3, 8)
    with pytest.raises(ValueError, match=r"CUDA device of compute capability 8.0.*'compiled'"):
        ds(f, g, impl="triton")
    for options in ({}, {"others": f.double()}):
        with pytest.raises(ValueError, match="float64"):
            ds(f if options else f.double(), g, "relative", impl="triton", **options)


# --- machine code ---------------------------------------------------------------------------------

POINTER = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}


def sound(code: Compiled, registers: int, shared: int) -> None:
    assert code.registers <= registers
    assert code.stack_bytes == code.local_bytes == 0, "registers are spilled"
    assert code.shared_bytes <= shared
    assert code.count(r"(LDL|STL|ATOM|RED)") == 0


# Registers are of the compiler at hand, with some room: 64 let 32 one-warp blocks share a
# multiprocessor of sm_80 and sm_90, which is all they take.
# Quick: those with rows of others, and the one with logarithms.
@pytest.mark.parametrize("kind", slow_but(KINDS, "relative", "sq", "js"))
@pytest.mark.parametrize(
    ("dtype", "capability"),
    [
        (torch.bfloat16, 90),
        pytest.param(torch.float32, 90, marks=SLOW),
        pytest.param(torch.float16, 90, marks=SLOW),
        pytest.param(torch.bfloat16, 80, marks=SLOW),
    ],
)
def test_code_of_the_gradient(kind: str, dtype: torch.dtype, capability: int) -> None:
    vec, block = distance_ops.columns(2048, dtype)
    assert (vec, block) == (16 // dtype.itemsize, 512 // dtype.itemsize)
    scalars = ("n", "m", "first", "units", "blocks", "positions", "statistics")
    pointers = ("f_ptr", "g_ptr", "stats_ptr", "value_ptr", "grad_ds_ptr", "grad_features_ptr")
    code = compile_kernel(
        distance_triton.gradient,
        dict.fromkeys(pointers, "*fp32")
        | dict.fromkeys(scalars, "i32")
        | {"out_ptr": POINTER[dtype]},
        {"KIND": kind, "DETACH": False, "DS_F": True, "DS_G": True, "FEATURES": True}
        | {"VEC": vec, "BLOCK": block},
        ["f_ptr", "g_ptr", "stats_ptr", "grad_features_ptr", "out_ptr"],
        capability=capability,
        num_warps=1,
        **distance_triton.OPTIONS,
    )
    sound(code, 64, 0)
    # f, g, the classifier's, and two neighbours or the center
    rows = {"relative": 5, "sq": 4}.get(kind, 3)
    assert code.count(r"LDG\.E\.128") == rows * vec // 4
    assert code.count(r"LDG") <= rows * vec // 4 + 6  # and scalars
    assert code.count(r"STG") == code.count(r"STG\.E\.128") >= 1
    if kind != "js":  # whose logarithm is a polynomial
        assert code.count("FFMA") == 0, "f * a - g * b must not fuse"


@pytest.mark.parametrize("kind", slow_but(KINDS, "relative", "js"))
@pytest.mark.parametrize(
    ("dtype", "capability"), [pytest.param(torch.float32, 90, marks=SLOW), (torch.bfloat16, 80)]
)
def test_code_of_the_values(kind: str, dtype: torch.dtype, capability: int) -> None:
    code = compile_kernel(
        distance_triton.measure,
        {"f_ptr": POINTER[dtype], "g_ptr": POINTER[dtype], "stats_ptr": "*fp32"}
        | {"m": "i32", "units": "i32"},
        {"KIND": kind, "VEC": 16 // dtype.itemsize, "BLOCK": 2048},
        ["f_ptr", "g_ptr", "stats_ptr"],
        capability=capability,
        num_warps=8,
        **distance_triton.OPTIONS,
    )
    sound(code, 64, 32)
    assert code.count(r"LDG") == code.count(r"LDG\.E\.128") >= 2
    code = compile_kernel(
        distance_triton.finish,
        {"stats_ptr": "*fp32", "value_ptr": "*fp32", "m": "i32", "statistics": "i32"},
        {"KIND": kind, "BLOCK": 1024},
        ["stats_ptr", "value_ptr"],
        capability=capability,
        **distance_triton.OPTIONS,
    )
    sound(code, 40, 16)


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=SLOW)])
def test_code_of_the_center(dtype: torch.dtype) -> None:
    code = compile_kernel(
        distance_triton.center,
        {"f_ptr": POINTER[dtype], "g_ptr": POINTER[dtype], "center_ptr": "*fp32"}
        | {"m": "i32", "units": "i32"},
        {"VEC": 16 // dtype.itemsize, "ROWS": 64, "COLUMNS": 32},
        ["f_ptr", "g_ptr", "center_ptr"],
        capability=90,
        num_warps=4,
        **distance_triton.OPTIONS,
    )
    sound(code, 80, 4096)
    assert code.count(r"LDG") == code.count(r"LDG\.E\.128")


# --- hardware -------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", LOW)
def test_on_a_gpu(kind: str, dtype: torch.dtype) -> None:
    for shape in ((2, 3), (5, 33), (64, 1000), (256, 2048), (3, 5000)):
        f, g = (x.cuda() for x in pair(*shape, dtype))
        found = by_triton(f, g, kind)
        close(found, truth(f, g, kind), ROUNDING[dtype], 2e-5)  # its exp and log are its own
        again = by_triton(f, g, kind)
        assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
        for result in by_triton(f, f, kind):
            assert torch.equal(result, torch.zeros_like(result))
