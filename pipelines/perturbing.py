"""The listed perturbations, ready to be applied: what each image draws, and the functions.

Each entry of the list has streams of its own, keyed by its name and its occurrence, so that adding
one moves what no other draws.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastsc.kernels.devices import on_device
from fastsc.kernels.perturbations import OPERATIONS, Change, Floats, perturb_bytes
from fastsc.pipelines import keyed
from fastsc.pipelines.errors import UserError, first_line
from fastsc.pipelines.perturb_list import Listed, parse_list

Uniforms = NDArray[np.float32]
KEYS = 2  # numbers that chance within an image depends on
MAX_UNIFORMS = 128  # of a function of one's own


@dataclass(eq=False)
class Own:
    """A function of one's own, `function(images, uniforms) -> images`, and what is checked of it.

    Attributes:
        name: module:function.
        function: Of (N, H, W, 3) uint8 and (N, k) float32 in [0, 1), both on the run's device; its
            attribute `uniforms` is k (0 without it).
        uniforms: k.
        source: A hash of its module's source.
    """

    name: str
    function: Callable[[torch.Tensor, torch.Tensor], Any]
    uniforms: int
    source: str
    tried: bool = field(default=False)
    tried_alone: bool = field(default=False)

    def __call__(self, images: torch.Tensor, uniforms: Uniforms) -> torch.Tensor:
        """Its images.

        Raises:
            UserError: It raises, writes to its input, returns what is not other images, or its
                images depend on others or on chance.
        """
        changed = self._applied(images, uniforms)
        self.tried = True
        if len(images) > 1 and not self.tried_alone:
            alone = self._applied(images[-1:], uniforms[-1:])
            # A level apart may be a sum of floats in another order, rounded.
            if (alone.short() - changed[-1:].short()).abs().gt(1).any():
                raise self._wrong(
                    "gives an image otherwise in a batch than alone: an image may depend on itself "
                    "and its uniforms alone"
                )
            self.tried_alone = True
        return changed

    def _applied(self, images: torch.Tensor, uniforms: Uniforms) -> torch.Tensor:
        copy = images.clone()  # what is written to it later than in the first call harms nobody
        try:
            given = on_device(np.ascontiguousarray(uniforms), images.device)
            with torch.no_grad():
                changed = self.function(copy, given)
        except (Exception, SystemExit) as error:
            what = f"{type(error).__name__}: {first_line(error)}"
            raise UserError(f"--perturb {self.name} raises {what}") from error
        if not (self.tried or torch.equal(images, copy)):
            raise self._wrong("writes to its input: work on images.clone()")
        if type(changed) is not torch.Tensor:
            raise self._wrong(f"returns {type(changed).__name__}, not a torch.Tensor")
        if changed.layout != torch.strided:
            raise self._wrong(f"returns {changed.layout}, not torch.strided")
        if changed.dtype != torch.uint8:
            raise self._wrong(f"returns {changed.dtype}{_not_finite(changed)}, not torch.uint8")
        if changed.shape != images.shape or changed.device != images.device:
            wanted = f"{tuple(images.shape)} on {images.device}"
            got = f"{tuple(changed.shape)} on {changed.device}"
            raise self._wrong(f"returns {got}, not {wanted}")
        storage = changed.untyped_storage().data_ptr()
        if images.numel() and storage == copy.untyped_storage().data_ptr():
            raise self._wrong("returns its input's memory: return images.clone()")
        return changed.contiguous()

    def _wrong(self, what: str) -> UserError:
        return UserError(f"--perturb {self.name} {what}")


def _not_finite(values: torch.Tensor) -> str:
    if values.is_floating_point() and not values.isfinite().all():
        return " with values that are not finite"
    return ""


@dataclass(frozen=True, eq=False)
class Perturbations:
    """A list of perturbations.

    Attributes:
        entries: In their order.
        own: By name, the functions among them.
        columns: Of each entry its numbers among those that an image draws.
        n_uniforms: How many these are.
    """

    entries: tuple[Listed, ...]
    own: dict[str, Own]
    columns: tuple[slice, ...]
    n_uniforms: int

    def __bool__(self) -> bool:
        return bool(self.entries)

    def named(self) -> list[str]:
        """What they are: names with strengths, and of one's own ones the source's hash."""
        return [
            f"{entry} {self.own[entry.name].source}" if entry.name in self.own else str(entry)
            for entry in self.entries
        ]

    def uniforms(self, seed: int, epoch: int, n: int) -> Uniforms:
        """What dataset indices 0 … n - 1 draw: (n, n_uniforms) float32 in [0, 1)."""
        table = np.empty((n, self.n_uniforms), np.float32)
        for entry, columns in zip(self.entries, self.columns, strict=True):
            k, name = columns.stop - columns.start, f"{entry.name}/{entry.occurrence}"
            table[:, columns] = keyed.named(seed, epoch, name, n, k)
        return table

    def __call__(
        self, images: torch.Tensor, uniforms: Uniforms, *, threads: int = 1
    ) -> torch.Tensor:
        """All of them, in their order.

        Args:
            images: (N, H, W, 3) uint8 on any device. Not written to.
            uniforms: (N, n_uniforms), rows of `uniforms`.
            threads: Of the JPEG codec.

        Returns:
            Of the same shape, dtype and device; `images` itself where nothing changes.

        Raises:
            UserError: A function of one's own does not do what it should.
        """
        pending: list[Change] = []
        for entry, columns in zip(self.entries, self.columns, strict=True):
            drawn = uniforms[:, columns]
            if entry.strength is not None:
                amounts = amounts_of(entry.name, entry.strength, drawn[:, 0])
                pending.append(Change(entry.name, amounts, drawn[:, 1:].astype(np.float64)))
                continue
            images = perturb_bytes(images, pending, threads=threads)
            pending = []
            if len(images):
                images = self.own[entry.name](images, drawn)
        return perturb_bytes(images, pending, threads=threads)

    def warm_up(self) -> None:
        """Compiles what the operations need, or loads what was compiled."""
        images, key = torch.zeros((1, 3, 3, 3), dtype=torch.uint8), np.zeros((1, KEYS))
        for entry in self.entries:
            if entry.strength:
                perturb_bytes(images, [Change(entry.name, np.ones(1), key)])


def amounts_of(name: str, strength: float, drawn: NDArray[np.floating[Any]]) -> Floats:
    """Numbers in [0, 1) -> what the operation is told: `perturb_list.STRENGTHS` says how."""
    # 16-bit floats round up to 1, which is one more than any strength has.
    operation, u = OPERATIONS[name], np.minimum(drawn.astype(np.float64), 1 - 2**-24)
    if name == "grayscale":
        return (u < strength).astype(np.float64)
    if operation.whole:
        return np.floor(u * (strength + 1))
    low = max(operation.low, -strength)
    return low + u * (strength - low)


def ends_of(name: str, strength: float) -> tuple[float, ...]:
    """The amounts, one or two, that are the furthest from 0 at a strength."""
    operation = OPERATIONS[name]
    if name == "grayscale":
        return (1.0,)
    return (max(operation.low, -strength), strength) if operation.low < 0 else (strength,)


@cache
def perturbations(words: tuple[str, ...]) -> Perturbations:
    """The list that the words name.

    Raises:
        UserError: A name or a strength is wrong, or a function cannot be imported; one line.
    """
    entries = parse_list(words)
    own = {entry.name: _own(entry.name) for entry in entries if entry.strength is None}
    columns, start = [], 0
    for entry in entries:
        if entry.strength is None:
            k = own[entry.name].uniforms
        else:
            k = 1 + (KEYS if OPERATIONS[entry.name].keyed else 0)
        columns.append(slice(start, start + k))
        start += k
    return Perturbations(entries, own, tuple(columns), start)


@cache
def _own(name: str) -> Own:
    module_name, _, path = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
        function: Any = module
        for part in path.split("."):
            function = getattr(function, part)
        source = inspect.getsource(module)
    except (Exception, SystemExit) as error:  # noqa: BLE001, a user's code can raise anything
        what = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"--perturb {name}: {what}") from None
    if not callable(function):
        raise UserError(f"--perturb {name}: is no function")
    k = getattr(function, "uniforms", 0)
    if isinstance(k, bool) or not isinstance(k, int) or not 0 <= k <= MAX_UNIFORMS:
        raise UserError(
            f"--perturb {name}: its attribute uniforms must be a whole number from 0 to "
            f"{MAX_UNIFORMS}, not {k!r}"
        )
    return Own(name, function, k, hashlib.sha256(source.encode()).hexdigest()[:16])
