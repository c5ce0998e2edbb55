"""The images of a batch, dealt over threads."""

import concurrent.futures
import functools
import itertools
import os
from collections.abc import Callable


def deal(work: Callable[[slice], None], n: int, threads: int) -> None:
    """work(rows) of n images, in one part a thread; it is to release the GIL.

    Images take equally long, and one part is done here: woken together, two threads may find
    themselves on one core, where this one is at home.
    """
    if (parts := min(threads, n)) < 2:
        work(slice(n))
        return
    ends = [n * part // parts for part in range(parts + 1)]
    slices = [slice(*pair) for pair in itertools.pairwise(ends)]
    others = [_pool(os.getpid(), threads - 1).submit(work, rows) for rows in slices[1:]]
    work(slices[0])
    for other in others:
        other.result()


@functools.cache
def _pool(_process: int, threads: int) -> concurrent.futures.ThreadPoolExecutor:
    """Kept: starting threads takes as long as an image. A forked process needs its own."""
    return concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix="kernels")


__all__ = ["deal"]
