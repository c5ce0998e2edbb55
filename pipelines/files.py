"""Reading image files, if they are still the ones that were indexed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastsc.pipelines.decode import DecodeError

TRAIN_BETON, VAL_BETON = "train.beton", "val.beton"  # in the folder that --data names


def read_into(path: str, slot: NDArray[np.uint8]) -> None:
    """Fills a slot of the file's indexed size with its bytes.

    Raises:
        DecodeError: The file is gone, unreadable, or its size has changed.
    """
    try:
        # Unbuffered: Python's buffer would be one more copy and system call.
        with open(path, "rb", buffering=0) as file:
            view, done = slot.data, 0
            while done < len(slot) and (n := file.readinto(view[done:])):
                done += n
            if done < len(slot) or file.read(1):
                raise DecodeError(f"has changed since it was indexed ({len(slot)} bytes then)")
    except OSError as error:
        raise DecodeError(f"cannot be read ({error.strerror})") from None


def read_file(path: str, n_bytes: int) -> bytes:
    """A file's bytes; raises as `read_into` does."""
    try:
        with open(path, "rb", buffering=0) as file:
            encoded = file.read(n_bytes + 1)  # a device would never end
    except OSError as error:
        raise DecodeError(f"cannot be read ({error.strerror})") from None
    if len(encoded) != n_bytes:
        raise DecodeError(f"has changed since it was indexed ({n_bytes} bytes then)")
    return encoded
