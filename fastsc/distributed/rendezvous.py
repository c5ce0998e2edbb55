"""A store that the processes of one life of a job share, and those before them do not.

torchrun may keep one store for all lives of a job (torch 2.14 does, with the c10d rendezvous). In
it a restarted process finds the addresses that the dead ones left, and waits for them. So rank 0
makes up a name for each life, and tells it to those that ask in this one.
"""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from fastsc.errors import UserError, first_line

_SECONDS_BETWEEN_LOOKS = 0.05


@contextmanager
def store_of_this_life(timeout: timedelta) -> Iterator[tuple[dist.Store, int, int]]:
    """Within the context, while the processes meet: store, rank and number of processes.

    As torchrun's environment variables say; raises torch's DistError where nobody answers.
    """
    try:
        store, rank, world_size = next(rendezvous("env://", timeout=timeout))
    except ValueError as error:  # a variable of torchrun's is not there, or makes no sense
        raise UserError(f"{first_line(error)}: start by torchrun, or unset WORLD_SIZE") from None
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        yield store, rank, world_size  # rank 0 has made it just now
        return
    if rank > 0:
        # Each life of a rank asks with a number of its own: an answer to an earlier one is not its.
        asked = store.add(f"fastsc/asked/{rank}", 1)
        answer = f"fastsc/answer/{rank}/{asked}"
        store.wait([answer], timeout)
        yield dist.PrefixStore(store.get(answer).decode(), store), rank, world_size
        return
    life, met = uuid.uuid4().hex, threading.Event()
    # A connection of its own: one that waits for a key lets nobody else through.
    other = next(rendezvous("env://", timeout=timeout))[0]
    thread = threading.Thread(target=_answer, args=(other, life, world_size, met), daemon=True)
    thread.start()
    try:
        yield dist.PrefixStore(life, store), rank, world_size
    finally:
        met.set()
        thread.join()


def _answer(store: dist.Store, life: str, world_size: int, met: threading.Event) -> None:
    """Tells every rank the name of this life, each time it asks, until all have met."""
    answered = dict.fromkeys(range(1, world_size), 0)
    while not met.wait(_SECONDS_BETWEEN_LOOKS):
        for rank, last in answered.items():
            if (asked := store.add(f"fastsc/asked/{rank}", 0)) > last:
                store.set(f"fastsc/answer/{rank}/{asked}", life)
                answered[rank] = asked
