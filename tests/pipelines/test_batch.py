"""The pool hands out memory that nobody else can see, and uses it again when nobody does."""

from __future__ import annotations

import torch

from fastsc.pipelines.batch import BufferPool

SHAPE = (4, 8, 8, 3)


def test_live_tensors_never_share_memory() -> None:
    pool = BufferPool()
    kept = [pool.empty(SHAPE, torch.float32) for _ in range(10)]
    assert len({tensor.data_ptr() for tensor in kept}) == 10


def test_memory_is_used_again_when_the_tensor_is_gone() -> None:
    pool = BufferPool()
    first = pool.empty(SHAPE, torch.float32)
    address = first.data_ptr()
    del first
    assert pool.empty(SHAPE, torch.float32).data_ptr() == address
    assert len(pool) == 1


def test_trimming_gives_back_what_nobody_sees() -> None:
    pool = BufferPool()
    kept = pool.empty(SHAPE, torch.float32).fill_(3)
    pool.empty((2, *SHAPE), torch.float64)
    assert len(pool) == 2
    pool.trim()
    assert (len(pool), pool.in_use) == (1, 1)
    pool.empty(SHAPE, torch.float32).fill_(-1)
    assert kept.eq(3).all()


def test_a_view_keeps_the_memory() -> None:
    pool = BufferPool()
    first = pool.empty(SHAPE, torch.float32)
    view = first.permute(0, 3, 1, 2)[1:2]
    del first
    assert pool.empty(SHAPE, torch.float32).untyped_storage().data_ptr() != view.data_ptr()
    other = pool.empty(SHAPE, torch.float32)
    assert other.untyped_storage().data_ptr() != view.untyped_storage().data_ptr()


def test_what_autograd_saved_keeps_the_memory() -> None:
    pool = BufferPool()
    x = pool.empty(SHAPE, torch.float32).fill_(3)
    address = x.data_ptr()
    weight = torch.ones((), requires_grad=True)
    loss = (x * weight).sum()  # saves x for the gradient of weight
    del x
    pool.empty(SHAPE, torch.float32).fill_(-1)
    loss.backward()
    assert weight.grad is not None
    assert weight.grad.item() == 3 * 4 * 8 * 8 * 3
    del loss
    assert pool.empty(SHAPE, torch.float32).data_ptr() == address


def test_a_numpy_view_keeps_the_memory() -> None:
    pool = BufferPool()
    array = pool.empty(SHAPE, torch.uint8).numpy()
    assert pool.empty(SHAPE, torch.uint8).data_ptr() != array.ctypes.data


def test_views_are_channels_last_and_sizes_do_not_mix() -> None:
    pool = BufferPool()
    view = pool.empty_views(SHAPE, torch.bfloat16)
    assert view.shape == (4, 3, 8, 8)
    assert view.dtype == torch.bfloat16
    assert view.is_contiguous(memory_format=torch.channels_last)
    assert pool.empty((0, 8, 8, 3), torch.float32).shape == (0, 8, 8, 3)
    del view
    pool.empty((5, 8, 8, 3), torch.bfloat16)
    assert len(pool) == 2
