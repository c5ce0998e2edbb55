"""What a pipeline hands over, and the pool that its memory comes from."""

from __future__ import annotations

import sys
import threading
from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from fastsc.kernels.arguments import empty_bytes


class PairBatch(NamedTuple):
    """One step's images, on the pipeline's device.

    Views are normalized, (N, 3, H, W) in channels-last memory, RGB, in the pipeline's dtype. They
    are the first N and the last M rows of one tensor, which a step can take as one batch without a
    copy; they share no element, and neither is ever overwritten. `perturbed` is None from a
    single-view pipeline; with a paired fraction it holds the other views of the first M images, so
    that clean[:M] are their partners.
    """

    clean: torch.Tensor  # (N, 3, H, W)
    perturbed: torch.Tensor | None  # (M, 3, H, W), M = N unless a fraction is paired
    target: torch.Tensor  # (N,) int64
    # (N,) int64: dataset index, of the substitute where one filled the slot. Hides tuple.index.
    index: torch.Tensor  # type: ignore[assignment]

    def part(self, i: int, n_parts: int) -> PairBatch:
        """Every n-th row from row i on: dealt like cards, so that partners stay partners."""
        rows = slice(i, None, n_parts)
        perturbed = None if self.perturbed is None else self.perturbed[rows]
        return PairBatch(self.clean[rows], perturbed, self.target[rows], self.index[rows])


@dataclass(frozen=True)
class BadImage:
    """A file that could not be used, as the run's log has it."""

    path: str
    reason: str
    substitute: str | None = None  # path of the image that took its place, in training


class BufferPool:
    """Reuses CPU memory that no tensor refers to any more.

    Fresh memory for two float32 views costs about 0.4 ms an image in page faults, five times the
    kernel that fills it. A buffer is a numpy array; every tensor made of it, its views and whatever
    autograd saved of them share one storage that holds a reference to the array. Its reference
    count therefore tells exactly whether anybody can still see the memory.
    """

    def __init__(self, *, pinned: bool = False) -> None:
        """`pinned`: memory that a GPU copies from while this process goes on."""
        self._pinned = pinned
        self._buffers: list[NDArray[np.uint8]] = []  # smallest first
        self._lock = threading.Lock()

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """A contiguous, uninitialized CPU tensor that shares memory with no other live tensor."""
        n_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if n_bytes == 0:
            return torch.empty(tuple(shape), dtype=dtype)
        with self._lock:
            return torch.from_numpy(self._take(n_bytes))[:n_bytes].view(dtype).view(tuple(shape))

    def _take(self, n_bytes: int) -> NDArray[np.uint8]:
        """The smallest free buffer that holds so much and not twice as much, else a new one."""
        for position in range(len(self._buffers)):
            size = self._buffers[position].size
            if n_bytes <= size < 2 * n_bytes and self._is_free(position):
                return self._buffers[position]
        # An eighth more than asked for: batches of files differ in size and should find it again.
        size = n_bytes + n_bytes // 8
        if self._pinned:
            buffer = torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy()
        else:
            buffer = empty_bytes(size)
        insort(self._buffers, buffer, key=len)
        return buffer

    def trim(self) -> None:
        """Gives back what nobody sees: batches of another size would hardly use it."""
        with self._lock:
            free = [at for at in range(len(self._buffers)) if self._is_free(at)]
            for position in reversed(free):
                del self._buffers[position]

    def empty_views(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Like `empty`, as (N, 3, H, W) in channels-last memory; shape is (N, H, W, 3)."""
        return self.empty(shape, dtype).permute(0, 3, 1, 2)

    def _is_free(self, position: int) -> bool:
        # Two references mean: the list's own and getrefcount's argument.
        return sys.getrefcount(self._buffers[position]) == 2

    @property
    def in_use(self) -> int:
        """Buffers that somebody can still see."""
        with self._lock:
            return sum(not self._is_free(position) for position in range(len(self._buffers)))

    def __len__(self) -> int:
        return len(self._buffers)

    def __getstate__(self) -> Any:
        raise TypeError("a BufferPool belongs to one process and cannot be pickled")
