"""One pass over all of an index's files, in threads, with a bar: to verify or to load them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from fastsc.pipelines.decode import RGB8, DecodeError, Decoder, decoded, pick
from fastsc.pipelines.files import read_file
from fastsc.pipelines.index import Index
from fastsc.pipelines.progress import MIN_FILES, tracked
from fastsc.pipelines.threads import default_workers, in_order

TIMEOUT = 120.0


def failures(
    index: Index,
    one: Callable[[int], str | None],
    *,
    workers: int | None = None,
    only: NDArray[np.int64] | None = None,
    timeout: float = TIMEOUT,
    title: str,
) -> dict[int, str]:
    """Asks threads about each image: dataset index -> why it is of no use, where it is of none.

    Args:
        index: What to go through; files already left out are not read.
        one: Called with a dataset index, in any thread; the reason, or None.
        workers: Threads. Default: the cores that this process may use, at most 16.
        only: The dataset indices to ask about. Default: all that are usable.
        timeout: Seconds for one image, before it is said to hang.
        title: Of the progress bar.

    Raises:
        StalledError: One took longer than `timeout`.
    """
    wanted = (index.usable if only is None else only).tolist()
    reasons: Iterable[str | None] = in_order(
        one,
        wanted,
        workers=workers or default_workers(),
        name="fastsc-sweep",
        timeout=timeout,
        describe=index.path,
    )
    if len(wanted) >= MIN_FILES:
        reasons = tracked(reasons, f"{title} {index.root}", len(wanted))
    return {i: why for i, why in zip(wanted, reasons, strict=True) if why is not None}


def decoding(
    index: Index, decode: Decoder, use: Callable[[int, RGB8], None] | None = None
) -> Callable[[int], str | None]:
    """For `failures`: decodes an image whole, and hands its pixels to `use`.

    decode: One of `fastsc.pipelines.decode`, for JPEGs and PNGs.
    """

    def one(i: int) -> str | None:
        height, width = int(index.heights[i]), int(index.widths[i])
        try:
            encoded = read_file(index.place(i))
            image = decoded(encoded, (0, 0, height, width), decode, by_pillow=i in index.by_pillow)
        except DecodeError as error:
            return str(error)
        if use is not None:
            use(i, image)
        return None

    return one


def verify(
    index: Index,
    workers: int | None = None,
    only: NDArray[np.int64] | None = None,
    timeout: float = TIMEOUT,
    decode: Decoder | None = None,
) -> dict[int, str]:
    """The files whose body does not decode, as `Index.without` takes them: what `--verify` does.

    Whole images are decoded: of a truncated JPEG the region above the cut may decode. With the
    decoder that will run (default: the one that `pick` takes), which may be stricter or laxer than
    another. The other arguments are those of `failures`.
    """
    one, title = decoding(index, decode or pick()[1]), "Verifying"
    return failures(index, one, workers=workers, only=only, timeout=timeout, title=title)
