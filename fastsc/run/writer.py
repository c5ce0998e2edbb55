"""Checkpoints written by a thread while the steps go on, from a copy of the state."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from fastsc.errors import UserError
from fastsc.run import checkpoint
from fastsc.run.checkpoint import State


class NonFiniteError(UserError):
    """The weights are worth nothing any more: they must not be saved."""


class CheckpointWriter:
    """One write at a time; what goes wrong is raised by the next call, in the trainer's thread."""

    def __init__(self, folder: Path, *, keep: int, unchecked: Collection[str] = ()) -> None:
        """unchecked: tensors of the model that may hold any number, as masks of attention do."""
        self._folder, self._keep, self._unchecked = folder, keep, frozenset(unchecked)
        self._thread = ThreadPoolExecutor(1, "fastsc-checkpoint")
        self._writing: Future[object] | None = None

    def save(self, state: State, step: int, *, best: int | None = None) -> None:
        """Copies the state and begins to write it, once the checkpoint before it is on the disk.

        best: the step whose checkpoint stays besides the newest.

        Raises:
            UserError: The one before could not be written, or its weights are not finite.
        """
        self.wait()
        copy = _copied(state)
        self._writing = self._thread.submit(self._write, copy, step, best)

    def _write(self, state: State, step: int, best: int | None) -> None:
        _check_finite(state, step, self._unchecked)
        checkpoint.save(self._folder, state, step, keep=self._keep, best=best)

    def wait(self) -> None:
        """Returns when all that was saved is on the disk. Raises UserError where it is not."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def check(self) -> None:
        """Raises UserError if a write has failed in the meantime; waits for none."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def close(self) -> None:
        """Ends the thread, after a write that is under way, whatever comes of it."""
        with suppress(Exception):
            self.wait()
        self._thread.shutdown()


def _check_finite(state: Mapping[str, Any], step: int, unchecked: Collection[str]) -> None:
    """Raises NonFiniteError for a checkpoint's state whose weights are not, whatever the loss was.

    The gradient of a finite loss need not be finite.
    """
    for part in ("model", "ema"):
        for name, value in (state.get(part) or {}).items():
            finite = name in unchecked or not value.is_floating_point() or value.isfinite().all()
            if not finite:
                raise NonFiniteError(
                    f"the weights after step {step} are not finite ({name}), and are not saved; "
                    "go on from before it with --resume --on-nan skip, or begin again with a "
                    "smaller --lr"
                )


def _copied(value: Any) -> Any:
    """The state with tensors of its own, on the CPU: training changes the others in place."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return type(value)((key, _copied(item)) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return type(value)(_copied(item) for item in value)
    return value
