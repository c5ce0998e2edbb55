"""Functions of one's own for the tests of --perturb: one that is right, and mistakes."""

from __future__ import annotations

import torch
from torch import Tensor


def darker(images: Tensor, uniforms: Tensor) -> Tensor:
    """Each image times its number."""
    assert uniforms.dtype == torch.float32
    return (images * uniforms[:, :1, None, None]).to(torch.uint8)


darker.uniforms = 2  # type: ignore[attr-defined]


def copies(images: Tensor, uniforms: Tensor) -> Tensor:
    assert uniforms.shape == (len(images), 0)
    return images.clone()


def raises(images: Tensor, uniforms: Tensor) -> Tensor:
    raise RuntimeError("no stain today\nand more")


def nan(images: Tensor, uniforms: Tensor) -> Tensor:
    return images.float() * float("nan")


def smaller(images: Tensor, uniforms: Tensor) -> Tensor:
    return images[:, 1:].clone()


def same(images: Tensor, uniforms: Tensor) -> Tensor:
    return images.flip(0).flip(0) if not len(images) else images.view_as(images)


def writes(images: Tensor, uniforms: Tensor) -> Tensor:
    kept = images.clone()
    images.zero_()
    return kept


def writes_by_numpy(images: Tensor, uniforms: Tensor) -> Tensor:
    kept = images.clone()
    images.numpy()[:] = 7
    return kept


def nothing(images: Tensor, uniforms: Tensor) -> None:
    return None


def kind_of_tensor(images: Tensor, uniforms: Tensor) -> Tensor:
    return torch.nn.Parameter(images.clone(), requires_grad=False)


def sparse(images: Tensor, uniforms: Tensor) -> Tensor:
    return images.to_sparse()


def exits(images: Tensor, uniforms: Tensor) -> Tensor:
    raise SystemExit


def mixes(images: Tensor, uniforms: Tensor) -> Tensor:
    return images.flip(0)


def chance(images: Tensor, uniforms: Tensor) -> Tensor:
    return (images * torch.rand(len(images), 1, 1, 1)).to(torch.uint8)


def many(images: Tensor, uniforms: Tensor) -> Tensor:
    return images.clone()


many.uniforms = 1000  # type: ignore[attr-defined]
number = 3
