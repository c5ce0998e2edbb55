"""The processes of one training, as torchrun starts them: what they share, and how they agree.

Without torchrun there is one rank, and every method returns at once. On the CPU ranks speak gloo;
with GPUs tensors on them go by NCCL, and all that is decided on the CPU still by gloo, so that
agreeing on a stop waits for no GPU.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastsc.distributed.rendezvous import store_of_this_life
from fastsc.errors import LostContactError, PeerError, UserError, first_line

T = TypeVar("T")
NOTHING, SAVE, STOP = 0, 1, 2  # actions that a rank may request between two batches
# How gloo and NCCL speak of a rank that is gone or cannot be reached; not of our own mistakes.
_NETWORK = re.compile(
    r"connection (closed|reset|refused|was likely closed)|connectFullMesh|broken pipe"
    r"|timed out (waiting|connecting|after)|wait timeout|remote process exited|ncclRemoteError",
    re.IGNORECASE,
)


def _number(variable: str, default: int) -> int:
    """Of torchrun's environment."""
    text = os.environ.get(variable, str(default))
    try:
        return int(text)
    except ValueError:
        raise UserError(
            f"the environment has {variable}={text}, which is no number: start by torchrun, or "
            "unset it"
        ) from None


class Ranks:
    """This process among `world_size` of them; the main one writes and speaks for all."""

    def __init__(self) -> None:
        self.rank = _number("RANK", 0)
        self.world_size = _number("WORLD_SIZE", 1)
        self.local_rank = _number("LOCAL_RANK", 0)
        self.local_world_size = _number("LOCAL_WORLD_SIZE", 1)
        # torchrun's: how often it has started this job's processes anew, and would at most.
        self.restarts = _number("TORCHELASTIC_RESTART_COUNT", 0)
        self.max_restarts = _number("TORCHELASTIC_MAX_RESTARTS", 0)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def single_process(self) -> bool:
        return self.world_size == 1

    @contextmanager
    def connected(self, device: torch.device, timeout: float = 1800.0) -> Iterator[None]:
        """Within the context the ranks can speak to each other.

        After an error of this rank alone the group stays up where its end would wait for the
        others, who may be in the middle of a step: the process is then to end at once.

        timeout: seconds to wait for one of them, after which it counts as lost.
        """
        if self.single_process:
            yield
            return
        on_gpu = device.type == "cuda"
        if on_gpu:
            torch.cuda.set_device(device)
        patience = timedelta(seconds=timeout)
        with self.contact(), store_of_this_life(patience) as (store, rank, world_size):
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
                store=store,
                rank=rank,
                world_size=world_size,
                timeout=patience,
                device_id=device if on_gpu else None,
            )
        try:
            yield
        except LostContactError:
            raise  # the others cannot be reached: nothing is torn down
        except BaseException as error:
            if isinstance(error, UserError) or not _waits_at_its_end(device):
                dist.destroy_process_group()  # all ranks have agreed on a UserError
            raise
        dist.destroy_process_group()

    @contextmanager
    def contact(self) -> Iterator[None]:
        """Within the context a rank that is gone is a LostContactError, whoever notices it."""
        try:
            yield
        except RuntimeError as error:
            if self.single_process or isinstance(error, LostContactError):
                raise
            store = isinstance(error, (dist.DistNetworkError, dist.DistStoreError))
            if not (store or _NETWORK.search(str(error))):
                raise
            raise LostContactError(
                f"rank {self.rank} has lost contact with the others: {first_line(error)}"
            ) from error

    # --- decisions --------------------------------------------------------------------------------

    def agree(self, error: UserError | None = None, action: int = NOTHING) -> int:
        """The largest action that a rank requests (`NOTHING` < `SAVE` < `STOP`).

        Raises:
            UserError: This rank's `error`, if it is the first rank that has one.
            PeerError: Another rank has one.
        """
        if self.single_process:
            if error is not None:
                raise error
            return action
        mine = torch.tensor([self.rank if error is not None else self.world_size, -action])
        dist.all_reduce(mine, dist.ReduceOp.MIN)
        first, agreed = mine.tolist()
        if first < self.world_size:
            if first == self.rank:
                assert error is not None
                raise error
            raise PeerError(f"rank {first} has stopped")
        return -int(agreed)

    @contextmanager
    def all_or_none(self) -> Iterator[None]:
        """Within the context a UserError of one rank ends all; the others get a PeerError."""
        error = None
        try:
            yield
        except UserError as mistake:
            error = mistake
        self.agree(error)

    @contextmanager
    def local_first(self) -> Iterator[None]:
        """`all_or_none`; local rank 0 of each machine goes first: it may fill a cache."""
        if self.local_rank:
            self.agree()
        with self.all_or_none():
            yield
        if not self.local_rank:
            self.agree()

    def on_main(self, work: Callable[[], object]) -> None:
        """work() on the main rank, while the others wait for it."""
        with self.all_or_none():
            if self.is_main:
                work()

    def assert_equal(self, what: str, value: object) -> None:
        """Raises UserError where a rank has another value than the main one."""
        with self.all_or_none():
            if self.broadcast(value) != value:
                raise UserError(f"{what} of rank {self.rank} are not those of rank 0")

    def batches(
        self, batches: Generator[T, None, None], requested: Callable[[], int], n: int
    ) -> Iterator[tuple[T | None, int]]:
        """n times (next batch, the action that the ranks agree on); None: this rank has no more.

        Every rank must ask for the same n. It is what keeps a broken file, or a signal that
        reached one rank, from leaving the others waiting for ever. `requested` is called with each
        batch; a UserError of it ends all, too.
        """
        with closing(batches):
            for _ in range(n):
                batch, error, action = None, None, NOTHING
                try:
                    batch = next(batches, None)
                    action = requested()
                except UserError as mistake:
                    error = mistake
                yield batch, self.agree(error, action)

    # --- tensors ----------------------------------------------------------------------------------

    def gather(self, x: Tensor) -> Tensor:
        """(N, …) of this rank -> (N · world_size, …) of all, with gradients; N equal on all ranks.

        Row i of rank r becomes row i · world_size + r: the order of the global batch, which is
        dealt out over the ranks like cards.
        """
        if self.single_process:
            return x
        stacked: Tensor = AllGather.apply(x, self.rank, self.world_size)
        return stacked.transpose(0, 1).flatten(0, 1)

    def mean(self, values: Tensor) -> Tensor:
        """Elementwise mean over the ranks, in place."""
        if not self.single_process:
            dist.all_reduce(values)
            values /= self.world_size
        return values

    def max(self, value: float) -> float:
        """The largest of the ranks' numbers."""
        if self.single_process:
            return value
        tensor = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return float(tensor)

    def average_buffers(self, net: nn.Module) -> None:
        """The floating-point buffers become their mean over the ranks: running statistics."""
        floating = [buffer for buffer in net.buffers() if buffer.is_floating_point()]
        if self.single_process or not floating:
            return
        # In float64, so that the mean of equal ones, of norms that are frozen, is what they are.
        flat = self.mean(torch.cat([buffer.flatten().double() for buffer in floating]))
        parts = flat.split([buffer.numel() for buffer in floating])
        for buffer, mean in zip(floating, parts, strict=True):
            buffer.copy_(mean.view_as(buffer))

    # --- values -----------------------------------------------------------------------------------

    def gather_values(self, value: T) -> list[T] | None:
        """Every rank's value, in order, on the main rank; None elsewhere."""
        if self.single_process:
            return [value]
        values: list[Any] | None = [None] * self.world_size if self.is_main else None
        dist.gather_object(value, values)
        return values

    def broadcast(self, value: T) -> T:
        """The main rank's value, on all."""
        if self.single_process:
            return value
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]


def _waits_at_its_end(device: torch.device) -> bool:
    """Whether the end of a process group waits for what the others have not done yet."""
    return device.type == "cuda"  # NCCL's


class AllGather(torch.autograd.Function):
    """(N, …) -> (world_size, N, …); a row's gradient is the sum of what all ranks' losses send."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rank: int, world_size: int) -> Tensor:
        ctx.rank = rank
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(world_size)]
        dist.all_gather(parts, x)
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        gradient = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient[ctx.rank], None, None
