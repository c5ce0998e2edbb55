"""pool_ds: every implementation against float64, its gradient, its edges, and the machine code."""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from fastsc.kernels import ds, pool_ds
from fastsc.kernels.distance import BATCH_SCALED
from fastsc.kernels.pooling import KINDS, SIDES
from tests.kernels.test_distance import eager, slow_but

pytestmark = pytest.mark.heavy

try:
    from fastsc.kernels import distance_ops, distance_triton, pooling_triton
    from tests.kernels.triton_tools import compile_kernel, interpreted

    MODULES: tuple[ModuleType, ...] = (distance_triton, distance_ops, pooling_triton)
except ModuleNotFoundError:
    MODULES = ()

with_triton = pytest.mark.skipif(not MODULES, reason="triton is not installed")
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}
ROUNDING = {torch.float32: 3e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
# To compile takes seconds: quick is the kind that has a form of its own for the compiler.
COMPILED = pytest.param("compiled", marks=pytest.mark.slow)
TRITON = pytest.param("triton", marks=with_triton)
EACH = [("reference", kind) for kind in KINDS]
EACH += [
    pytest.param("compiled", *kind.values, marks=kind.marks) for kind in slow_but(KINDS, "relative")
]
EACH += [pytest.param("triton", kind, marks=with_triton) for kind in KINDS]


@pytest.fixture(autouse=True)
def interpreter(request: pytest.FixtureRequest) -> Iterator[None]:
    """Where a test asks for impl triton, it is interpreted."""
    impl = getattr(request.node, "callspec", None) and request.node.callspec.params.get("impl")
    if impl != "triton":
        yield
        return
    with interpreted(*MODULES):
        yield


def make(
    n: int, m: int, c: int, h: int, w: int, dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Maps (n + m, c, h, w), and a gradient of their means, as from a classifier."""
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randn(n, c, h, w, generator=generator)
    perturbed = clean[:m] + 0.3 * torch.randn(m, c, h, w, generator=generator)
    maps = torch.cat([clean, perturbed]).to(dtype)
    back = torch.randn(n + m, c, generator=generator) / c
    return maps.contiguous(memory_format=torch.channels_last), back


def outcome(function: Any, maps: Tensor, back: Tensor | None, with_ds: bool = True) -> list[Tensor]:
    """Features, DS and the map's gradient, float64."""
    leaf = maps.detach().clone().requires_grad_()
    features, value = function(leaf)
    total = value * 1.7 if with_ds else torch.zeros_like(value)
    if back is not None:
        total = total + (features * back.to(features.dtype)).sum()
    total.backward()
    assert leaf.grad is not None
    assert leaf.grad.dtype == maps.dtype
    if maps.is_contiguous(memory_format=torch.channels_last):
        assert leaf.grad.is_contiguous(memory_format=torch.channels_last)
    return [x.detach().double() for x in (features, value, leaf.grad)]


def by(impl: str, maps: Tensor, back: Tensor | None, kind: str, **options: Any) -> list[Tensor]:
    with_ds = options.pop("with_ds", True)

    def pooled(x: Tensor) -> tuple[Tensor, Tensor]:
        found = pool_ds(x, kind, impl=impl, **options)
        assert [x.dtype for x in found] == [torch.float32] * 2
        return found

    return outcome(pooled, maps, back, with_ds)


def truth(
    maps: Tensor, back: Tensor | None, kind: str, n: int, stop: str = "none", **options: Any
) -> list[Tensor]:
    """The formula, in float64, from what it is made of."""
    with_ds = options.pop("with_ds", True)

    def plain(x: Tensor) -> tuple[Tensor, Tensor]:
        features = x.mean((2, 3))
        f, g = features[: len(x) - n], features[n:]
        f, g = (f.detach() if stop == "clean" else f), (g.detach() if stop == "perturbed" else g)
        return features, ds(f, g, kind, impl="reference", **options)

    return outcome(plain, maps.double(), back, with_ds)


def close(found: list[Tensor], exact: list[Tensor], rounding: float, single: float = 5e-6) -> None:
    """By norms; `single` is for features and DS, which are float32 always."""
    for name, a, b in zip(("features", "ds", "gradient"), found, exact, strict=True):
        limit = rounding if name == "gradient" else single
        assert (a - b).norm() <= limit * b.norm() + 1e-9, (name, (a - b).norm() / b.norm())


SHAPES = [
    (1, 1, 1, 1, 1),
    (1, 1, 33, 1, 7),
    (3, 3, 3, 7, 7),
    (5, 3, 64, 7, 7),  # fewer perturbed rows; not as wide as a warp's accesses
    (2, 2, 24, 4, 4),
    (3, 2, 520, 3, 5),  # a second block, almost empty
]
QUICK = [
    ((1, 1, 1, 1, 1), torch.float32),
    ((5, 3, 64, 7, 7), torch.float32),
    ((3, 2, 520, 3, 5), torch.bfloat16),
]


@with_triton
@pytest.mark.parametrize("impl", ["triton"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        pytest.param(shape, dtype, marks=() if (shape, dtype) in QUICK else pytest.mark.slow)
        for shape in SHAPES
        for dtype in TOLERANCE
    ],
)
def test_no_worse_than_eager(impl: str, kind: str, dtype: torch.dtype, shape) -> None:
    """|kernel - float64| <= |eager low precision - float64| + tolerance, for every element."""
    n, m = shape[:2]
    if kind in BATCH_SCALED and m < 2:
        pytest.skip("compares different images")
    maps, back = make(*shape, dtype)

    def plain(x: Tensor) -> tuple[Tensor, Tensor]:
        features = x.mean((2, 3))
        return features, eager(features[:m], features[n:], kind)

    ours, exact = by(impl, maps, back, kind, n_clean=n), truth(maps, back, kind, n)
    low = outcome(plain, maps, back)
    for a, b, c in zip(ours, low, exact, strict=True):
        b = torch.where(b.isnan(), math.inf, b)
        excess = (a - c).abs() - (b - c).abs()
        assert excess.max() <= TOLERANCE[dtype]
    close(ours, exact, ROUNDING[dtype])


@pytest.mark.slow
@with_triton
@pytest.mark.parametrize("impl", ["triton"])
def test_a_resnet50s_width(impl: str) -> None:
    maps, back = make(2, 2, 2048, 7, 7, torch.bfloat16)
    found = by(impl, maps.relu(), back, "relative")
    close(found, truth(maps.relu(), back, "relative", 2), 8e-3)


@pytest.mark.parametrize(("impl", "kind"), EACH)
def test_implementations_agree(impl: str, kind: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        maps, back = make(3, 2, 12, 2, 4, dtype)
        found = by(impl, maps, back, kind, n_clean=3)
        close(found, truth(maps, back, kind, 3), ROUNDING[dtype])


@pytest.mark.parametrize("stop", SIDES)
@pytest.mark.parametrize("impl", ["reference", TRITON])
def test_partial_gradients(impl: str, stop: str) -> None:
    """DS stopped at a side, alone, unused; the features' gradient passes in any case."""
    maps, back = make(3, 2, 12, 2, 3)
    cases: list[tuple[Tensor | None, str, dict[str, bool]]] = [(back, kind, {}) for kind in KINDS]
    cases += [(None, kind, {}) for kind in ("l2", "sq")]
    cases += [(back, "l2", {"with_ds": False}), (back, "relative", {"detach_scale": True})]
    for used, kind, options in cases:
        found = by(impl, maps, used, kind, n_clean=3, stop_gradient=stop, **options)
        close(found, truth(maps, used, kind, 3, stop, **options), 3e-6)


@pytest.mark.parametrize("impl", ["reference", COMPILED, TRITON])
def test_stop_gradient_by_each(impl: str) -> None:
    maps, back = make(3, 3, 12, 2, 3)
    options = {"stop_gradient": "clean", "detach_scale": True}
    found = by(impl, maps, back, "relative", **options)
    close(found, truth(maps, back, "relative", 3, "clean", detach_scale=True), 3e-6)
    with torch.no_grad():
        features, value = pool_ds(maps, impl=impl)
    assert not features.requires_grad
    assert not value.requires_grad


@pytest.mark.parametrize(("impl", "kind"), EACH)
def test_zero_at_the_diagonal(impl: str, kind: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        half, _ = make(3, 2, 12, 2, 4, dtype)
        maps = torch.cat([half[:3], half[:2]]).contiguous(memory_format=torch.channels_last)
        _, value, grad = by(impl, maps, None, kind, n_clean=3)
        assert value.item() == 0
        assert torch.equal(grad, torch.zeros_like(grad))
        maps[4] = half[4]  # one pair that differs
        _, value, grad = by(impl, maps, None, kind, n_clean=3)
        assert value.item() > 0
        # The midpoint of "sq" still moves away from the others', by both its ends alike.
        assert torch.equal(grad[3], grad[0] if kind == "sq" else torch.zeros_like(grad[3]))
        assert grad[4].abs().max() > 0


@with_triton
@pytest.mark.parametrize("impl", ["triton"])
def test_same_bits_again_and_for_other_memory(impl: str) -> None:
    maps, back = make(2, 2, 12, 2, 4)
    for kind in ("relative", "cosine"):
        first = by(impl, maps, back, kind)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            again = by(impl, maps, back, kind)
        for other in (again, by(impl, maps.contiguous(), back, kind)):
            assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("impl", ["reference", COMPILED])
def test_memory_that_is_not_channels_last(impl: str) -> None:
    maps, back = make(3, 3, 12, 3, 5)
    found = by(impl, maps.contiguous(), back, "cosine")
    close(found, truth(maps, back, "cosine", 3), 3e-6)


def test_float64_stays() -> None:
    maps, _ = make(3, 3, 4, 2, 2)
    leaf = maps.double().requires_grad_()
    assert [x.dtype for x in pool_ds(leaf, "relative")] == [torch.float64] * 2
    assert torch.autograd.gradcheck(lambda x: pool_ds(x, "relative"), leaf)


@with_triton
@pytest.mark.parametrize("impl", ["triton"])
def test_within_a_compiled_model(impl: str) -> None:
    """One graph, with any backend's gradient; and the operators pass torch's own checks."""
    maps, back = make(3, 2, 8, 2, 3)

    def model(x: Tensor) -> Tensor:
        features, value = pool_ds(x.sigmoid() * 2, "relative", n_clean=3, impl=impl)
        return value + (features * back).sum()

    results = []
    for function in (model, torch.compile(model, backend="aot_eager", fullgraph=True)):
        leaf = maps.clone().requires_grad_()
        value = function(leaf)
        value.backward()
        results.append((value.detach(), leaf.grad))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)
    leaf = maps.clone().requires_grad_()
    torch.library.opcheck(torch.ops.fastsc.pool_ds.default, (leaf, "cosine", 3, "clean", False))


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((4, 3), {}, "feature maps"),
        ((0, 3, 2, 2), {}, "empty batch"),
        ((3, 3, 2, 2), {}, "n_clean"),
        ((4, 3, 2, 2), {"n_clean": 4}, "n_clean"),
        ((4, 3, 2, 2), {"n_clean": 1}, "n_clean"),
        ((2, 3, 2, 2), {"kind": "relative"}, "at least two"),
        ((2, 3, 2, 2), {"kind": "sq"}, "'sq' compares .* at least two"),
        ((4, 3, 2, 2), {"kind": "js"}, "compares logits"),
        ((4, 3, 2, 2), {"kind": "kl"}, "l2, relative, cosine, mse, sq"),
        ((4, 3, 2, 2), {"stop_gradient": "both"}, "none, clean, perturbed"),
        ((4, 3, 2, 2), {"impl": "numba"}, "auto, reference, compiled, triton"),
        ((4, 3, 2, 2), {"impl": "triton"}, "CUDA device"),
    ],
)
def test_arguments_that_do_not_fit(shape, options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pool_ds(torch.ones(shape), **options)


def test_dtypes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="floating-point"):
        pool_ds(torch.ones(4, 3, 2, 2, dtype=torch.int32))
    with pytest.raises(ValueError, match="float64"):
        pool_ds(torch.ones(4, 3, 2, 2, dtype=torch.float64), impl="triton")


# --- machine code and hardware --------------------------------------------------------------------


@with_triton
@pytest.mark.parametrize("capability", [pytest.param(80, marks=pytest.mark.slow), 90])
@pytest.mark.parametrize(
    ("dtype", "kind"),
    [
        pytest.param(torch.float32, "*fp32", marks=pytest.mark.slow),
        (torch.bfloat16, "*bf16"),
        pytest.param(torch.float16, "*fp16", marks=pytest.mark.slow),
    ],
)
def test_code_of_the_means(dtype: torch.dtype, kind: str, capability: int) -> None:
    vec, block = distance_ops.columns(2048, dtype)
    code = compile_kernel(
        pooling_triton.means,
        {"maps_ptr": kind, "out_ptr": "*fp32"} | dict.fromkeys(("units", "blocks"), "i32")
        | {"positions": "i32"},
        {"VEC": vec, "BLOCK": block, "STEP": pooling_triton.STEP},
        ["maps_ptr", "out_ptr"],
        capability=capability,
        num_warps=1,
        **distance_triton.OPTIONS,
    )  # fmt: skip
    assert code.registers <= 64  # 32 one-warp blocks a multiprocessor, all that it takes
    assert code.stack_bytes == code.local_bytes == code.shared_bytes == 0
    names = code.instructions()
    wide = [i for i, name in enumerate(names) if name.startswith("LDG.E.128")]
    assert len(wide) == code.count("LDG") >= pooling_triton.STEP
    assert code.count("STG") == code.count(r"STG\.E\.128") == vec // 4
    assert code.count(r"(LDL|STL|ATOM|RED|BAR)") == 0
    # All loads of a round are on their way before the first sum.
    adds = [i for i, name in enumerate(names) if name.startswith("FADD")]
    assert any(
        not any(wide[i] < add < wide[i + pooling_triton.STEP - 1] for add in adds)
        for i in range(len(wide) - pooling_triton.STEP + 1)
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("which", ["compiled", "ours"])
def test_on_a_gpu(kind: str, which: str) -> None:
    impls = ("compiled",) if which == "compiled" else ("triton", "auto")
    more = () if which == "compiled" else (*SHAPES, (32, 32, 2048, 7, 7), (3, 2, 64, 300, 300))
    for dtype in TOLERANCE:
        for shape in more or SHAPES[2:3]:
            if kind in BATCH_SCALED and shape[1] < 2:
                continue
            maps, back = (x.cuda() for x in make(*shape, dtype))
            maps = maps.contiguous(memory_format=torch.channels_last)
            exact = truth(maps, back, kind, shape[0])
            wide = max(ROUNDING[dtype], 5e-5)
            for impl in impls:
                found = by(impl, maps, back, kind, n_clean=shape[0])
                close(found, exact, wide, 5e-5)  # sums of 90,000 values
            first, again = (by("triton", maps, back, kind, n_clean=shape[0]) for _ in range(2))
            assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
