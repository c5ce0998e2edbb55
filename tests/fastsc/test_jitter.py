"""ColorJitter against torchvision's functionals, image by image."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from PIL import Image
from torch import Tensor

from fastsc import ColorJitter
from fastsc.kernels import pair_view, perturb
from fastsc.kernels.color import PERMUTATIONS, color_jitter
from fastsc.pipelines import IMAGENET_MEAN, IMAGENET_STD, build

pytestmark = pytest.mark.heavy


def images(n: int = 6) -> Tensor:
    return torch.rand(n, 3, 13, 9, generator=torch.Generator().manual_seed(1))


def torchvision_one(x: Tensor, factors: list[float]) -> Tensor:
    x = tv.adjust_brightness(x, factors[0])
    x = tv.adjust_contrast(x, factors[1])
    x = tv.adjust_saturation(x, factors[2])
    return tv.adjust_hue(x, factors[3])


def test_every_image_gets_its_own_factors_as_torchvision_would_apply_them() -> None:
    x = images()
    jitter = ColorJitter(0.9, 0.9, 0.9, 0.5)
    factors = jitter.sample(len(x), torch.Generator().manual_seed(2))
    out = jitter(x, factors)
    for i in range(len(x)):
        expected = torchvision_one(x[i], factors[i].tolist())
        assert (out[i] - expected).abs().max() < 0.1 / 255
        assert torch.equal(out[i], jitter(x[i], factors[i : i + 1])), "one image alone"
    assert out.shape == x.shape
    assert out.dtype == x.dtype


def test_uint8() -> None:
    x = (images() * 255).to(torch.uint8)
    jitter = ColorJitter()
    factors = jitter.sample(len(x), torch.Generator().manual_seed(2))
    out = jitter(x, factors)
    assert out.dtype == torch.uint8
    assert torch.equal(out, (jitter(x / 255, factors) * 255).round().to(torch.uint8))
    identity = torch.tensor([[1.0, 1, 1, 0]]).expand(len(x), 4)
    assert torch.equal(jitter(x, identity), x)


def test_low_precision_is_rounded_once() -> None:
    x = images().bfloat16()
    jitter = ColorJitter()
    factors = jitter.sample(len(x), torch.Generator().manual_seed(2))
    assert torch.equal(jitter(x, factors), jitter(x.float(), factors).bfloat16())


def test_factors_are_uniform_in_the_stated_ranges() -> None:
    factors = ColorJitter(0.4, 1.5, 0.0, 0.1).sample(20_000, torch.Generator().manual_seed(0))
    assert factors.shape == (20_000, 4)
    assert factors.dtype == torch.float32
    for column, (low, high) in enumerate([(0.6, 1.4), (0.0, 2.5), (1.0, 1.0), (-0.1, 0.1)]):
        values = factors[:, column]
        assert low - 1e-6 <= values.min()
        assert values.max() <= high + 1e-6
        # Mean and variance of a uniform variable, at five standard errors or more.
        assert values.mean() == pytest.approx((low + high) / 2, abs=0.012 * (high - low) + 1e-6)
        assert values.var() == pytest.approx((high - low) ** 2 / 12, abs=0.003 * (high - low) ** 2)
    correlations = torch.corrcoef(factors[:, [0, 1, 3]].T)
    assert (correlations - torch.eye(3)).abs().max() < 0.05


def test_generators() -> None:
    jitter = ColorJitter()
    one, two = (jitter.sample(4, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(one, two)
    torch.manual_seed(7)
    assert torch.equal(jitter.sample(4), one), "without a generator, torch's global one"
    torch.manual_seed(7)
    assert torch.equal(jitter(images(4)), jitter(images(4), one))
    assert not torch.equal(jitter(images(4)), jitter(images(4)))


def test_strength_zero_changes_nothing() -> None:
    assert torch.equal(ColorJitter(0, 0, 0, 0)(images()), images())


def test_gradients_reach_the_image() -> None:
    x = images().requires_grad_()
    ColorJitter()(x).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize(
    "arguments",
    [
        {"brightness": -0.1},
        {"contrast": math.nan},
        {"saturation": math.inf},
        {"hue": 0.6},
    ],
)
def test_strengths_out_of_range(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        ColorJitter(**arguments)


def test_inputs_that_are_no_images() -> None:
    jitter = ColorJitter()
    with pytest.raises(ValueError, match=r"\(2, 1, 4, 4\)"):
        jitter(torch.rand(2, 1, 4, 4))
    with pytest.raises(ValueError, match="int64"):
        jitter(torch.zeros(2, 3, 4, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"\(2, 4\), one row an image, not \(1, 4\)"):
        jitter(torch.rand(2, 3, 4, 4), torch.ones(1, 4))


# --- orders ---------------------------------------------------------------------------------------

OPS = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)


def test_every_order_as_torchvision_would_apply_it() -> None:
    permutations = list(itertools.permutations(range(4)))
    assert list(PERMUTATIONS) == permutations
    x = torch.rand(24, 3, 11, 7, generator=torch.Generator().manual_seed(3))
    factors = ColorJitter(0.9, 0.9, 0.9, 0.5).sample(24, torch.Generator().manual_seed(4))
    out = ColorJitter(order="random")(x, factors, torch.arange(24))
    for i, permutation in enumerate(permutations):
        expected = x[i]
        for column in permutation:
            expected = OPS[column](expected, factors[i, column].item())
        assert (out[i] - expected).abs().max() < 0.1 / 255, permutation
    assert (out - color_jitter(x, factors)).abs().amax((1, 2, 3))[1:].min() > 1e-3, "order matters"
    assert torch.equal(out[:1], color_jitter(x[:1], factors[:1])), "the first is the fixed one"


def test_orders_are_drawn_uniformly_and_from_the_generator_given() -> None:
    jitter = ColorJitter(order="random")
    one, two = (jitter.sample_order(24_000, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(one, two)
    counts = torch.bincount(one, minlength=24)
    assert ((counts - 1000).abs() < 160).all(), "five standard errors"
    torch.manual_seed(1)
    drawn = jitter(images())
    torch.manual_seed(1)
    factors = jitter.sample(6)
    assert torch.equal(drawn, jitter(images(), factors, jitter.sample_order(6)))
    assert ColorJitter().sample_order(5) is None


# --- keyed ----------------------------------------------------------------------------------------


def test_keyed_factors_are_the_pipelines_own(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(6):
        (folder := tmp_path / f"class{i % 2}").mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    strengths = (0.5, 0.3, 0.2, 0.05)
    loader = build("cpu", tmp_path, batch_size=3, resolution=16, seed=5, strengths=strengths)
    jitter = ColorJitter(*strengths)
    for epoch in (0, 2):
        loader.set_epoch(epoch)
        plan = loader.plan()
        for batch in loader:
            factors = jitter.keyed(batch.index, seed=5, epoch=epoch)
            assert np.array_equal(factors.numpy(), plan.factors[batch.index.numpy()])
            # The clean view back to bytes, through the jitter: the loader's own perturbed view.
            std, mean = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_STD, IMAGENET_MEAN))
            x = ((batch.clean * std + mean) * 255).round().to(torch.uint8)
            clean, perturbed = jitter.pair(x, factors)
            assert torch.equal(clean, batch.clean)
            assert torch.equal(perturbed, batch.perturbed)
    loader.close()


def test_keyed_draws_depend_on_nothing_else() -> None:
    jitter = ColorJitter(order="random")
    whole = jitter.keyed(torch.arange(100), seed=1, epoch=2)
    assert torch.equal(jitter.keyed([99, 3, 3], seed=1, epoch=2), whole[[99, 3, 3]])
    assert torch.equal(jitter.keyed([3], seed=1, epoch=2), whole[[3]])
    assert torch.equal(jitter.keyed([100_000, 3], seed=1, epoch=2)[1:], whole[[3]])
    orders = jitter.keyed_order(torch.arange(100), seed=1, epoch=2)
    assert orders is not None
    assert torch.equal(jitter.keyed_order([7, 99], seed=1, epoch=2), orders[[7, 99]])
    for seed, epoch in ((1, 3), (2, 2)):
        assert not torch.equal(jitter.keyed([3, 4], seed=seed, epoch=epoch), whole[[3, 4]])
        assert not torch.equal(jitter.keyed_order(range(100), seed=seed, epoch=epoch), orders)
    assert ColorJitter().keyed_order([1]) is None
    assert jitter.keyed([]).shape == (0, 4)


@pytest.mark.parametrize("index", [torch.tensor([0.5]), [-1], [[1, 2]], [2**30]])
def test_indices_that_are_none(index) -> None:
    with pytest.raises(ValueError, match="whole numbers from 0"):
        ColorJitter().keyed(index)


@pytest.mark.parametrize(
    ("name", "value"), [("seed", -1), ("seed", 2**64), ("epoch", -1), ("epoch", 2**56)]
)
def test_keys_out_of_range(name: str, value: int) -> None:
    for draw in (ColorJitter().keyed, ColorJitter(order="random").keyed_order):
        with pytest.raises(ValueError, match=f"{name} must be from 0 to"):
            draw([1], **{name: value})


@pytest.mark.parametrize(
    "row", [(-1.0, 1, 1, 0), (1, 2e6, 1, 0), (1, 1, 1, 0.6), (1, math.nan, 1, 0)]
)
def test_factors_out_of_range(row: tuple[float, ...]) -> None:
    x, factors = images(2), torch.tensor([(1.0, 1, 1, 0), row])
    for call, images_of in ((ColorJitter(), x), (ColorJitter().pair, (x * 255).byte())):
        with pytest.raises(ValueError, match="factors out of range"):
            call(images_of, factors)


# --- pairs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_pair_is_pair_view(dtype: torch.dtype, memory: torch.memory_format) -> None:
    x = (images() * 255).to(torch.uint8).contiguous(memory_format=memory)
    jitter = ColorJitter()
    factors = jitter.sample(6, torch.Generator().manual_seed(2))
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
    pair = jitter.pair(x, factors, mean=mean, std=std, dtype=dtype, threads=2)
    expected = pair_view(x.permute(0, 2, 3, 1), factors, mean, std, dtype=dtype)
    assert torch.equal(torch.cat(pair), torch.cat(expected))
    torch.manual_seed(3)
    drawn = jitter.pair(x, mean=mean, std=std, dtype=dtype)
    torch.manual_seed(3)
    again = jitter.pair(x, jitter.sample(6), mean=mean, std=std, dtype=dtype)
    assert torch.equal(drawn[1], again[1])


@pytest.mark.parametrize("impl", ["auto", "reference", "compiled"])
def test_pair_in_orders_of_its_own(impl: str) -> None:
    x = (images() * 255).to(torch.uint8)
    jitter = ColorJitter(order="random")
    factors, order = jitter.keyed(range(6)), jitter.keyed_order(range(6))
    factors[4] = torch.tensor([1.0, 1, 1, 0])
    assert order is not None
    unit = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    clean, perturbed = (
        jitter.pair(x, factors, order, **unit)
        if impl == "auto"
        else pair_view(x.permute(0, 2, 3, 1), factors, **unit, impl=impl, order=order)
    )
    assert torch.equal(clean, jitter.pair(x, factors, order * 0, **unit)[0])
    assert (perturbed - jitter(x / 255, factors, order)).abs().max() < 1e-5
    assert torch.equal(perturbed[4], clean[4]), "identity factors, in any order"
    assert perturbed.is_contiguous(memory_format=torch.channels_last)
    alone = perturb(x.permute(0, 2, 3, 1), factors, **unit, order=order)
    assert (alone - perturbed).abs().max() < 1e-5


def test_orders_and_pairs_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="fixed, random"):
        ColorJitter(order="shuffled")
    x, jitter = (images() * 255).to(torch.uint8), ColorJitter(order="random")
    with pytest.raises(ValueError, match=r"order must be \(6,\)"):
        jitter.pair(x, order=torch.zeros(5, dtype=torch.int64))
    with pytest.raises(ValueError, match="order out of range"):
        jitter.pair(x, order=torch.full((6,), 24))
    with pytest.raises(ValueError, match=r"order must be \(6,\) whole numbers"):
        jitter.pair(x, order=torch.zeros(6))
    for order in (torch.full((6,), -1), torch.full((6,), 24, dtype=torch.int32)):
        with pytest.raises(ValueError, match="order out of range"):
            jitter(x, order=order)
    factors, order = jitter.sample(6), torch.arange(6, dtype=torch.int32)
    assert torch.equal(jitter(x, factors, order), jitter(x, factors, order.long()))
    with pytest.raises(ValueError, match="brightness must be a number"):
        ColorJitter((0.6, 1.4))
    with pytest.raises(ValueError, match="uint8"):
        jitter.pair(images())
    nhwc, factors = x.permute(0, 2, 3, 1), jitter.sample(6)
    for impl in ("numba", "triton"):
        with pytest.raises(ValueError, match="one order of operations"):
            pair_view(nhwc, factors, (0, 0, 0), (1, 1, 1), impl=impl, order=jitter.sample_order(6))
