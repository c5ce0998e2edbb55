"""The batched color arithmetic against torchvision, and its gradients."""

import pytest
import torch
import torchvision.transforms.v2.functional as tvf
from torch import Tensor

from fastsc.kernels import color

N, H, W = 6, 9, 11


@pytest.fixture
def images() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(N, 3, H, W, generator=generator)
    images[1] = images[1, :1]  # grey
    images[2] = 0
    images[3] = 1
    images[4] = torch.round(images[4])  # corners of the cube: ties between the channels
    return images


@pytest.mark.parametrize(
    ("ours", "theirs", "low", "high"),
    [
        (color.adjust_brightness, tvf.adjust_brightness, 0.0, 2.0),
        (color.adjust_contrast, tvf.adjust_contrast, 0.0, 2.0),
        (color.adjust_saturation, tvf.adjust_saturation, 0.0, 2.0),
        (color.adjust_hue, tvf.adjust_hue, -0.5, 0.5),
    ],
)
def test_one_op_equals_torchvision(ours, theirs, low: float, high: float, images: Tensor) -> None:
    factors = torch.linspace(low, high, N)
    expected = torch.stack([theirs(x, f.item()) for x, f in zip(images, factors, strict=True)])
    torch.testing.assert_close(ours(images, factors), expected, rtol=0, atol=2e-6)
    assert not torch.equal(expected, images)


def test_identity_is_exact(images: Tensor) -> None:
    factors = torch.tensor([color.IDENTITY]).repeat(N, 1)
    assert torch.equal(color.color_jitter(images, factors), images)


def test_gradients_of_images_and_factors() -> None:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(2, 3, 3, 2, dtype=torch.float64, generator=generator) * 0.5 + 0.25
    factors = torch.tensor([[0.9, 1.1, 0.8, 0.07], [1.1, 0.9, 1.1, -0.2]], dtype=torch.float64)
    inputs = (images.requires_grad_(), factors.requires_grad_())
    assert torch.autograd.gradcheck(color.color_jitter, inputs)


def test_gradient_is_finite_where_hue_is_undefined() -> None:
    images = torch.full((1, 3, 4, 4), 0.5, requires_grad=True)
    factors = torch.tensor([[1.0, 1.0, 1.0, 0.1]], requires_grad=True)
    color.color_jitter(images, factors).sum().backward()
    assert images.grad is not None
    assert images.grad.isfinite().all()
    assert factors.grad is not None
    assert factors.grad.isfinite().all()
