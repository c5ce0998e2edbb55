"""ColorJitter against torchvision's functionals, image by image."""

from __future__ import annotations

import math

import pytest
import torch
import torchvision.transforms.v2.functional as tv
from torch import Tensor

from fastsc import ColorJitter


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
