"""What torch.compile makes of ds and pool_ds: how often its loops go over the data, frozen.

The formulas are written so that they fuse; a change of theirs that costs another loop over the
features, or another copy of the map, is found here. The loops are those of the C++ that inductor
generates for the CPU; its choices differ between versions, and so do the numbers.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._inductor.utils import run_fw_bw_and_get_code

from fastsc.kernels import distance, ds, pool_ds, pooling

N, D, H, W = 4, 33, 5, 7  # their products differ, so that a loop's length says what it is over
SEEN = "2.14"
pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(
        not torch.__version__.startswith(f"{SEEN}."),
        reason=f"the loops were counted with torch {SEEN}, this is {torch.__version__}",
    ),
]


@pytest.fixture(autouse=True)
def compiled_anew() -> None:
    torch._dynamo.reset()
    distance._compiled.cache_clear()
    pooling._compiled.cache_clear()


def generated(function: Callable[[], Tensor]) -> tuple[str, str]:
    """The code of the forward and of the backward pass."""
    _, codes = run_fw_bw_and_get_code(function)
    forward, backward = codes  # one graph each
    for code in codes:
        assert len(re.findall(r"^cpp_fused\w* = ", code, re.M)) == 1, "one kernel a pass"
    return forward, backward


def loops(code: str, *lengths: int) -> int:
    """Loops over one of `lengths`, in whole vectors and what remains as one."""
    loop = r"for\(int64_t x\d+=static_cast<int64_t>\(0L\); x\d+<static_cast<int64_t>\((\d+)L\);"
    return sum(int(length) in lengths for length in re.findall(loop, code))


def over_the_rows(code: str) -> int:
    """How often elements of the features are gone over, by row or all in one."""
    return loops(code, D, N * D, 2 * N * D)


def slow(*case: object) -> object:
    """To compile takes seconds: quick is the kind that has a form of its own for the compiler."""
    return pytest.param(*case, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        slow("l2", (2, 1)),  # the second keeps f - g for the gradient: the compiler's own choice
        ("relative", (1, 1)),
        slow("cosine", (3, 2)),  # two norms and the distance; the gradient's projection, and it
        slow("js", (5, 4)),
        slow("mse", (1, 1)),
        slow("sq", (1, 1)),
    ],
)
def test_loops_of_ds(kind: str, expected: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    f, g = (torch.randn(N, D, generator=generator).requires_grad_() for _ in range(2))
    codes = generated(lambda: ds(f, g, kind, impl="compiled"))
    assert tuple(map(over_the_rows, codes)) == expected


@pytest.mark.parametrize("dtype", [slow(torch.float32), torch.bfloat16])
@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        slow("l2", (4, 1)),
        ("relative", (3, 2)),
        slow("cosine", (5, 3)),
        slow("mse", (3, 1)),
        slow("sq", (3, 2)),
    ],
)
def test_loops_of_pool_ds(kind: str, expected: tuple[int, int], dtype: torch.dtype) -> None:
    """The map is read once and its gradient written once, neither in another dtype."""
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2 * N, D, H, W, generator=generator).to(dtype)
    maps = maps.contiguous(memory_format=torch.channels_last).requires_grad_()

    def total() -> Tensor:
        features, value = pool_ds(maps, kind, impl="compiled")
        return value + features.sum()

    forward, backward = generated(total)
    assert loops(forward, H * W) == loops(backward, H * W) == 1
    made = [re.findall(rf"empty_strided_cpu\(\({2 * N}, {D}, {H}, {W}\).*", code)
            + re.findall(rf"empty_strided_cpu\(\({2 * N}, {H}, {W}, {D}\).*", code)
            for code in (forward, backward)]  # fmt: skip
    assert made[0] == []
    assert len(made[1]) == 1
    assert str(dtype) in made[1][0]
    assert (over_the_rows(forward), over_the_rows(backward)) == expected
