"""pair_view in Triton: interpreted, and as machine code. On a GPU: test_on_gpu."""

import functools
import itertools
import math
import re
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastsc.kernels import normalize, pair_view, perturb

pytest.importorskip("triton")

from fastsc.kernels import triton_pixels, views_triton
from tests.kernels import triton_tools
from tests.kernels.test_pair_view import IDENTITY, MEAN, STD, assert_exact, ends, images
from tests.kernels.triton_tools import Compiled, Launch, interpreted, recorded

pytestmark = pytest.mark.heavy
MODULES = (views_triton, triton_pixels)
SLOW = pytest.mark.slow
FORMS = ("pair", "clean", "perturbed")
LOW = (torch.bfloat16, torch.float16)
# Quick tests take one type each: that others are one rounding away has a test of its own.
SINGLE = (torch.float32, *(pytest.param(dtype, marks=SLOW) for dtype in LOW))
HALF = (torch.bfloat16, *(pytest.param(x, marks=SLOW) for x in (torch.float32, torch.float16)))
CAPABILITIES = (pytest.param(80, marks=SLOW), 90)


def codes(*quick: tuple[str, torch.dtype]) -> list[Any]:
    """Form, type and capability of all machine code, which is slow but for some of 9.0."""
    every = itertools.product(FORMS, (torch.float32, *LOW), (80, 90))
    return [
        pytest.param(*code, marks=() if code[:2] in quick and code[2] == 90 else SLOW)
        for code in every
    ]


STRONG = (1.0, 1.0, 1.0, 0.5)


@pytest.fixture(scope="module", autouse=True)
def compiled_anew(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


def factors_of(n: int, seed: int = 0) -> Tensor:
    """Strong ones; every third image darker than itself, where no level is clamped."""
    generator = torch.Generator().manual_seed(seed)
    factors = torch.rand(n, 4, generator=generator) * torch.tensor([1.5, 2.0, 2.0, 1.0])
    factors[:, 0] += torch.arange(n) % 3 * 0.5
    factors[:, 3] -= 0.5
    return factors


def triton_pair(x: Tensor, factors: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    with interpreted(*MODULES):
        return pair_view(x, factors, MEAN, STD, dtype=dtype, impl="triton")


def assert_equal_bits(pair: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    assert torch.equal(pair[0], expected[0]), "clean"
    assert torch.equal(pair[1], expected[1]), "perturbed"


# --- interpreted ---------------------------------------------------------------------------------


def test_fma_of_the_tools_rounds_once() -> None:
    rng = np.random.default_rng(0)
    parts = rng.standard_normal((3, 3000)) * 10.0 ** rng.integers(-6, 6, (3, 3000))
    x, y, z = parts.astype(np.float32)
    z[::3] = -(x * y)[::3]  # what is left is the rounding error of the product
    z[1::3] = (x * y * np.float32(1 + 2**-20))[1::3]
    for a, b, c, got in zip(x, y, z, triton_tools.fma(x, y, z), strict=True):
        exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
        error = abs(exact - Fraction(float(got)))
        for neighbour in (np.nextafter(got, np.float32(s)) for s in (math.inf, -math.inf)):
            assert error <= abs(exact - Fraction(float(neighbour)))
    assert np.count_nonzero(triton_tools.fma(x, y, z) != x * y + z) > 300


@pytest.mark.parametrize("dtype", SINGLE)
@pytest.mark.parametrize(
    ("n", "height", "width"),
    [(3, 1, 1), (2, 1, 7), (2, 1, 16), (4, 16, 16), (3, 48, 32), (2, 4, 132), (2, 33, 47)],
)
def test_bits_are_those_of_numba(n: int, height: int, width: int, dtype: torch.dtype) -> None:
    """With the power of two, the mean from halves of words, and all fused steps in place."""
    x, factors = images("mixed", n, height, width, seed=n), factors_of(n, seed=width)
    pair = triton_pair(x, factors, dtype)
    assert_exact(x, factors, *pair)
    assert_equal_bits(pair, pair_view(x, factors, MEAN, STD, dtype=dtype, impl="numba"))


@pytest.mark.parametrize(
    ("height", "width"),
    [(56, 72), pytest.param(223, 225, marks=SLOW), pytest.param(224, 224, marks=SLOW)],
)
def test_an_image_of_many_programs(height: int, width: int) -> None:
    x, factors = images("random", 1, height, width), torch.tensor([[1.3, 0.7, 1.4, 0.1]])
    pair = triton_pair(x, factors, torch.bfloat16)
    assert_exact(x, factors, *pair)
    assert_equal_bits(pair, pair_view(x, factors, MEAN, STD, dtype=torch.bfloat16, impl="numba"))


@pytest.mark.parametrize("strengths", [pytest.param((0.4, 0.4, 0.4, 0.1), marks=SLOW), STRONG])
@pytest.mark.parametrize("size", [(8, 16), pytest.param((5, 7), marks=SLOW)])
def test_both_ends_of_every_factor(strengths, size: tuple[int, int]) -> None:
    factors = ends(strengths)
    x = images("mixed", len(factors), *size)
    pair = triton_pair(x, factors, torch.float32)
    assert_exact(x, factors, *pair)
    assert_equal_bits(pair, pair_view(x, factors, MEAN, STD, impl="numba"))
    assert torch.equal(pair[0], normalize(x, MEAN, STD, impl="reference"))


@pytest.mark.parametrize("size", [(16, 16), (5, 7)])
@pytest.mark.parametrize("dtype", HALF)
def test_identity_factors_give_the_clean_view(size: tuple[int, int], dtype: torch.dtype) -> None:
    x = images("random", 4, *size)
    factors = torch.tensor([IDENTITY, (0.7, 1.2, 1.3, 0.1), IDENTITY, (1.0, 1.0, 1.0, 0.01)])
    clean, perturbed = triton_pair(x, factors, dtype)
    assert torch.equal(clean[::2], perturbed[::2])
    assert not torch.equal(clean[1], perturbed[1])
    assert not torch.equal(clean[3], perturbed[3])


@pytest.mark.parametrize("size", [(16, 16), (5, 7)])
def test_low_precision_is_one_rounding(size: tuple[int, int]) -> None:
    x, factors = images("random", 1, *size), factors_of(1)
    single = triton_pair(x, factors, torch.float32)
    for low in LOW:
        pair = triton_pair(x, factors, low)
        assert_equal_bits(pair, (single[0].to(low), single[1].to(low)))


@pytest.mark.parametrize("size", [(16, 16), (5, 7)])
@pytest.mark.parametrize("dtype", HALF)
def test_one_view_alone_is_the_pairs(size: tuple[int, int], dtype: torch.dtype) -> None:
    x, factors = images("mixed", 2, *size), factors_of(2)
    factors[1] = torch.tensor(IDENTITY)
    pair = triton_pair(x, factors, dtype)
    with interpreted(*MODULES):
        clean = normalize(x, MEAN, STD, dtype=dtype, impl="triton")
        perturbed = perturb(x, factors, MEAN, STD, dtype=dtype, impl="triton")
    assert_equal_bits((clean, perturbed), pair)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize(("of_x", "of_views"), [(1, 0), (0, 1), (5, 3), (16, 16)])
def test_any_address_and_nothing_else_is_written(
    of_x: int, of_views: int, dtype: torch.dtype
) -> None:
    n, height, width = 2, 16, 17 if of_x == 16 else 16
    shape, size = (n, height, width, 3), n * height * width * 3
    x = torch.cat([torch.zeros(of_x, dtype=torch.uint8), images("random", *shape[:3]).flatten()])
    x = x[of_x:].view(shape)
    factors = factors_of(n)
    buffers = [torch.full((size + 64,), 7.0, dtype=dtype) for _ in range(2)]
    views = [b[of_views : of_views + size].view(shape).permute(0, 3, 1, 2) for b in buffers]
    with interpreted(*MODULES):
        pair_view(x, factors, MEAN, STD, dtype=dtype, impl="triton", out=(views[0], views[1]))
    expected = pair_view(x, factors, MEAN, STD, dtype=dtype, impl="numba")
    assert_equal_bits((views[0], views[1]), expected)
    for buffer in buffers:
        assert (buffer[:of_views] == 7).all()
        assert (buffer[of_views + size :] == 7).all()


@pytest.mark.parametrize("size", [(56, 56), (41, 47)])
def test_the_split_of_an_image_changes_no_bit(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, factors = images("random", 2, *size), torch.tensor([[1.5, 0.5, 1, 0.2], [0.7, 1.7, 1, 0]])
    expected = perturb(x, factors, MEAN, STD, impl="numba")
    parts = set()
    for programs in (1, 4, 2048):
        monkeypatch.setattr(views_triton, "_PROGRAMS", programs)
        with recorded(*MODULES) as found:
            perturb(x, factors, MEAN, STD, impl="triton")
        parts.add(found[0].grid[0] // 2)
        with interpreted(*MODULES):
            assert torch.equal(perturb(x, factors, MEAN, STD, impl="triton"), expected)
    assert parts == {1, 2, 4}


@pytest.mark.parametrize(
    ("brightness", "bytes_"), [pytest.param(0.8, 320, marks=SLOW), (1.001, 264), (300.0, 6)]
)
@pytest.mark.parametrize("kind", ["white", pytest.param("random", marks=SLOW)])
def test_sums_of_a_large_share_do_not_overflow(kind: str, brightness: float, bytes_: int) -> None:
    """A half of a word takes 257 bytes; one program here gets `bytes_` and a rest for each."""
    pixels = 16 * (bytes_ * 32 + 5)
    x = images(kind, 1, 1, pixels)
    sums = torch.empty((1, 1, 6), dtype=torch.int32)
    factors = torch.tensor([[brightness, 0.5, 1.0, 0.0]])
    with interpreted(*MODULES):
        views_triton._grey_sums[(1,)](
            x, factors, sums, 3 * pixels, pixels // 16, pixels, 1, FAST=True, TILE=32
        )
    cap = int(255 / max(factors[0, 0].item(), 1))
    level = x.view(-1, 3).to(torch.int64)
    expected = torch.cat([level.clamp(max=cap).sum(0), level.clamp(max=cap + 1).sum(0)])
    assert sums.flatten().tolist() == expected.tolist()


@pytest.mark.parametrize("n", [1, 3, 256, 5000])
@pytest.mark.parametrize("pixels", [1, 49, 50176, 50175, 10**6, 2**24 + 16, 2**28 - 1, 2**28])
def test_shares_cover_an_image_and_fit_an_int32(n: int, pixels: int) -> None:
    per = 1 if pixels % 16 else 16
    units, step = pixels // per, 64 if per == 16 else 512
    splits, share = views_triton._split(n, pixels, units, step)
    assert 1 <= splits <= 32
    assert (splits - 1) * share < units <= splits * share
    assert share * per * 255 < 2**31


def test_an_image_too_large_for_its_offsets_is_refused() -> None:
    x = torch.zeros((1, 1, 1, 3), dtype=torch.uint8).expand(1, 1 << 14, (1 << 14) + 1, 3)
    line = torch.ones(3)
    with pytest.raises(ValueError, match=r"at most 2\*\*28 pixels"):
        views_triton.paint(x, None, line, line, torch.empty(1), None)


# --- as machine code -----------------------------------------------------------------------------


def launches(form: str, dtype: torch.dtype, size: tuple[int, int]) -> list[Launch]:
    x, factors = torch.zeros((4, *size, 3), dtype=torch.uint8), torch.zeros(4, 4)
    with recorded(*MODULES) as found:
        if form == "pair":
            pair_view(x, factors, MEAN, STD, dtype=dtype, impl="triton")
        elif form == "clean":
            normalize(x, MEAN, STD, dtype=dtype, impl="triton")
        else:
            perturb(x, factors, MEAN, STD, dtype=dtype, impl="triton")
    return found


@functools.cache
def code_of(
    form: str, dtype: torch.dtype, size: tuple[int, int], launch: int = -1, capability: int = 90
) -> Compiled:
    return launches(form, dtype, size)[launch].compile(capability)


def assert_no_spills(code: Compiled, registers: int, shared: int) -> None:
    assert code.local_bytes == code.stack_bytes == 0
    assert code.count("LDL|STL") == 0
    assert code.registers <= registers
    assert code.shared_bytes <= shared


@pytest.mark.parametrize("form", FORMS)
def test_launches(form: str) -> None:
    for size in ((32, 32), (31, 33)):
        found = launches(form, torch.bfloat16, size)
        assert len(found) == (1 if form == "clean" else 2)  # two launches, no more
        assert all(launch.options["enable_fp_fusion"] is False for launch in found)


@pytest.mark.parametrize("moved", ["x", "clean", "perturbed", "none"])
def test_wide_accesses_are_for_aligned_addresses(moved: str) -> None:
    """The interpreter would not mind; a GPU does."""

    def memory(name: str, dtype: torch.dtype) -> Tensor:
        buffer = torch.zeros(2 * 16 * 16 * 3 + 16, dtype=dtype)
        first = 1 if name == moved else 0
        return buffer[first : first + 2 * 16 * 16 * 3].view(2, 16, 16, 3)

    x = memory("x", torch.uint8)
    views = [memory(name, torch.bfloat16).permute(0, 3, 1, 2) for name in ("clean", "perturbed")]
    out = (views[0], views[1])
    with recorded(*MODULES) as found:
        pair_view(x, torch.zeros(2, 4), MEAN, STD, dtype=torch.bfloat16, impl="triton", out=out)
    assert [launch.arguments["FAST"] for launch in found] == [moved == "none"] * 2


@pytest.mark.parametrize("size", [(224, 224), (223, 225)])
def test_offsets_of_images_are_of_64_bits(size: tuple[int, int]) -> None:
    for launch in (0, 1):
        code = code_of("pair", torch.bfloat16, size, launch).ttgir
        assert re.search(r"arith\.muli %\S+, %\S+ : i64", code)
        pointers = re.findall(r"tt\.addptr %(?:x|clean|perturbed)_ptr\S*, \S+ : .*, (i\d+)", code)
        assert len(pointers) >= 1
        assert set(pointers) == {"i64"}


@pytest.mark.parametrize(
    ("form", "dtype", "capability"),
    codes(("pair", torch.bfloat16), ("pair", torch.float32), ("clean", torch.bfloat16)),
)
def test_machine_code_of_the_fast_path(form: str, dtype: torch.dtype, capability: int) -> None:
    code = code_of(form, dtype, (224, 224), capability=capability)
    views, single = 2 if form == "pair" else 1, dtype == torch.float32
    assert_no_spills(code, registers=128, shared=2048 if single else 1024)
    assert code.threads == 32
    # 16 pixels a thread: 48 bytes in, three quarters of the stores out.
    assert code.count(r"LDG.*\.128") == 3 * views
    assert code.count("LDG") == code.count(r"LDG.*\.128") + code.count(r"LDG\.E$")
    assert code.count(r"LDG\.E$") == (6 if form == "clean" else 16)  # parameters, words of 32
    assert code.count(r"STG.*\.128") == code.count("STG") == (16 if single else 8) * views
    assert code.count(r"STG.*\.EF\.") == code.count("STG")  # the input stays in L2 for longer
    assert code.count("F2FP.*PACK_AB") == (0 if single else 24 * views)  # two in one
    assert code.count("FFMA.*SAT") == (0 if form == "clean" else 96)  # clamps for nothing
    if form == "clean":
        assert code.count("FFMA") == 0  # two roundings


@pytest.mark.parametrize(("form", "dtype", "capability"), codes(("pair", torch.bfloat16)))
def test_machine_code_of_the_general_path(form: str, dtype: torch.dtype, capability: int) -> None:
    code = code_of(form, dtype, (223, 225), capability=capability)
    assert_no_spills(code, registers=64, shared=0)
    assert code.count("LDG.*U8") == 3 * 2 * (2 if form == "pair" else 1)  # two pixels a thread


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("size", [(224, 224), (223, 225)])
def test_machine_code_of_the_sums(size: tuple[int, int], capability: int) -> None:
    code = code_of("pair", torch.bfloat16, size, 0, capability)
    assert_no_spills(code, registers=64, shared=64)
    assert code.count("ATOM|RED[.]") == 0
    assert code.count(r"LDG.*\.128") == (2 if size == (224, 224) else 0)
    assert code.ptx.count("L2::cache_hint") == code.count(r"LDG.*\.EL\.128")
    assert code.count("LDG.*U8") == (0 if size == (224, 224) else 12)


def test_stores_of_a_warp_are_of_neighbours() -> None:
    """Eight units, three of four lanes each: whole sectors, whatever Triton's layouts."""
    for form, dtype, lane in (("pair", torch.float32, 4), ("clean", torch.bfloat16, 8)):
        code = code_of(form, dtype, (224, 224))
        layout = f"sizePerThread = [1, {lane}], threadsPerWarp = [1, 32]"
        assert layout in code.ttgir
