"""The contract of a pipeline, once, over every backend."""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import os
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastsc.pipelines import PairBatch, UserError
from fastsc.training.step import both_views
from tests.pipelines.conftest import BATCH, N_VAL, SIZE, Make, N, epoch, from_everywhere


def equal(a: PairBatch, b: PairBatch) -> bool:
    return all(
        (x is None and y is None) or (x is not None and y is not None and torch.equal(x, y))
        for x, y in zip(a, b, strict=True)
    )


def all_equal(a: list[PairBatch], b: list[PairBatch]) -> bool:
    return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))


def seen(batches: list[PairBatch]) -> list[int]:
    return [int(i) for batch in batches for i in batch.index]


@from_everywhere
def test_shapes_types_and_layout(make: Make) -> None:
    loader = make(dtype=torch.bfloat16)
    batches = epoch(loader)
    assert len(batches) == len(loader) == 6
    for batch in batches:
        assert batch.perturbed is not None
        for view in (batch.clean, batch.perturbed):
            assert view.shape == (BATCH, 3, SIZE, SIZE)
            assert view.dtype == torch.bfloat16
            assert view.is_contiguous(memory_format=torch.channels_last)
        assert batch.target.dtype == batch.index.dtype == torch.int64
        assert batch.target.tolist() == loader.index.targets[batch.index.numpy()].tolist()


def test_views_share_no_element_and_are_not_overwritten(make: Make) -> None:
    loader = make()
    kept, copies = [], []
    for number in range(3):  # a consumer that keeps every batch
        for batch in epoch(loader, number):
            kept.append(batch)
            copies.append(PairBatch(*[None if x is None else x.clone() for x in batch]))  # type: ignore[arg-type]
    assert all_equal(kept, copies)
    views = [view for b in kept for view in (b.clean, b.perturbed) if view is not None]
    spans = sorted((view.data_ptr(), view.data_ptr() + view.nbytes) for view in views)
    assert len(spans) == 2 * len(kept)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))


@pytest.mark.parametrize("options", [{}, {"paired_fraction": 0.6}, {"train": False}])
def test_both_views_are_one_tensor(make: Make, options: dict[str, Any]) -> None:
    loader = make(dtype=torch.bfloat16, **options)
    for batch in loader:
        assert batch.perturbed is not None
        if "paired_fraction" in options:
            assert len(batch.perturbed) == 3
        both = both_views(batch)
        assert both.data_ptr() == batch.clean.data_ptr(), "copied"
        assert both.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(both, torch.cat([batch.clean, batch.perturbed]))


def test_clean_view_is_that_of_the_single_view_loader(make: Make) -> None:
    for pair, single in zip(epoch(make()), epoch(make(paired=False)), strict=True):
        assert single.perturbed is None
        assert torch.equal(pair.clean, single.clean)
        assert torch.equal(pair.index, single.index)


def test_strength_zero_changes_nothing(make: Make) -> None:
    for batch in epoch(make(strengths=(0, 0, 0, 0))):
        assert batch.perturbed is not None
        assert torch.equal(batch.clean, batch.perturbed)


def test_same_seed_same_batches_for_any_number_of_workers(make: Make) -> None:
    first = epoch(make(workers=1), 2)
    assert all_equal(first, epoch(make(workers=2), 2))
    assert all_equal(first, epoch(make(workers=4), 2))


def test_iterating_twice_gives_the_same_epoch(make: Make) -> None:
    loader = make()
    assert all_equal(epoch(loader, 1), epoch(loader, 1))


def test_another_epoch_or_seed_gives_another_order_and_other_crops(make: Make) -> None:
    loader = make()
    orders = [seen(epoch(loader, 0)), seen(epoch(loader, 1)), seen(epoch(make(seed=1), 0))]
    assert orders[0] != orders[1]
    assert orders[0] != orders[2]
    assert not np.array_equal(loader.plan(0).boxes, loader.plan(1).boxes)
    assert not np.array_equal(loader.plan(0).factors, loader.plan(1).factors)


@from_everywhere
def test_image_does_not_depend_on_the_batch_size(make: Make) -> None:
    def by_index(batches: list[PairBatch]) -> dict[int, torch.Tensor]:
        return {
            int(i): torch.stack([batch.clean[row], batch.perturbed[row]])  # type: ignore[index]
            for batch in batches
            for row, i in enumerate(batch.index)
        }

    some, others = by_index(epoch(make(batch_size=5))), by_index(epoch(make(batch_size=8)))
    common = some.keys() & others.keys()
    assert len(common) >= 2 * BATCH * 5 - N - 1
    assert all(torch.equal(some[i], others[i]) for i in common)


def test_training_drops_the_remainder_and_repeats_nothing(make: Make) -> None:
    indices = seen(epoch(make()))
    assert len(indices) == len(set(indices)) == N // BATCH * BATCH


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_validation_keeps_every_image_once(make: Make, paired: bool, world_size: int) -> None:
    indices = []
    for rank in range(world_size):
        loader = make(train=False, paired=paired, rank=rank, world_size=world_size)
        batches = epoch(loader)
        assert len(batches) == len(loader)
        indices += seen(batches)
    assert sorted(indices) == [i for i in range(N_VAL + 1) if i != 4]


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_each_global_batch(make: Make, world_size: int) -> None:
    size = 6
    whole = [set(batch.index.tolist()) for batch in epoch(make(batch_size=size), 1)]
    shards = [
        epoch(make(batch_size=size, rank=rank, world_size=world_size), 1)
        for rank in range(world_size)
    ]
    for step, expected in enumerate(whole):
        parts = [shard[step].index.tolist() for shard in shards]
        assert all(len(part) == size // world_size for part in parts)
        assert sorted(i for part in parts for i in part) == sorted(expected)


def test_validation_factors_do_not_depend_on_seed_or_epoch(make: Make) -> None:
    first = epoch(make(train=False), 0)
    assert all_equal(first, epoch(make(train=False, seed=7), 5))
    assert any(not torch.equal(b.clean, b.perturbed) for b in first)  # type: ignore[arg-type]


def test_resume_at_a_batch_and_over_the_edge(make: Make) -> None:
    loader = make()
    straight = [epoch(loader, 1), epoch(loader, 2)]
    for stop in (0, 1, 4, 6):
        loader = make()
        loader.set_epoch(1)
        batches = iter(loader)
        for _ in range(stop):
            next(batches)
        state = json.loads(json.dumps(loader.state_dict()))
        batches.close()  # type: ignore[attr-defined]

        resumed = make()
        resumed.load_state_dict(state)
        resumed.set_epoch(1)  # what a training loop does next; it must not lose the place
        assert all_equal(list(resumed), straight[0][stop:])
        assert all_equal(epoch(resumed, 2), straight[1])


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 2), (2, 1)])
def test_another_world_size_may_resume(make: Make, before: int, after: int) -> None:
    done, states = list[int](), []
    for rank in range(before):
        loader = make(batch_size=6, rank=rank, world_size=before)
        batches = iter(loader)
        done += seen([next(batches), next(batches)])
        states.append(loader.state_dict())
        batches.close()  # type: ignore[attr-defined]
    assert all(state == states[0] for state in states)
    rest = []
    for rank in range(after):
        loader = make(batch_size=6, rank=rank, world_size=after)
        loader.load_state_dict(states[0])
        rest += seen(list(loader))
    assert sorted(done + rest) == sorted(seen(epoch(make(batch_size=6), 0)))
    assert len(done + rest) == len(set(done + rest)) == N // 6 * 6


def test_another_resolution_gives_back_the_memory_of_the_last(make: Make) -> None:
    loader = make(resolution=64)
    epoch(loader, 0)
    loader.set_resolution(64)
    assert len(loader._pool) > 0
    deadline = time.monotonic() + 20
    while len(loader._pool) and time.monotonic() < deadline:  # a thread may hold its last task
        loader.set_resolution(SIZE + len(loader._pool))
        loader.set_resolution(SIZE)
        time.sleep(0.01)
    assert len(loader._pool) == 0


def test_resolution_changes_between_epochs(make: Make) -> None:
    loader = make(resolution=32)
    assert all_equal(epoch(loader, 0), epoch(make(resolution=32), 0))
    loader.set_resolution(SIZE)
    assert all_equal(epoch(loader, 1), epoch(make(resolution=SIZE), 1))
    resumed = make(resolution=32)  # a resume sets the resolution of the epoch that it goes on in
    loader.set_epoch(2)
    batches = iter(loader)
    first = next(batches)
    resumed.load_state_dict(loader.state_dict())
    resumed.set_resolution(SIZE)
    assert all_equal([first, *resumed], epoch(make(resolution=SIZE), 2))
    batches.close()  # type: ignore[attr-defined]


def test_slow_consumer_sees_the_same(make: Make) -> None:
    loader, slow = make(), []
    for batch in loader:
        time.sleep(0.05)  # all that may be made ahead is made by then
        slow.append(batch)
    assert all_equal(slow, epoch(make()))


def test_error_in_a_worker_reaches_the_caller(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = make(crop="rrc", timeout=20)
    # A function that this backend's threads call for every image.
    where = {"dali": "dali.read_into", "ffcv": "ffcv.fill"}.get(loader.name, "cpu.place")

    def fail(*_: object) -> None:
        raise MemoryError("no room for this image")

    with monkeypatch.context() as patch:
        patch.setattr(f"fastsc.pipelines.{where}", fail)
        with pytest.raises(MemoryError, match="no room for this image"):
            list(loader)
    assert all_equal(epoch(loader), epoch(make()))  # and does no lasting harm


@pytest.mark.parametrize(
    ("options", "what"),
    [({"seed": 1}, "--seed"), ({"batch_size": 6}, "--batch-size")],
)
def test_state_of_another_run_is_refused(make: Make, options: dict[str, int], what: str) -> None:
    with pytest.raises(UserError, match=f"cannot resume: {what} has changed"):
        make(**options).load_state_dict(make().state_dict())


def test_state_of_other_data_is_refused(make: Make) -> None:
    state = make(train=False).state_dict()
    with pytest.raises(UserError, match="the data set has changed"):
        make().load_state_dict(state)


@pytest.mark.heavy
def test_memory_does_not_grow_with_epochs(make: Make) -> None:
    loader = make()
    held = []
    gc.disable()  # what waits for the collector is a leak to a process that allocates little
    try:
        for number in range(7):
            epoch(loader, number)
            batches = iter(loader)
            next(batches)
            batches.close()  # type: ignore[attr-defined]
            held.append(loader._pool.in_use)
    finally:
        gc.enable()
    # An abandoned epoch leaves up to three batches at work, which end in their own time.
    assert held[-1] <= held[0] + 3, held


def open_files() -> Counter[str]:
    """What this process holds open; a pipe or a socket by its own number."""
    held: Counter[str] = Counter()
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the folder itself, while it was listed
            held[os.readlink(link)] += 1
    return held


@pytest.mark.heavy
@from_everywhere
def test_abandoned_iterator_leaves_no_thread_and_no_file(make: Make) -> None:
    list(make())  # opens what libraries open once a process, and an index its shards
    gc.collect()
    before, files = set(threading.enumerate()), open_files()
    loader = make()
    for _ in range(3):
        batches = iter(loader)
        next(batches)
        batches.close()  # type: ignore[attr-defined]
    other = make()
    assert all_equal(list(loader), epoch(other))
    loader.close()
    other.close()
    assert not [t.name for t in set(threading.enumerate()) - before]
    assert not open_files() - files  # what others had left open may well be closed by now
