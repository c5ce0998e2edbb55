"""Batches made on a stream of their own, one ahead of the trainer."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable
from typing import Any, TypeVar

import torch

Item = TypeVar("Item", bound=tuple[Any, Iterable[torch.Tensor | None] | None])


class SideStream:
    """A stream beside the trainer's, for the copies and kernels of the loader.

    Works for every device that torch has streams for; on a CPU streams order nothing, and what is
    left is the order of the calls.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._module = device, torch.get_device_module(device)
        self._stream = self._module.Stream(device)
        self._held: deque[tuple[Any, torch.Tensor]] = deque()

    def ahead(self, batches: Generator[Item, None, None]) -> Generator[Item, None, None]:
        """Runs a generator on the side stream, always one item further than the consumer is.

        Args:
            batches: Each item ends with the tensors in it, or None. What it launches in between
                goes to the side stream.

        Yields:
            The items, in order, once the consumer's current stream waits for them. An error of the
            generator comes after the item before it.
        """
        ready: tuple[Item, Any] | None = None
        failed: Exception | None = None
        try:
            while True:
                following = None
                try:
                    with self._module.stream(self._stream):
                        if (made := next(batches, None)) is not None:
                            following = made, self._stream.record_event()
                except Exception as error:  # noqa: BLE001, raised below
                    failed = error
                if ready is not None:
                    item, event = ready
                    self._wait(event, item[1] or ())
                    yield item
                if failed is not None:
                    try:
                        raise failed
                    finally:
                        failed = None  # its traceback holds this frame
                if following is None:
                    return
                ready = following
        finally:
            batches.close()

    def _wait(self, event: Any, tensors: Iterable[torch.Tensor | None]) -> None:
        current = self._module.current_stream(self._device)
        current.wait_event(event)
        for tensor in tensors:
            if tensor is not None and tensor.device.type != "cpu":
                # Freed by the trainer, its memory goes back to the side stream, which must not
                # write into it before the trainer's kernels have read it.
                tensor.record_stream(current)

    def hold(self, *tensors: torch.Tensor) -> None:
        """Keeps tensors alive until all that has been launched on the current stream has run.

        For memory that torch does not know to be in use: DALI's, which would decode the next batch
        into it, and pinned slots that a copy still reads, which threads would fill again.
        """
        event = self._module.current_stream(self._device).record_event()
        self._held.extend((event, tensor) for tensor in tensors)
        while self._held and self._held[0][0].query():  # in the order of the stream
            self._held.popleft()
