"""What all pipelines share: epochs, position, bad images, and the step from bytes to views.

A backend only turns lists of dataset indices into uint8 images, in order (`_decode`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastsc.kernels import normalize, pair_view
from fastsc.pipelines.batch import BadImage, BufferPool, PairBatch
from fastsc.pipelines.errors import UserError
from fastsc.pipelines.handover import SideStream
from fastsc.pipelines.index import Index
from fastsc.pipelines.plan import Plan, Settings, local_batches, make_plan

_Item = tuple[Sequence[BadImage], PairBatch | None]

STATE_VERSION = 1
MAX_SUBSTITUTES = 100  # broken in a row: then the folder is broken, not a file


@dataclass(frozen=True)
class Decoded:
    """One local batch out of a backend: what `_decode` yields."""

    images: torch.Tensor  # (N, R, R, 3) uint8, on the CPU or on the pipeline's device
    index: NDArray[np.int64]  # (N,) dataset indices that the rows really hold
    bad: Sequence[BadImage] = ()


class Pipeline(ABC):
    """An endless source of epochs of PairBatch; one `iter()` is one epoch.

    `set_epoch` chooses the epoch; iterating the same epoch again gives the same batches. The state
    is (epoch, batch) and nothing else, so that any backend goes on in mid-epoch.
    """

    name: str
    decoder: str

    def __init__(self, index: Index, settings: Settings) -> None:
        self.index = index
        self.settings = settings
        self.device = _device(settings.device)
        if settings.decode == "gpu" and (self.name != "dali" or self.device.type != "cuda"):
            what = f"{self.name} on {self.device}"
            raise UserError(f"decode gpu is for the pipeline dali on a GPU, not for {what}")
        self.epoch = 0
        self._perturb = settings.perturbations
        self._reported: set[str] = set()
        self._start = 0  # where the next iter() begins: not 0 only after load_state_dict
        self.position = 0  # global batches handed over in this epoch
        on_gpu = self.device.type == "cuda"
        self._side = SideStream(self.device) if on_gpu else None
        # What threads fill: on the way to a GPU in pinned memory, which it reads by itself.
        self._pool = BufferPool(pinned=on_gpu)
        self._targets = index.targets

    def __len__(self) -> int:
        """Batches that an epoch hands over on this rank."""
        m, size = len(self.index) - len(self.index.left_out), self.settings.batch_size
        if self.settings.train:
            return m // size
        return m // size + (m % size > self.settings.rank)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch of the next `iter()`. Choosing the present one changes nothing."""
        if epoch != self.epoch:
            self.epoch, self._start, self.position = epoch, 0, 0

    def set_resolution(self, resolution: int) -> None:
        """Side of the images of the next `iter()`, in pixels: progressive resolution."""
        if resolution != self.settings.resolution:
            self._pool.trim()
        self.settings = replace(self.settings, resolution=resolution)

    def state_dict(self) -> dict[str, Any]:
        """Position after the batches handed over so far: JSON values, a few bytes."""
        state: dict[str, Any] = {
            "version": STATE_VERSION,
            "epoch": self.epoch,
            "batch": self.position,
            "seed": self.settings.seed,
            "global_batch": self.settings.batch_size,
            "index_hash": self.index.hash,
        }
        if self._perturb:
            state["perturb"] = self._perturb.named()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where another pipeline of the same data stopped, whatever its backend.

        Raises:
            UserError: The state is of other data, another seed or another global batch.
        """
        here = self.state_dict()
        for key, what in (
            ("version", "the format of the pipeline's state"),
            ("index_hash", "the data set"),
            ("seed", "--seed"),
            ("global_batch", "--batch-size"),
            ("perturb", "what --perturb names"),
        ):
            if (then := state.get(key)) != (now := here.get(key)):
                raise UserError(
                    f"cannot resume: {what} has changed ({then} then, {now} now); "
                    "resume with what the run began with, or start a new one"
                )
        self.epoch = int(state["epoch"])
        self._start = self.position = int(state["batch"])

    @property
    def exhausted(self) -> bool:
        """Whether the present epoch's last batch has been handed over."""
        return self.position >= len(self)

    def plan(self, epoch: int | None = None) -> Plan:
        """The tables of an epoch (default: the present one): crops, flips, factors, order."""
        return make_plan(self.index, self.settings, self.epoch if epoch is None else epoch)

    def __iter__(self) -> Generator[PairBatch, None, None]:
        plan, start = self.plan(), self._start
        self._start, self.position = 0, start
        with closing(self._handed(plan, local_batches(plan, self.settings, start))) as handed:
            for bad, batch in handed:
                self._tell(bad)
                self.position += 1
                if batch is not None:  # every image of a validation batch may have been left out
                    yield batch

    def batch_at(self, epoch: int, batch: int) -> PairBatch | None:
        """This rank's share of one batch, as iterating hands it over, without those before it.

        Neither the epoch nor the position changes; the resolution is the present one.

        Args:
            epoch: Any, from 0.
            batch: Its number in the epoch, from 0.

        Returns:
            None where no image of a validation batch could be decoded.

        Raises:
            UserError: The epoch has no such batch, or as while iterating.
        """
        plan, n = self.plan(epoch), len(self)
        if not 0 <= batch < n:
            raise UserError(f"batch {batch}: an epoch has {n}, 0 to {n - 1}")
        return self.batch_of(plan, local_batches(plan, self.settings, batch)[0])

    def batch_of(self, plan: Plan, share: NDArray[np.int64]) -> PairBatch | None:
        """Like `batch_at`, of dataset indices that the caller chooses: (N,) int64.

        N is that of this rank's batches in training.
        """
        with closing(self._handed(plan, [share])) as handed:
            ((bad, batch),) = handed
        self._tell(bad)
        return batch

    def decoded(self, index: NDArray[np.int64]) -> Generator[Decoded, None, None]:
        """Dataset indices (m,) as uint8 images (N, R, R, 3) on the device, in order, by batches.

        For whoever makes more than two views of an image. Cropped and flipped as the epoch at hand
        has it; neither the epoch nor the position changes. Of one rank only.

        Raises:
            UserError: As while iterating.
        """
        size = self.settings.batch_size
        assert self.settings.world_size == 1, "every rank would look at all of them"
        shares = [index[at : at + size] for at in range(0, len(index), size)]
        with closing(self._decode(self.plan(), shares)) as batches:
            for batch in batches:
                self._tell(batch.bad)
                try:
                    yield replace(batch, images=batch.images.to(self.device, non_blocking=True))
                finally:  # it may be DALI's own memory, or a pinned slot that is being copied
                    if self._side is not None:
                        self._side.hold(batch.images)

    def _handed(self, plan: Plan, batches: list[NDArray[np.int64]]) -> Generator[_Item, None, None]:
        """The batches with what was broken in them, ready for the consumer's stream."""
        made = self._made(plan, batches)
        side = self._side if self.settings.prefetch else None
        return made if side is None else side.ahead(made)

    def _made(self, plan: Plan, batches: list[NDArray[np.int64]]) -> Generator[_Item, None, None]:
        with closing(self._decode(plan, batches)) as decoded:
            for batch in decoded:
                views = self._views(plan, batch.images, batch.index) if len(batch.index) else None
                yield batch.bad, views

    def warm_up(self) -> None:
        """Compiles what the threads and the views need, or loads what was compiled, beforehand.

        Else the first batch would seem to hang, and threads would compile while others do.
        """
        s = self.settings
        if self.device.type == "cpu":
            pixels = torch.zeros((1, 1, 1, 3), dtype=torch.uint8)
            factors = torch.zeros((1, 4), dtype=torch.float32)
            views = self._pool.empty_views((2, 1, 1, 3), s.dtype)
            normalize(pixels, s.mean, s.std, dtype=s.dtype, out=views[:1])
            if s.paired:
                out = views[:1], views[1:]
                self._perturb.warm_up()
                pair_view(pixels, factors, s.mean, s.std, dtype=s.dtype, out=out)

    @abstractmethod
    def close(self) -> None:
        """Ends the pipeline's threads. It must not be iterated afterwards."""

    @abstractmethod
    def _decode(
        self, plan: Plan, batches: list[NDArray[np.int64]]
    ) -> Generator[Decoded, None, None]:
        """Decodes, crops, resizes and flips: one Decoded for every batch, in order.

        Closing the generator half way must stop whatever works ahead.
        """

    def _views(self, plan: Plan, images: torch.Tensor, index: NDArray[np.int64]) -> PairBatch:
        """Bytes to normalized views, on the pipeline's device."""
        s = self.settings
        if self._side is not None:
            source, images = images, images.to(self.device, non_blocking=True)
            self._side.hold(source)  # a pinned slot is being copied, whatever happens next

        def buffer(n: int) -> torch.Tensor:
            shape = n, *images.shape[1:]
            if self._side is not None:
                return torch.empty(shape, dtype=s.dtype, device=self.device).permute(0, 3, 1, 2)
            return self._pool.empty_views(shape, s.dtype)

        n = len(index)
        m = s.n_paired(n) if s.paired else 0
        views = buffer(n + m)
        clean, perturbed = views[:n], views[n:] if m else None
        if perturbed is not None:
            factors, out = self._to_device(plan.factors[index[:m]]), (clean[:m], perturbed)
            second = self.second(images[:m], plan.uniforms[index[:m]]) if self._perturb else None
            pair_view(images[:m], factors, s.mean, s.std, dtype=s.dtype, out=out, second=second)
        if m < n:
            normalize(images[m:], s.mean, s.std, dtype=s.dtype, out=clean[m:])
        if self._side is not None:
            self._side.hold(source)  # DALI's own memory is what the kernels read
        return PairBatch(
            clean, perturbed, self._to_device(self._targets[index]), self._to_device(index)
        )

    def second(self, images: torch.Tensor, uniforms: NDArray[np.float32]) -> torch.Tensor:
        """The bytes of the perturbed view before its colors change, (N, R, R, 3) uint8.

        uniforms: (N, k) of the plan.
        """
        # On a CPU the cores are the decoders'; those of a GPU's machine have less to do.
        threads = 1 if self.device.type == "cpu" else self.settings.n_workers
        return self._perturb(images, uniforms, threads=threads)

    def _to_device(self, array: NDArray[Any]) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        if self.device.type != "cuda":
            return tensor
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def _tell(self, bad: Sequence[BadImage]) -> None:
        for image in bad:
            if image.path not in self._reported:  # once a run, however often it is drawn
                self._reported.add(image.path)
                if self.settings.report is not None:
                    self.settings.report(image)

    def _replace(self, plan: Plan, index: int, attempt: int, reason: str) -> tuple[int, BadImage]:
        """What fills the slot of a file that does not decode, by the user's choice.

        Args:
            index: The dataset index whose slot it is.
            attempt: 0 for the file itself, then the substitutes that failed too.
            reason: Why the file (of that attempt) does not decode.

        Returns:
            The substitute's dataset index, or -1 for a slot left out of validation; and the record.

        Raises:
            UserError: The user chose to stop, or nothing but broken files was drawn.
        """
        broken = index if attempt == 0 else plan.substitute(index, attempt - 1)
        path = self.index.path(broken)
        if not self.index.is_there:  # unplugged, unmounted, removed: no file's fault
            raise UserError(f"{self.index.root} has vanished; bring it back")
        if self.settings.on_bad_image == "raise":
            raise UserError(
                f"{path}: {reason}; mend or remove it, or go on with --on-bad-image skip"
            )
        if attempt >= MAX_SUBSTITUTES:
            raise UserError(f"{path}: {reason}; {attempt} images in a row cannot be decoded")
        if not self.settings.train:
            return -1, BadImage(path, reason)
        substitute = plan.substitute(index, attempt)
        return substitute, BadImage(path, reason, self.index.path(substitute))


def _device(name: torch.device | str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device must be cpu, cuda or cuda:N, not {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device must be cpu, cuda or cuda:N, not {name!r}")
    if str(device) == "cuda":  # DALI wants a number
        return torch.device("cuda", torch.cuda.current_device())
    return device
